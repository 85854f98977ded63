//! What should be in the kernel, and the steps to it. Pure.
//!
//! ```text
//!   World ──touched──► Planner ──┬─ chain     rules of a set of policies
//!                                ├─ sets      who is in which address set
//!                                ├─ base      hooks, dispatch, refusal, generation
//!                                └─ kernel_nft::Journal   shadow of the table ──► ops
//! ```
//!
//! The layout of the table is described in docs/architecture.md: a packet costs one comparison once its
//! connection is allowed; before that, one look-up of its source and one of its destination, and the rules
//! of at most two chains.

pub mod base;
pub mod chain;
pub mod generation;
pub mod planner;
pub mod sets;

pub use planner::{Planner, Update};

use kernel_nft::IpVersion;

/// What the operator chose, as far as rules depend on it.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// IP versions that are filtered; the others pass.
    pub versions: Vec<IpVersion>,
    /// Whether refused packets are answered.
    pub deny: DenyAction,
    /// What becomes of established connections that are no longer allowed.
    pub established: Established,
    /// Contiguous bits of the connection mark for the generation; 0 for none, then each packet of the
    /// original direction is judged.
    pub mark_mask: u32,
    /// NFLOG group of refused packets; `None` logs nothing.
    pub nflog_group: Option<u16>,
    /// Judge what pods send to their own node by their egress policies.
    pub judge_egress_to_node: bool,
}

/// `--deny-action`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyAction {
    /// TCP reset, else ICMP admin-prohibited.
    Reject,
    /// Nothing.
    Drop,
}

/// `--established`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Established {
    /// Connections that are no longer allowed are cut.
    Recheck,
    /// Connections live on as long as they like, as with kube-router.
    Keep,
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self {
            versions: vec![IpVersion::V4, IpVersion::V6],
            deny: DenyAction::Reject,
            established: Established::Recheck,
            mark_mask: crate::owned::MARK_MASK,
            nflog_group: Some(crate::owned::NFLOG_GROUP),
            judge_egress_to_node: true,
        }
    }
}

impl PlanConfig {
    /// Whether connections are marked with the generation that allowed them.
    pub fn marks(&self) -> bool {
        self.established == Established::Recheck && self.mark_mask != 0
    }

    /// The highest generation that fits into the mark; 0 stands for "never judged".
    pub fn last_generation(&self) -> u32 {
        if self.mark_mask == 0 { 0 } else { self.mark_mask >> self.mark_mask.trailing_zeros() }
    }
}

/// First ten bytes of SHA-256, in hexadecimal: names must not collide even if someone tries, because pods of
/// two tenants would share a set.
fn digest(text: &str) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write;
    let mut name = String::with_capacity(20);
    for byte in Sha256::digest(text.as_bytes()).iter().take(10) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}
