//! The layout of a firewall with two policies: everything that the firewall uses, in one table.

use std::net::{Ipv4Addr, Ipv6Addr};

use kernel_nft::DataType::{Icmpv6Type, InetProto, InetService, Ipv4Addr as V4, Ipv6Addr as V6};
use kernel_nft::IpVersion::{V4 as Ipv4, V6 as Ipv6};
use kernel_nft::Side::{Destination, Source};
use kernel_nft::*;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const MASK: u32 = 0x00ff_0000;

pub(crate) fn name(text: &str) -> Name {
    text.into()
}

pub(crate) fn v4(text: &str) -> Key {
    text.parse::<Ipv4Addr>().unwrap().into()
}

pub(crate) fn v6(text: &str) -> Key {
    text.parse::<Ipv6Addr>().unwrap().into()
}

pub(crate) fn concat(keys: &[&[u8]]) -> Key {
    Key::concat(keys)
}

pub(crate) fn table(table: &str, flags: TableFlags) -> Table {
    Table {
        family: Family::Inet,
        name: name(table),
        flags,
        comment: Some("npc-firewall schema=1".to_owned()),
    }
}

fn members(spec: SetSpec, keys: impl IntoIterator<Item = Key>) -> Set {
    Set { spec, elements: keys.into_iter().map(|key| (key, Value::Member)).collect() }
}

fn verdicts(key: DataType, elements: impl IntoIterator<Item = (Key, Verdict)>) -> Set {
    Set {
        spec: SetSpec::verdicts(&[key]),
        elements: elements.into_iter().map(|(key, verdict)| (key, Value::Verdict(verdict))).collect(),
    }
}

fn sets(ruleset: &mut Ruleset) {
    let port = 8080u16.to_be_bytes();
    let (jump, goto) = (Verdict::Jump(name("eg-5be1")), |chain: &str| Verdict::Goto(name(chain)));
    let peer = |key, text: &str| SetSpec::set(&[key]).with_comment(text);
    let mut add = |text: &str, set: Set| ruleset.sets.insert(name(text), set);
    for (hash, v4_address, v6_address, text) in [
        ("f1a2", "10.50.0.12", "fd50::12", "ns=shop pods role=frontend"),
        ("9d3e", "10.50.0.11", "fd50::11", "ns=shop pods app=db"),
        ("77c0", "10.50.0.10", "fd50::10", "ns=shop pods app=web"),
    ] {
        add(&format!("p4_{hash}"), members(peer(V4, text), [v4(v4_address)]));
        add(&format!("p6_{hash}"), members(peer(V6, text), [v6(v6_address)]));
    }
    let block = Set {
        spec: SetSpec::intervals(V4).with_comment("10.60.0.0/16 except 10.60.9.0/24"),
        elements: [
            (v4("10.60.0.0"), Value::Until(v4("10.60.8.255"))),
            (v4("10.60.10.0"), Value::Until(v4("10.60.255.255"))),
        ]
        .into(),
    };
    add("b4_c41d", block);
    let named = "port http/TCP of ns=shop app=web";
    let spec = SetSpec::set(&[V4, InetService]).with_comment(named);
    add("n4_http_77c0", members(spec, [concat(&[v4("10.50.0.10").as_bytes(), &port])]));
    let spec = SetSpec::set(&[V6, InetService]).with_comment(named);
    add("n6_http_77c0", members(spec, [concat(&[v6("fd50::10").as_bytes(), &port])]));
    let pair = |key: Key| concat(&[key.as_bytes(), key.as_bytes()]);
    add("self4", members(SetSpec::set(&[V4, V4]), [pair(v4("10.50.0.10")), pair(v4("10.50.0.11"))]));
    add("self6", members(SetSpec::set(&[V6, V6]), [pair(v6("fd50::10")), pair(v6("fd50::11"))]));
    let service = concat(&[v4("10.96.0.1").as_bytes(), &[TCP], &443u16.to_be_bytes()]);
    add("svc4", members(SetSpec::set(&[V4, InetProto, InetService]), [service]));
    let service = concat(&[v6("fd96::1").as_bytes(), &[TCP], &443u16.to_be_bytes()]);
    add("svc6", members(SetSpec::set(&[V6, InetProto, InetService]), [service]));
    let node_port = concat(&[&[UDP], &30053u16.to_be_bytes()]);
    add("nodeports", members(SetSpec::set(&[InetProto, InetService]), [node_port]));
    let nd = [2u8, 133, 134, 135, 136].map(|kind| Key::from_bytes(&[kind]));
    add("nd", members(SetSpec::set(&[Icmpv6Type]), nd));
    add("eg4", verdicts(V4, [(v4("10.50.0.10"), jump.clone())]));
    add("eg6", verdicts(V6, [(v6("fd50::10"), jump)]));
    let in4 = [(v4("10.50.0.10"), goto("in-5be1")), (v4("10.50.0.11"), goto("in-e270"))];
    add("in4", verdicts(V4, in4));
    let in6 = [(v6("fd50::10"), goto("in-5be1")), (v6("fd50::11"), goto("in-e270"))];
    add("in6", verdicts(V6, in6));
}

fn policy_chains(ruleset: &mut Ruleset) {
    let ok = name("ok");
    let mut add = |text: &str, comment: &str, rules: Vec<Rule>| {
        let chain = Chain { base: None, comment: Some(comment.to_owned()), rules };
        ruleset.chains.insert(name(text), chain);
    };
    let with_self = |mut rules: Vec<Rule>, end: fn(Rule) -> Rule, deny: &str| {
        rules.push(end(Rule::new().address_pair_in(Ipv4, &name("self4"))));
        rules.push(end(Rule::new().address_pair_in(Ipv6, &name("self6"))));
        rules.push(Rule::new().goto(&name(deny)));
        rules
    };
    let to_ok = |rule: Rule| rule.goto(&name("ok"));
    let rules = vec![
        Rule::new()
            .nfproto(Ipv4)
            .l4proto(TCP)
            .address_port_in(Destination, Ipv4, &name("n4_http_77c0"))
            .address_in(Source, Ipv4, &name("p4_f1a2"))
            .goto(&ok),
        Rule::new()
            .nfproto(Ipv6)
            .l4proto(TCP)
            .address_port_in(Destination, Ipv6, &name("n6_http_77c0"))
            .address_in(Source, Ipv6, &name("p6_f1a2"))
            .goto(&ok),
        Rule::new().dport(TCP, 8000..=8010).address_in(Source, Ipv4, &name("b4_c41d")).goto(&ok),
        Rule::new().dport(SCTP, 7777..=7777).address_in(Source, Ipv4, &name("b4_c41d")).goto(&ok),
    ];
    add("in-5be1", "shop/web-allow", with_self(rules, to_ok, "deny-in"));
    let rules = vec![
        Rule::new().dport(TCP, 5432..=5432).address_in(Source, Ipv4, &name("p4_77c0")).goto(&ok),
        Rule::new().dport(TCP, 5432..=5432).address_in(Source, Ipv6, &name("p6_77c0")).goto(&ok),
    ];
    add("in-e270", "shop/db-allow", with_self(rules, to_ok, "deny-in"));
    let rules = vec![
        Rule::new().dport(TCP, 5432..=5432).address_in(Destination, Ipv4, &name("p4_9d3e")).ret(),
        Rule::new().dport(TCP, 5432..=5432).address_in(Destination, Ipv6, &name("p6_9d3e")).ret(),
        Rule::new().dport(TCP, 53..=53).ret(),
        Rule::new().dport(UDP, 53..=53).ret(),
        Rule::new()
            .dport(TCP, 0..=65535)
            .address_in_prefix(Destination, "10.1.2.0/23".parse().unwrap())
            .ret(),
        Rule::new().address_in_prefix(Destination, "fd00:1::/48".parse().unwrap()).ret().comment("a comment"),
    ];
    add("eg-5be1", "shop/web-allow", with_self(rules, Rule::ret, "deny-eg"));
}

fn fixed_chains(ruleset: &mut Ruleset) {
    let ok = name("ok");
    let mut add = |text: &str, base: Option<(Hook, i32)>, rules: Vec<Rule>| {
        let base = base.map(|(hook, priority)| BaseChain { kind: ChainType::Filter, hook, priority });
        ruleset.chains.insert(name(text), Chain { base, comment: None, rules });
    };
    for (direction, long) in [("in", "deny_in"), ("eg", "deny_eg")] {
        let rules = vec![
            Rule::new().limit_per_minute(10, 10).log(format!("npc:{direction} "), 100),
            Rule::new().counter_ref(name(long)),
            Rule::new().reject(Reject::TcpReset),
            Rule::new().reject(Reject::AdminProhibited),
        ];
        add(&format!("deny-{direction}"), None, rules);
    }
    add("ok", None, vec![Rule::new().set_ct_mark(MASK, 0x0001_0000).accept()]);
    let dispatch = vec![
        Rule::new().ct_state(&[CtState::Established, CtState::Related]).ct_direction_reply().accept(),
        Rule::new().ct_state(&[CtState::Related]).accept(),
        Rule::new().icmpv6_type_in(&name("nd")).accept(),
        Rule::new().address_verdict(Source, Ipv4, &name("eg4")),
        Rule::new().address_verdict(Source, Ipv6, &name("eg6")),
        Rule::new().address_verdict(Destination, Ipv4, &name("in4")),
        Rule::new().address_verdict(Destination, Ipv6, &name("in6")),
        Rule::new().goto(&ok),
    ];
    add("dispatch", None, dispatch);
    let marked = || Rule::new().ct_mark_equals(MASK, 0x0001_0000).accept();
    add("forward", Some((Hook::Forward, -5)), vec![marked(), Rule::new().goto(&name("dispatch"))]);
    let local = Rule::new().address_is_local(Source).goto(&ok);
    add("output", Some((Hook::Output, -5)), vec![marked(), local, Rule::new().goto(&name("dispatch"))]);
    let input = vec![
        Rule::new().address_proto_port_in(Destination, Ipv4, &name("svc4")).accept(),
        Rule::new().address_proto_port_in(Destination, Ipv6, &name("svc6")).accept(),
        Rule::new().proto_port_in(&name("nodeports")).accept(),
        Rule::new().counter().accept(),
    ];
    add("input", Some((Hook::Input, -5)), input);
}

/// The whole table.
pub(crate) fn layout(table_name: &str, flags: TableFlags) -> Ruleset {
    let mut ruleset = Ruleset::new(table(table_name, flags));
    for (counter, direction) in [("deny_in", "ingress"), ("deny_eg", "egress")] {
        let comment = Some(format!("packets refused by {direction} isolation"));
        ruleset.counters.insert(name(counter), Counter { comment, packets: 0, bytes: 0 });
    }
    sets(&mut ruleset);
    policy_chains(&mut ruleset);
    fixed_chains(&mut ruleset);
    ruleset
}
