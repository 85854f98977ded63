//! nf_tables in memory, for tests of what is built on this crate.
//!
//! It refuses what the kernel refuses, with the same `errno` at the same change; the contract suite of this
//! crate runs on both. Beyond that it can be told to refuse a change, to break the conversation, or to let
//! somebody else meddle.
//!
//! ```
//! use kernel_nft::{Fake, Nftables};
//! let fake = Fake::new();
//! let mut ours = fake.clone();      // same kernel, same socket
//! let mut stranger = fake.stranger(); // same kernel, another process
//! # let _ = (&mut ours, &mut stranger);
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc;

use crate::apply::apply_one;
use crate::describe::describe;
use crate::ruleset::{Counter, Family, Name, Op, Ruleset, Table, TableFlags};
use crate::transaction::{CommitError, Error, Nftables, Observed, Ownership, Transaction};
use crate::usage::Usage;
use crate::validate::validate;

/// A handle on a kernel in memory. Clones are the same socket on the same kernel.
#[derive(Clone)]
pub struct Fake {
    kernel: Arc<Mutex<Kernel>>,
    portid: u32,
}

#[derive(Default)]
struct Kernel {
    tables: BTreeMap<(Family, Name), Entry>,
    generation: u32,
    sockets: u32,
    commits: usize,
    attempts: usize,
    observations: usize,
    refusals: Vec<Refusal>,
    breakdown: Option<Breakdown>,
    unstable_observations: usize,
    without_persist: bool,
}

#[derive(Clone)]
struct Entry {
    ruleset: Ruleset,
    usage: Usage,
    /// Port of the owner's socket, while it is open.
    owner: Option<u32>,
}

struct Refusal {
    applies: Box<dyn Fn(&Op) -> bool + Send>,
    errno: i32,
    /// How often it still happens; `None` is always.
    remaining: Option<usize>,
}

/// The next commit is not confirmed.
#[derive(Clone, Copy)]
struct Breakdown {
    carried_out: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// A kernel without tables, and a socket on it.
    pub fn new() -> Self {
        let kernel = Kernel { generation: 1, sockets: 1, ..Kernel::default() };
        Self { kernel: Arc::new(Mutex::new(kernel)), portid: 1 }
    }

    /// A kernel that knows no `NFT_TABLE_F_PERSIST`, as before Linux 6.9.
    pub fn without_persist() -> Self {
        let fake = Self::new();
        fake.kernel().without_persist = true;
        fake
    }

    /// A socket of another process on the same kernel.
    pub fn stranger(&self) -> Self {
        let mut kernel = self.kernel();
        kernel.sockets += 1;
        Self { kernel: self.kernel.clone(), portid: kernel.sockets }
    }

    /// Closes this socket, as the end of the process does, and opens another: tables with `owner` and
    /// `persist` become orphans, those with `owner` only go away.
    pub fn restart(&mut self) {
        let old = self.portid;
        let mut kernel = self.kernel();
        kernel.sockets += 1;
        let new = kernel.sockets;
        kernel.tables.retain(|_, entry| {
            if entry.owner != Some(old) {
                return true;
            }
            entry.owner = None;
            entry.orphan()
        });
        drop(kernel);
        self.portid = new;
    }

    /// What `nft flush ruleset` of another process does: every table without a living owner goes away.
    pub fn flush_by_stranger(&self) {
        let mut kernel = self.kernel();
        // KERNEL: nft_flush() skips tables that have an owner; orphans are flushed.
        kernel.tables.retain(|_, entry| entry.owner.is_some());
        kernel.bump();
    }

    /// Lets the next `times` ops that `applies` picks (or all of them, with `None`) be refused.
    pub fn refuse(&self, applies: impl Fn(&Op) -> bool + Send + 'static, errno: i32, times: Option<usize>) {
        self.kernel().refusals.push(Refusal { applies: Box::new(applies), errno, remaining: times });
    }

    /// Ends all refusals asked for by [`Fake::refuse`].
    pub fn refuse_nothing(&self) {
        self.kernel().refusals.clear();
    }

    /// Lets the next commit end with [`CommitError::Unconfirmed`], carried out or not.
    pub fn break_next_commit(&self, carried_out: bool) {
        self.kernel().breakdown = Some(Breakdown { carried_out });
    }

    /// Lets the next `times` observations fail with [`Error::Unstable`].
    pub fn break_observations(&self, times: usize) {
        self.kernel().unstable_observations = times;
    }

    /// Transactions carried out, by anybody.
    pub fn commits(&self) -> usize {
        self.kernel().commits
    }

    /// Transactions tried, by anybody.
    pub fn attempts(&self) -> usize {
        self.kernel().attempts
    }

    /// Times that a whole table was read, by anybody.
    pub fn observations(&self) -> usize {
        self.kernel().observations
    }

    /// What a table holds now.
    pub fn ruleset(&self, family: Family, table: &str) -> Option<Ruleset> {
        self.kernel().tables.get(&(family, table.into())).map(|entry| entry.ruleset.clone())
    }

    /// Sets the values of a named counter, as if packets had been counted; false if there is none.
    pub fn count(&self, family: Family, table: &str, counter: &str, packets: u64, bytes: u64) -> bool {
        let mut kernel = self.kernel();
        let entry = kernel.tables.get_mut(&(family, table.into()));
        match entry.and_then(|entry| entry.ruleset.counters.get_mut(counter)) {
            Some(found) => {
                (found.packets, found.bytes) = (packets, bytes);
                true
            }
            None => false,
        }
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        // A test that panicked elsewhere leaves whole transactions only.
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(table: Table) -> Self {
        Self { ruleset: Ruleset::new(table), usage: Usage::default(), owner: None }
    }

    /// Takes the owner away; false if the table cannot live without.
    fn orphan(&mut self) -> bool {
        self.ruleset.table.flags.owner = false;
        self.ruleset.table.flags.persist
    }
}

impl Kernel {
    fn bump(&mut self) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
    }

    /// Carries out a transaction on copies; the caller puts them in place. `Err` is the op and its errno.
    fn try_commit(
        &mut self,
        transaction: &Transaction<'_>,
        portid: u32,
    ) -> Result<Option<Entry>, (usize, i32)> {
        let key = (transaction.family, transaction.table.clone());
        let mut entry = self.tables.get(&key).cloned();
        let mut jumps = false;
        for (index, op) in transaction.ops.iter().enumerate() {
            let failed = |errno| (index, errno);
            if let Some(errno) = self.refusal(op) {
                return Err(failed(errno));
            }
            self.one(&mut entry, op, portid).map_err(failed)?;
            jumps |= adds_jump(op);
        }
        if jumps && let Some(entry) = &entry {
            // KERNEL: nf_tables_commit() validates the table once all changes are made.
            validate(&entry.ruleset).map_err(|errno| (self.culprit(transaction, portid), errno))?;
        }
        Ok(entry)
    }

    fn one(&self, entry: &mut Option<Entry>, op: &Op, portid: u32) -> Result<(), i32> {
        match (op, entry.as_mut()) {
            (Op::AddTable(table), None) => *entry = Some(self.new_table(table, portid)?),
            (Op::AddTable(table), Some(entry)) => update_table(entry, table, portid)?,
            (_, None) => return Err(libc::ENOENT),
            (_, Some(found)) if found.owner.is_some_and(|owner| owner != portid) => return Err(libc::EPERM),
            (Op::DeleteTable, Some(_)) => *entry = None,
            (_, Some(found)) => {
                found.usage.check(&found.ruleset, op)?;
                apply_one(&mut found.ruleset, op)?;
                found.usage.add(op);
            }
        }
        Ok(())
    }

    fn new_table(&self, table: &Table, portid: u32) -> Result<Entry, i32> {
        if table.flags.persist && (self.without_persist || !table.flags.owner) {
            return Err(libc::EOPNOTSUPP);
        }
        let mut entry = Entry::new(table.clone());
        entry.owner = table.flags.owner.then_some(portid);
        Ok(entry)
    }

    /// The op that closes a circle: the kernel tries again, validating after each, and blames the first
    /// after which the table is not valid.
    fn culprit(&self, transaction: &Transaction<'_>, portid: u32) -> usize {
        let mut entry = self.tables.get(&(transaction.family, transaction.table.clone())).cloned();
        for (index, op) in transaction.ops.iter().enumerate() {
            if self.one(&mut entry, op, portid).is_ok()
                && adds_jump(op)
                && entry.as_ref().is_some_and(|entry| validate(&entry.ruleset).is_err())
            {
                return index;
            }
        }
        transaction.ops.len().saturating_sub(1)
    }

    fn refusal(&mut self, op: &Op) -> Option<i32> {
        let refusal =
            self.refusals.iter_mut().find(|refusal| refusal.remaining != Some(0) && (refusal.applies)(op))?;
        if let Some(remaining) = &mut refusal.remaining {
            *remaining -= 1;
        }
        Some(refusal.errno)
    }
}

/// KERNEL: nf_tables_updtable().
fn update_table(entry: &mut Entry, table: &Table, portid: u32) -> Result<(), i32> {
    let flags = entry.ruleset.table.flags;
    if entry.owner.is_some_and(|owner| owner != portid) {
        return Err(libc::EPERM);
    }
    if table.flags == flags {
        return Ok(());
    }
    if !flags.owner && (TableFlags { dormant: table.flags.dormant, ..flags }) == table.flags {
        entry.ruleset.table.flags.dormant = table.flags.dormant;
        return Ok(());
    }
    let orphan = TableFlags { persist: true, ..TableFlags::default() };
    if flags == orphan && table.flags == (TableFlags { owner: true, persist: true, dormant: false }) {
        entry.owner = Some(portid);
        entry.ruleset.table.flags = table.flags;
        return Ok(());
    }
    Err(libc::EOPNOTSUPP)
}

fn adds_jump(op: &Op) -> bool {
    match op {
        Op::AddRule(..) => true,
        Op::AddElements(_, elements) => elements.iter().any(|(_, value)| value.target().is_some()),
        _ => false,
    }
}

/// What [`Socket`](crate::Socket) would not write is refused here with the same words.
fn unwritable(transaction: &Transaction<'_>) -> Option<CommitError> {
    crate::wire::encode::Batch::encode(transaction, 0, true).err().map(|unwritable| CommitError::Invalid {
        op: unwritable.op,
        description: transaction.ops.get(unwritable.op).map(describe).unwrap_or_default(),
        what: unwritable.what,
    })
}

impl Nftables for Fake {
    fn portid(&self) -> u32 {
        self.portid
    }

    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error> {
        let mut kernel = self.kernel();
        kernel.observations += 1;
        if kernel.unstable_observations > 0 {
            kernel.unstable_observations -= 1;
            return Err(Error::Unstable { attempts: 1 });
        }
        let generation = kernel.generation;
        Ok(kernel.tables.get(&(family, table.into())).map(|entry| Observed {
            ruleset: entry.ruleset.clone(),
            generation,
            ownership: match (entry.owner, entry.ruleset.table.flags.persist) {
                (Some(owner), _) if owner == self.portid => Ownership::Ours,
                (Some(owner), _) => Ownership::Other(owner),
                (None, true) => Ownership::Orphaned,
                (None, false) => Ownership::Free,
            },
        }))
    }

    /// There are no packets.
    fn wait_for_packets(&mut self) -> Result<(), CommitError> {
        Ok(())
    }

    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        let kernel = self.kernel();
        let entry = kernel.tables.get(&(family, table.into()));
        Ok(entry.map(|entry| entry.ruleset.counters.clone()).unwrap_or_default())
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError> {
        if transaction.ops.iter().all(Op::is_nothing) {
            return Ok(());
        }
        if let Some(error) = unwritable(transaction) {
            return Err(error);
        }
        let mut kernel = self.kernel();
        kernel.attempts += 1;
        if transaction.generation.is_some_and(|generation| generation != kernel.generation) {
            return Err(CommitError::GenerationChanged);
        }
        let describe = |op: usize| transaction.ops.get(op).map(describe).unwrap_or_default();
        let entry = kernel.try_commit(transaction, self.portid).map_err(|(op, errno)| match errno {
            libc::EPERM => CommitError::NotOwner { op, description: describe(op) },
            _ => CommitError::Refused { op, errno, offset: None, description: describe(op) },
        })?;
        let breakdown = kernel.breakdown.take();
        if breakdown.is_none_or(|breakdown| breakdown.carried_out) {
            let key = (transaction.family, transaction.table.clone());
            match entry {
                Some(entry) => kernel.tables.insert(key, entry),
                None => kernel.tables.remove(&key),
            };
            kernel.commits += 1;
            kernel.bump();
        }
        match breakdown {
            Some(_) => Err(CommitError::Unconfirmed),
            None => Ok(()),
        }
    }
}
