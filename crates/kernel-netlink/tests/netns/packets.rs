//! What routes do with packets.

use std::net::{TcpListener, TcpStream};

use kernel_netlink::route::*;

use crate::namespace::in_netns;
use crate::route_contract::{ip, link, name, node, vip};

/// Adds a link, up, and virtual addresses as local routes on it; connections to these end here, come from the
/// node's own addresses, and no link has the addresses.
pub(crate) fn virtual_addresses_are_served_here(kind: NewLinkKind) {
    let mut socket = Socket::open().unwrap();
    node(&mut socket);
    let new = NewLink { up: true, ..NewLink::new(name("kube-dummy-if"), kind) };
    socket.commit(&[Command::AddLink(new)]).unwrap();
    let index = link(&mut socket, "kube-dummy-if").index;
    let before = socket.observe_addresses().unwrap();
    let routes = [vip("10.96.0.1", index), vip("fd96::1", index)];
    socket.commit(&routes.clone().map(Command::AddRoute)).unwrap();
    for (listen, vip, source) in [("0.0.0.0:0", "10.96.0.1", "10.0.0.1"), ("[::]:0", "fd96::1", "fd00::1")] {
        let server = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect((ip(vip), server.local_addr().unwrap().port())).unwrap();
        let (served, from) = server.accept().unwrap();
        assert_eq!(from.ip(), ip(source));
        assert_eq!(served.local_addr().unwrap().ip(), ip(vip));
        assert_eq!(client.local_addr().unwrap(), from);
    }
    let local_of = |addresses: &[Address]| addresses.iter().filter(|a| a.link == index).count();
    let after = socket.observe_addresses().unwrap();
    assert_eq!(local_of(&before), local_of(&after));
    socket.commit(&routes.map(Command::DeleteRoute)).unwrap();
    assert!(TcpStream::connect((ip("10.96.0.1"), 9)).is_err());
}

#[test]
fn local_routes_on_a_bridge_serve_virtual_addresses_from_the_nodes_own() {
    in_netns(|| virtual_addresses_are_served_here(NewLinkKind::Bridge(Bridge::default())));
}
