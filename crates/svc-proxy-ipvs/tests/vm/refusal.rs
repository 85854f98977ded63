//! What is not served: refused at once if nobody serves it, dropped if somebody does elsewhere.

use std::time::{Duration, Instant};

use serde_json::json;
use test_netns::{Outcome, Protocol};

use crate::lab::{Lab, WEB, ip};
use crate::tries::Expect::{Dropped, Refused};
use crate::tries::{from, served_itself};

/// A try by TCP is refused by RST within it; by ICMP it takes a local client a second and more.
const AT_ONCE: Duration = Duration::from_millis(900);

#[test]
fn a_service_without_endpoints_is_refused_at_once() {
    let mut lab = Lab::routed();
    let unready = lab.endpoints(&["p1"]).into_iter().map(|endpoint| endpoint.unready()).collect();
    lab.web(json!({"type": "NodePort"}), &[]).set_node_port(30080).endpoints = unready;
    let [_n1, _n2] = lab.start_all(&[]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        tries.extend(["p3", "q2", "n1", "outside"].map(|client| from(client, web, 80, Refused)));
    }
    for node in lab.addresses("n1") {
        tries.extend(["p3", "q2", "n1", "outside"].map(|client| from(client, node, 30080, Refused)));
    }
    lab.check("no endpoints", &tries);
    for client in ["p3", "n1", "outside"] {
        for web in WEB.map(ip) {
            // The fastest of some: the machine may be busy.
            let took = (0..5).map(|_| {
                let begun = Instant::now();
                let outcome = lab.cluster.probe(client, web, Protocol::Tcp, 80).unwrap();
                assert_eq!(outcome, Outcome::Refused, "{client} -> {web}");
                begun.elapsed()
            });
            assert!(took.min().unwrap() < AT_ONCE, "{client} -> {web}");
        }
    }
}

#[test]
fn a_virtual_address_has_the_ports_of_its_services_and_none_of_the_hosts() {
    let mut lab = Lab::routed();
    lab.cluster.serve("n1", Protocol::Tcp, 22).unwrap();
    lab.cluster.serve("n1", Protocol::Udp, 22).unwrap();
    lab.web(json!({}), &["p1"]);
    let _n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    for (web, node) in WEB.map(ip).into_iter().zip(lab.addresses("n1")) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for client in ["p3", "outside"] {
                tries.push(from(client, node, 22, served_itself(&["n1"])).by(protocol));
                tries.push(from(client, web, 22, Refused).by(protocol));
                tries.push(from(client, web, 81, Refused).by(protocol));
            }
        }
    }
    lab.check("ports", &tries);
    for web in WEB.map(ip) {
        for client in ["p3", "n1", "outside"] {
            let outcome = lab.cluster.probe(client, web, Protocol::Icmp, 0).unwrap();
            assert!(outcome.is_connected(), "{client} pings {web}: {outcome}");
        }
    }
}

#[test]
fn an_address_in_the_cluster_range_that_no_service_has_is_dropped() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1"]);
    let _n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    for nobody in ["10.96.5.5", "fd00:96::505"].map(ip) {
        tries.extend(["p3", "outside"].map(|client| from(client, nobody, 80, Dropped)));
        // A local socket is told of a drop by EPERM, UDP only then.
        tries.push(from("n1", nobody, 80, Dropped).by(Protocol::Tcp));
    }
    lab.check("nobody's address", &tries);
}

#[test]
fn without_the_guard_a_virtual_address_has_the_ports_of_the_host() {
    let mut lab = Lab::routed();
    lab.cluster.serve("n1", Protocol::Tcp, 22).unwrap();
    lab.web(json!({}), &["p1"]);
    let _n1 = lab.start("n1", &["--ipvs-permit-all=false"]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        for client in ["p3", "outside"] {
            tries.push(from(client, web, 22, served_itself(&["n1"])).by(Protocol::Tcp));
            tries.push(from(client, web, 80, served_itself(&["p1"])).by(Protocol::Tcp));
        }
    }
    lab.check("ports", &tries);
}
