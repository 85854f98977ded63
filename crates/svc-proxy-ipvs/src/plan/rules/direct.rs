//! The part of the table for direct return; not there as long as nothing is served so.
//!
//! ```text
//!  dsr-raw    (-300) ── from a front with endpoints here? ─► MSS; to outside? no tracking
//!                    └─ to a front, from outside? no tracking
//!  dsr-mark    (-90) ── to a front? its mark ─► rule 32764 ─► local ─► input ─► IPVS
//!  dsr-output  (-99) ── the same for packets of the node
//!  dsr-forward  (-5) ── to another port of such an address? refuse
//!  dsr-sent   (-150) ── sent on by IPVS? no mark any more
//! ```
//!
//! Of such a connection no node sees both directions, unless it is by chance the pod's and the one that was asked.
//! Connection tracking would call half of its packets invalid, and firewalls drop these. What pods of this node and
//! the node itself ask for is tracked: their replies come back here, and firewalls want to know them as such.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common_informer::object::Family;
use kernel_nft::builder::{DESTINATION, SOURCE};
use kernel_nft::expr::TcpFlag;
use kernel_nft::{ChainType, DataType, Hook, Key, Name, Rule, Ruleset, SetSpec, Side, Value};

use super::{Chain, Rules, base, front, key, of, version};
use crate::owned;
use crate::plan::Front;

/// Wanted in the table for direct return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectTable {
    /// Marks of packets to fronts; [`owned::MARK`] itself for those that IPVS knows by their address, which only
    /// share an address with the others.
    pub marks: BTreeMap<Front, u32>,
    /// Fronts with endpoints here.
    pub replies: BTreeSet<Front>,
    /// Addresses that something is served on so.
    pub vips: BTreeSet<IpAddr>,
    /// Bytes of the largest packet that gets to an endpoint here.
    pub mtu: u16,
}

impl DirectTable {
    fn is_needed(&self) -> bool {
        !self.marks.is_empty()
    }

    /// What is served by direct return.
    fn requests(&self) -> impl Iterator<Item = &Front> {
        self.marks.iter().filter(|(_, mark)| **mark != owned::MARK).map(|(front, _)| front)
    }
}

/// Bytes of a tunnelled TCP segment that are no data: the outer header, the inner, TCP's. With IPv6 there are 20
/// more to spare, as RFC 2473 §4.1.1 allows tunnels an option of 8.
const fn overhead(family: Family) -> u16 {
    match family {
        Family::V4 => 20 + 20 + 20,
        Family::V6 => 40 + 40 + 20 + 20,
    }
}

const SETS: [&str; 4] = ["dsr", "dsr-request", "dsr-reply", "dsr-vip"];
const CHAINS: [&str; 5] = ["dsr-raw", "dsr-mark", "dsr-forward", "dsr-output", "dsr-sent"];

impl Rules {
    /// Wants this for direct return. Costs as much as there are fronts served so.
    pub fn set_direct(&mut self, wanted: &DirectTable) {
        if self.direct == *wanted {
            return;
        }
        let before = std::mem::replace(&mut self.direct, wanted.clone());
        if !wanted.is_needed() {
            CHAINS.iter().for_each(|name| self.journal.set_chain(&(*name).into(), None));
            for family in self.families.clone() {
                CHAIN_OF_FAMILY.iter().for_each(|stem| self.journal.set_chain(&chain_of(stem, family), None));
                SETS.iter().for_each(|stem| self.journal.remove_set(&of(stem, family)));
            }
            return;
        }
        self.direct_sets();
        for (front, mark) in &wanted.marks {
            let value = Value::Data(Key::mark(*mark));
            self.journal.set_element(&of("dsr", front.family()), key(front), Some(value));
        }
        for front in before.marks.keys().filter(|front| !wanted.marks.contains_key(front)) {
            self.journal.set_element(&of("dsr", front.family()), key(front), None);
        }
        let requests: BTreeSet<Front> = wanted.requests().copied().collect();
        self.replace("dsr-request", &before.requests().copied().collect(), &requests);
        self.replace("dsr-reply", &before.replies, &wanted.replies);
        let changed = before.vips.iter().map(|ip| (ip, None));
        for (ip, value) in changed.chain(wanted.vips.iter().map(|ip| (ip, Some(Value::Member)))) {
            self.journal.set_element(&of("dsr-vip", Family::of(*ip)), (*ip).into(), value);
        }
        for (name, chain) in direct_chains(&self.families, wanted.mtu, self.guards) {
            self.journal.set_chain(&name, Some(chain));
        }
    }

    fn direct_sets(&mut self) {
        for family in self.families.clone() {
            let front = [version(family).data_type(), DataType::InetProto, DataType::InetService];
            for (stem, spec) in [
                (
                    "dsr",
                    SetSpec::data(&front, &[DataType::Mark]).with_comment("marks by which IPVS knows them"),
                ),
                ("dsr-request", SetSpec::set(&front).with_comment("what is served by direct return")),
                ("dsr-reply", SetSpec::set(&front).with_comment("what of that has endpoints here")),
                ("dsr-vip", SetSpec::set(&front[..1]).with_comment("virtual addresses without a route")),
            ] {
                self.journal.ensure_set(&of(stem, family), || spec);
            }
        }
    }

    fn replace(&mut self, stem: &str, before: &BTreeSet<Front>, now: &BTreeSet<Front>) {
        for front in now {
            self.journal.set_element(&of(stem, front.family()), key(front), Some(Value::Member));
        }
        for front in before.difference(now) {
            self.journal.set_element(&of(stem, front.family()), key(front), None);
        }
    }
}

/// The marks that an observed table of ours has: the record of which front has which.
pub fn marks(ruleset: &Ruleset) -> impl Iterator<Item = (Front, u32)> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| ruleset.sets.get(&of("dsr", family)))
        .flat_map(|set| &set.elements)
        .filter_map(|(key, value)| {
            let Value::Data(data) = value else { return None };
            Some((front(&key)?, u32::from_ne_bytes(data.as_bytes().try_into().ok()?)))
        })
}

const CHAIN_OF_FAMILY: [&str; 2] = ["dsr-from-pod", "dsr-from-client"];

fn chain_of(stem: &str, family: Family) -> Name {
    of(stem, family)
}

fn direct_chains(families: &[Family], mtu: u16, guards: bool) -> Vec<(Name, Chain)> {
    let plain = |rules| Chain { base: None, comment: None, rules };
    let mut raw = Vec::new();
    let mut chains = Vec::new();
    for &family in families {
        let version = version(family);
        // What goes to or comes from pods of this node is tracked.
        let inside = |side| {
            ["pods", "local"].map(|stem| Rule::new().address_in(side, version, &of(stem, family)).ret())
        };
        let (reply, request) = (chain_of("dsr-from-pod", family), chain_of("dsr-from-client", family));
        raw.push(Rule::new().fields_in(version, &SOURCE, &of("dsr-reply", family)).jump(&reply));
        raw.push(Rule::new().fields_in(version, &DESTINATION, &of("dsr-request", family)).jump(&request));
        // A node that has no address of the front cannot tell a client that its packets are too large to be
        // tunnelled: it must never send such.
        let size = mtu.saturating_sub(overhead(family)).max(SMALLEST_MSS);
        let clamp = Rule::new().tcp_flags(&[TcpFlag::Syn, TcpFlag::Rst], &[TcpFlag::Syn]).clamp_mss(size);
        let mut rules = vec![clamp];
        rules.extend(inside(Side::Destination));
        rules.push(Rule::new().address_is_local(Side::Destination).ret());
        rules.push(Rule::new().notrack());
        chains.push((reply, plain(rules)));
        let mut rules: Vec<_> = inside(Side::Source).into();
        rules.push(Rule::new().notrack());
        chains.push((request, plain(rules)));
    }
    let marks = || -> Vec<_> {
        let set = |family| Rule::new().set_mark_from(version(family), &DESTINATION, &of("dsr", family));
        families.iter().copied().map(set).collect()
    };
    let filter = ChainType::Filter;
    chains.push(("dsr-raw".into(), base(filter, Hook::Prerouting, owned::RAW_PRIORITY, raw)));
    chains.push(("dsr-mark".into(), base(filter, Hook::Prerouting, owned::MARK_PRIORITY, marks())));
    // What is not marked is not this node's. Routed on it would come back, until its time to live is over.
    let refuse = |family: &Family| {
        let to = Rule::new().address_in(Side::Destination, version(*family), &of("dsr-vip", *family));
        to.goto(&"refuse".into())
    };
    let forward = if guards { families.iter().map(refuse).collect() } else { Vec::new() };
    chains.push(("dsr-forward".into(), base(filter, Hook::Forward, owned::FORWARD_PRIORITY, forward)));
    let output = base(ChainType::Route, Hook::Output, owned::MARK_OUTPUT_PRIORITY, marks());
    chains.push(("dsr-output".into(), output));
    // KERNEL: `nf_nat_ipv4_local_fn()` looks for a route again for what IPVS has translated, and the rule for marks
    // would lead it back to this node.
    let sent = Rule::new().mark_equals(owned::MARK_MASK, owned::MARK).set_mark(u32::MAX, 0);
    chains.push(("dsr-sent".into(), base(filter, Hook::Output, owned::UNMARK_PRIORITY, vec![sent])));
    chains
}

/// RFC 9293 §3.7.1: what everybody takes.
const SMALLEST_MSS: u16 = 536;
