//! What the model of tracked connections promises is what the kernel does: one suite, run on both.

use std::net::SocketAddr;

use kernel_netlink::conntrack::*;

/// A table of connections without any.
pub(crate) trait World {
    /// A new conversation.
    fn open(&mut self) -> Box<dyn Conntrack>;
    /// Lets a client send a first packet to a destination, where (the translated) `endpoint` would answer.
    fn track(
        &mut self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
        endpoint: SocketAddr,
    );
}

/// Makes a test of every function below: `$run` is called with each of them.
macro_rules! conntrack_contract {
    ($run:path) => {
        $crate::conntrack_contract::conntrack_contract! { $run =>
            an_empty_table_has_nothing_to_end
            connections_are_looked_at_by_protocol
            connections_to_a_destination_and_port_are_ended
            only_connections_to_an_endpoint_that_is_gone_are_ended
            connections_to_a_port_of_any_address_are_ended
            many_keys_are_looked_for_in_one_pass
        }
    };
    ($run:path => $($test:ident)*) => {
        $(#[test] fn $test() { $run($crate::conntrack_contract::$test); })*
    };
}
pub(crate) use conntrack_contract;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// (client port, destination, endpoint) of all connections of a protocol, in order.
fn seen(conntrack: &mut dyn Conntrack, protocol: Protocol) -> Vec<(u16, SocketAddr, SocketAddr)> {
    let mut seen = Vec::new();
    let look = &mut |connection: &Connection| {
        let Connection { original, reply, .. } = connection;
        assert_eq!(connection.protocol, protocol);
        seen.push((
            original.source_port,
            (original.destination, original.destination_port).into(),
            (reply.source, reply.source_port).into(),
        ));
        false
    };
    assert_eq!(conntrack.delete_where(protocol, look).unwrap(), 0);
    seen.sort();
    seen
}

fn stale(destination: Option<&str>, port: u16, endpoint: Option<&str>) -> Stale {
    let ip = |text: &str| text.parse().unwrap();
    Stale { destination: destination.map(ip), port, endpoint: endpoint.map(ip) }
}

pub(crate) fn an_empty_table_has_nothing_to_end(world: &mut dyn World) {
    let mut conntrack = world.open();
    assert_eq!(seen(&mut *conntrack, Protocol::UDP), []);
    let anything = [stale(Some("10.96.0.10"), 53, None)];
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &anything).unwrap(), 0);
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &[]).unwrap(), 0);
}

/// Two Services with two endpoints each: IPv4 and IPv6, over UDP; and one TCP connection.
fn clients(world: &mut dyn World) {
    for (client, endpoint) in
        [(1001, "10.244.1.1:5353"), (1002, "10.244.1.2:5353"), (1003, "10.244.1.2:5353")]
    {
        let client = at(&format!("10.0.0.1:{client}"));
        world.track(Protocol::UDP, client, at("10.96.0.10:53"), at(endpoint));
    }
    for (client, endpoint) in [(2001, "[fd00:244::1]:5353"), (2002, "[fd00:244::2]:5353")] {
        let client = at(&format!("[fd00::1]:{client}"));
        world.track(Protocol::UDP, client, at("[fd96::a]:53"), at(endpoint));
    }
    world.track(Protocol::UDP, at("10.0.0.1:1004"), at("10.96.0.10:54"), at("10.244.1.1:5354"));
    world.track(Protocol::TCP, at("10.0.0.1:3001"), at("10.96.0.10:53"), at("10.244.1.1:5353"));
}

fn ports(seen: &[(u16, SocketAddr, SocketAddr)]) -> Vec<u16> {
    seen.iter().map(|connection| connection.0).collect()
}

pub(crate) fn connections_are_looked_at_by_protocol(world: &mut dyn World) {
    clients(world);
    let mut conntrack = world.open();
    let udp = seen(&mut *conntrack, Protocol::UDP);
    assert_eq!(ports(&udp), [1001, 1002, 1003, 1004, 2001, 2002]);
    assert_eq!(udp[1], (1002, at("10.96.0.10:53"), at("10.244.1.2:5353")));
    assert_eq!(udp[5], (2002, at("[fd96::a]:53"), at("[fd00:244::2]:5353")));
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::TCP)), [3001]);
    assert_eq!(seen(&mut *conntrack, Protocol::SCTP), []);
}

pub(crate) fn connections_to_a_destination_and_port_are_ended(world: &mut dyn World) {
    clients(world);
    let mut conntrack = world.open();
    let wanted = [stale(Some("10.96.0.10"), 53, None)];
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &wanted).unwrap(), 3);
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::UDP)), [1004, 2001, 2002]);
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::TCP)), [3001]);
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &wanted).unwrap(), 0);
}

pub(crate) fn only_connections_to_an_endpoint_that_is_gone_are_ended(world: &mut dyn World) {
    clients(world);
    let mut conntrack = world.open();
    let wanted =
        [stale(Some("10.96.0.10"), 53, Some("10.244.1.2")), stale(Some("fd96::a"), 53, Some("fd00:244::1"))];
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &wanted).unwrap(), 3);
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::UDP)), [1001, 1004, 2002]);
}

pub(crate) fn connections_to_a_port_of_any_address_are_ended(world: &mut dyn World) {
    clients(world);
    let mut conntrack = world.open();
    let wanted = [stale(None, 53, Some("10.244.1.1")), stale(None, 53, Some("fd00:244::2"))];
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &wanted).unwrap(), 2);
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::UDP)), [1002, 1003, 1004, 2001]);
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &[stale(None, 53, None)]).unwrap(), 3);
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::UDP)), [1004]);
}

pub(crate) fn many_keys_are_looked_for_in_one_pass(world: &mut dyn World) {
    for client in 0..40 {
        let client = at(&format!("10.0.0.1:{}", 10_000 + client));
        world.track(Protocol::UDP, client, at("10.96.0.10:53"), at("10.244.1.1:5353"));
    }
    clients(world);
    let mut conntrack = world.open();
    let others = (0..5000).map(|n| stale(Some(&format!("10.97.{}.{}", n / 250, n % 250)), 53, None));
    let wanted: Vec<_> = others.chain([stale(Some("10.96.0.10"), 53, Some("10.244.1.1"))]).collect();
    assert_eq!(delete(&mut *conntrack, Protocol::UDP, &wanted).unwrap(), 41);
    assert_eq!(ports(&seen(&mut *conntrack, Protocol::UDP)), [1002, 1003, 1004, 2001, 2002]);
}
