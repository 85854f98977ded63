//! The edge to nf_tables.
//!
//! ```text
//!   want: Ruleset ──┐
//!                   ├─ diff ─► [Op] ─ commit ─► kernel or Fake
//!   have: Ruleset ◄─┴────────────── observe ◄──┘
//! ```

#[cfg(test)]
extern crate self as kernel_nft;

mod apply;
pub mod builder;
pub mod conntrack;
mod describe;
mod diff;
pub mod elements;
pub mod expr;
pub mod fake;
pub mod ipset;
mod journal;
mod keeper;
pub mod legacy;
pub mod monitor;
mod netlink;
mod reference;
pub mod ruleset;
mod socket;
mod stages;
pub mod text;
mod traces;
pub mod transaction;
mod usage;
mod validate;
mod wire;

pub use apply::{Refused, apply};
pub use builder::{DESTINATION, Field, SOURCE};
pub use diff::{create, diff};
pub use elements::Elements;
pub use expr::*;
pub use fake::Fake;
pub use journal::{Journal, Steps};
pub use keeper::{Found, Keeper, KeeperError};
pub use monitor::{Change, Monitor};
pub use ruleset::*;
pub use socket::Socket;
pub use traces::{Trace, Traces, TracesError};
pub use transaction::{CommitError, Error, Nftables, Observed, Ownership, Transaction};
