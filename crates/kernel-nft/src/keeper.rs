//! One table that a program keeps: read, compared with what is wanted, changed.

use crate::ruleset::{Counter, Family, Name, Op, Ruleset};
use crate::transaction::{CommitError, Error, Nftables, Observed, Ownership, Transaction};
use crate::{create, diff, stages};

/// The table of a program in the kernel.
#[derive(Debug)]
pub struct Keeper<N> {
    nft: N,
    family: Family,
    table: Name,
}

/// What is in the kernel, ready to be compared.
#[derive(Debug)]
pub struct Found {
    /// The table, if there is one.
    pub observed: Option<Observed>,
}

/// Why a table cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Reading it failed.
    #[error("reading the nftables table {family} {table} failed")]
    Observe {
        /// Family of the table.
        family: Family,
        /// Name of the table.
        table: Name,
        /// Why.
        source: Error,
    },
    /// Another process holds it.
    #[error(
        "the nftables table {family} {table} is owned by another process (netlink port {port}); is this program \
         running on this node twice?"
    )]
    Owned {
        /// Family of the table.
        family: Family,
        /// Name of the table.
        table: Name,
        /// Netlink port of the owner.
        port: u32,
    },
}

impl<N: Nftables> Keeper<N> {
    /// A table, seen through `nft`.
    pub fn new(nft: N, family: Family, table: impl Into<Name>) -> Self {
        Self { nft, family, table: table.into() }
    }

    /// The way to the kernel.
    pub fn nft(&mut self) -> &mut N {
        &mut self.nft
    }

    /// Reads the table, whoever owns it.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn read(&mut self) -> Result<Found, KeeperError> {
        match self.nft.observe(self.family, &self.table) {
            Ok(observed) => Ok(Found { observed }),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    /// Reads the table in order to change it.
    ///
    /// # Errors
    /// When the kernel cannot be read, or another process owns the table.
    pub fn observe(&mut self) -> Result<Found, KeeperError> {
        let found = self.read()?;
        match found.observed.as_ref().map(|observed| observed.ownership) {
            Some(Ownership::Other(port)) => {
                Err(KeeperError::Owned { family: self.family, table: self.table.clone(), port })
            }
            _ => Ok(found),
        }
    }

    /// Commits steps that start from what the kernel is known to hold. New chains go in a transaction ahead of what
    /// jumps to them, and what nothing leads to any more is removed in one after it, when no packet is left that
    /// might still come to it: 10 to 30 ms later. For why, see the module `stages`.
    ///
    /// # Errors
    /// As the kernel says. Then packets meet what they met before, and new chains may be there that nothing jumps to;
    /// or the change is in force, and only the removal of what is no longer used failed.
    pub fn commit(&mut self, ops: &[Op], generation: Option<u32>) -> Result<(), CommitError> {
        // Nobody jumps in a table that is not there yet. One that is there has a generation when it is adopted.
        if generation.is_none() && matches!(ops.first(), Some(Op::AddTable(_))) {
            return self.transact(ops, None);
        }
        let [ahead, rest, after] = stages::split(ops);
        let mut generation = generation;
        let mut done = 0;
        for (stage, waits) in [(ahead, false), (rest, false), (after, true)] {
            if stage.is_empty() {
                continue;
            }
            if waits {
                self.nft.wait_for_packets()?;
            }
            self.transact(stage, generation).map_err(|error| error.after(done))?;
            done += stage.len();
            // Each transaction makes the next one.
            generation = generation.map(|generation| generation.checked_add(1).unwrap_or(1));
        }
        Ok(())
    }

    fn transact(&mut self, ops: &[Op], generation: Option<u32>) -> Result<(), CommitError> {
        self.nft.commit(&Transaction { family: self.family, table: &self.table, ops, generation })
    }

    /// The named counters of the table.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn counters(&mut self) -> Result<impl Iterator<Item = (Name, Counter)> + use<N>, KeeperError> {
        match self.nft.observe_counters(self.family, &self.table) {
            Ok(counters) => Ok(counters.into_iter()),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    fn unreadable(&self, source: Error) -> KeeperError {
        KeeperError::Observe { family: self.family, table: self.table.clone(), source }
    }
}

impl Found {
    /// Steps from here to the wanted table.
    pub fn steps_to(&self, want: &Ruleset) -> Vec<Op> {
        let Some(observed) = &self.observed else { return create(want) };
        let mut ops = diff(want, &observed.ruleset);
        if observed.ownership == Ownership::Orphaned && !matches!(ops.first(), Some(Op::AddTable(_))) {
            // Its last owner is gone; this makes the table ours.
            ops.insert(0, Op::AddTable(want.table.clone()));
        }
        ops
    }
}
