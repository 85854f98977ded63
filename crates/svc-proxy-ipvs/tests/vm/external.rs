//! Node ports, external addresses, those of load balancers.

use serde_json::json;
use test_netns::Protocol;

use crate::lab::{FAR, Lab, SECOND, ip};
use crate::objects::Service;
use crate::tries::Expect::{Dropped, Refused};
use crate::tries::Seen::{As, Itself, Virtual};
use crate::tries::{from, served, served_itself};

#[test]
fn node_ports_are_served_on_the_addresses_that_the_flags_choose() {
    let mut lab = Lab::routed();
    for (address, length) in SECOND.iter().zip(["16", "64"]) {
        lab.output("n1", &["ip", "address", "add", &format!("{address}/{length}"), "dev", "eth0"]);
    }
    lab.web(json!({"type": "NodePort"}), &["p1", "q1"]).set_node_port(30080);
    let first = lab.addresses("n1");
    let second = SECOND.map(ip);
    let ranges = format!("--nodeport-addresses={}/32,{}/128", SECOND[0], SECOND[1]);
    // Each takes over from the one before.
    for (flag, first_serves, second_serves) in
        [("-v", true, false), ("--nodeport-bindon-all-ip", true, true), (&*ranges, false, true)]
    {
        let _n1 = lab.start("n1", &[flag]);
        let mut tries = Vec::new();
        for (addresses, serves) in [(first, first_serves), (second, second_serves)] {
            for node in addresses {
                let outside = served(&[("p1", Itself), ("q1", As("n1"))]);
                let inside = served_itself(&["p1", "q1"]);
                if serves {
                    tries.push(from("outside", node, 30080, outside));
                    tries.push(from("p3", node, 30080, inside));
                    tries.push(from("p1", node, 30080, served(&[("p1", Virtual), ("q1", Itself)])));
                } else {
                    tries.push(from("outside", node, 30080, Refused).by(Protocol::Tcp));
                    tries.push(from("p3", node, 30080, Refused).by(Protocol::Udp));
                }
            }
        }
        for node in if first_serves { first } else { second } {
            // The kernel chooses from which of its addresses it talks to itself.
            tries.push(
                from("n1", node, 30080, served(&[("p1", As("n1")), ("q1", As("n1"))])).by(Protocol::Tcp),
            );
        }
        lab.check(flag, &tries);
    }
}

#[test]
fn external_addresses_are_served_within_the_ranges_of_the_operator() {
    let mut lab = Lab::routed();
    let fields = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "externalIPs": ["203.0.113.10", "2001:db8:113::10", "192.0.2.10", "10.96.7.7"],
    });
    lab.web(fields, &["p1", "q1"]).ingress =
        ["198.51.100.10", "2001:db8:51::10", "192.0.2.11"].map(str::to_owned).into();
    let n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    for address in ["203.0.113.10", "2001:db8:113::10", "198.51.100.10", "2001:db8:51::10"].map(ip) {
        tries.push(from("outside", address, 80, served(&[("p1", Itself), ("q1", As("n1"))])));
        tries.push(from("p3", address, 80, served_itself(&["p1", "q1"])));
        // W15: also by an address of a load balancer.
        tries.push(from("p1", address, 80, served(&[("p1", Virtual), ("q1", Itself)])));
        tries.push(from("n1", address, 80, served_itself(&["p1", "q1"])));
        tries.push(from("outside", address, 81, Refused).by(Protocol::Tcp));
    }
    lab.check("external addresses", &tries);
    let state = n1.state().to_string();
    for address in ["192.0.2.10", "192.0.2.11", "10.96.7.7"] {
        let shown = n1.shown();
        let (kernel, _) = shown.split_once("--- log").unwrap();
        assert!(
            !kernel.contains(&format!("{address}:")) && !n1.routes().contains(&format!("{address} ")),
            "{kernel}"
        );
        assert!(state.contains(address), "{address} is reported: {state}");
    }
}

#[test]
fn a_load_balancers_address_admits_only_its_source_ranges_and_a_node_port_everybody() {
    let mut lab = Lab::routed();
    let fields = json!({
        "type": "LoadBalancer", "loadBalancerSourceRanges": ["14.0.0.0/8", "2001:db8:14::/48"],
    });
    lab.web(fields, &["p1", "q1"]).set_node_port(30080).ingress =
        ["198.51.100.10", "2001:db8:51::10"].map(str::to_owned).into();
    let _n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    let both = served(&[("p1", Itself), ("q1", As("n1"))]);
    for ((address, node), far) in
        ["198.51.100.10", "2001:db8:51::10"].map(ip).into_iter().zip(lab.addresses("n1")).zip(FAR)
    {
        tries.push(from(far, address, 80, both.clone()));
        tries.push(from("outside", address, 80, Dropped));
        tries.push(from("p3", address, 80, Dropped));
        tries.push(from("n1", address, 80, served_itself(&["p1", "q1"])));
        tries.push(from("outside", node, 30080, both.clone()));
    }
    lab.check("source ranges", &tries);
}

#[test]
fn two_services_share_an_external_address_by_their_ports() {
    let mut lab = Lab::routed();
    let [v4, v6] = ["203.0.113.10", "2001:db8:113::10"];
    lab.web(json!({"externalIPs": [v4, v6]}), &["p1"]);
    let other = json!({
        "clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11", "fd00:96::11"], "externalIPs": [v4, v6],
        "ports": [{"name": "tcp", "protocol": "TCP", "port": 81, "targetPort": 8080}],
    });
    lab.service("other", Service::new(other), &["p2"]);
    let n1 = lab.start("n1", &[]);
    let tries = |first, second| {
        [v4, v6].map(ip).into_iter().flat_map(move |address| {
            let to = |port, server: Option<&'static str>| {
                let expect = server.map_or(Refused, |server| served_itself(&[server]));
                from("outside", address, port, expect).by(Protocol::Tcp)
            };
            [to(80, first), to(81, second)]
        })
    };
    lab.check("both", &tries(Some("p1"), Some("p2")).collect::<Vec<_>>());
    let web = lab.objects.services.remove("web").unwrap();
    lab.apply(&[&n1]);
    lab.check("one", &tries(None, Some("p2")).collect::<Vec<_>>());
    lab.objects.services.insert("web".into(), web);
    lab.objects.services.remove("other");
    lab.apply(&[&n1]);
    lab.check("the other", &tries(Some("p1"), None).collect::<Vec<_>>());
}
