//! The part of the table that is always there: hooks, dispatch, refusal, and the generation.
//!
//! ```text
//!  forward ─┐                    ┌─► eg-… (may return) ─┐
//!  output  ─┼─ generation? ─► dispatch                  ├─► ok: mark, accept
//!  input   ─┘   accept           └─► in-… ──────────────┘
//!                                     └──────────────────► deny-in, deny-eg
//! ```
//!
//! A connection that was allowed carries the generation of the rules in its mark and passes on the first
//! comparison. When rules get tighter the generation changes, and each connection is judged once more on its
//! next packet of the original direction.

use kernel_nft::{
    BaseChain, Chain, ChainType, CtState, CtStatus, DataType, Family, Hook, IpVersion, Journal, Key, MapsTo,
    Name, Reject, Rule, Ruleset, SetSpec, Side, Table, TableFlags, Value,
};

use super::{DenyAction, Established, PlanConfig};
use crate::model::policy::Direction;
use crate::owned;

/// Names of the sets whose elements exempt or describe packets without ever leading to a mark: taking one
/// out never calls for a new generation.
pub const EXEMPT_SETS: [&str; 5] = ["self4", "self6", "service4", "service6", "nodeport"];

const ICMPV6_ALWAYS: [u8; 5] = [2, 133, 134, 135, 136];
const TCP: u8 = 6;
/// IPv4 and IPv6 in IP (RFC 2003, RFC 2473).
const TUNNELS: [u8; 2] = [4, 41];

/// The name of a thing that exists once for each IP version.
pub fn versioned(stem: &str, version: IpVersion) -> Name {
    match version {
        IpVersion::V4 => format!("{stem}4").into(),
        IpVersion::V6 => format!("{stem}6").into(),
    }
}

/// The verdict map of a direction: which local address goes to which chain.
pub fn verdict_map(direction: Direction, version: IpVersion) -> Name {
    versioned(if direction == Direction::Ingress { "in" } else { "eg" }, version)
}

/// The chain that refuses.
pub fn deny_chain(direction: Direction) -> Name {
    if direction == Direction::Ingress { "deny-in".into() } else { "deny-eg".into() }
}

/// The chain that allows for good.
pub fn ok_chain() -> Name {
    "ok".into()
}

/// Type of an address of an IP version.
pub fn address_type(version: IpVersion) -> DataType {
    match version {
        IpVersion::V4 => DataType::Ipv4Addr,
        IpVersion::V6 => DataType::Ipv6Addr,
    }
}

/// A set with neither intervals nor verdicts.
pub fn plain_set(key: Vec<DataType>, comment: &str) -> SetSpec {
    SetSpec { comment: Some(comment.into()), ..SetSpec::set(&key) }
}

/// An empty table with everything in it that does not depend on objects.
pub fn journal(config: &PlanConfig, flags: TableFlags, generation: u32) -> Journal {
    let table = Table {
        family: Family::Inet,
        name: owned::TABLE.into(),
        flags,
        comment: Some(owned::TABLE_COMMENT.into()),
    };
    let mut journal = Journal::new(Ruleset::new(table));
    journal.add_counter(&deny_chain(Direction::Ingress), "packets refused by ingress isolation");
    journal.add_counter(&deny_chain(Direction::Egress), "packets refused by egress isolation");
    let icmpv6 = Name::from("icmpv6-always");
    journal.ensure_set(&icmpv6, || {
        plain_set(vec![DataType::Icmpv6Type], "packet too big, neighbour and router discovery")
    });
    for kind in ICMPV6_ALWAYS {
        journal.set_element(&icmpv6, Key::from_bytes(&[kind]), Some(Value::Member));
    }
    for &version in &config.versions {
        let address = address_type(version);
        journal.ensure_set(&versioned("self", version), || {
            plain_set(vec![address, address], "a pod may talk to itself through a Service")
        });
        for (direction, comment) in [
            (Direction::Egress, "isolated pods of this node, by source"),
            (Direction::Ingress, "isolated pods of this node, by destination"),
        ] {
            journal.ensure_set(&verdict_map(direction, version), || SetSpec {
                maps_to: MapsTo::Verdict,
                ..plain_set(vec![address], comment)
            });
        }
        if config.judge_egress_to_node {
            let key = vec![address, DataType::InetProto, DataType::InetService];
            journal.ensure_set(&versioned("service", version), || {
                plain_set(key, "addresses and ports of Services")
            });
        }
    }
    if config.judge_egress_to_node {
        journal.ensure_set(&"nodeport".into(), || {
            plain_set(vec![DataType::InetProto, DataType::InetService], "node ports of Services")
        });
    }
    set_chains(&mut journal, config, generation);
    journal
}

/// Writes the chains that do not depend on objects, for a generation.
pub fn set_chains(journal: &mut Journal, config: &PlanConfig, generation: u32) {
    for direction in [Direction::Ingress, Direction::Egress] {
        journal.set_chain(&deny_chain(direction), Some(deny(config, direction)));
    }
    journal.set_chain(&ok_chain(), Some(ok(config, generation)));
    journal.set_chain(&"dispatch".into(), Some(dispatch(config)));
    journal.set_chain(&"forward".into(), Some(hook(config, Hook::Forward, generation)));
    journal.set_chain(&"output".into(), Some(hook(config, Hook::Output, generation)));
    if config.judge_egress_to_node {
        journal.set_chain(&"input".into(), Some(hook(config, Hook::Input, generation)));
    }
}

/// The generation that an observed table is in, read from its chain `ok`; `None` if there is none.
pub fn generation_of(ruleset: &Ruleset, config: &PlanConfig) -> Option<u32> {
    let chain = ruleset.chains.get(&ok_chain())?;
    (1..=config.last_generation()).find(|&generation| chain.rules == ok(config, generation).rules)
}

fn mark(config: &PlanConfig, generation: u32) -> u32 {
    generation.checked_shl(config.mark_mask.trailing_zeros()).unwrap_or(0) & config.mark_mask
}

fn deny(config: &PlanConfig, direction: Direction) -> Chain {
    let word = if direction == Direction::Ingress { "ingress" } else { "egress" };
    let mut rules = Vec::new();
    if let Some(group) = config.nflog_group {
        rules.push(Rule::new().limit_per_minute(10, 10).log(format!("npc-firewall {word}: "), group));
    }
    rules.push(Rule::new().counter_ref(deny_chain(direction)));
    match config.deny {
        DenyAction::Reject => {
            // KERNEL: nf_send_reset() sends the reset of a packet that came in by a bridge straight back to its port,
            // past the hook that would give it the Service's address, so nobody would know it. An ICMP error does not
            // go that way. What IPVS sends is at `output` and does not tell that it came by a bridge; a connection that
            // is established gets its reset there, since an ICMP error would not end it.
            let translated = Rule::new().l4proto(TCP).ct_status(&[CtStatus::Dnat]).input_kind("bridge");
            rules.push(translated.reject(Reject::AdminProhibited));
            let by_ipvs = Rule::new().l4proto(TCP).ct_state(&[CtState::New]).no_input_interface();
            rules.push(by_ipvs.reject(Reject::AdminProhibited));
            rules.push(Rule::new().l4proto(TCP).reject(Reject::TcpReset));
            rules.push(Rule::new().reject(Reject::AdminProhibited));
        }
        DenyAction::Drop => rules.push(Rule::new().drop()),
    }
    Chain { base: None, comment: Some(format!("refused by {word} isolation")), rules }
}

fn ok(config: &PlanConfig, generation: u32) -> Chain {
    let mut rules = Vec::new();
    if config.marks() {
        rules.push(Rule::new().set_ct_mark(config.mark_mask, mark(config, generation)));
    }
    rules.push(Rule::new().accept());
    Chain { base: None, comment: Some("allowed under the rules now in force".into()), rules }
}

fn dispatch(config: &PlanConfig) -> Chain {
    let mut rules = always(config);
    for (direction, side) in [(Direction::Egress, Side::Source), (Direction::Ingress, Side::Destination)] {
        for &version in &config.versions {
            rules.push(Rule::new().address_verdict(side, version, &verdict_map(direction, version)));
        }
    }
    rules.push(Rule::new().goto(&ok_chain()));
    Chain { base: None, comment: None, rules }
}

/// What passes whatever the policies say: replies, errors that belong to a connection, and what IPv6 cannot
/// work without (RFC 4890 §4.3.1, §4.4.1).
fn always(config: &PlanConfig) -> Vec<Rule> {
    let mut rules = replies();
    if config.versions.contains(&IpVersion::V6) {
        rules.push(Rule::new().icmpv6_type_in(&"icmpv6-always".into()).accept());
    }
    rules
}

/// Replies, and errors that belong to a connection: they pass without a mark, as they say nothing of whether
/// the connection is allowed.
fn replies() -> Vec<Rule> {
    vec![
        Rule::new().ct_state(&[CtState::Established]).ct_direction_reply().accept(),
        Rule::new().ct_state(&[CtState::Related]).accept(),
    ]
}

fn hook(config: &PlanConfig, hook: Hook, generation: u32) -> Chain {
    let mut rules = Vec::new();
    match config.established {
        Established::Keep => {
            rules.push(Rule::new().ct_state(&[CtState::Established, CtState::Related]).accept());
        }
        Established::Recheck if config.marks() => {
            rules.push(Rule::new().ct_mark_equals(config.mark_mask, mark(config, generation)).accept());
        }
        Established::Recheck => {}
    }
    match hook {
        Hook::Output => {
            // What this node answers must not mark the connection: neither the replies to a pod nor, above
            // all, the ICMP error by which an established connection has just been refused.
            rules.extend(replies());
            // What IPVS sends through a tunnel (direct return) is others' traffic in packets of the node's own.
            for protocol in TUNNELS {
                rules.push(Rule::new().l4proto(protocol).goto(&"dispatch".into()));
            }
            // K8S: traffic of the pod's own node is always allowed (kubelet probes).
            rules.push(Rule::new().address_is_local(Side::Source).goto(&ok_chain()));
            rules.push(Rule::new().goto(&"dispatch".into()));
        }
        Hook::Input => rules.extend(input(config)),
        _ => rules.push(Rule::new().goto(&"dispatch".into())),
    }
    Chain {
        base: Some(BaseChain { kind: ChainType::Filter, hook, priority: owned::PRIORITY }),
        comment: None,
        rules,
    }
}

/// From a pod to its own node. What goes to a Service is judged where its real destination is known, so it
/// passes here without a mark: IPVS takes it up after this hook and sends it through `output`.
fn input(config: &PlanConfig) -> Vec<Rule> {
    let mut rules = always(config);
    for &version in &config.versions {
        let services = versioned("service", version);
        rules.push(Rule::new().address_proto_port_in(Side::Destination, version, &services).accept());
    }
    rules.push(Rule::new().address_is_local(Side::Destination).proto_port_in(&"nodeport".into()).accept());
    for &version in &config.versions {
        rules.push(Rule::new().address_verdict(
            Side::Source,
            version,
            &verdict_map(Direction::Egress, version),
        ));
    }
    rules.push(Rule::new().goto(&ok_chain()));
    rules
}
