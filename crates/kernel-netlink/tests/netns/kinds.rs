//! Links that the kernels of few development machines have: the virtual machine of e2e/vm.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use kernel_netlink::namespace::Namespace;
use kernel_netlink::route::*;
use serde_json::Value;

use crate::namespace::{in_empty_netns, in_netns, run};
use crate::packets::virtual_addresses_are_served_here;
use crate::route_contract::{ip, link, name, net};

/// What `ip` says of a link.
fn shown(name: &str) -> Value {
    let words = run("ip", &["-d", "-j", "link", "show", "dev", name], "");
    let mut links: Vec<Value> = serde_json::from_str(&words).unwrap();
    links.remove(0)
}

fn add(socket: &mut Socket, text: &str, kind: NewLinkKind) -> Link {
    let new = NewLink { up: true, ..NewLink::new(name(text), kind) };
    socket.commit(&[Command::AddLink(new)]).unwrap();
    link(socket, text)
}

#[test]
fn local_routes_on_a_dummy_serve_virtual_addresses_from_the_nodes_own() {
    in_netns(|| virtual_addresses_are_served_here(NewLinkKind::Dummy));
}

#[test]
fn a_dummy_is_made_once() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let made = add(&mut socket, "kube-dummy-if", NewLinkKind::Dummy);
        assert_eq!((made.kind, made.up, made.carrier), (LinkKind::Dummy, true, true));
        assert_eq!(shown("kube-dummy-if")["linkinfo"]["info_kind"], "dummy");
        let again = NewLink::new(name("kube-dummy-if"), NewLinkKind::Dummy);
        let Err(CommitError::Refused(refusals)) = socket.commit(&[Command::AddLink(again)]) else {
            panic!("made twice")
        };
        assert_eq!(refusals[0].to_string(), "add link kube-dummy-if type dummy: File exists (os error 17)");
        socket.commit(&[Command::DeleteLink(made.index)]).unwrap();
        assert_eq!(socket.observe_link(&name("kube-dummy-if")).unwrap(), None);
    });
}

#[test]
fn tunnels_read_back_as_made_and_as_ip_shows_them() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let v4 = |text: &str| Some(text.parse().unwrap());
        let v6 = |text: &str| Some(text.parse().unwrap());
        let ipip = IpipTunnel { ttl: 64, ..IpipTunnel::new(v4("192.0.2.1"), v4("192.0.2.2")) };
        let made = add(&mut socket, "tun-1", NewLinkKind::Ipip(ipip));
        assert_eq!((made.kind, made.mac), (LinkKind::Ipip(ipip), None));
        let data = &shown("tun-1")["linkinfo"]["info_data"];
        assert_eq!((&data["local"], &data["remote"]), (&"192.0.2.1".into(), &"192.0.2.2".into()));
        let received = IpipTunnel::new(v4("192.0.2.3"), None);
        let made = add(&mut socket, "kube-tunnel-if", NewLinkKind::Ipip(received));
        assert_eq!(made.kind, LinkKind::Ipip(received));
        let ip6tnl = Ip6Tunnel::new(v6("2001:db8::1"), v6("2001:db8::2"));
        let made = add(&mut socket, "tun-2", NewLinkKind::Ip6tnl(ip6tnl));
        assert_eq!((made.kind, made.mac), (LinkKind::Ip6tnl(ip6tnl), None));
        let data = &shown("tun-2")["linkinfo"]["info_data"];
        assert_eq!((&data["proto"], &data["remote"]), (&"any".into(), &"2001:db8::2".into()));
        let ip6ip6 = Ip6Tunnel { mode: Ip6TunnelMode::Ipv6, ..Ip6Tunnel::new(v6("2001:db8::3"), None) };
        assert_eq!(add(&mut socket, "tun-3", NewLinkKind::Ip6tnl(ip6ip6)).kind, LinkKind::Ip6tnl(ip6ip6));
    });
}

#[test]
fn a_bridge_may_tell_vlans_apart() {
    in_empty_netns(|| {
        let mut socket = Socket::open().unwrap();
        let bridge = Bridge { vlan_filtering: Some(true), ..Bridge::default() };
        add(&mut socket, "br", NewLinkKind::Bridge(bridge));
        assert_eq!(shown("br")["linkinfo"]["info_data"]["vlan_filtering"], 1);
    });
}

/// One end of a pair of nodes: their link is up, a tunnel leads to the pods of the other.
fn be_a_node(own: &str, other: &str, pod: &str, pods_of_other: &str) {
    let mut socket = Socket::open().unwrap();
    let index = link(&mut socket, "eth0").index;
    let long = if ip(own).is_ipv4() { 24 } else { 64 };
    let address = |link, address: IpAddr, bits| {
        let address = Address::new(link, ipnet::IpNet::new(address, bits).unwrap());
        Command::AddAddress(Address { flags: address.flags.union(AddressFlags::NO_DAD), ..address })
    };
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let lo = LinkIndex(1);
    let pod_bits = if ip(own).is_ipv4() { 32 } else { 128 };
    socket
        .commit(&[Command::SetLink(index, up), address(index, ip(own), long), address(lo, ip(pod), pod_bits)])
        .unwrap();
    let kind = match (ip(own), ip(other)) {
        (IpAddr::V4(own), IpAddr::V4(other)) => NewLinkKind::Ipip(IpipTunnel::new(Some(own), Some(other))),
        (IpAddr::V6(own), IpAddr::V6(other)) => NewLinkKind::Ip6tnl(Ip6Tunnel::new(Some(own), Some(other))),
        _ => panic!("two families"),
    };
    let tunnel = add(&mut socket, "tun", kind).index;
    let route =
        Route { preferred_source: Some(ip(pod)), ..Route::new(net(pods_of_other), NextHop::link(tunnel)) };
    socket.commit(&[Command::AddRoute(route)]).unwrap();
}

/// A datagram goes through a tunnel between two namespaces, and its answer comes back.
fn packets_go_through(nodes: [&str; 2], pods: [&'static str; 2], networks: [&str; 2]) {
    let there = in_netns(|| Namespace::current().unwrap());
    let mut socket = Socket::open().unwrap();
    let peer = Peer { namespace: Some(there.clone()), ..Peer::new(name("eth0")) };
    let veth = NewLink::new(name("eth0"), NewLinkKind::Veth(peer));
    socket.commit(&[Command::AddLink(veth)]).unwrap();
    be_a_node(nodes[0], nodes[1], pods[0], networks[1]);
    let server = there
        .run(|| {
            be_a_node(nodes[1], nodes[0], pods[1], networks[0]);
            UdpSocket::bind((ip(pods[1]), 0)).unwrap()
        })
        .unwrap();
    let client = UdpSocket::bind((ip(pods[0]), 0)).unwrap();
    for end in [&server, &client] {
        end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    client.send_to(b"there", server.local_addr().unwrap()).unwrap();
    let mut bytes = [0; 16];
    let (len, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], from), (&b"there"[..], client.local_addr().unwrap()));
    server.send_to(b"and back", from).unwrap();
    assert_eq!(client.recv_from(&mut bytes).unwrap(), (8, server.local_addr().unwrap()));
    // It went through the tunnel, not beside it.
    assert!(shown_packets("tun") >= 1);
}

fn shown_packets(name: &str) -> u64 {
    let words = run("ip", &["-s", "-j", "link", "show", "dev", name], "");
    let links: Vec<Value> = serde_json::from_str(&words).unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn packets_go_through_an_ipip_tunnel_and_back() {
    in_netns(|| {
        packets_go_through(
            ["192.168.50.1", "192.168.50.2"],
            ["10.244.1.1", "10.244.2.1"],
            ["10.244.1.0/24", "10.244.2.0/24"],
        );
    });
}

#[test]
fn packets_go_through_an_ip6tnl_tunnel_and_back() {
    in_netns(|| {
        packets_go_through(
            ["fd50::1", "fd50::2"],
            ["fd00:244:1::1", "fd00:244:2::1"],
            ["fd00:244:1::/64", "fd00:244:2::/64"],
        );
    });
}
