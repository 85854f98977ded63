//! The model of the kernel: the contract, and what it can be told to do. Nothing here needs a kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../support/conntrack_contract.rs"]
mod conntrack_contract;
#[path = "../support/contract.rs"]
mod contract;
#[path = "../support/route_contract.rs"]
mod route_contract;

use std::net::SocketAddr;

use contract::{World, rr, tcp, to};
use kernel_netlink::ipvs::{Command, CommitError, Fake, Ipvs, Stats};
use kernel_netlink::{conntrack, route};
use nix::libc;

struct InMemory(Fake);

impl World for InMemory {
    fn open(&mut self) -> Box<dyn Ipvs> {
        Box::new(self.0.clone())
    }
}

fn in_memory(test: fn(&mut dyn World)) {
    test(&mut InMemory(Fake::new()));
}

mod keeps_the_contract {
    crate::contract::contract!(super::in_memory);
}

#[test]
fn a_command_is_refused_as_often_as_asked_for() {
    let mut fake = Fake::new();
    let add = |port| Command::AddService(rr(tcp("10.96.0.1", port)));
    fake.refuse(|command| matches!(command, Command::AddService(_)), libc::ENOMEM, Some(1));
    let Err(CommitError::Refused(refusals)) = fake.commit(&[add(80), add(81)]) else { panic!("not refused") };
    assert_eq!(refusals.iter().map(|r| (r.command, r.errno)).collect::<Vec<_>>(), [(0, libc::ENOMEM)]);
    assert!(refusals[0].is_retryable());
    assert_eq!(
        refusals[0].to_string(),
        "add service TCP 10.96.0.1:80 rr: Cannot allocate memory (os error 12)"
    );
    fake.commit(&[add(80)]).unwrap();
    assert_eq!(fake.observe_services().unwrap().len(), 2);
    assert_eq!(fake.commands(), 3);
    fake.refuse(|_| true, libc::EPERM, None);
    for _ in 0..3 {
        assert!(fake.commit(&[add(82)]).is_err());
    }
    fake.refuse_nothing();
    fake.commit(&[add(82)]).unwrap();
}

#[test]
fn lost_answers_say_nothing_of_what_was_done() {
    let mut fake = Fake::new();
    fake.lose_next_answers();
    let add = Command::AddService(rr(tcp("10.96.0.1", 80)));
    assert!(matches!(fake.commit(&[add]), Err(CommitError::Unconfirmed(_))));
    assert_eq!(fake.observe_services().unwrap().len(), 1);
}

#[test]
fn statistics_go_to_zero_when_told_and_connections_stay() {
    let mut fake = Fake::new();
    let key = tcp("10.96.0.1", 80);
    let host = to("10.244.1.1", 80);
    fake.commit(&[Command::AddService(rr(key)), Command::AddDestination(key, host)]).unwrap();
    let stats = Stats { connections: 3, in_bytes: 5_000_000_000, ..Stats::default() };
    for zero in [Command::Zero(key), Command::ZeroAll] {
        assert!(fake.pass(&key, stats));
        assert!(fake.connect(&key, &host.key, (2, 1)));
        // A change leaves them.
        fake.commit(&[Command::SetService(rr(key)), Command::SetDestination(key, host)]).unwrap();
        assert_eq!(fake.observe_service(&key).unwrap().unwrap().stats, stats);
        fake.commit(&[zero]).unwrap();
        assert_eq!(fake.observe_service(&key).unwrap().unwrap().stats, Stats::default());
        assert_eq!(fake.observe_destinations(&key).unwrap()[0].active_connections, 2);
    }
}

struct RoutesInMemory(route::Fake);

impl route_contract::World for RoutesInMemory {
    fn open(&mut self) -> Box<dyn route::Rtnetlink> {
        Box::new(self.0.clone())
    }
}

fn routes_in_memory(test: fn(&mut dyn route_contract::World)) {
    test(&mut RoutesInMemory(route::Fake::new()));
}

mod keeps_the_contract_of_routes {
    crate::route_contract::route_contract!(super::routes_in_memory);
}

struct ConnectionsInMemory(conntrack::Fake);

impl conntrack_contract::World for ConnectionsInMemory {
    fn open(&mut self) -> Box<dyn conntrack::Conntrack> {
        Box::new(self.0.clone())
    }

    fn track(
        &mut self,
        protocol: conntrack::Protocol,
        client: SocketAddr,
        destination: SocketAddr,
        endpoint: SocketAddr,
    ) {
        let tuple = |from: SocketAddr, to: SocketAddr| conntrack::Tuple {
            source: from.ip(),
            destination: to.ip(),
            source_port: from.port(),
            destination_port: to.port(),
        };
        let (original, reply) = (tuple(client, destination), tuple(endpoint, client));
        self.0.track(conntrack::Connection { protocol, original, reply, zone: 0, id: None });
    }
}

fn connections_in_memory(test: fn(&mut dyn conntrack_contract::World)) {
    test(&mut ConnectionsInMemory(conntrack::Fake::new()));
}

mod keeps_the_contract_of_connections {
    crate::conntrack_contract::conntrack_contract!(super::connections_in_memory);
}

#[test]
fn a_pass_fails_when_told_and_nothing_to_look_for_is_no_pass() {
    let mut fake = conntrack::Fake::new();
    let stale = conntrack::Stale { destination: None, port: 53, endpoint: None };
    fake.fail_next(libc::EPERM);
    assert!(conntrack::delete(&mut fake, conntrack::Protocol::UDP, &[stale]).is_err());
    assert_eq!(conntrack::delete(&mut fake, conntrack::Protocol::UDP, &[stale]).unwrap(), 0);
    assert_eq!(conntrack::delete(&mut fake, conntrack::Protocol::UDP, &[]).unwrap(), 0);
    assert_eq!(fake.passes(), 2);
}

#[test]
fn routes_are_refused_as_often_as_asked_for_and_answers_lost_when_told() {
    use route::{Command, Rtnetlink};
    let mut fake = route::Fake::new();
    let card = fake.plug_in(&route_contract::name("eth0"));
    let address = route::Address::new(card, route_contract::net("10.0.0.1/24"));
    fake.commit(&[Command::AddAddress(address)]).unwrap();
    let add = |address| Command::AddRoute(route_contract::vip(address, card));
    fake.refuse(|command| matches!(command, Command::AddRoute(_)), libc::ENOBUFS, Some(1));
    let refused = fake.commit(&[add("10.96.0.1"), add("10.96.0.2")]);
    assert_eq!(route_contract::refusals(refused), [(0, libc::ENOBUFS)]);
    fake.refuse(|_| true, libc::EPERM, None);
    assert!(fake.commit(&[add("10.96.0.3")]).is_err());
    fake.refuse_nothing();
    fake.lose_next_answers();
    assert!(matches!(fake.commit(&[add("10.96.0.3")]), Err(CommitError::Unconfirmed(_))));
    let filter = route::RouteFilter { protocol: Some(route_contract::OURS), ..Default::default() };
    assert_eq!(fake.observe_routes(&filter).unwrap().len(), 2);
    assert_eq!(fake.commands(), 5);
}
