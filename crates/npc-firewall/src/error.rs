//! What can go wrong with the kernel, in words for the operator.

use kernel_nft::{CommitError, KeeperError};

use crate::owned::TABLE;

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table cannot be read, or another process holds it.
    #[error(transparent)]
    Keep(#[from] KeeperError),
    /// A transaction was refused.
    #[error("changing the nftables table inet {TABLE} failed")]
    Commit(#[source] CommitError),
    /// The table did not stay as it was written.
    #[error("somebody keeps changing the nftables table inet {TABLE}; `nft monitor` shows who")]
    Unstable,
}
