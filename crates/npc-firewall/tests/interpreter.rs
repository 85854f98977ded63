//! The interpreter on the example of the layout: two policies whose rules were written by hand, and loaded
//! into a kernel, before there was a planner. What it makes of each packet is what the kernel made of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::net::IpAddr;

use kernel_nft::expr::{CmpOp, CtKey, Expr, MetaKey, PayloadBase, Register};
use kernel_nft::{
    BaseChain, Chain, ChainType, Counter, DataType, Family, Hook, IpVersion, Key, MapsTo, Name, Reject, Rule,
    Ruleset, Set, SetSpec, Side, Table, TableFlags, Value, Verdict,
};
use support::interpreter::{CtState, Fate, Packet, SCTP, TCP, UDP, run};

const R: Register = Register(0);
const ALLOWED: u32 = 0x0001_0000;

fn table() -> Ruleset {
    let flags = TableFlags::default();
    Ruleset::new(Table { family: Family::Inet, name: "npc".into(), flags, comment: None })
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pair(one: &str, other: &[u8]) -> Key {
    Key::concat(&[Key::from(address(one)).as_bytes(), other])
}

fn add_set(table: &mut Ruleset, name: &str, key: &[DataType], elements: Vec<(Key, Value)>) {
    let spec = SetSpec {
        key: key.to_vec(),
        maps_to: match elements.iter().any(|(_, value)| matches!(value, Value::Verdict(_))) {
            true => MapsTo::Verdict,
            false => MapsTo::Nothing,
        },
        interval: elements.iter().any(|(_, value)| matches!(value, Value::Until(_))),
        size: None,
        comment: None,
    };
    table.sets.insert(name.into(), Set { spec, elements: elements.into_iter().collect() });
}

fn add_chain(table: &mut Ruleset, name: &str, hook: Option<(Hook, i32)>, rules: Vec<Rule>) {
    let base = hook.map(|(hook, priority)| BaseChain { kind: ChainType::Filter, hook, priority });
    table.chains.insert(name.into(), Chain { base, comment: None, rules });
}

fn name(text: &str) -> Name {
    text.into()
}

/// shop/web-allow (app=web; ingress: role=frontend to http, 10.60.0.0/16 except 10.60.9.0/24 to TCP 8000-8010
/// and SCTP 7777; egress: app=db TCP 5432, DNS) and shop/db-allow (app=db; ingress: app=web TCP 5432).
fn shop() -> Ruleset {
    use DataType::{InetService, Ipv4Addr};
    let mut t = table();
    for counter in ["deny_in", "deny_eg"] {
        t.counters.insert(counter.into(), Counter::default());
    }
    let (web, db, frontend) = ("10.50.0.10", "10.50.0.11", "10.50.0.12");
    let member = |text: &str| (Key::from(address(text)), Value::Member);
    let range = |from: &str, to: &str| (Key::from(address(from)), Value::Until(Key::from(address(to))));
    let itself = |text: &str| (pair(text, Key::from(address(text)).as_bytes()), Value::Member);
    let verdict = |text: &str, verdict| (Key::from(address(text)), Value::Verdict(verdict));
    add_set(&mut t, "frontend", &[Ipv4Addr], vec![member(frontend)]);
    add_set(&mut t, "db", &[Ipv4Addr], vec![member(db)]);
    add_set(&mut t, "web", &[Ipv4Addr], vec![member(web)]);
    let block = vec![range("10.60.0.0", "10.60.8.255"), range("10.60.10.0", "10.60.255.255")];
    add_set(&mut t, "block", &[Ipv4Addr], block);
    let http = vec![(pair(web, &8080u16.to_be_bytes()), Value::Member)];
    add_set(&mut t, "http", &[Ipv4Addr, InetService], http);
    add_set(&mut t, "self4", &[Ipv4Addr, Ipv4Addr], vec![itself(web), itself(db)]);
    add_set(&mut t, "eg4", &[Ipv4Addr], vec![verdict(web, Verdict::Jump(name("eg-web")))]);
    let into = vec![verdict(web, Verdict::Goto(name("in-web"))), verdict(db, Verdict::Goto(name("in-db")))];
    add_set(&mut t, "in4", &[Ipv4Addr], into);

    for (chain, counter) in [("deny-in", "deny_in"), ("deny-eg", "deny_eg")] {
        let rules = vec![
            Rule::new().limit_per_minute(10, 10).log(format!("npc {chain}"), 100),
            Rule::new().counter_ref(name(counter)),
            Rule::new().l4proto(TCP).reject(Reject::TcpReset),
            Rule::new().reject(Reject::AdminProhibited),
        ];
        add_chain(&mut t, chain, None, rules);
    }
    add_chain(&mut t, "ok", None, vec![Rule::new().set_ct_mark(0x00ff_0000, ALLOWED).accept()]);
    let (v4, source, destination) = (IpVersion::V4, Side::Source, Side::Destination);
    let own = || Rule::new().address_pair_in(v4, &name("self4"));
    let in_web = vec![
        Rule::new()
            .l4proto(TCP)
            .address_port_in(destination, v4, &name("http"))
            .address_in(source, v4, &name("frontend"))
            .goto(&name("ok")),
        Rule::new().dport(TCP, 8000..=8010).address_in(source, v4, &name("block")).goto(&name("ok")),
        Rule::new().dport(SCTP, 7777..=7777).address_in(source, v4, &name("block")).goto(&name("ok")),
        own().goto(&name("ok")),
        Rule::new().goto(&name("deny-in")),
    ];
    add_chain(&mut t, "in-web", None, in_web);
    let in_db = vec![
        Rule::new().dport(TCP, 5432..=5432).address_in(source, v4, &name("web")).goto(&name("ok")),
        own().goto(&name("ok")),
        Rule::new().goto(&name("deny-in")),
    ];
    add_chain(&mut t, "in-db", None, in_db);
    let eg_web = vec![
        Rule::new().dport(TCP, 5432..=5432).address_in(destination, v4, &name("db")).ret(),
        Rule::new().dport(UDP, 53..=53).ret(),
        Rule::new().dport(TCP, 53..=53).ret(),
        own().ret(),
        Rule::new().goto(&name("deny-eg")),
    ];
    add_chain(&mut t, "eg-web", None, eg_web);
    let states = |states: &[_]| Rule::new().ct_state(states);
    let dispatch = vec![
        states(&[kernel_nft::CtState::Established]).ct_direction_reply().accept(),
        states(&[kernel_nft::CtState::Related]).accept(),
        Rule::new().address_verdict(source, v4, &name("eg4")),
        Rule::new().address_verdict(destination, v4, &name("in4")),
        Rule::new().goto(&name("ok")),
    ];
    add_chain(&mut t, "dispatch", None, dispatch);
    let judged = || Rule::new().ct_mark_equals(0x00ff_0000, ALLOWED).accept();
    add_chain(
        &mut t,
        "forward",
        Some((Hook::Forward, -5)),
        vec![judged(), Rule::new().goto(&name("dispatch"))],
    );
    let local = Rule::new().address_is_local(source).goto(&name("ok"));
    let output = vec![judged(), local, Rule::new().goto(&name("dispatch"))];
    add_chain(&mut t, "output", Some((Hook::Output, -5)), output);
    t
}

fn packet(source: &str, destination: &str, protocol: u8, port: u16) -> Packet {
    Packet::new(address(source), address(destination), protocol, port)
}

#[test]
fn the_example_passes_and_refuses_what_the_kernel_did() {
    let shop = shop();
    let (web, db, frontend, other) = ("10.50.0.10", "10.50.0.11", "10.50.0.12", "10.50.0.13");
    let passes = |source, destination, protocol, port| {
        run(&shop, &packet(source, destination, protocol, port)).fate == Fate::Accepted
    };
    assert!(passes(frontend, web, TCP, 8080), "a named port by its number");
    assert!(!passes(frontend, web, TCP, 80), "another number");
    assert!(!passes(frontend, web, UDP, 8080), "another protocol");
    assert!(!passes(other, web, TCP, 8080), "another peer");
    assert!(passes("10.60.8.255", web, TCP, 8000) && passes("10.60.10.0", web, TCP, 8010), "ends of ranges");
    assert!(!passes("10.60.9.0", web, TCP, 8000) && !passes("10.60.9.255", web, TCP, 8000), "the except");
    assert!(!passes("10.61.0.0", web, TCP, 8000), "outside of the block");
    assert!(!passes("10.60.0.1", web, TCP, 7999) && !passes("10.60.0.1", web, TCP, 8011), "neighbours");
    assert!(passes("10.60.0.1", web, SCTP, 7777) && !passes("10.60.0.1", web, TCP, 7777), "SCTP");
    assert!(passes(web, db, TCP, 5432), "both ends agree");
    assert!(!passes(frontend, db, TCP, 5432), "the destination does not");
    assert!(!passes(web, frontend, TCP, 5432), "the source does not");
    assert!(passes(web, "8.8.8.8", UDP, 53) && passes(web, "8.8.8.8", TCP, 53), "DNS");
    assert!(!passes(web, "8.8.8.8", TCP, 443), "nothing else");
    assert!(!passes(web, db, UDP, 53), "out by the egress rule, but not in");
    assert!(passes(web, web, TCP, 1), "a pod and itself");
    assert!(passes(other, frontend, TCP, 1), "nobody is isolated");
    assert!(passes("fd50::1", "fd50::2", TCP, 1), "no rule reads an IPv6 address as an IPv4 one");
}

#[test]
fn a_refusal_is_counted_logged_within_the_limit_and_answered() {
    let shop = shop();
    let refused = packet("10.50.0.13", "10.50.0.10", TCP, 8080);
    let outcome = run(&shop, &refused);
    assert_eq!(outcome.fate, Fate::Rejected(Reject::TcpReset));
    assert_eq!((outcome.counters, outcome.ct_mark), (vec![name("deny_in")], 0));
    assert_eq!(outcome.logs, [("npc deny-in".to_owned(), 100)]);
    let outcome = run(&shop, &Packet { over_limit: true, ..refused });
    assert_eq!((outcome.counters.len(), outcome.logs.len()), (1, 0));
    let outcome = run(&shop, &packet("10.50.0.10", "10.50.0.12", UDP, 1));
    assert_eq!(outcome.fate, Fate::Rejected(Reject::AdminProhibited));
    assert_eq!(outcome.counters, [name("deny_eg")]);
}

#[test]
fn marks_let_a_connection_pass_and_replies_need_none() {
    let shop = shop();
    let allowed = packet("10.50.0.12", "10.50.0.10", TCP, 8080);
    let first = run(&shop, &Packet { ct_mark: 0xaa00_00bb, ..allowed.clone() });
    assert_eq!(first.ct_mark, 0xaa01_00bb, "the bits of others stay");
    let refused = packet("10.50.0.13", "10.50.0.10", TCP, 8080);
    assert_eq!(run(&shop, &refused.later(ALLOWED)).fate, Fate::Accepted);
    assert_ne!(run(&shop, &refused.later(0x0002_0000)).fate, Fate::Accepted, "another generation");
    // web may not open connections to the frontend, but may answer it.
    assert_eq!(run(&shop, &allowed.answer(0)).fate, Fate::Accepted);
    let invalid = Packet { state: CtState::Invalid, ct_mark: ALLOWED, ..refused };
    assert_ne!(run(&shop, &invalid).fate, Fate::Accepted, "no connection, no mark");
}

#[test]
fn a_node_reaches_its_pods() {
    let shop = shop();
    let probe =
        Packet { hook: Hook::Output, source_is_local: true, ..packet("10.0.0.1", "10.50.0.10", TCP, 1) };
    assert_eq!(run(&shop, &probe).fate, Fate::Accepted);
    let client_of_ipvs = Packet { source_is_local: false, ..probe };
    assert_ne!(run(&shop, &client_of_ipvs).fate, Fate::Accepted);
}

/// A table with one chain in the forward hook.
fn chain_of(rules: Vec<Rule>) -> Ruleset {
    let mut table = table();
    add_chain(&mut table, "forward", Some((Hook::Forward, 0)), rules);
    table
}

fn drops_if(expressions: Vec<Expr>) -> Ruleset {
    let mut rule = Rule { expressions, comment: None };
    rule.expressions.push(Expr::Verdict(Verdict::Drop));
    chain_of(vec![rule])
}

fn dport() -> Expr {
    Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: R }
}

#[test]
fn comparisons_are_of_bytes_in_network_order() {
    use CmpOp::{Eq, Gt, Gte, Lt, Lte, Neq};
    for (op, below, equal, above) in [
        (Eq, false, true, false),
        (Neq, true, false, true),
        (Lt, true, false, false),
        (Lte, true, true, false),
        (Gt, false, false, true),
        (Gte, false, true, true),
    ] {
        let table = drops_if(vec![dport(), Expr::Cmp { op, sreg: R, data: 256u16.to_be_bytes().into() }]);
        let drops = |port| run(&table, &packet("1.1.1.1", "2.2.2.2", TCP, port)).fate == Fate::Dropped;
        assert_eq!((drops(255), drops(256), drops(511)), (below, equal, above), "{op:?}");
    }
    for negate in [false, true] {
        let ends = [255u16, 257].map(|port| port.to_be_bytes().to_vec());
        let [from, to] = ends;
        let table = drops_if(vec![dport(), Expr::Range { negate, sreg: R, from, to }]);
        let drops = |port| run(&table, &packet("1.1.1.1", "2.2.2.2", TCP, port)).fate == Fate::Dropped;
        assert_eq!(
            [254, 255, 256, 257, 258].map(drops),
            [false, true, true, true, false].map(|d| d != negate)
        );
    }
}

#[test]
fn a_load_that_is_not_there_ends_the_rule() {
    let beyond = Expr::Payload { base: PayloadBase::Transport, offset: 30, len: 2, dreg: R };
    assert_eq!(run(&drops_if(vec![beyond]), &packet("1.1.1.1", "2.2.2.2", TCP, 1)).fate, Fate::Accepted);
    let untracked = Packet { state: CtState::Untracked, ..packet("1.1.1.1", "2.2.2.2", TCP, 1) };
    let mark = drops_if(vec![Expr::Ct { key: CtKey::Mark, dreg: R }]);
    assert_eq!(run(&mark, &untracked).fate, Fate::Accepted);
}

#[test]
fn a_short_load_clears_its_register() {
    let table = drops_if(vec![
        Expr::Immediate { dreg: R, data: vec![0xff; 4] },
        Expr::Meta { key: MetaKey::L4Proto, dreg: R },
        Expr::Cmp { op: CmpOp::Eq, sreg: R, data: vec![TCP, 0, 0, 0] },
    ]);
    assert_eq!(run(&table, &packet("1.1.1.1", "2.2.2.2", TCP, 1)).fate, Fate::Dropped);
}

#[test]
fn goto_comes_back_to_the_caller_of_its_chain_and_jump_to_its_own() {
    let jump = |to: &str| Rule::new().jump(&name(to));
    let goto = |to: &str| Rule::new().goto(&name(to));
    let fate = |forward: Vec<Rule>| {
        let mut table = chain_of(forward);
        add_chain(&mut table, "empty", None, vec![]);
        add_chain(&mut table, "returns", None, vec![Rule::new().ret(), Rule::new().drop()]);
        add_chain(&mut table, "goes", None, vec![goto("empty"), Rule::new().drop()]);
        add_chain(&mut table, "jumps", None, vec![jump("empty"), Rule::new().drop()]);
        run(&table, &packet("1.1.1.1", "2.2.2.2", TCP, 1)).fate
    };
    assert_eq!(fate(vec![goto("empty"), Rule::new().drop()]), Fate::Accepted, "goto out of a base chain");
    assert_eq!(fate(vec![Rule::new().ret(), Rule::new().drop()]), Fate::Accepted, "return out of one");
    assert_eq!(fate(vec![jump("empty"), Rule::new().drop()]), Fate::Dropped);
    assert_eq!(fate(vec![jump("returns"), Rule::new().drop()]), Fate::Dropped);
    assert_eq!(fate(vec![jump("returns")]), Fate::Accepted);
    assert_eq!(fate(vec![jump("goes")]), Fate::Accepted, "the chain that went is left for good");
    assert_eq!(fate(vec![jump("goes"), Rule::new().drop()]), Fate::Dropped, "its caller is not");
    assert_eq!(fate(vec![jump("jumps")]), Fate::Dropped);
}

#[test]
fn an_accept_ends_its_base_chain_and_a_drop_all() {
    let mut table = chain_of(vec![Rule::new().drop()]);
    add_chain(&mut table, "earlier", Some((Hook::Forward, -10)), vec![Rule::new().accept()]);
    add_chain(
        &mut table,
        "elsewhere",
        Some((Hook::Input, -20)),
        vec![Rule::new().reject(Reject::PortUnreachable)],
    );
    assert_eq!(run(&table, &packet("1.1.1.1", "2.2.2.2", TCP, 1)).fate, Fate::Dropped);
}
