//! The table of a Service proxy beside IPVS: everything that the proxy uses, in one table.

use std::net::IpAddr;

use kernel_nft::DataType::{
    IcmpType, Icmpv6Type, InetProto, InetService, Ipv4Addr as A4, Ipv6Addr as A6, Mark,
};
use kernel_nft::Field::{Address, L4Proto, OriginalAddress, OriginalPort, Port};
use kernel_nft::IpVersion::{V4, V6};
use kernel_nft::Side::{Destination, Source};
use kernel_nft::*;

use super::layout::{SCTP, TCP, UDP, name};

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn put(ruleset: &mut Ruleset, set: &str, spec: SetSpec, elements: Vec<(Key, Value)>) {
    ruleset.sets.insert(name(set), Set { spec, elements: elements.into_iter().collect() });
}

fn members<const N: usize>(keys: [Key; N]) -> Vec<(Key, Value)> {
    keys.into_iter().map(|key| (key, Value::Member)).collect()
}

fn service(text: &str, proto: u8, port: u16) -> Key {
    Key::address_proto_port(address(text), proto, port)
}

fn sets_of(ruleset: &mut Ruleset, version: IpVersion) {
    let v = if version == V4 { "4" } else { "6" };
    let (a, vip, pod, cidr) = match version {
        V4 => (A4, "10.96.0.10", "10.244.1.11", ("10.244.1.0", "10.244.1.255")),
        V6 => (A6, "fd00:96::10", "fd00:244:1::11", ("fd00:244:1::", "fd00:244:1:0:ffff:ffff:ffff:ffff")),
    };
    let key: [DataType; 3] = [a, InetProto, InetService];
    let mut put = |set: &str, spec: SetSpec, elements: Vec<(Key, Value)>| {
        put(ruleset, &format!("{set}{v}"), spec.with_comment(set), elements);
    };
    put("vip", SetSpec::set(&[a]), members([address(vip).into()]));
    let services = [service(vip, TCP, 80), service(vip, UDP, 53), service(vip, SCTP, 7777)];
    put("svc", SetSpec::set(&key), members(services));
    put("noep", SetSpec::set(&key), members([service(vip, TCP, 90)]));
    put("np", SetSpec::set(&key), members([service(vip, TCP, 30080)]));
    put("hp", SetSpec::set(&[a, a]), members([Key::concat(&[Key::from(address(pod)).as_bytes(); 2])]));
    let range = (Key::from(address(cidr.0)), Value::Until(address(cidr.1).into()));
    put("podcidr", SetSpec::intervals(a), vec![range]);
    let marks = [(TCP, 80, 0x1001), (UDP, 5353, 0x1002)]
        .map(|(proto, port, mark)| (service(vip, proto, port), Value::Data(Key::mark(mark))));
    put("dsr", SetSpec::data(&key, &[Mark]), marks.to_vec());
    let inside = Value::Data(Key::address_port(address(pod), 8080));
    put("inside", SetSpec::data(&key, &[a, InetService]), vec![(service(vip, TCP, 80), inside)]);
    let other = Value::Data(address(pod).into());
    put("other", SetSpec::data(&[a], &[a]), vec![(address(vip).into(), other)]);
    let limited = Value::Verdict(Verdict::Goto(name("limited")));
    put("limit", SetSpec::verdicts(&key), vec![(service(vip, TCP, 80), limited)]);
}

/// Rules of one IP version, by chain.
fn rules_of(version: IpVersion) -> Vec<(&'static str, Rule)> {
    let set = |text: &str| name(&format!("{text}{}", if version == V4 { "4" } else { "6" }));
    let pair = [Address(Source), Address(Destination)];
    let original = [OriginalAddress(Destination), L4Proto, OriginalPort(Destination)];
    let new = Rule::new;
    let any = NatFlags::default();
    let (to, source) = match version {
        V4 => (address("10.0.0.1"), address("192.168.50.1")),
        V6 => (address("fd00::1"), address("fd50::1")),
    };
    let persistent = NatFlags { random: true, fully_random: false, persistent: true };
    let vip = [OriginalAddress(Destination)];
    let syn = [TcpFlag::Syn];
    vec![
        ("raw_pre", new().fields_in(version, &SOURCE, &set("svc")).jump(&name("dsr_reply"))),
        (
            "dsr_reply",
            new().input_interface("br0").tcp_flags(&[TcpFlag::Syn, TcpFlag::Rst], &syn).clamp_mss(1440),
        ),
        ("dsr_reply", new().tcp_flags(&syn, &syn).clamp_mss(1380).counter().notrack()),
        ("dsr_reply", new().tcp_flags(&[TcpFlag::Fin, TcpFlag::Rst], &[]).ret()),
        ("dsr_pre", new().set_mark_from(version, &DESTINATION, &set("dsr"))),
        ("dsr_pre", new().fields_verdict(version, &DESTINATION, &set("limit"))),
        ("dsr_pre", new().fields_not_in(version, &DESTINATION, &set("svc")).counter().drop()),
        ("dsr_out", new().set_mark_from(version, &DESTINATION, &set("dsr"))),
        ("input", new().fields_in(version, &DESTINATION, &set("noep")).goto(&name("refuse"))),
        ("input", new().address_in(Destination, version, &set("vip")).goto(&name("vipfw"))),
        ("vipfw", new().fields_in(version, &DESTINATION, &set("svc")).counter().accept()),
        ("dstnat", new().dnat_from(version, &DESTINATION, &set("inside"), true)),
        ("dstnat", new().dnat_from(version, &[Address(Destination)], &set("other"), false)),
        ("dstnat", new().dport(TCP, 80..=80).dnat_to(to, Some(8080))),
        ("dstnat", new().dnat_to(to, None)),
        ("post", new().fields_in(version, &pair, &set("hp")).counter().masquerade(any)),
        ("post", new().address_in(Source, version, &set("podcidr")).ret()),
        ("post", new().fields_in(version, &vip, &set("vip")).masquerade(NatFlags::FULLY_RANDOM)),
        ("post", new().l4proto(TCP).fields_in(version, &original, &set("np")).masquerade(persistent)),
        ("post", new().snat_from(version, &[Address(Source)], &set("other"), any)),
        ("post", new().snat_to_original_destination(version, any)),
        ("post", new().ct_status(&[CtStatus::Snat, CtStatus::Dnat]).snat_to(source, NatFlags::FULLY_RANDOM)),
    ]
}

/// The whole table.
pub(crate) fn service_layout(table_name: &str) -> Ruleset {
    let flags = TableFlags::default();
    let mut table =
        Ruleset::new(Table { family: Family::Inet, name: name(table_name), flags, comment: None });
    let icmp = members([3u8, 8, 11].map(|kind| Key::from_bytes(&[kind])));
    put(&mut table, "icmp_ok", SetSpec::set(&[IcmpType]), icmp);
    let icmpv6 = members([1u8, 2, 3, 128].map(|kind| Key::from_bytes(&[kind])));
    put(&mut table, "icmpv6_ok", SetSpec::set(&[Icmpv6Type]), icmpv6);
    for version in [V4, V6] {
        sets_of(&mut table, version);
    }
    use ChainType::{Filter, Nat, Route};
    for (chain, base) in [
        ("raw_pre", Some((Filter, Hook::Prerouting, -300))),
        ("dsr_reply", None),
        ("dsr_pre", Some((Filter, Hook::Prerouting, -90))),
        ("limited", None),
        ("dsr_out", Some((Route, Hook::Output, -150))),
        ("out_refuse", Some((Filter, Hook::Output, -155))),
        ("input", Some((Filter, Hook::Input, -5))),
        ("late", Some((Filter, Hook::Input, 50))),
        ("vipfw", None),
        ("refuse", None),
        ("dstnat", Some((Nat, Hook::Prerouting, -100))),
        ("dstnat_out", Some((Nat, Hook::Output, -100))),
        ("srcnat_in", Some((Nat, Hook::Input, 100))),
        ("post", Some((Nat, Hook::Postrouting, 100))),
    ] {
        let base = base.map(|(kind, hook, priority)| BaseChain { kind, hook, priority });
        table.chains.insert(name(chain), Chain { base, comment: None, rules: Vec::new() });
    }
    let states = [CtState::Established, CtState::Related];
    let mut rules = vec![
        ("vipfw", Rule::new().ct_state(&states).accept()),
        ("vipfw", Rule::new().icmp_type_in(&name("icmp_ok")).accept()),
        ("vipfw", Rule::new().icmpv6_type_in(&name("icmpv6_ok")).accept()),
        ("limited", Rule::new().address_in_prefix(Source, "192.168.50.0/24".parse().unwrap()).ret()),
        ("limited", Rule::new().drop()),
        ("dsr_pre", Rule::new().mark_equals(0xff00, 0x1000).set_mark(0xff00, 0x2000)),
        ("dsr_pre", Rule::new().mark_equals(u32::MAX, 7).set_mark(u32::MAX, 0x2000).accept()),
        ("out_refuse", Rule::new().output_interface("kube-dummy-if").address_is_local(Destination).ret()),
        ("dstnat_out", Rule::new().dport(TCP, 80..=80).redirect(Some(8080))),
        ("dstnat_out", Rule::new().fields_in(V4, &[L4Proto, Port(Source)], &name("ports")).redirect(None)),
        ("srcnat_in", Rule::new().fields_in(V4, &[Field::Mark], &name("marks")).ret()),
    ];
    let marks = members([Key::mark(1), Key::mark(0x4000_0000)]);
    put(&mut table, "marks", SetSpec::set(&[Mark]), marks);
    put(&mut table, "ports", SetSpec::set(&[InetProto, InetService]), vec![]);
    rules.extend([V4, V6].into_iter().flat_map(rules_of));
    rules.push(("vipfw", Rule::new().goto(&name("refuse"))));
    rules.push(("refuse", Rule::new().reject(Reject::TcpReset)));
    rules.push(("refuse", Rule::new().counter().reject(Reject::PortUnreachable)));
    for (chain, rule) in rules {
        table.chains.get_mut(chain).unwrap().rules.push(rule);
    }
    table
}
