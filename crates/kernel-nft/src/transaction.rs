//! What can be done to a table: see it, change it in one transaction, and why a change was refused.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use nix::libc;

use crate::ruleset::{Counter, Family, Key, Name, Op, Ruleset, Table, TableFlags};

/// A list of changes of one table, carried out in order, all or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// Family of the table.
    pub family: Family,
    /// The table; one of `ops` may make it.
    pub table: &'a Name,
    /// The changes.
    pub ops: &'a [Op],
    /// Only if the kernel's ruleset generation is still this one ([`Observed::generation`]). Any change of any
    /// table in the network namespace makes a new generation, so use it to repair, not for each change.
    pub generation: Option<u32>,
}

/// Who may change a table that has the flag `owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The table has no owner: anyone may change it.
    Free,
    /// This socket owns it.
    Ours,
    /// The owner's socket is closed (flag `persist`): the next `Op::AddTable` with the same flags adopts it.
    Orphaned,
    /// The socket with this netlink port owns it.
    Other(u32),
}

/// What the kernel holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The table.
    pub ruleset: Ruleset,
    /// Generation of the kernel's whole ruleset that `ruleset` is a picture of; never 0.
    pub generation: u32,
    /// Who may change it.
    pub ownership: Ownership,
}

/// Why the kernel could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel answered something that is no valid message.
    #[error("{context}: malformed answer of the kernel: {what}")]
    Malformed {
        /// What was tried.
        context: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The ruleset changed during each of many attempts to read it. A retry can help.
    #[error("the ruleset changed during each of {attempts} attempts to read it")]
    Unstable {
        /// How often it was tried.
        attempts: u32,
    },
}

/// Why a transaction changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused one of the changes.
    #[error("{description}: {}", Refusal(*.errno, *.offset))]
    Refused {
        /// Index into [`Transaction::ops`] of the first change refused.
        op: usize,
        /// Positive `errno`.
        errno: i32,
        /// Offset of the offending attribute in the netlink message, where the kernel told.
        offset: Option<u32>,
        /// The change in words, with the name of the object.
        description: String,
    },
    /// The kernel refused the transaction without naming a change (for instance out of memory on commit).
    #[error("transaction refused as a whole: {}", Refusal(*.errno, None))]
    Aborted {
        /// Positive `errno`.
        errno: i32,
    },
    /// The ruleset is no longer of the generation asked for. Observe and diff again.
    #[error("the ruleset was changed by somebody else since it was read")]
    GenerationChanged,
    /// Another living socket owns the table.
    #[error("{description}: the table is owned by another process")]
    NotOwner {
        /// Index into [`Transaction::ops`].
        op: usize,
        /// The change in words.
        description: String,
    },
    /// A change that cannot be written as a message (a name or comment too long, a key of the wrong length).
    #[error("{description}: {what}")]
    Invalid {
        /// Index into [`Transaction::ops`].
        op: usize,
        /// The change in words.
        description: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The kernel's answer does not say whether the transaction was carried out. Observe again.
    #[error("the kernel did not confirm the transaction")]
    Unconfirmed,
    /// The socket failed; nothing was sent, or it is unknown what became of it.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl CommitError {
    /// True if observing again, making a new difference and committing that can help; false if the same
    /// wish will be refused again.
    pub fn is_retryable(&self) -> bool {
        match self {
            // What is there is not what was thought to be there.
            Self::Refused { errno, .. } => matches!(
                *errno,
                libc::ENOENT | libc::EEXIST | libc::EBUSY | libc::ENOTEMPTY | libc::ENOMEM | libc::EAGAIN
            ),
            Self::Aborted { .. } | Self::GenerationChanged | Self::Unconfirmed | Self::Io { .. } => true,
            Self::NotOwner { .. } | Self::Invalid { .. } => false,
        }
    }

    /// The same, if so many ops were committed before.
    pub(crate) fn after(mut self, before: usize) -> Self {
        if let Self::Refused { op, .. } | Self::NotOwner { op, .. } | Self::Invalid { op, .. } = &mut self {
            *op += before;
        }
        self
    }
}

struct Refusal(i32, Option<u32>);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))?;
        match self.1 {
            Some(offset) => write!(f, " (attribute at byte {offset})"),
            None => Ok(()),
        }
    }
}

/// A place that holds nf_tables tables: the kernel ([`Socket`](crate::Socket)) or a model of it
/// ([`Fake`](crate::Fake)). Both refuse the same things; one contract suite runs on both.
pub trait Nftables {
    /// Reads one table, whole and consistent. `None` when it is absent.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked or keeps changing.
    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error>;

    /// Reads the named counters of a table; cheap, for a metrics scrape. Empty when the table is absent.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error>;

    /// Whether a set or map (not of ranges) has an element with a key; false when the set or the table is absent.
    ///
    /// KERNEL: a transaction that fails waits for all readers of the ruleset (`synchronize_rcu()` in
    /// `__nf_tables_abort()`), 10 ms and more; to ask first costs 0.03 ms.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn has_element(&mut self, family: Family, table: &str, set: &str, key: &Key) -> Result<bool, Error> {
        let seen = self.observe(family, table)?;
        let set = seen.as_ref().and_then(|seen| seen.ruleset.sets.get(set));
        Ok(set.is_some_and(|set| set.elements.contains_key(key)))
    }

    /// Carries out a transaction, or nothing of it. Without ops it does nothing and succeeds.
    ///
    /// # Errors
    /// [`CommitError`]; after [`CommitError::Unconfirmed`] and [`CommitError::Io`] it is not known whether
    /// the transaction was carried out.
    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError>;

    /// Waits until every packet that was in a rule when this was called is out of it; 10 to 30 ms.
    ///
    /// KERNEL: a transaction that fails waits for all readers of the ruleset (`synchronize_rcu()` in
    /// `__nf_tables_abort()`, net/netfilter/nf_tables_api.c). membarrier(2) would do the same, but not on nodes with
    /// `nohz_full`, and only where a container's seccomp profile allows it.
    ///
    /// # Errors
    /// [`CommitError`] when the kernel cannot be asked.
    fn wait_for_packets(&mut self) -> Result<(), CommitError> {
        let nowhere: Name = format!("wait-{}", self.portid()).into();
        let ops = [Op::DeleteTable];
        let transaction = Transaction { family: Family::Inet, table: &nowhere, ops: &ops, generation: None };
        match self.commit(&transaction) {
            Ok(()) | Err(CommitError::Refused { errno: libc::ENOENT, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The port by which the kernel names this conversation, as owner of tables and author of changes.
    fn portid(&self) -> u32;

    /// True if there are tables that outlive their owner (`NFT_TABLE_F_PERSIST`, Linux ≥ 6.9): makes one with
    /// a name that nobody else uses and removes it in the same transaction.
    ///
    /// # Errors
    /// [`CommitError`] when it is refused for another reason than not knowing the flags.
    fn supports_persist(&mut self) -> Result<bool, CommitError> {
        let name: Name = format!("probe-{}", self.portid()).into();
        let flags = TableFlags { owner: true, persist: true, dormant: false };
        let table = Table { family: Family::Inet, name: name.clone(), flags, comment: None };
        let ops = [Op::AddTable(table), Op::DeleteTable];
        match self.commit(&Transaction { family: Family::Inet, table: &name, ops: &ops, generation: None }) {
            Ok(()) => Ok(true),
            Err(CommitError::Refused { errno: libc::EINVAL | libc::EOPNOTSUPP, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
