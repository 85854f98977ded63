//! What we write, `ip` reads, and the other way round.

use kernel_netlink::route::*;
use serde_json::Value;

use crate::namespace::{in_empty_netns, run};
use crate::route_contract::{OURS, link, name, net, node, vip};

/// What `ip -j` tells.
fn ip_json(arguments: &[&str]) -> Vec<Value> {
    let words = run("ip", &[&["-j", "-d", "-N"], arguments].concat(), "");
    serde_json::from_str(if words.trim().is_empty() { "[]" } else { &words }).expect("JSON")
}

/// Objects with only these members, as text, in order.
fn members(objects: &[Value], names: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = objects
        .iter()
        .map(|object| {
            let members = names.iter().map(|name| match &object[*name] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            members.collect::<Vec<_>>().join(" ")
        })
        .collect();
    found.sort();
    found
}

#[test]
fn ip_sees_our_routes() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let index = node(&mut socket);
        socket.commit(&[vip("10.96.0.1", index), vip("fd96::1", index)].map(Command::AddRoute)).unwrap();
        let hop = NextHop { link: Some(index), ..NextHop::gateway("10.0.0.2".parse().unwrap()) };
        let several = Route {
            next_hops: vec![hop, NextHop { weight: 3, gateway: Some("10.0.0.3".parse().unwrap()), ..hop }],
            metric: 50,
            protocol: RouteProtocol::BGP,
            ..Route::new(net("10.244.0.0/16"), hop)
        };
        socket.commit(&[Command::AddRoute(several)]).unwrap();
        let shown = |family, arguments: &[&str], names: &[&str]| {
            members(&ip_json(&[&[family, "route", "show"], arguments].concat()), names)
        };
        let names = ["type", "dst", "dev", "scope", "prefsrc", "metric"];
        let local = ["table", "local", "proto", "44"];
        assert_eq!(shown("-4", &local, &names), ["2 10.96.0.1 node 254 10.0.0.1 -"]);
        assert_eq!(shown("-6", &local, &names), ["2 fd96::1 node 0 fd00::1 1024"]);
        let text = run("ip", &["route", "show", "proto", "bgp"], "");
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "10.244.0.0/16 metric 50 nexthop via 10.0.0.2 dev node weight 1 nexthop via 10.0.0.3 dev node weight 3"
        );
    });
}

#[test]
fn we_see_routes_of_ip() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let index = node(&mut socket);
        let lines = [
            "route add local 10.96.0.1 dev node table local proto 44 scope host src 10.0.0.1",
            "-6 route add local fd96::1 dev node table local proto 44 src fd00::1",
        ];
        for line in lines {
            run("ip", &line.split(' ').collect::<Vec<_>>(), "");
        }
        let filter = RouteFilter { protocol: Some(OURS), ..RouteFilter::default() };
        let expected = [vip("10.96.0.1", index), vip("fd96::1", index)].map(Route::as_stored);
        assert_eq!(socket.observe_routes(&filter).unwrap(), expected);
        // What ip added, our commands remove.
        socket.commit(&expected.map(Command::DeleteRoute)).unwrap();
        assert_eq!(run("ip", &["route", "show", "table", "all", "proto", "44"], ""), "");
    });
}

#[test]
fn ip_sees_our_rules_and_we_see_its() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let rule = |family| Rule {
            mark: Some(Mark { value: 0x1000, mask: 0xff00 }),
            ..Rule::new(family, 32764, RuleAction::Lookup(Table(78)))
        };
        socket.commit(&[rule(Family::Ipv4), rule(Family::Ipv6)].map(Command::AddRule)).unwrap();
        for family in ["-4", "-6"] {
            let rules = run("ip", &[family, "rule", "show", "pref", "32764"], "");
            assert_eq!(rules.trim(), "32764:\tfrom all fwmark 0x1000/0xff00 lookup 78 proto static");
        }
        run("ip", &["rule", "add", "pref", "7", "ipproto", "tcp", "dport", "80", "lookup", "9"], "");
        run("ip", &["rule", "add", "pref", "8", "from", "10.1.0.0/16", "iif", "lo", "lookup", "9"], "");
        let found = socket.observe_rules(Family::Ipv4).unwrap();
        let told = |preference| found.iter().find(|rule| rule.preference == preference).unwrap();
        assert!(told(7).has_more);
        let expected = Rule {
            from: Some(net("10.1.0.0/16")),
            input: Some(name("lo")),
            protocol: RouteProtocol::UNSPEC,
            ..Rule::new(Family::Ipv4, 8, RuleAction::Lookup(Table(9)))
        };
        assert_eq!(told(8), &expected);
    });
}

#[test]
fn ip_sees_our_links_and_addresses() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let mac = MacAddress([2, 0, 0, 0, 0, 9]);
        let peer = Peer { mtu: Some(1300), ..Peer::new(name("pod")) };
        let veth =
            NewLink { mac: Some(mac), up: true, ..NewLink::new(name("host"), NewLinkKind::Veth(peer)) };
        let bridge = Bridge { multicast_snooping: Some(false), ..Bridge::default() };
        let bridge = NewLink::new(name("br"), NewLinkKind::Bridge(bridge));
        socket.commit(&[Command::AddLink(veth), Command::AddLink(bridge)]).unwrap();
        let index = link(&mut socket, "br").index;
        let address = Address { scope: Scope::LINK, ..Address::new(index, net("10.1.2.3/20")) };
        socket.commit(&[Command::AddAddress(address)]).unwrap();
        let links = ip_json(&["link", "show"]);
        let shown = members(&links, &["ifname", "mtu"]);
        for expected in ["br 1500", "host 1500", "lo 65536", "pod 1300"] {
            assert!(shown.iter().any(|link| link == expected), "no {expected}: {shown:?}");
        }
        let find = |name: &str| links.iter().find(|link| link["ifname"] == name).unwrap();
        assert_eq!(find("host")["address"], "02:00:00:00:00:09");
        assert!(find("host")["flags"].as_array().unwrap().contains(&"UP".into()));
        let data = &find("br")["linkinfo"]["info_data"];
        assert_eq!(data["mcast_snooping"], 0);
        let shown = ip_json(&["address", "show", "dev", "br"]);
        let shown = shown.iter().find(|link| link["ifname"] == "br").unwrap();
        assert_eq!(
            members(shown["addr_info"].as_array().unwrap(), &["local", "prefixlen", "scope"]),
            ["10.1.2.3 20 253"]
        );
    });
}

#[test]
fn ip_sees_our_ports_and_we_see_its() {
    in_empty_netns(|| {
        for line in ["link add name br type bridge", "link add name a master br type veth peer name b"] {
            run("ip", &line.split(' ').collect::<Vec<_>>(), "");
        }
        let mut socket = Socket::open().unwrap();
        let index = link(&mut socket, "a").index;
        let change = PortChange { hairpin: Some(true), ..PortChange::default() };
        socket.commit(&[Command::SetPort(index, change)]).unwrap();
        let data = &ip_json(&["link", "show", "dev", "a"])[0]["linkinfo"]["info_slave_data"];
        assert_eq!((&data["hairpin"], &data["isolated"]), (&true.into(), &false.into()));
        run(
            "ip",
            &["link", "set", "dev", "a", "type", "bridge_slave", "isolated", "on", "hairpin", "off"],
            "",
        );
        assert_eq!(link(&mut socket, "a").port, Some(Port { isolated: true, ..Port::default() }));
    });
}

#[test]
fn we_see_links_and_addresses_of_ip() {
    in_empty_netns(|| {
        for line in [
            "link add name br type bridge",
            "link add name a mtu 1400 master br type veth peer name b",
            "address add 10.1.0.1/24 brd 10.1.0.255 dev b",
            "address add 192.0.2.1 peer 192.0.2.2/32 dev b",
            "-6 address add fd01::1/64 dev b preferred_lft 0",
        ] {
            run("ip", &line.split(' ').collect::<Vec<_>>(), "");
        }
        let mut socket = Socket::open().unwrap();
        let (a, b, br) = (link(&mut socket, "a"), link(&mut socket, "b"), link(&mut socket, "br"));
        assert_eq!((a.mtu, a.master, a.peer, a.up), (1400, Some(br.index), Some(b.index), false));
        let addresses = socket.observe_addresses().unwrap();
        let found = |text: &str| *addresses.iter().find(|address| address.address == net(text)).unwrap();
        let broadcast = Some("10.1.0.255".parse().unwrap());
        assert_eq!(found("10.1.0.1/24"), Address { broadcast, ..Address::new(b.index, net("10.1.0.1/24")) });
        assert_eq!(found("192.0.2.1/32").peer, Some("192.0.2.2".parse().unwrap()));
        assert!(found("fd01::1/64").flags.contains(AddressFlags::DEPRECATED));
        assert!(found("fd01::1/64").flags.contains(AddressFlags::TENTATIVE));
        assert_eq!(addresses.len(), 3);
    });
}

#[test]
fn a_refusal_says_what_was_refused_and_what_the_kernel_says_of_it() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let index = node(&mut socket);
        let there = vip("10.96.0.1", index);
        let foreign = Route { preferred_source: "192.0.2.9".parse().ok(), ..vip("10.96.0.2", index) };
        let commands = [there.clone(), there, foreign].map(Command::AddRoute);
        let Err(CommitError::Refused(refusals)) = socket.commit(&commands) else { panic!("not refused") };
        let words: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        let route = format!("dev {index} table local proto 44 src");
        assert_eq!(
            words,
            [
                format!("add route local 10.96.0.1/32 {route} 10.0.0.1: File exists (os error 17)"),
                format!(
                    "add route local 10.96.0.2/32 {route} 192.0.2.9: Invalid argument (os error 22): \
                     Invalid prefsrc address"
                ),
            ]
        );
        assert!(refusals[0].is_retryable() && !refusals[1].is_retryable());
    });
}
