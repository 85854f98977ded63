//! What comes of commands that the kernel was given many at a time: each is carried out or refused by itself.

use std::fmt;
use std::io;

use nix::libc;

use crate::netlink::Answers;

/// A command that the kernel did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Index into the commands.
    pub command: usize,
    /// Positive `errno`.
    pub errno: i32,
    /// The command in words.
    pub description: String,
    /// What the kernel says of it besides, in English, where it does.
    pub reason: Option<String>,
}

impl Refusal {
    /// True if observing again and committing the new difference can help; false if the same wish will be
    /// refused again.
    pub fn is_retryable(&self) -> bool {
        match self.errno {
            // What is there is not what was thought to be there. ENOENT may also be a scheduler of IPVS that is
            // unknown: its module may come.
            libc::ENOENT | libc::ESRCH | libc::EEXIST | libc::ENODEV | libc::EADDRNOTAVAIL => true,
            // The way to a gateway is down.
            libc::ENETDOWN | libc::ENETUNREACH | libc::EHOSTUNREACH => true,
            libc::EBUSY | libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS => true,
            _ => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.description, io::Error::from_raw_os_error(self.errno))?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
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
    #[error("changing the kernel: {0}")]
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

/// The result of a commit, from what was answered.
pub(crate) fn outcome<C: fmt::Display>(commands: &[C], mut answers: Answers) -> Result<(), CommitError> {
    let refusals: Vec<Refusal> = answers
        .refused
        .iter()
        .map(|&(command, errno)| {
            let description = commands.get(command).map(ToString::to_string).unwrap_or_default();
            Refusal { command, errno, description, reason: answers.reasons.remove(&command) }
        })
        .collect();
    match (answers.lost, refusals.is_empty()) {
        (true, _) => Err(CommitError::Unconfirmed(refusals)),
        (false, false) => Err(CommitError::Refused(refusals)),
        (false, true) => Ok(()),
    }
}
