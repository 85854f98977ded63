//! Which link's MTU counts.

use std::net::IpAddr;

use cni_bridge_agent::apply::link::smallest_mtu;
use cni_bridge_agent::apply::watch::Watched;
use kernel_netlink::route::Socket;
use test_netns::Namespace;

use crate::process::eventually;

fn found(node: &Namespace, internal: &[&str]) -> Result<(String, u32), String> {
    let internal: Vec<IpAddr> = internal.iter().map(|ip| ip.parse().unwrap()).collect();
    node.run(|| {
        smallest_mtu(&mut Socket::open().unwrap(), &internal)
            .map(|found| (found.link, found.mtu))
            .map_err(|error| error.to_string())
    })
    .unwrap()
}

fn node() -> Namespace {
    let node = Namespace::new("node").unwrap();
    node.ip("link add up0 mtu 1450 type veth peer name down0 mtu 1450\n\
             link set up0 up\n\
             link set down0 up\n\
             link set lo up\n\
             link add up1 mtu 9000 type veth peer name down1 mtu 9000\n\
             link set up1 up\n\
             link set down1 up\n\
             address add 192.0.2.1/24 dev up0\n\
             address add 2001:db8::1/64 dev up1 nodad\n\
             address add 198.51.100.1/32 dev lo")
        .unwrap();
    node
}

#[test]
fn the_link_with_the_internal_address_counts() {
    let node = node();
    assert_eq!(found(&node, &["192.0.2.1"]), Ok(("up0".to_owned(), 1450)));
    assert_eq!(found(&node, &["2001:db8::1"]), Ok(("up1".to_owned(), 9000)));
    assert_eq!(found(&node, &["2001:db8::1", "192.0.2.1"]), Ok(("up0".to_owned(), 1450)));
}

#[test]
fn where_the_address_is_on_loopback_or_nowhere_the_default_route_tells() {
    let node = node();
    let error = found(&node, &["198.51.100.1"]).unwrap_err();
    assert!(error.contains("198.51.100.1") && error.contains("--mtu"), "{error}");
    node.ip("route add default dev up1").unwrap();
    assert_eq!(found(&node, &["198.51.100.1"]), Ok(("up1".to_owned(), 9000)));
    assert_eq!(found(&node, &["203.0.113.9"]), Ok(("up1".to_owned(), 9000)));
    node.ip("route add default dev up0 metric 7\nroute add default dev lo metric 9").unwrap();
    assert_eq!(found(&node, &[]), Ok(("up0".to_owned(), 1450)));
}

#[test]
fn an_mtu_or_an_address_is_told_and_pods_that_come_and_go_are_not() {
    let node = node();
    let mut watched = node.run(|| Watched::open(&[]).unwrap()).unwrap();
    let mut is_told = |lines: &str| {
        node.ip(lines).unwrap();
        watched.has_changed().unwrap()
    };
    assert!(!is_told(
        "link add pod0 mtu 1400 type veth peer name pod1\nlink set pod0 up\nlink set pod1 up\nlink del pod0"
    ));
    assert!(is_told("link set up0 mtu 1400"));
    assert!(is_told("address add 192.0.2.2/24 dev up1"));
    assert!(is_told("address del 192.0.2.2/24 dev up1"));
    assert!(is_told("link add br0 type bridge"));
    // KERNEL: a new IPv6 address is told by a work item (net/ipv6/addrconf.c, `addrconf_dad_work`).
    if !is_told("address add 2001:db8:1::1/64 dev up1 nodad valid_lft 600 preferred_lft 600") {
        eventually("the new address", || is_told(""));
    }
    // As each router advertisement does.
    assert!(!is_told("address replace 2001:db8:1::1/64 dev up1 nodad valid_lft 900 preferred_lft 900"));
    assert!(!is_told("address replace 2001:db8:1::1/64 dev up1 nodad valid_lft 800 preferred_lft 800"));
    assert!(is_told("address del 2001:db8:1::1/64 dev up1"));
}
