//! What can go wrong with the kernel, in words for the operator.

use kernel_netlink::ipvs;
use kernel_nft::{CommitError, KeeperError};

use crate::owned::TABLE;

/// Why the kernel is not as it should be.
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
    /// IPVS cannot be read.
    #[error("reading IPVS failed")]
    ObserveIpvs(#[from] ipvs::Error),
    /// Virtual services are not as they should be.
    #[error("changing IPVS failed")]
    CommitIpvs(#[source] ipvs::CommitError),
    /// Addresses or routes cannot be read or changed.
    #[error("{what} failed")]
    Route {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
