//! What another program left in netfilter, by name: found, and removed without touching anybody else's.
//!
//! ```text
//!  tables of its own          ip kube-router-filter-ipv4                      deleted
//!  tables that many share     ip filter ─┬─ INPUT: jump KUBE-ROUTER-INPUT     deleted by its handle ┐ one
//!                                        └─ KUBE-ROUTER-INPUT { … }           emptied and deleted   ┘ transaction
//!  ipsets                     KUBE-SRC-ABC                                    destroyed
//! ```
//!
//! iptables of today writes into nf_tables, so its chains are found here. Those of its older variant are not; see
//! [`legacy`](crate::legacy).

use std::fmt;
use std::time::Duration;

use crate::ipset::{DestroyError, Ipsets};
use crate::ruleset::{Family, Name, Op};
use crate::socket::{ChainsError, Socket};
use crate::transaction::{CommitError, Error, Nftables, Transaction};

/// For how long an ipset may still be in use after the rules that used it were removed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names by which a program's leftovers are known.
#[derive(Clone, Copy, Debug)]
pub struct Traces {
    /// nf_tables tables that are its own.
    pub tables: &'static [(Family, &'static str)],
    /// nf_tables tables that it shares with others.
    pub shared: &'static [(Family, &'static str)],
    /// True for the names of its chains in the shared tables.
    pub is_chain: fn(&str) -> bool,
    /// True for the names of its ipsets.
    pub is_ipset: fn(&str) -> bool,
}

/// One thing that was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// A table.
    Table(Family, Name),
    /// A rule that leads to one of the chains.
    Rule {
        /// Family of the table.
        family: Family,
        /// The table.
        table: Name,
        /// Where the rule is.
        chain: Name,
        /// Where it leads.
        to: Name,
    },
    /// A chain and its rules.
    Chain {
        /// Family of the table.
        family: Family,
        /// The table.
        table: Name,
        /// Its name.
        chain: Name,
    },
    /// An ipset.
    Ipset(String),
}

/// Why something stays.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A table cannot be read.
    #[error("reading the nftables table {0} {1}: {2}")]
    Observe(Family, Name, Error),
    /// A table, or its chains, cannot be removed.
    #[error("the nftables table {0} {1}: {2}")]
    Remove(Family, Name, CommitError),
    /// The ipsets cannot be listed.
    #[error("{0}")]
    Ipsets(Error),
    /// An ipset cannot be removed.
    #[error("ipset {0}: {1}")]
    Destroy(String, DestroyError),
}

impl Traces {
    /// What there is, and what could not be looked into.
    pub fn find(&self, nft: &mut Socket, ipsets: &mut Ipsets) -> (Vec<Trace>, Vec<TracesError>) {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for &(family, table) in self.tables {
            match nft.has_table(family, table) {
                Ok(true) => found.push(Trace::Table(family, table.into())),
                Ok(false) => {}
                Err(error) => errors.push(TracesError::Observe(family, table.into(), error)),
            }
        }
        for &(family, table) in self.shared {
            match nft.find_chains(family, table, self.is_chain) {
                Ok(chains) => found.extend(chains.into_traces(family, &table.into())),
                Err(error) => errors.push(TracesError::Observe(family, table.into(), error)),
            }
        }
        match self.ipsets(ipsets) {
            Ok(sets) => found.extend(sets.into_iter().map(Trace::Ipset)),
            Err(error) => errors.push(error),
        }
        (found, errors)
    }

    /// Removes all of it and tells `removed` of each thing; what fails does not keep the rest. Returns why something
    /// stays.
    ///
    /// Chains of one table go in one transaction: all, or none and an error that names the one that others need.
    pub fn remove(
        &self,
        nft: &mut Socket,
        ipsets: &mut Ipsets,
        mut removed: impl FnMut(&Trace),
    ) -> Vec<TracesError> {
        let mut errors = Vec::new();
        for &(family, table) in self.tables {
            match delete_table(nft, family, table) {
                Ok(true) => removed(&Trace::Table(family, table.into())),
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
        }
        for &(family, table) in self.shared {
            let table: Name = table.into();
            match nft.remove_chains(family, &table, self.is_chain) {
                Ok(chains) => chains.into_traces(family, &table).iter().for_each(&mut removed),
                Err(ChainsError::Observe(error)) => errors.push(TracesError::Observe(family, table, error)),
                Err(ChainsError::Remove(error)) => errors.push(TracesError::Remove(family, table, error)),
            }
        }
        // ORDER: the rules that use them are gone.
        match self.ipsets(ipsets) {
            Ok(sets) => {
                for set in sets {
                    match ipsets.destroy(&set, PATIENCE) {
                        Ok(true) => removed(&Trace::Ipset(set)),
                        Ok(false) => {}
                        Err(error) => errors.push(TracesError::Destroy(set, error)),
                    }
                }
            }
            Err(error) => errors.push(error),
        }
        errors
    }

    fn ipsets(&self, ipsets: &mut Ipsets) -> Result<Vec<String>, TracesError> {
        let mut sets = ipsets.list().map_err(TracesError::Ipsets)?;
        sets.retain(|set| (self.is_ipset)(set));
        Ok(sets)
    }
}

fn delete_table(nft: &mut Socket, family: Family, table: &str) -> Result<bool, TracesError> {
    let name: Name = table.into();
    match nft.has_table(family, table) {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(error) => return Err(TracesError::Observe(family, name, error)),
    }
    nft.commit(&Transaction { family, table: &name, ops: &[Op::DeleteTable], generation: None })
        .map_err(|error| TracesError::Remove(family, name.clone(), error))?;
    Ok(true)
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(family, table) => write!(f, "table {family} {table}"),
            Self::Rule { family, table, chain, to } => {
                write!(f, "rule of chain {chain} that leads to {to}, table {family} {table}")
            }
            Self::Chain { family, table, chain } => write!(f, "chain {chain}, table {family} {table}"),
            Self::Ipset(name) => write!(f, "ipset {name}"),
        }
    }
}
