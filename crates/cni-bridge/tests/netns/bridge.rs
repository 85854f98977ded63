//! What ADD makes, CHECK sees and DEL and GC remove.

use serde_json::{Value, json};
use test_netns::Namespace;

use crate::lab::{Lab, links};
use crate::packets::{TIMEOUT, ask, serve};

fn ip_json(namespace: &Namespace, arguments: &[&str]) -> Value {
    let arguments = [&["-json", "-details"], arguments].concat();
    serde_json::from_str(&namespace.output("ip", &arguments, "").unwrap()).unwrap()
}

#[test]
fn a_container_gets_its_interface_addresses_and_routes() {
    let lab = Lab::new();
    let more = json!({"mtu": 1400, "hairpinMode": true, "runtimeConfig": {"mac": "02:00:00:00:00:07"}});
    let (pod, result) = lab.pod("a", &lab.conf(more));
    let link = &ip_json(&pod, &["link", "show", "eth0"])[0];
    assert_eq!((&link["mtu"], &link["address"]), (&json!(1400), &json!("02:00:00:00:00:07")));
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:07");
    let addresses = ip_json(&pod, &["addr", "show", "eth0"]);
    let global: Vec<_> = addresses[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|address| address["scope"] == "global")
        .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
        .collect();
    assert_eq!(global, ["10.1.2.2/24", "fd00:1::2/64"]);
    for (family, gateway) in [("-4", "10.1.2.1"), ("-6", "fd00:1::1")] {
        let routes = ip_json(&pod, &[family, "route", "show", "default"]);
        assert_eq!((&routes[0]["gateway"], &routes[0]["dev"]), (&json!(gateway), &json!("eth0")));
    }
    let host = result["interfaces"][1]["name"].as_str().unwrap();
    let port = &ip_json(&lab.node, &["link", "show", host])[0];
    let data = &port["linkinfo"]["info_slave_data"];
    assert_eq!(
        (&port["master"], &data["hairpin"], &port["mtu"]),
        (&json!("br0"), &json!(true), &json!(1400))
    );
    assert_eq!(data["state"], "forwarding");
    assert_eq!(port["ifalias"], "cni-bridge net a eth0");
    let forwarding =
        lab.node.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap()).unwrap();
    assert_eq!(forwarding.trim(), "1");
}

#[test]
fn a_node_that_begins_to_forward_keeps_its_default_route_by_advertisements() {
    let lab = Lab::new();
    lab.node
        .ip("link add name up0 type veth peer name up1\nlink add name down0 type veth peer name down1")
        .unwrap();
    lab.node.sysctl("net/ipv6/conf/down0/accept_ra", "0").unwrap();
    let _pod = lab.pod("a", &lab.conf(json!({})));
    let read = |device: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{device}/accept_ra");
        lab.node.run(|| std::fs::read_to_string(path).unwrap().trim().to_owned()).unwrap()
    };
    assert_eq!(["up0", "down0", "br0"].map(read), ["2", "0", "0"]);
}

#[test]
fn a_new_bridge_asks_for_neighbours_from_the_first_moment() {
    let lab = Lab::new();
    let _pod = lab.pod("a", &lab.conf(json!({})));
    let shown = lab.node.output("ip", &["-6", "addr", "show", "br0", "scope", "link"], "").unwrap();
    assert!(shown.contains("fe80::") && !shown.contains("tentative"), "{shown}");
}

#[test]
fn the_bridge_keeps_its_address_when_ports_come_and_go() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"isDefaultGateway": false, "ipam": {}}));
    let (_a, first) = lab.pod("a", &conf);
    let macs: Vec<_> = (0..4)
        .map(|number| lab.pod(&format!("p{number}"), &conf).1["interfaces"][0]["mac"].clone())
        .collect();
    assert!(macs.iter().all(|mac| *mac == first["interfaces"][0]["mac"]), "{macs:?}");
}

#[test]
fn a_link_of_another_kind_is_no_bridge() {
    let lab = Lab::new();
    lab.node.ip("link add br0 type veth peer name other").unwrap();
    let pod = Namespace::new("pod").unwrap();
    let refusal = lab.add("a", &pod, &lab.conf(json!({}))).refusal();
    let words = "failed to create bridge \"br0\": \"br0\" already exists but is not a bridge";
    assert_eq!(refusal, (999, words.to_owned()));
    assert_eq!((lab.reserved().len(), links(&pod).len()), (0, 0));
}

#[test]
fn the_gateway_of_a_cidr_of_before_makes_way_when_no_pod_has_an_address_of_it() {
    let lab = Lab::new();
    let before = lab.conf(json!({}));
    let mut now = before.clone();
    now["ipam"]["ranges"][0][0]["subnet"] = json!("10.7.7.0/24");
    let gateways = || {
        let shown = ip_json(&lab.node, &["-4", "addr", "show", "br0"]);
        let addresses = shown[0]["addr_info"].as_array().unwrap().clone();
        addresses.iter().map(|address| address["local"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let refused = |why: &str, id: &str| {
        let pod = Namespace::new(id).unwrap();
        let words = "failed to set bridge addr: \"br0\" already has an IP address different from 10.7.7.1/24";
        assert_eq!(lab.add(id, &pod, &now).refusal(), (999, words.to_owned()), "{why}");
        assert_eq!(gateways(), ["10.1.2.1"], "{why}");
    };
    let (a, _) = lab.pod("a", &before);
    let (b, _) = lab.pod("b", &before);
    lab.del("a", &a, &before).success();
    refused("b has an address of it", "early");
    // Its reservation is lost, its link is not told to be whose: it may be anybody's.
    lab.del("b", &b, &before).success();
    lab.node.ip("link add stranger type veth peer name far\nlink set stranger master br0").unwrap();
    refused("a port of somebody else", "late");
    lab.node.ip("link del stranger").unwrap();
    let (c, result) = lab.pod("c", &now);
    assert_eq!(result["ips"][0]["gateway"], "10.7.7.1");
    assert_eq!(gateways(), ["10.7.7.1"]);
    serve(&lab.node, "0.0.0.0:80");
    let answer = ask(&c, "10.7.7.1:80", TIMEOUT).unwrap();
    assert_eq!(result["ips"][0]["address"], format!("{answer}/24"));
    // What somebody else has given to the bridge stays, also when no pod is left.
    lab.del("c", &c, &now).success();
    lab.node.ip("addr del 10.7.7.1/24 dev br0\naddr add 10.1.2.9/24 dev br0").unwrap();
    let words = "failed to set bridge addr: \"br0\" already has an IP address different from 10.7.7.1/24";
    assert_eq!(lab.add("c", &c, &now).refusal(), (999, words.to_owned()));
    assert_eq!(gateways(), ["10.1.2.9"]);
}

#[test]
fn another_address_of_the_bridge_is_in_the_way_unless_forced() {
    let lab = Lab::new();
    lab.node
        .ip("link add br0 type bridge\naddr add 10.9.9.1/24 dev br0\naddr add fd00:9::1/64 dev br0")
        .unwrap();
    let pod = Namespace::new("pod").unwrap();
    let refusal = lab.add("a", &pod, &lab.conf(json!({}))).refusal();
    let words = "failed to set bridge addr: \"br0\" already has an IP address different from 10.1.2.1/24";
    assert_eq!(refusal, (999, words.to_owned()));
    lab.assert_nothing_left("after the refusal");
    lab.add("a", &pod, &lab.conf(json!({"forceAddress": true}))).success();
    let found = lab.node.output("ip", &["addr", "show", "br0"], "").unwrap();
    // Of IPv6 it may have several.
    for (address, there) in
        [("10.9.9.1", false), ("10.1.2.1/24", true), ("fd00:9::1", true), ("fd00:1::1/64", true)]
    {
        assert_eq!(found.contains(address), there, "{address} in {found}");
    }
}

#[test]
fn an_interface_that_is_there_is_not_made_again() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"isDefaultGateway": false, "ipam": {}}));
    let (pod, _) = lab.pod("a", &conf);
    let words = "failed to make veth pair: container interface name provided (eth0) already exists";
    for id in ["a", "b"] {
        assert_eq!(lab.add(id, &pod, &conf).refusal(), (999, words.to_owned()));
        assert_eq!((links(&pod).len(), lab.links().len()), (1, 2), "{id}");
    }
}

#[test]
fn what_an_add_that_was_stopped_has_left_makes_way_for_the_next() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"isDefaultGateway": false, "ipam": {}}));
    let (old, first) = lab.pod("a", &conf);
    // The same container, in a new namespace.
    let (new, second) = lab.pod("a", &conf);
    assert_eq!(first["interfaces"][1]["name"], second["interfaces"][1]["name"]);
    assert_eq!((links(&old).len(), links(&new).len(), lab.links().len()), (0, 1, 2));
}

#[test]
fn check_sees_what_is_missing() {
    let lab = Lab::new();
    let conf = lab.conf(json!({}));
    let (pod, result) = lab.pod("a", &conf);
    let mut with_result = conf.clone();
    with_result["prevResult"] = result;
    let check = |conf: &Value| lab.call("CHECK", "a", pod.path().to_str().unwrap(), conf);
    check(&with_result).success();
    assert_eq!(check(&conf).refusal().1, "Required prevResult missing");
    for (damage, repair, words) in [
        (
            "route del default",
            "route add default via 10.1.2.1 dev eth0",
            "Expected Route 0.0.0.0/0 not found in routing table",
        ),
        (
            "addr del fd00:1::2/64 dev eth0",
            "addr add fd00:1::2/64 dev eth0 nodad\nroute replace ::/0 via fd00:1::1 dev eth0",
            "Failed to match addr fd00:1::2/64 on interface eth0",
        ),
        // Before Linux 6.2 only what is down can be renamed.
        (
            "link set eth0 down\nlink set eth0 name eth9",
            "link set eth9 name eth0\nlink set eth0 up\nroute replace default via 10.1.2.1 dev eth0\n\
             route replace ::/0 via fd00:1::1 dev eth0",
            "Interface name eth0 not found",
        ),
    ] {
        pod.ip(damage).unwrap();
        assert_eq!(check(&with_result).refusal(), (999, words.to_owned()));
        pod.ip(repair).unwrap();
    }
    check(&with_result).success();
    std::fs::remove_file(lab.data().join("net/10.1.2.2")).unwrap();
    std::fs::remove_file(lab.data().join("net/fd00:1::2")).unwrap();
    assert_eq!(check(&with_result).refusal().1, "host-local: Failed to find address added by container a");
}

#[test]
fn del_succeeds_when_there_is_nothing_left() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"ipMasq": true}));
    let (pod, _) = lab.pod("a", &conf);
    lab.del("a", &pod, &conf).success();
    lab.assert_nothing_left("after DEL");
    assert!(links(&pod).is_empty());
    for netns in [pod.path().to_str().unwrap(), "", "/run/netns/gone", "/proc/self/status"] {
        assert_eq!(lab.call("DEL", "a", netns, &conf).success().output, "");
    }
    // The node was booted, and all files are gone.
    std::fs::remove_dir_all(lab.data()).unwrap();
    lab.call("DEL", "a", "", &conf).success();
    // Never seen before, on a node without bridge.
    Lab::new().call("DEL", "b", "", &conf).success();
}

#[test]
fn del_without_namespace_and_result_removes_the_hosts_end_rules_and_reservations() {
    let lab = Lab::new();
    let conf = lab.conf(json!({
        "ipMasq": true, "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    let (pod, _) = lab.pod("a", &conf);
    assert!(lab.rules().contains("8080"));
    // The runtime does not tell the ports again.
    let mut later = conf.clone();
    later.as_object_mut().unwrap().remove("runtimeConfig");
    lab.call("DEL", "a", "", &later).success();
    lab.assert_nothing_left("after DEL");
    assert!(links(&pod).is_empty());
}

#[test]
fn del_never_touches_the_hosts_own_interface_of_the_name() {
    let lab = Lab::new();
    lab.node.ip("link add eth0 type bridge").unwrap();
    let own = lab.node.path();
    lab.call("DEL", "a", own.to_str().unwrap(), &lab.conf(json!({}))).success();
    assert_eq!(lab.links(), ["eth0"]);
}

#[test]
fn del_removes_what_the_reference_has_made() {
    let lab = Lab::new();
    let pod = Namespace::new("pod").unwrap();
    std::fs::create_dir_all(lab.data().join("net")).unwrap();
    std::fs::write(lab.data().join("net/10.1.2.2"), "a\r\neth0").unwrap();
    let pod_path = pod.path();
    let line = format!("link add veth12345678 type veth peer name eth0 netns {}", pod_path.display());
    lab.node.ip(&line).unwrap();
    lab.del("a", &pod, &lab.conf(json!({}))).success();
    assert_eq!((lab.links().len(), links(&pod).len(), lab.reserved().len()), (0, 0, 0));
}

#[test]
fn gc_keeps_the_valid_attachments_and_those_of_other_networks() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"ipMasq": true}));
    let mut other = lab.conf(json!({"name": "other", "ipMasq": true}));
    other["ipam"]["ranges"] = json!([[{"subnet": "10.1.3.0/24"}]]);
    other["forceAddress"] = json!(true);
    other["isDefaultGateway"] = json!(false);
    let _a = lab.pod("a", &conf);
    let _b = lab.pod("b", &conf);
    let _c = lab.pod("c", &other);
    assert_eq!(lab.links().len(), 4);
    let mut gc = conf.clone();
    let refusal = lab.call("GC", "", "", &gc).refusal();
    assert_eq!(refusal, (7, "GC: cni.dev/valid-attachments is missing".to_owned()));
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    lab.call("GC", "", "", &gc).success();
    assert_eq!((lab.links().len(), lab.reserved().len()), (3, 2));
    let rules = lab.rules();
    for (address, there) in [("10.1.2.2 ", true), ("10.1.2.3 ", false), ("10.1.3.2 ", true)] {
        assert_eq!(rules.contains(address), there, "{address} in {rules}");
    }
    gc["cni.dev/valid-attachments"] = json!(null);
    lab.call("GC", "", "", &gc).success();
    assert_eq!((lab.links().len(), lab.reserved().len()), (2, 0));
}

#[test]
fn status_tells_that_addresses_cannot_be_reserved() {
    let lab = Lab::new();
    let conf = lab.conf(json!({}));
    lab.call("STATUS", "", "", &conf).success();
    let mut bad = conf.clone();
    std::fs::write(lab.folder.path().join("file"), "").unwrap();
    bad["ipam"]["dataDir"] = json!(lab.folder.path().join("file"));
    assert_eq!(lab.call("STATUS", "", "", &bad).refusal().0, 50);
    lab.node.ip("link add br0 type veth peer name other").unwrap();
    assert_eq!(lab.call("STATUS", "", "", &conf).refusal().0, 50);
    assert_eq!(lab.call("STATUS", "", "", &lab.conf(json!({"ipam": {"type": "dhcp"}}))).refusal().0, 50);
}

#[test]
fn routes_of_the_newest_version_have_their_properties() {
    let lab = Lab::new();
    let mut conf = lab.conf(json!({}));
    conf["ipam"]["routes"] = json!([
        {"dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "198.51.100.0/24", "gw": "10.1.2.9", "table": 100},
        {"dst": "0.0.0.0/0"}]);
    let (pod, result) = lab.pod("a", &conf);
    assert_eq!(result["routes"][0]["advmss"], 1200);
    let shown = pod.output("ip", &["route", "show", "table", "all"], "").unwrap();
    for words in [
        "192.0.2.0/24 via 10.1.2.1 dev eth0 metric 7 mtu 1300 advmss 1200",
        "198.51.100.0/24 via 10.1.2.9 dev eth0 table 100",
        "default via 10.1.2.1 dev eth0",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
}

#[test]
fn duplicates_are_looked_for_if_asked_and_the_interface_is_left_down_if_asked() {
    let lab = Lab::new();
    let (pod, _) = lab.pod("a", &lab.conf(json!({"enabledad": true})));
    let shown = pod.output("ip", &["addr", "show", "eth0"], "").unwrap();
    assert!(!shown.contains("tentative") && !shown.contains("nodad"), "{shown}");
    let more = json!({"isDefaultGateway": false, "ipam": {}, "disableContainerInterface": true});
    let (pod, result) = lab.pod("b", &lab.conf(more));
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    let link = &ip_json(&pod, &["link", "show", "eth0"])[0];
    assert!(!link["flags"].as_array().unwrap().contains(&json!("UP")), "{link}");
}

#[test]
fn the_bridge_is_promiscuous_if_asked_and_check_looks() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"promiscMode": true}));
    let (pod, result) = lab.pod("a", &conf);
    let flags = &ip_json(&lab.node, &["link", "show", "br0"])[0]["flags"];
    assert!(flags.as_array().unwrap().contains(&json!("PROMISC")), "{flags}");
    let mut with_result = conf.clone();
    with_result["prevResult"] = result;
    let netns = pod.path();
    lab.call("CHECK", "a", netns.to_str().unwrap(), &with_result).success();
    lab.node.ip("link set br0 promisc off").unwrap();
    lab.call("CHECK", "a", netns.to_str().unwrap(), &with_result).refusal();
}
