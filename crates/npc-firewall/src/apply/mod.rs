//! The only kernel I/O: the table, the connection marks, and the bridge sysctls.

pub mod sysctl;

use std::io;

use kernel_nft::{CommitError, Family, Name, Nftables, Observed, Op, Ownership, Ruleset, Transaction};

use crate::error::Error;
use crate::owned;

/// Clears connection marks that belong to generations long gone.
pub trait Marks {
    /// Zeroes the bits of `mask` in the mark of every connection where they are neither zero nor `keep`.
    ///
    /// # Errors
    /// When connection tracking cannot be read or written.
    fn clear(&mut self, mask: u32, keep: u32) -> io::Result<()>;
}

/// The table of this program in the kernel.
#[derive(Debug)]
pub struct Kernel<N> {
    nft: N,
    table: Name,
}

/// What is in the kernel, ready to be compared.
#[derive(Debug)]
pub struct Found {
    /// The table, if there is one.
    pub observed: Option<Observed>,
}

impl<N: Nftables> Kernel<N> {
    /// The table, seen through `nft`.
    pub fn new(nft: N) -> Self {
        Self { nft, table: owned::TABLE.into() }
    }

    /// The way to the kernel.
    pub fn nft(&mut self) -> &mut N {
        &mut self.nft
    }

    /// Reads the table, whoever owns it.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn read(&mut self) -> Result<Found, Error> {
        let observed = self.nft.observe(Family::Inet, &self.table).map_err(Error::Observe)?;
        Ok(Found { observed })
    }

    /// Reads the table in order to change it.
    ///
    /// # Errors
    /// When the kernel cannot be read, or another process owns the table.
    pub fn observe(&mut self) -> Result<Found, Error> {
        let found = self.read()?;
        match found.observed.as_ref().map(|observed| observed.ownership) {
            Some(Ownership::Other(port)) => Err(Error::Owned(port)),
            _ => Ok(found),
        }
    }

    /// Commits steps that start from what the kernel is known to hold.
    ///
    /// # Errors
    /// As the kernel says; nothing was changed then.
    pub fn commit(&mut self, ops: &[Op], generation: Option<u32>) -> Result<(), CommitError> {
        if ops.is_empty() {
            return Ok(());
        }
        self.nft.commit(&Transaction { family: Family::Inet, table: &self.table, ops, generation })
    }

    /// Packets refused so far, by the name of the counter.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn refused(&mut self) -> Result<impl Iterator<Item = (Name, u64)> + use<N>, Error> {
        let counters = self.nft.observe_counters(Family::Inet, &self.table).map_err(Error::Observe)?;
        Ok(counters.into_iter().map(|(name, counter)| (name, counter.packets)))
    }
}

impl Found {
    /// Steps from here to the wanted table.
    pub fn steps_to(&self, want: &Ruleset) -> Vec<Op> {
        let Some(observed) = &self.observed else {
            let mut ops = vec![Op::AddTable(want.table.clone())];
            ops.extend(kernel_nft::diff(want, &Ruleset::new(want.table.clone())));
            return ops;
        };
        let mut ops = kernel_nft::diff(want, &observed.ruleset);
        if observed.ownership == Ownership::Orphaned && !matches!(ops.first(), Some(Op::AddTable(_))) {
            // Its last owner is gone; this makes the table ours.
            ops.insert(0, Op::AddTable(want.table.clone()));
        }
        ops
    }
}
