//! What can go wrong with the kernel, in words for the operator.

use kernel_nft::CommitError;

use crate::owned::TABLE;

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the table failed.
    #[error("reading the nftables table inet {TABLE} failed")]
    Observe(#[source] kernel_nft::Error),
    /// A transaction was refused.
    #[error("changing the nftables table inet {TABLE} failed")]
    Commit(#[source] CommitError),
    /// Another process holds the table.
    #[error(
        "the nftables table inet {TABLE} is owned by another process (netlink port {0}); stop the other npc-firewall \
         on this node"
    )]
    Owned(u32),
    /// The table did not stay as it was written.
    #[error("somebody keeps changing the nftables table inet {TABLE}; `nft monitor` shows who")]
    Unstable,
}
