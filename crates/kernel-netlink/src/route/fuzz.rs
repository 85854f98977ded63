//! Bytes from the kernel's side of the socket may be anything: nothing here panics, whatever is read; and what
//! is written is read back as it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::NetlinkSerializable;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::command::Command;
use super::entry::*;
use super::link::*;
use super::monitor::{Event, read_event};
use super::uapi::*;
use super::wire;
use crate::attribute::{Attribute, Message, Value};
use crate::family::Family;

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)]
}

fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::Ipv4 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()).boxed(),
        Family::Ipv6 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()).boxed(),
    }
}

fn prefix(family: Family, least: u8) -> impl Strategy<Value = IpNet> {
    (address(family), least..=family.bits())
        .prop_map(|(address, bits)| IpNet::new(address, bits).unwrap().trunc())
}

fn index() -> impl Strategy<Value = LinkIndex> {
    (1..=u32::MAX).prop_map(LinkIndex)
}

fn hop(family: Family) -> impl Strategy<Value = NextHop> {
    let gateway = match family {
        // RFC 5549.
        Family::Ipv4 => prop_oneof![address(Family::Ipv4), address(Family::Ipv6)].boxed(),
        Family::Ipv6 => address(Family::Ipv6),
    };
    (index(), option::of(gateway), 1..=256u16, any::<bool>())
        .prop_map(|(link, gateway, weight, on_link)| NextHop { link: Some(link), gateway, weight, on_link })
}

fn route() -> impl Strategy<Value = Route> {
    family().prop_flat_map(|family| {
        let numbers = any::<(u32, u8, u8, u8, u32, u8)>();
        let sizes = (option::of(any::<u32>()), option::of(any::<u32>()));
        (prefix(family, 0), numbers, vec(hop(family), 0..5), option::of(address(family)), sizes).prop_map(
            |(destination, numbers, mut next_hops, preferred_source, (mtu, advmss))| {
                let (table, protocol, scope, kind, metric, tos) = numbers;
                let kind = RouteType::from_number(kind);
                if kind.is_refusal() {
                    next_hops.clear();
                }
                if let [only] = next_hops.as_mut_slice() {
                    only.weight = 1;
                }
                Route {
                    destination,
                    table: Table(table),
                    protocol: RouteProtocol(protocol),
                    scope: Scope(scope),
                    kind,
                    next_hops,
                    preferred_source,
                    metric,
                    tos,
                    mtu,
                    advmss,
                }
            },
        )
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    family().prop_flat_map(|family| {
        let action = prop_oneof![
            any::<u32>().prop_map(|table| RuleAction::Lookup(Table(table))),
            Just(RuleAction::Blackhole),
            Just(RuleAction::Unreachable),
            Just(RuleAction::Prohibit),
        ];
        let mark = any::<(u32, u32)>().prop_map(|(value, mask)| Mark { value, mask });
        let prefixes = (option::of(prefix(family, 1)), option::of(prefix(family, 1)));
        let input = option::of("[a-z][a-z0-9.]{0,14}".prop_map(|name| LinkName::new(&name).unwrap()));
        let rest = (any::<bool>(), option::of(0..=128u32), any::<u8>());
        (any::<u32>(), action, option::of(mark), prefixes, input, rest).prop_map(
            move |(
                preference,
                action,
                mark,
                (from, to),
                input,
                (inverted, suppress_prefix_length, protocol),
            )| Rule {
                mark,
                from,
                to,
                input,
                inverted,
                suppress_prefix_length,
                protocol: RouteProtocol(protocol),
                ..Rule::new(family, preference, action)
            },
        )
    })
}

fn an_address() -> impl Strategy<Value = Address> {
    family().prop_flat_map(|family| {
        let own = (address(family), 0..=family.bits());
        (index(), own, option::of(address(family)), any::<u8>(), any::<u32>(), any::<u32>()).prop_map(
            move |(link, (own, bits), peer, scope, flags, broadcast)| Address {
                link,
                address: IpNet::new(own, bits).unwrap(),
                peer: peer.filter(|peer| *peer != own),
                broadcast: Some(Ipv4Addr::from(broadcast))
                    .filter(|address| family == Family::Ipv4 && !address.is_unspecified()),
                scope: Scope(scope),
                flags: AddressFlags(flags),
            },
        )
    })
}

fn tunnel() -> impl Strategy<Value = NewLinkKind> {
    let v4 = || option::of((1..=u32::MAX).prop_map(Ipv4Addr::from));
    let v6 = || option::of((1..=u128::MAX).prop_map(Ipv6Addr::from));
    let ipip =
        (v4(), v4(), any::<u8>(), any::<bool>()).prop_map(|(local, remote, ttl, path_mtu_discovery)| {
            NewLinkKind::Ipip(IpipTunnel { local, remote, ttl, path_mtu_discovery })
        });
    let mode = prop_oneof![Just(Ip6TunnelMode::Any), Just(Ip6TunnelMode::Ipv4), Just(Ip6TunnelMode::Ipv6)];
    let ip6tnl = (v6(), v6(), any::<u8>(), mode).prop_map(|(local, remote, hop_limit, mode)| {
        NewLinkKind::Ip6tnl(Ip6Tunnel { local, remote, hop_limit, mode })
    });
    prop_oneof![ipip, ip6tnl]
}

/// A message as it follows the `nlmsghdr`.
fn body(message: &Message) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// As it would be told, with attributes among it that nobody knows.
fn told(command: &Command) -> Option<Event> {
    let (mut message, _) = wire::command(command);
    message.attributes.insert(0, Attribute::new(4000, Value::Text("news".to_owned())));
    message.attributes.push(Attribute::new(4001, Value::Nested(vec![Attribute::new(1, Value::U8(1))])));
    read_event(message.kind, &body(&message)).unwrap()
}

/// Reads bytes as everything.
fn read_everything(bytes: &[u8]) {
    for kind in RTM_NEWLINK..=RTM_GETRULE {
        let _ = read_event(kind, bytes);
    }
}

#[test]
fn a_condition_that_nobody_knows_makes_a_rule_one_with_more() {
    let rule = Rule::new(Family::Ipv4, 7, RuleAction::Lookup(Table(9)));
    let Some(Event::Rule(found)) = told(&Command::AddRule(rule.clone())) else { panic!("no rule") };
    assert_eq!(found, Rule { has_more: true, ..rule });
}

proptest! {
    #[test]
    fn routes_are_read_back_as_written(route in route()) {
        prop_assert_eq!(told(&Command::AddRoute(route.clone())), Some(Event::Route(route)));
    }

    #[test]
    fn rules_are_read_back_as_written(rule in rule()) {
        let (message, _) = wire::command(&Command::DeleteRule(rule.clone()));
        prop_assert_eq!(read_event(message.kind, &body(&message)), Ok(Some(Event::RuleGone(rule))));
    }

    #[test]
    fn addresses_are_read_back_as_written(address in an_address()) {
        prop_assert_eq!(told(&Command::AddAddress(address)), Some(Event::Address(address)));
    }

    #[test]
    fn tunnels_are_read_back_as_written(kind in tunnel(), mtu in option::of(1..=u32::MAX), up: bool) {
        let new = NewLink { mtu, up, ..NewLink::new(LinkName::new("tun0").unwrap(), kind.clone()) };
        let Some(Event::Link(link)) = told(&Command::AddLink(new)) else { panic!("no link") };
        prop_assert_eq!((link.name.as_str(), link.up, link.mtu), ("tun0", up, mtu.unwrap_or_default()));
        match kind {
            NewLinkKind::Ipip(tunnel) => prop_assert_eq!(link.kind, LinkKind::Ipip(tunnel)),
            NewLinkKind::Ip6tnl(tunnel) => prop_assert_eq!(link.kind, LinkKind::Ip6tnl(tunnel)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn fuzz_damaged_messages(
        commands in (route(), rule(), an_address(), tunnel()),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        end in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let (route, rule, address, kind) = commands;
        let link = NewLink::new(LinkName::new("tun0").unwrap(), kind);
        let commands =
            [Command::AddRoute(route), Command::AddRule(rule), Command::AddAddress(address), Command::AddLink(link)];
        for command in commands {
            let mut bytes = body(&wire::command(&command).0);
            for (place, value) in &damage {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
            let end = if whole { bytes.len() } else { end.index(bytes.len()) };
            read_everything(&bytes[..end]);
        }
    }

    #[test]
    fn fuzz_any_bytes(mut bytes in vec(any::<u8>(), 0..256), family: bool) {
        read_everything(&bytes);
        // As something of a family that is looked into.
        if let Some(first) = bytes.first_mut() {
            *first = if family { 2 } else { 10 };
        }
        read_everything(&bytes);
    }
}
