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

use std::fmt;
use std::io;

use nix::libc;

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
    /// Entries changed during each of many attempts to read them. A retry can help.
    #[error("{context}: interrupted in each of {attempts} attempts")]
    Unstable {
        /// What was tried.
        context: &'static str,
        /// How often.
        attempts: u32,
    },
    /// The kernel answered something that is no valid message.
    #[error("{context}: malformed answer of the kernel: {what}")]
    Malformed {
        /// What was tried.
        context: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The socket failed, or the kernel refused. Open another socket.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A command that the kernel did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Index into the commands.
    pub command: usize,
    /// Positive `errno`.
    pub errno: i32,
    /// The command in words.
    pub description: String,
}

impl Refusal {
    /// True if observing again and committing the new difference can help; false if the same wish will be
    /// refused again.
    pub fn is_retryable(&self) -> bool {
        // What is there is not what was thought to be there. ENOENT may also be a scheduler that is unknown:
        // its module may come.
        matches!(
            self.errno,
            libc::ENOENT | libc::ESRCH | libc::EEXIST | libc::EBUSY | libc::EAGAIN | libc::ENOMEM
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.description, io::Error::from_raw_os_error(self.errno))
    }
}

/// Why not all commands were carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Some commands were refused (at least one is listed, in order); all others were carried out.
    #[error("{}", Refusals(.0))]
    Refused(Vec<Refusal>),
    /// Answers of the kernel were lost: commands that are not listed may have been refused too. Observe again.
    #[error("answers of the kernel were lost; {} commands are known to be refused", .0.len())]
    Unconfirmed(Vec<Refusal>),
    /// The socket failed; what became of the commands is not known. Observe again, with another socket.
    #[error("changing IPVS: {0}")]
    Io(#[source] io::Error),
}

struct Refusals<'a>(&'a [Refusal]);

impl fmt::Display for Refusals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("nothing refused"),
            [one] => one.fmt(f),
            [first, rest @ ..] => write!(f, "{first} (and {} more refused)", rest.len()),
        }
    }
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

/// The result of a commit, from what was refused: (index, errno).
fn outcome(commands: &[Command], refused: &[(usize, i32)], lost: bool) -> Result<(), CommitError> {
    let refusals: Vec<Refusal> = refused
        .iter()
        .map(|&(command, errno)| {
            let description = commands.get(command).map(ToString::to_string).unwrap_or_default();
            Refusal { command, errno, description }
        })
        .collect();
    match (lost, refusals.is_empty()) {
        (true, _) => Err(CommitError::Unconfirmed(refusals)),
        (false, false) => Err(CommitError::Refused(refusals)),
        (false, true) => Ok(()),
    }
}
