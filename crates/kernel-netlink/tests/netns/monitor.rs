//! What is told of changes.

use std::time::Duration;

use kernel_netlink::route::*;

use crate::namespace::{in_empty_netns, run};
use crate::route_contract::{OURS, link, name, net, new_bridge, node, vip};

const SOON: Option<Duration> = Some(Duration::from_secs(60));
const NOT_SOON: Option<Duration> = Some(Duration::from_millis(200));

fn by_protocol(protocol: RouteProtocol) -> Watch {
    let filter = RouteFilter { protocol: Some(protocol), ..RouteFilter::default() };
    Watch { routes: Some(filter), ..Watch::default() }
}

#[test]
fn routes_of_a_protocol_are_told_when_others_change_them() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let index = node(&mut socket);
        let mut monitor = Monitor::open(by_protocol(OURS)).unwrap();
        monitor.ignore(socket.port());
        let (v4, v6) = (vip("10.96.0.1", index), vip("fd96::1", index));
        // Our own changes, and those of another protocol, are not told.
        socket.commit(&[v4.clone(), v6.clone()].map(Command::AddRoute)).unwrap();
        run("ip", &["route", "add", "10.9.0.0/16", "dev", "node"], "");
        assert_eq!(monitor.wait(NOT_SOON).unwrap(), None);
        run("ip", &["route", "del", "local", "10.96.0.1", "table", "local"], "");
        let change = monitor.wait(SOON).unwrap().unwrap();
        assert_eq!(change, Change { events: vec![Event::RouteGone(v4)], perhaps_more: false });
        run("ip", &["-6", "route", "del", "local", "fd96::1", "table", "local"], "");
        let change = monitor.wait(SOON).unwrap().unwrap();
        assert_eq!(change.events, [Event::RouteGone(v6.as_stored())]);
        assert_eq!(monitor.poll().unwrap(), None);
    });
}

#[test]
fn links_addresses_and_rules_are_told() {
    in_empty_netns(|| {
        let watch = Watch { links: true, addresses: true, rules: true, routes: None };
        let mut monitor = Monitor::open(watch).unwrap();
        let mut socket = Socket::open().unwrap();
        socket.commit(&[Command::AddLink(new_bridge("br"))]).unwrap();
        let bridge = link(&mut socket, "br");
        let address = Address::new(bridge.index, net("192.0.2.1/24"));
        let rule = Rule::new(Family::Ipv6, 7, RuleAction::Lookup(Table(9)));
        socket
            .commit(&[
                Command::AddAddress(address),
                Command::AddRule(rule.clone()),
                Command::DeleteRule(rule.clone()),
                Command::DeleteAddress(address),
                Command::DeleteLink(bridge.index),
            ])
            .unwrap();
        let mut events = Vec::new();
        while let Some(change) = monitor.wait(NOT_SOON).unwrap() {
            assert!(!change.perhaps_more);
            events.extend(change.events);
        }
        let position = |wanted: &dyn Fn(&Event) -> bool| {
            events.iter().position(wanted).unwrap_or_else(|| panic!("not told: {events:#?}"))
        };
        let is_link = |event: &Event| matches!(event, Event::Link(link) if link.name == name("br"));
        let is_gone = |event: &Event| matches!(event, Event::LinkGone(link) if link.index == bridge.index);
        let order = [
            position(&is_link),
            position(&|event| *event == Event::Address(address)),
            position(&|event| *event == Event::Rule(rule.clone())),
            position(&|event| *event == Event::RuleGone(rule.clone())),
            position(&|event| *event == Event::AddressGone(address)),
            position(&is_gone),
        ];
        assert!(order.is_sorted(), "{events:#?}");
    });
}

#[test]
fn ipv4_routes_that_go_with_their_link_are_told_by_the_link_only() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        node(&mut socket);
        socket.commit(&[Command::AddLink(new_bridge("vips"))]).unwrap();
        let index = link(&mut socket, "vips").index;
        socket.commit(&[vip("10.96.0.1", index), vip("fd96::1", index)].map(Command::AddRoute)).unwrap();
        let mut routes = Monitor::open(by_protocol(OURS)).unwrap();
        let mut links = Monitor::open(Watch { links: true, ..Watch::default() }).unwrap();
        run("ip", &["link", "del", "vips"], "");
        let told = routes.wait(SOON).unwrap().unwrap().events;
        assert_eq!(told, [Event::RouteGone(vip("fd96::1", index).as_stored())]);
        assert_eq!(routes.wait(NOT_SOON).unwrap(), None);
        let told = links.wait(SOON).unwrap().unwrap().events;
        assert!(told.iter().any(|event| matches!(event, Event::LinkGone(link) if link.index == index)));
    });
}

#[test]
fn lost_notifications_mean_that_anything_may_have_changed() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let index = node(&mut socket);
        let mut monitor = Monitor::open(by_protocol(RouteProtocol::BGP)).unwrap();
        nix::sys::socket::setsockopt(&monitor, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
        let routes: Vec<_> = (0..200)
            .map(|n| Route {
                protocol: OURS,
                ..Route::new(net(&format!("10.9.{n}.0/24")), NextHop::link(index))
            })
            .map(Command::AddRoute)
            .collect();
        socket.commit(&routes).unwrap();
        let change = monitor.wait(SOON).unwrap().unwrap();
        assert_eq!(change, Change { events: vec![], perhaps_more: true });
        assert_eq!(monitor.poll().unwrap(), None);
    });
}
