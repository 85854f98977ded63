//! IPVS: virtual services, their destinations, timeouts.
//!
//! ```text
//!   ServiceKey ── Service: scheduler, flags, persistence
//!                    └── DestinationKey ── Destination: weight, way there, limits
//! ```
//!
//! Sources of the rules told here and kept by [`Fake`]: include/uapi/linux/ip_vs.h (the interface),
//! net/netfilter/ipvs/ip_vs_ctl.c (`ip_vs_genl_set_cmd`, `ip_vs_add_service`, `ip_vs_add_dest`, …).

mod entry;
mod fake;
#[cfg(test)]
mod fuzz;
mod socket;
mod uapi;
mod wire;

use crate::commit::outcome;
pub use crate::commit::{CommitError, Refusal};
pub use entry::*;
pub use fake::Fake;
pub use socket::Socket;

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no IPVS and found no module to load. KERNEL: modules are looked for in the file system of
    /// the host, not of the container.
    #[error("the kernel has no IPVS: load the module ip_vs")]
    Absent,
    /// What was asked was not answered.
    #[error(transparent)]
    Netlink(#[from] crate::Error),
}

/// A place that holds IPVS entries: the kernel ([`Socket`]) or a model of it ([`Fake`]). Both refuse the same
/// things; one contract suite runs on both.
pub trait Ipvs {
    /// All services, of everybody, each once, in no particular order.
    ///
    /// KERNEL: no snapshot. While services are removed, in any network namespace, others may be missed; a
    /// command tells (`EEXIST`), and so does reading again.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_services(&mut self) -> Result<Vec<ServiceState>, Error>;

    /// One service; `None` when there is none with the key.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_service(&mut self, key: &ServiceKey) -> Result<Option<ServiceState>, Error>;

    /// The destinations of a service, each once, in no particular order; none when there is no such service. No
    /// snapshot either.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>, Error>;

    /// How long connections are kept.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_timeouts(&mut self) -> Result<Timeouts, Error>;

    /// What IPVS says of itself.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn info(&mut self) -> Result<Info, Error>;

    /// Carries out the commands in order. Each stands for itself: those that are refused cost the others
    /// nothing.
    ///
    /// # Errors
    /// [`CommitError`] when not all of them were, or may not have been, carried out.
    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError>;
}
