//! Traffic policies, and endpoints that are on their way out.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};

use serde_json::json;

use crate::lab::{Lab, WEB, ip};
use crate::tries::Expect::Dropped;
use crate::tries::from;
use crate::tries::served_itself;

const BALANCERS: [&str; 2] = ["198.51.100.10", "2001:db8:51::10"];

#[test]
fn w15_external_policy_local_keeps_the_outside_here_and_lets_pods_and_nodes_reach_all() {
    let mut lab = Lab::routed();
    let fields = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    lab.web(fields, &["p1", "q1"]).set_node_port(30080).ingress = BALANCERS.map(str::to_owned).into();
    let n1 = lab.start("n1", &[]);
    let fronts: Vec<_> = BALANCERS
        .map(|address| (ip(address), 80))
        .into_iter()
        .chain(lab.addresses("n1").map(|node| (node, 30080)))
        .collect();
    let tries = |outside: &crate::tries::Expect, inside: &[&'static str]| {
        let mut tries = Vec::new();
        for (address, port) in fronts.iter().copied() {
            tries.push(from("outside", address, port, outside.clone()));
            tries.push(from("p3", address, port, served_itself(inside)));
            tries.push(from("n1", address, port, served_itself(inside)));
        }
        tries
    };
    lab.check("an endpoint here", &tries(&served_itself(&["p1"]), &["p1", "q1"]));
    lab.set_endpoints(lab.endpoints(&["q1"]));
    lab.apply(&[&n1]);
    lab.check("no endpoint here", &tries(&Dropped, &["q1"]));
}

#[test]
fn w15_internal_policy_local_serves_from_the_clients_node_or_drops() {
    let mut lab = Lab::routed();
    lab.web(json!({"internalTrafficPolicy": "Local"}), &["p1", "q1"]);
    let [n1, n2] = lab.start_all(&[]);
    let tries = |here: &crate::tries::Expect| {
        let mut tries = Vec::new();
        for web in WEB.map(ip) {
            tries.push(from("p3", web, 80, here.clone()));
            tries.push(from("outside", web, 80, here.clone()));
            tries.push(from("q2", web, 80, served_itself(&["q1"])));
            tries.push(from("n2", web, 80, served_itself(&["q1"])));
        }
        tries
    };
    lab.check("an endpoint on each", &tries(&served_itself(&["p1"])));
    lab.set_endpoints(lab.endpoints(&["q1"]));
    lab.apply(&[&n1, &n2]);
    lab.check("none here", &tries(&Dropped));
}

#[test]
fn w15_terminating_endpoints_serve_only_as_long_as_no_other_does() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &[]);
    let terminating = |lab: &Lab, name, serving| lab.endpoints(&[name])[0].clone().terminating(serving);
    let ready = lab.endpoints(&["p1"])[0].clone();
    let (serving, deaf) = (terminating(&lab, "p2", true), terminating(&lab, "q1", false));
    lab.set_endpoints(vec![ready, serving.clone(), deaf.clone()]);
    let n1 = lab.start("n1", &[]);
    let tries = |by| WEB.map(|web| from("p3", ip(web), 80, served_itself(by)));
    lab.check("one is ready", &tries(&["p1"]));
    lab.set_endpoints(vec![serving, deaf.clone()]);
    lab.apply(&[&n1]);
    lab.check("one still serves", &tries(&["p2"]));
    lab.set_endpoints(vec![deaf]);
    lab.apply(&[&n1]);
    lab.check("none serves", &WEB.map(|web| from("p3", ip(web), 80, crate::tries::Expect::Refused)));
}

#[test]
fn w15_external_policy_local_falls_back_to_what_terminates_here() {
    let mut lab = Lab::routed();
    lab.web(json!({"type": "NodePort", "externalTrafficPolicy": "Local"}), &[]).set_node_port(30080);
    let leaving = lab.endpoints(&["p1"])[0].clone().terminating(true);
    let ready = lab.endpoints(&["q1"])[0].clone();
    lab.set_endpoints(vec![leaving, ready]);
    let _n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    for (node, web) in lab.addresses("n1").into_iter().zip(WEB.map(ip)) {
        tries.push(from("outside", node, 30080, served_itself(&["p1"])));
        tries.push(from("p3", web, 80, served_itself(&["q1"])));
    }
    lab.check("one leaves here, one is ready elsewhere", &tries);
}

#[test]
fn traffic_goes_to_the_endpoints_that_slices_hint_at() {
    let mut lab = Lab::routed();
    let endpoint = |lab: &Lab, name: &str, family: usize, node: &str| {
        json!({"addresses": [lab.addresses(name)[family]], "nodeName": node,
            "hints": {"forNodes": [{"name": node}]}})
    };
    let endpoints =
        [0, 1].map(|family| [endpoint(&lab, "p1", family, "n1"), endpoint(&lab, "q1", family, "n2")]);
    let web = lab.web(json!({"trafficDistribution": "PreferSameNode"}), &[]);
    for (kind, endpoints) in ["IPv4", "IPv6"].into_iter().zip(endpoints) {
        web.slices.push(json!({"addressType": kind, "ports": web.ports, "endpoints": endpoints}));
    }
    let _nodes = lab.start_all(&[]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        tries.push(from("p3", web, 80, served_itself(&["p1"])));
        tries.push(from("q2", web, 80, served_itself(&["q1"])));
    }
    lab.check("each node has its own", &tries);
}

/// The status of a health check port of a node, asked for from outside.
fn health(lab: &Lab, node: IpAddr, port: u16) -> Option<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((node, port))?;
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = lab.cluster.namespace("outside").unwrap().run(ask).unwrap().ok()?;
    answer.split_whitespace().nth(1).map(str::to_owned)
}

#[test]
fn a_load_balancer_is_told_which_nodes_have_endpoints() {
    let mut lab = Lab::routed();
    let fields =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    lab.web(fields, &["p1"]).set_node_port(30080).ingress = BALANCERS.map(str::to_owned).into();
    let [n1, n2] = lab.start_all(&[]);
    let statuses = |lab: &Lab| ["n1", "n2"].map(|node| lab.addresses(node).map(|ip| health(lab, ip, 32000)));
    let [yes, no] = ["200", "503"].map(|status| [Some(status.to_owned()), Some(status.to_owned())]);
    assert_eq!(statuses(&lab), [yes.clone(), no.clone()]);
    lab.set_endpoints(lab.endpoints(&["q1"]));
    lab.apply(&[&n1, &n2]);
    assert_eq!(statuses(&lab), [no, yes]);
    lab.objects.services.remove("web");
    lab.apply(&[&n1, &n2]);
    n1.until("the port is closed", || health(&lab, lab.addresses("n1")[0], 32000).is_none());
}
