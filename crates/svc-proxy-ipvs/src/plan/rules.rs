//! The nftables table: who may come in, whose source is changed.
//!
//! ```text
//!  prerouting ── from our pods, policy Local? ─► dnat to the cluster IP ┐
//!  output-nat ── from the node, policy Local? ─► dnat to the cluster IP ┤
//!                                                                        ▼
//!  input  ─► gate? serve · drop · refuse · from-… ─► virtual address? guard: refuse ─► IPVS (98)
//!  output ─► gate? (the same) ──────────────────────────────────────────────────────► IPVS (-98)
//!  forward ► to a cluster IP that nobody has? drop
//!  postrouting ─► a pod to itself? source becomes the virtual address
//!                 served, and neither from nor to a pod here? masquerade
//! ```
//!
//! Connections that are established pass the first rule; they are IPVS's. What is looked up is looked up once,
//! by address, protocol and port: no chain grows with the number of Services.

mod direct;

use std::fmt::Write as _;
use std::net::IpAddr;

use common_informer::object::{Family, ObjectKey, Protocol};
use ipnet::IpNet;
use kernel_nft::builder::{DESTINATION, Field};
use kernel_nft::{
    BaseChain, Chain, ChainType, CtState, DataType, Family as TableFamily, Hook, IpVersion, Journal, Key,
    Name, NatFlags, Op, Reject, Rule, Ruleset, SetSpec, Side, Table, TableFlags, Value, Verdict,
};
use sha2::{Digest, Sha256};

pub use direct::{DirectTable, marks};

use super::part::{Entrance, HealthCheck, Part};
use super::{Front, Gate, PlanConfig};
use crate::owned;

/// Named counters: what was refused, dropped, and dropped for its source.
pub const COUNTERS: [(&str, &str); 3] = [
    ("refused", "packets to Services without endpoints, and to ports that no Service has"),
    ("dropped", "packets to Services whose endpoints are elsewhere, and to cluster IPs that no Service has"),
    ("source-denied", "packets from outside loadBalancerSourceRanges"),
];

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Echo request, destination unreachable, time exceeded.
const ICMP: [u8; 3] = [8, 3, 11];
/// The same, packet too big, parameter problem, neighbour discovery.
const ICMPV6: [u8; 7] = [128, 1, 2, 3, 4, 135, 136];

/// The wanted table.
#[derive(Debug)]
pub struct Rules {
    journal: Journal,
    families: Vec<Family>,
    /// Ports of virtual addresses that no Service has are refused.
    guards: bool,
    pod_cidrs: Vec<IpNet>,
    direct: DirectTable,
}

/// The served, original destination of a connection.
const ORIGINAL: [Field; 3] =
    [Field::OriginalAddress(Side::Destination), Field::L4Proto, Field::OriginalPort(Side::Destination)];

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

/// The name of a thing that exists once for each family.
fn of(stem: &str, family: Family) -> Name {
    match family {
        Family::V4 => format!("{stem}4").into(),
        Family::V6 => format!("{stem}6").into(),
    }
}

fn key(front: &Front) -> Key {
    Key::address_proto_port(front.ip, front.protocol.number(), front.port)
}

impl Rules {
    /// The table without any Service.
    pub fn new(config: &PlanConfig, flags: TableFlags) -> Self {
        let table = Table {
            family: TableFamily::Inet,
            name: owned::TABLE.into(),
            flags,
            comment: Some(owned::TABLE_COMMENT.into()),
        };
        let mut rules = Self {
            journal: Journal::new(Ruleset::new(table)),
            families: config.families.clone(),
            guards: config.guard_addresses,
            pod_cidrs: Vec::new(),
            direct: DirectTable::default(),
        };
        for (name, comment) in COUNTERS {
            rules.journal.add_counter(&name.into(), comment);
        }
        for (name, kind, types) in
            [("icmp-ok", DataType::IcmpType, &ICMP[..]), ("icmpv6-ok", DataType::Icmpv6Type, &ICMPV6[..])]
        {
            rules.journal.ensure_set(&name.into(), || {
                SetSpec::set(&[kind]).with_comment("may reach virtual addresses")
            });
            for number in types {
                rules.journal.set_element(&name.into(), Key::from_bytes(&[*number]), Some(Value::Member));
            }
        }
        rules.journal.ensure_set(&"health".into(), || {
            SetSpec::set(&[DataType::InetProto, DataType::InetService])
                .with_comment("health check node ports: balancers ask virtual addresses too")
        });
        for &family in &config.families {
            rules.sets(family);
            rules.ranges("cluster", family, &config.cluster_ranges, "ranges of cluster IPs");
            if !config.excluded.is_empty() {
                rules.ranges("excluded", family, &config.excluded, "what somebody else serves");
            }
        }
        for (name, chain) in chains(config) {
            rules.journal.set_chain(&name.into(), Some(chain));
        }
        // What is there from the start is not a change.
        rules.journal.take_steps(|_| true);
        rules
    }

    /// A set of those of the ranges that are of a family.
    fn ranges(&mut self, stem: &str, family: Family, ranges: &[IpNet], comment: &str) {
        let name = of(stem, family);
        let spec = SetSpec::intervals(version(family).data_type()).with_comment(comment);
        self.journal.ensure_set(&name, || spec);
        let ranges = ranges.iter().filter(|range| Family::of(range.addr()) == family);
        for range in IpNet::aggregate(&ranges.copied().collect()) {
            let (first, until) = interval(range);
            self.journal.set_element(&name, first, Some(until));
        }
    }

    fn sets(&mut self, family: Family) {
        let address = version(family).data_type();
        let front = [address, DataType::InetProto, DataType::InetService];
        let inside = [address, DataType::InetService];
        for (stem, spec) in [
            ("gate", SetSpec::verdicts(&front).with_comment("what becomes of new connections")),
            ("served", SetSpec::set(&front).with_comment("what IPVS serves")),
            ("inside", SetSpec::data(&front, &inside).with_comment("where pods and this node go instead")),
            ("vip", SetSpec::set(&[address]).with_comment("virtual addresses")),
            ("local", SetSpec::set(&[address]).with_comment("pods of this node that serve")),
            ("hairpin", SetSpec::set(&[address, address]).with_comment("a pod that reaches itself")),
            ("pods", SetSpec::intervals(address).with_comment("ranges of the pods of this node")),
        ] {
            self.journal.ensure_set(&of(stem, family), || spec);
        }
    }

    /// Takes a Service's part out.
    pub fn remove(&mut self, service: &ObjectKey, part: &Part) {
        for front in part.fronts.keys() {
            self.journal.set_element(&of("gate", front.family()), key(front), None);
            self.journal.set_element(&of("served", front.family()), key(front), None);
        }
        for front in part.extras.inside.keys() {
            self.journal.set_element(&of("inside", front.family()), key(front), None);
        }
        if let Some(check) = &part.extras.health {
            self.journal.set_element(&"health".into(), health_key(check), None);
        }
        if let Some(ranges) = &part.extras.sources {
            let name = sources_name(service, ranges);
            self.journal.set_chain(&chain_name(&name), None);
            for family in [Family::V4, Family::V6] {
                self.journal.remove_set(&of(&name, family));
            }
        }
    }

    /// Puts a Service's part in.
    pub fn insert(&mut self, service: &ObjectKey, part: &Part) {
        let sources = part.extras.sources.as_ref().map(|ranges| self.add_sources(service, ranges));
        for (front, Entrance { gate, .. }) in part.fronts.iter() {
            let verdict = match (gate, &sources) {
                (Gate::Serve, _) => Verdict::Accept,
                (Gate::Drop, _) | (Gate::Sources, None) => Verdict::Goto("discard".into()),
                (Gate::Refuse, _) => Verdict::Goto("refuse".into()),
                (Gate::Sources, Some(chain)) => Verdict::Goto(chain.clone()),
            };
            self.journal.set_element(&of("gate", front.family()), key(front), Some(Value::Verdict(verdict)));
            let is_direct =
                part.extras.direct.as_ref().is_some_and(|direct| direct.marks.contains_key(front));
            // Who takes the short cut is served, though packets from outside are not.
            let some = *gate == Gate::Drop && part.extras.inside.contains_key(front);
            if (some || matches!(gate, Gate::Serve | Gate::Sources)) && !is_direct {
                self.journal.set_element(&of("served", front.family()), key(front), Some(Value::Member));
            }
        }
        if let Some(check) = &part.extras.health {
            self.journal.set_element(&"health".into(), health_key(check), Some(Value::Member));
        }
        for (front, (ip, port)) in part.extras.inside.iter() {
            let to = Value::Data(Key::address_port(*ip, *port));
            self.journal.set_element(&of("inside", front.family()), key(front), Some(to));
        }
    }

    /// The chain that lets only some sources pass.
    fn add_sources(&mut self, service: &ObjectKey, ranges: &[IpNet]) -> Name {
        let name = sources_name(service, ranges);
        let comment = kernel_nft::comment(&format!("loadBalancerSourceRanges of {service}"));
        // The node may use its own addresses (kube-proxy lets it too): load balancers check its health so.
        let mut rules = vec![Rule::new().address_is_local(Side::Source).accept()];
        for family in [Family::V4, Family::V6] {
            let set = of(&name, family);
            let own: Vec<_> =
                ranges.iter().filter(|range| Family::of(range.addr()) == family).copied().collect();
            if own.is_empty() || !self.journal.ruleset().sets.contains_key(&of("gate", family)) {
                continue;
            }
            self.journal
                .ensure_set(&set, || SetSpec::intervals(version(family).data_type()).with_comment(&comment));
            for range in IpNet::aggregate(&own) {
                let (first, until) = interval(range);
                self.journal.set_element(&set, first, Some(until));
            }
            rules.push(Rule::new().address_in(Side::Source, version(family), &set).accept());
        }
        rules.push(Rule::new().counter_ref("source-denied".into()).drop());
        let chain = chain_name(&name);
        self.journal.set_chain(&chain, Some(Chain { base: None, comment: Some(comment), rules }));
        chain
    }

    /// Whether an address is virtual.
    pub fn set_vip(&mut self, ip: IpAddr, present: bool) {
        self.journal.set_element(&of("vip", Family::of(ip)), ip.into(), present.then_some(Value::Member));
    }

    /// Whether a pod of this node serves.
    pub fn set_local(&mut self, ip: IpAddr, present: bool) {
        let family = Family::of(ip);
        self.journal.set_element(&of("local", family), ip.into(), present.then_some(Value::Member));
        let pair = match ip {
            IpAddr::V4(ip) => Key::concat(&[&ip.octets(), &ip.octets()]),
            IpAddr::V6(ip) => Key::concat(&[&ip.octets(), &ip.octets()]),
        };
        self.journal.set_element(&of("hairpin", family), pair, present.then_some(Value::Member));
    }

    /// Where the pods of this node are.
    pub fn set_pod_cidrs(&mut self, cidrs: &[IpNet]) {
        let cidrs = IpNet::aggregate(&cidrs.to_vec());
        if cidrs == self.pod_cidrs {
            return;
        }
        for (old, present) in
            self.pod_cidrs.iter().map(|cidr| (cidr, false)).chain(cidrs.iter().map(|cidr| (cidr, true)))
        {
            let (first, until) = interval(*old);
            self.journal.set_element(&of("pods", Family::of(old.addr())), first, present.then_some(until));
        }
        self.pod_cidrs = cidrs;
    }

    /// The wanted table.
    pub fn ruleset(&self) -> &Ruleset {
        self.journal.ruleset()
    }

    /// Wants other flags of the table.
    pub fn set_flags(&mut self, flags: TableFlags) {
        self.journal.set_flags(flags);
    }

    /// Whether steps are recorded from here on, see [`Journal::record`].
    pub fn record(&mut self, records: bool) {
        self.journal.record(records);
    }

    /// The steps since the last call.
    pub fn take_steps(&mut self) -> Vec<Op> {
        self.journal.take_steps(|_| true).ops
    }
}

fn health_key(check: &HealthCheck) -> Key {
    Key::concat(&[&[Protocol::Tcp.number()], &check.port.to_be_bytes()])
}

/// Fronts that an observed table of ours has: the record of what we served.
pub fn fronts(ruleset: &Ruleset) -> impl Iterator<Item = Front> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| ruleset.sets.get(&of("gate", family)))
        .flat_map(|set| set.elements.keys())
        .filter_map(|key| front(&key))
}

/// A front from its key: address, protocol and port, each padded to four bytes.
fn front(key: &Key) -> Option<Front> {
    let (address, rest) = match key.as_bytes().len() {
        12 => key.as_bytes().split_at_checked(4)?,
        _ => key.as_bytes().split_at_checked(16)?,
    };
    let ip = match <[u8; 4]>::try_from(address) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    let [number, _, _, _, high, low, ..] = *rest else { return None };
    let protocol = PROTOCOLS.into_iter().find(|protocol| protocol.number() == number)?;
    Some(Front { ip, protocol, port: u16::from_be_bytes([high, low]) })
}

fn interval(range: IpNet) -> (Key, Value) {
    (range.network().into(), Value::Until(range.broadcast().into()))
}

/// Names of a chain and its sets: other ranges are other sets, so that a change is one transaction of adds and
/// removals. The digest is long enough that nobody finds two Services with the same.
fn sources_name(service: &ObjectKey, ranges: &[IpNet]) -> String {
    let mut text = format!("{service}");
    ranges.iter().for_each(|range| {
        // Writing to a String cannot fail.
        let _ = write!(text, " {range}");
    });
    let mut name = String::from("from-");
    for byte in Sha256::digest(text.as_bytes()).iter().take(10) {
        let _ = write!(name, "{byte:02x}");
    }
    name.push('-');
    name
}

fn chain_name(sources: &str) -> Name {
    sources.trim_end_matches('-').into()
}

fn base(kind: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { base: Some(BaseChain { kind, hook, priority }), comment: None, rules }
}

fn established() -> Rule {
    Rule::new().ct_state(&[CtState::Established, CtState::Related]).accept()
}

/// The chains that do not depend on Services.
fn chains(config: &PlanConfig) -> Vec<(&'static str, Chain)> {
    let families = || config.families.iter().copied();
    let inside = |family: Family, rule: Rule| {
        rule.dnat_from(version(family), &DESTINATION, &of("inside", family), true)
    };
    let [input, output, forward] = filters(config);
    let from_pods = |family| Rule::new().address_in(Side::Source, version(family), &of("pods", family));
    let plain = |rules| Chain { base: None, comment: None, rules };
    vec![
        (
            "refuse",
            plain(vec![
                Rule::new().counter_ref("refused".into()),
                // A local client notices an ICMP error only at its next try, a second later.
                Rule::new().l4proto(Protocol::Tcp.number()).reject(Reject::TcpReset),
                Rule::new().reject(Reject::PortUnreachable),
            ]),
        ),
        ("discard", plain(vec![Rule::new().counter_ref("dropped".into()).drop()])),
        (
            "guard",
            plain(vec![
                Rule::new().icmp_type_in(&"icmp-ok".into()).accept(),
                Rule::new().icmpv6_type_in(&"icmpv6-ok".into()).accept(),
                Rule::new().proto_port_in(&"health".into()).accept(),
                Rule::new().goto(&"refuse".into()),
            ]),
        ),
        ("masq", plain(masquerade(config))),
        ("input", base(ChainType::Filter, Hook::Input, owned::INPUT_PRIORITY, input)),
        ("output", base(ChainType::Filter, Hook::Output, owned::OUTPUT_PRIORITY, output)),
        ("forward", base(ChainType::Filter, Hook::Forward, owned::FORWARD_PRIORITY, forward)),
        (
            "prerouting",
            base(
                ChainType::Nat,
                Hook::Prerouting,
                owned::DSTNAT_PRIORITY,
                families().map(|family| inside(family, from_pods(family))).collect(),
            ),
        ),
        (
            "output-nat",
            base(
                ChainType::Nat,
                Hook::Output,
                owned::DSTNAT_PRIORITY,
                families().map(|family| inside(family, Rule::new())).collect(),
            ),
        ),
        ("postrouting", base(ChainType::Nat, Hook::Postrouting, owned::SRCNAT_PRIORITY, postrouting(config))),
    ]
}

/// What is let through of packets that come in, go out, and pass through.
fn filters(config: &PlanConfig) -> [Vec<Rule>; 3] {
    let destination = |family: Family, stem: &str| {
        Rule::new().address_in(Side::Destination, version(family), &of(stem, family))
    };
    let gate = |family| Rule::new().fields_verdict(version(family), &DESTINATION, &of("gate", family));
    let families = || config.families.iter().copied();
    let mut input = vec![established()];
    input.extend(families().map(gate));
    if config.guard_addresses {
        input.extend(families().map(|family| destination(family, "vip").goto(&"guard".into())));
    }
    let mut output = vec![established()];
    output.extend(families().map(gate));
    let mut forward = vec![established()];
    if !config.cluster_ranges.is_empty() {
        for family in families() {
            output.push(destination(family, "vip").accept());
            if !config.excluded.is_empty() {
                output.push(destination(family, "excluded").accept());
                forward.push(destination(family, "excluded").accept());
            }
            output.push(destination(family, "cluster").goto(&"discard".into()));
            forward.push(destination(family, "cluster").goto(&"discard".into()));
        }
    }
    [input, output, forward]
}

fn postrouting(config: &PlanConfig) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &family in &config.families {
        let version = version(family);
        rules.push(
            Rule::new()
                .address_pair_in(version, &of("hairpin", family))
                .snat_to_original_destination(version, NatFlags::default()),
        );
        for protocol in PROTOCOLS {
            rules.push(
                Rule::new()
                    .l4proto(protocol.number())
                    .fields_in(version, &ORIGINAL, &of("served", family))
                    .goto(&"masq".into()),
            );
        }
    }
    rules
}

/// Answers come back by this node if they go to a pod here, or come from one. All others need an address of this
/// node as their source.
fn masquerade(config: &PlanConfig) -> Vec<Rule> {
    let mut rules = Vec::new();
    if !config.masquerade_all {
        for &family in &config.families {
            for side in [Side::Destination, Side::Source] {
                for stem in ["local", "pods"] {
                    rules.push(Rule::new().address_in(side, version(family), &of(stem, family)).ret());
                }
            }
        }
    }
    rules.push(Rule::new().masquerade(NatFlags::FULLY_RANDOM));
    rules
}
