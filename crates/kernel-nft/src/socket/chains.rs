//! Chains that somebody else made in a table that many share, such as iptables' `ip filter`: found by name, and
//! removed with the rules that lead to them. Of other rules nothing is read but where they lead, and none is written.

use super::Socket;
use crate::netlink::DumpError;
use crate::reference::Reference;
use crate::ruleset::{Family, Name};
use crate::traces::Trace;
use crate::transaction::{CommitError, Error};
use crate::wire::decode;
use crate::wire::encode::{Batch, Removal};
use crate::wire::uapi::*;

/// How often chains are looked for again because somebody changed the table before they could be removed.
const ATTEMPTS: u32 = 5;

/// Chains of a table, and what leads to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chains {
    pub(crate) chains: Vec<Name>,
    /// In other chains.
    pub(crate) jumps: Vec<Jump>,
}

/// A rule that leads to one of the chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// Where it is.
    pub(crate) chain: Name,
    pub(crate) to: Name,
    handle: u64,
}

/// Why chains are not removed.
#[derive(Debug)]
pub(crate) enum ChainsError {
    Observe(Error),
    Remove(CommitError),
}

impl Chains {
    /// As what was left in a table.
    pub(crate) fn into_traces(self, family: Family, table: &Name) -> Vec<Trace> {
        let rules = self.jumps.into_iter().map(|Jump { chain, to, .. }| Trace::Rule {
            family,
            table: table.clone(),
            chain,
            to,
        });
        let chains =
            self.chains.into_iter().map(|chain| Trace::Chain { family, table: table.clone(), chain });
        rules.chain(chains).collect()
    }
}

impl Socket {
    /// True if the table is there.
    pub(crate) fn has_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        self.settled(|socket| Ok(socket.table(family, table)?.is_some()))
    }

    /// The chains of a table whose names `which` takes; none where there is no table.
    pub(crate) fn find_chains(
        &mut self,
        family: Family,
        table: &str,
        which: impl Fn(&str) -> bool,
    ) -> Result<Chains, Error> {
        self.settled(|socket| socket.read_chains(family, table, &which))
    }

    /// Removes them, and the rules that lead to them, in one transaction; returns what was removed.
    ///
    /// Handles are used once in the life of a table, and the kernel refuses to remove a chain that something leads
    /// to: so whatever others change meanwhile, no rule is removed but those that lead to the chains.
    pub(crate) fn remove_chains(
        &mut self,
        family: Family,
        table: &Name,
        which: impl Fn(&str) -> bool,
    ) -> Result<Chains, ChainsError> {
        let mut sent = Chains::default();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let found = self.find_chains(family, table, &which).map_err(ChainsError::Observe)?;
            if found.chains.is_empty() {
                return Ok(sent);
            }
            match self.commit_removal(family, table, &found) {
                Ok(()) => return Ok(found),
                Err(error) if !error.is_retryable() || attempt == ATTEMPTS => {
                    return Err(ChainsError::Remove(error));
                }
                // Carried out or not: the next look tells.
                Err(CommitError::Unconfirmed) => sent = found,
                Err(_) => {}
            }
        }
    }

    fn read_chains(
        &mut self,
        family: Family,
        table: &str,
        which: impl Fn(&str) -> bool,
    ) -> Result<Chains, DumpError> {
        let mut found = Chains::default();
        self.dump(NFT_MSG_GETCHAIN, family, &[(NFTA_CHAIN_TABLE, table)], |message| {
            if message.family() == Some(family.number())
                && let Some((name, _)) = decode::chain(message, table)
                && which(&name)
            {
                found.chains.push(name);
            }
        })?;
        if found.chains.is_empty() {
            return Ok(found);
        }
        found.chains.sort_unstable();
        let is_one = |name: &Name| found.chains.binary_search(name).is_ok();
        let mut jumps = Vec::new();
        self.dump(NFT_MSG_GETRULE, family, &[(NFTA_RULE_TABLE, table)], |message| {
            if message.family() == Some(family.number())
                && let Some(handle) = decode::rule_handle(message)
                && let Some((chain, rule)) = decode::rule(message, table)
                && !is_one(&chain)
            {
                let to = rule.references().find_map(|reference| match reference {
                    Reference::Chain(to) if is_one(to) => Some(to.clone()),
                    _ => None,
                });
                jumps.extend(to.map(|to| Jump { chain, to, handle }));
            }
        })?;
        found.jumps = jumps;
        Ok(found)
    }

    fn commit_removal(&mut self, family: Family, table: &Name, found: &Chains) -> Result<(), CommitError> {
        // ORDER: what leads to a chain goes before it; the chains lead to each other.
        let jumps = found.jumps.iter().map(|jump| Removal::Rule { chain: &jump.chain, handle: jump.handle });
        let rules = found.chains.iter().map(Removal::RulesOf);
        let chains = found.chains.iter().map(Removal::Chain);
        let removals: Vec<_> = jumps.chain(rules).chain(chains).collect();
        let batch = Batch::removals(family, table, &removals, self.netlink.next_sequence(), self.end_ack);
        self.send_batch(batch, |op| removals.get(op).map(describe).unwrap_or_default())
    }
}

fn describe(removal: &Removal<'_>) -> String {
    match removal {
        Removal::Rule { chain, handle } => format!("delete rule {handle} of chain {chain}"),
        Removal::RulesOf(chain) => format!("flush chain {chain}"),
        Removal::Chain(chain) => format!("delete chain {chain}"),
    }
}
