//! The rules of one chain: what a set of policies allows in one direction.
//!
//! Pods with the same policies share a chain. The chain is flat: what any of its policies allows leaves it
//! (`goto ok` for ingress, `return` for egress, where the other end is still to be judged), and what reaches
//! its end is refused. Since nothing in it refuses before the end, the order of its rules does not matter.
//!
//! Ports are compared before addresses: a comparison costs a fifth of a look-up.

use std::collections::BTreeSet;
use std::sync::Arc;

use common_informer::object::{ObjectKey, Protocol};
use common_informer::selector::Selector;
use kernel_nft::{Chain, IpVersion, Name, Rule, Side, Verdict};

use super::base::{deny_chain, ok_chain, versioned};
use super::sets::{self, SetKey, block_set_name};
use super::{PlanConfig, digest};
use crate::model::policy::{AllowRule, Direction, NamespaceMatch, Peers, Policy, PortMatch, Term};
use crate::model::ranges::Ranges;

/// A chain and the sets that its rules name.
#[derive(Debug)]
pub struct Compiled {
    /// The chain.
    pub chain: Chain,
    /// Address sets.
    pub sets: BTreeSet<SetKey>,
    /// Sets of ranges.
    pub blocks: BTreeSet<(IpVersion, Ranges)>,
}

/// Name of the chain of a set of policies. `policies` is sorted.
pub fn name(direction: Direction, policies: &[ObjectKey]) -> Name {
    let stem = if direction == Direction::Ingress { "in" } else { "eg" };
    let text: String = policies.iter().map(|key| format!("{key}\n")).collect();
    format!("{stem}-{}", digest(&text)).into()
}

/// Named ports that a rule of this direction refers to, each with the set that resolves it.
pub fn named_ports(direction: Direction, rule: &AllowRule) -> impl Iterator<Item = SetKey> + '_ {
    rule.ports.iter().flatten().filter_map(move |port| match port {
        PortMatch::Named(protocol, name) => {
            let (terms, local) = match (direction, &rule.peers) {
                // The destination is a pod of this node, and the chain is its own.
                (Direction::Ingress, _) => (everybody(), true),
                (Direction::Egress, Peers::All) => (everybody(), false),
                // K8S: a name means nothing at an address that is no pod, so ipBlocks do not count.
                (Direction::Egress, Peers::Listed { pods, .. }) => (pods.clone(), false),
            };
            Some(SetKey { terms, port: Some((name.clone(), *protocol)), local })
        }
        _ => None,
    })
}

fn everybody() -> Vec<Term> {
    vec![Term { namespaces: NamespaceMatch::Labels(Selector::everything()), pods: Selector::everything() }]
}

/// Compiles what the policies allow. Policies that do not isolate the direction add nothing.
pub fn compile(direction: Direction, policies: &[Arc<Policy>], config: &PlanConfig) -> Compiled {
    let mut compiler =
        Compiler { direction, config, rules: Vec::new(), sets: BTreeSet::new(), blocks: BTreeSet::new() };
    for policy in policies {
        for rule in policy.rules(direction).into_iter().flatten() {
            compiler.rule(policy, rule);
        }
    }
    let Compiler { mut rules, sets, blocks, .. } = compiler;
    for &version in &config.versions {
        let pair = Rule::new().address_pair_in(version, &versioned("self", version));
        rules.push(pair.verdict(allowed(direction)));
    }
    rules.push(Rule::new().goto(&deny_chain(direction)));
    let names: Vec<_> = policies.iter().map(|policy| policy.key.to_string()).collect();
    let text = if names.is_empty() { "isolated by its namespace".into() } else { names.join(" ") };
    let chain = Chain { base: None, comment: Some(sets::comment(&text)), rules };
    Compiled { chain, sets, blocks }
}

fn allowed(direction: Direction) -> Verdict {
    match direction {
        Direction::Ingress => Verdict::Goto(ok_chain()),
        Direction::Egress => Verdict::Return,
    }
}

struct Compiler<'a> {
    direction: Direction,
    config: &'a PlanConfig,
    rules: Vec<Rule>,
    sets: BTreeSet<SetKey>,
    blocks: BTreeSet<(IpVersion, Ranges)>,
}

impl Compiler<'_> {
    fn rule(&mut self, policy: &Policy, rule: &AllowRule) {
        let word = if self.direction == Direction::Ingress { "ingress" } else { "egress" };
        let comment = format!("{} {word}[{}]", policy.key, rule.index);
        match &rule.ports {
            None => self.peers(Rule::new(), rule, &comment),
            Some(ports) => {
                for (protocol, first, last) in merged(ports) {
                    self.peers(Rule::new().dport(protocol.number(), first..=last), rule, &comment);
                }
                let named: Vec<_> = named_ports(self.direction, rule).collect();
                for set in named {
                    self.named(rule, set, &comment);
                }
            }
        }
    }

    /// One rule for each way in which a peer can be recognised.
    fn peers(&mut self, start: Rule, rule: &AllowRule, comment: &str) {
        let Peers::Listed { pods, blocks } = &rule.peers else {
            return self.push(start, comment);
        };
        let side = self.side();
        if !pods.is_empty() {
            let set = SetKey { terms: pods.clone(), port: None, local: false };
            for &version in &self.config.versions {
                self.push(start.clone().address_in(side, version, &set.name(version)), comment);
            }
            self.sets.insert(set);
        }
        for &version in &self.config.versions {
            let ranges = if version == IpVersion::V4 { &blocks.v4 } else { &blocks.v6 };
            self.block(start.clone(), version, ranges, comment);
        }
    }

    fn block(&mut self, start: Rule, version: IpVersion, ranges: &Ranges, comment: &str) {
        if ranges.is_empty() {
            return;
        }
        match ranges.as_prefix(version == IpVersion::V6) {
            Some(prefix) if prefix.prefix_len() == 0 => self.push(start.nfproto(version), comment),
            Some(prefix) => self.push(start.address_in_prefix(self.side(), prefix), comment),
            None => {
                let name = block_set_name(version, ranges);
                self.push(start.address_in(self.side(), version, &name), comment);
                self.blocks.insert((version, ranges.clone()));
            }
        }
    }

    /// A named port: the destination pod's own number for it.
    fn named(&mut self, rule: &AllowRule, set: SetKey, comment: &str) {
        let Some((_, protocol)) = set.port else { return };
        if set.terms.is_empty() {
            return;
        }
        for &version in &self.config.versions {
            let start = Rule::new().l4proto(protocol.number()).address_port_in(
                Side::Destination,
                version,
                &set.name(version),
            );
            match self.direction {
                Direction::Ingress => self.peers_of_version(start, rule, version, comment),
                // The set holds the peers' addresses already.
                Direction::Egress => self.push(start, comment),
            }
        }
        self.sets.insert(set);
    }

    /// Like `peers` for a rule that has compared an address of one IP version already.
    fn peers_of_version(&mut self, start: Rule, rule: &AllowRule, version: IpVersion, comment: &str) {
        let Peers::Listed { pods, blocks } = &rule.peers else {
            return self.push(start, comment);
        };
        if !pods.is_empty() {
            let set = SetKey { terms: pods.clone(), port: None, local: false };
            self.push(start.clone().address_in(self.side(), version, &set.name(version)), comment);
            self.sets.insert(set);
        }
        let ranges = if version == IpVersion::V4 { &blocks.v4 } else { &blocks.v6 };
        self.block(start, version, ranges, comment);
    }

    /// The side of the packet where the peer is.
    fn side(&self) -> Side {
        match self.direction {
            Direction::Ingress => Side::Source,
            Direction::Egress => Side::Destination,
        }
    }

    /// Appends a rule unless another policy's does the same.
    fn push(&mut self, rule: Rule, comment: &str) {
        let rule = rule.verdict(allowed(self.direction));
        if !self.rules.iter().any(|other| other.expressions == rule.expressions) {
            self.rules.push(rule.comment(sets::comment(comment)));
        }
    }
}

/// Numeric ports with overlapping and adjacent ranges united, sorted by protocol and number.
fn merged(ports: &[PortMatch]) -> Vec<(Protocol, u16, u16)> {
    let mut ranges: Vec<_> = ports
        .iter()
        .filter_map(|port| match port {
            PortMatch::All(protocol) => Some((*protocol, 0, u16::MAX)),
            PortMatch::Range(protocol, first, last) => Some((*protocol, *first, *last)),
            PortMatch::Named(..) => None,
        })
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(Protocol, u16, u16)> = Vec::new();
    for (protocol, first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if previous.0 == protocol && first <= previous.2.saturating_add(1) => {
                previous.2 = previous.2.max(last);
            }
            _ => merged.push((protocol, first, last)),
        }
    }
    merged
}
