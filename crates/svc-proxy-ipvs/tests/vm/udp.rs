//! UDP: flows are moved at once, since their clients would go on for ever.

use std::time::Duration;

use test_netns::{Flow, Outcome, Protocol};

use serde_json::json;

use crate::lab::{Lab, PATIENCE, WEB, ip};

fn server(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Connected(answer) => Some(answer.server.clone()),
        _ => None,
    }
}

#[test]
fn a_udp_client_whose_endpoint_is_gone_is_served_by_another_from_its_next_packet_on() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1", "p2"]);
    let n1 = lab.start("n1", &[]);
    let mut flows: Vec<Flow> =
        WEB.map(|web| lab.cluster.connect("p3", ip(web), Protocol::Udp, 80, PATIENCE).unwrap()).into();
    for flow in &mut flows {
        let first = server(flow.opened()).expect("served");
        for _ in 0..3 {
            assert_eq!(server(&flow.exchange(PATIENCE)).as_ref(), Some(&first), "a flow stays where it is");
        }
        let other = if first == "p1" { "p2" } else { "p1" };
        lab.set_endpoints(lab.endpoints(&[other]));
        lab.apply(&[&n1]);
        let ipvs = n1.ipvs();
        assert!(!ipvs.lines().any(|line| line.starts_with("-a -u") && line.ends_with("-w 0")), "{ipvs}");
        assert_eq!(server(&flow.exchange(PATIENCE)).as_deref(), Some(other), "the very next packet");
        lab.set_endpoints(lab.endpoints(&["p1", "p2"]));
        lab.apply(&[&n1]);
    }
}

#[test]
fn a_udp_flow_from_before_its_service_was_there_is_served_once_it_is() {
    let mut lab = Lab::routed();
    let n1 = lab.start("n1", &[]);
    lab.output("outside", &["ip", "route", "replace", "blackhole", "203.0.113.0/24"]);
    // To nobody: shorter than for somebody.
    let patience = Duration::from_millis(1500);
    let [v4, v6] = lab.addresses("n1");
    let clients = [("outside", v4, 30080), ("outside", v6, 30080), ("p3", ip("203.0.113.10"), 80)];
    let mut flows: Vec<Flow> = clients
        .into_iter()
        .map(|(from, to, port)| lab.cluster.connect(from, to, Protocol::Udp, port, patience).unwrap())
        .collect();
    for flow in &mut flows {
        assert_eq!(server(flow.opened()), None, "nobody is there");
    }
    let tracked = |port: &str| {
        ["ipv4", "ipv6"]
            .map(|family| n1.output(&["conntrack", "-L", "-f", family, "-p", "udp", "--orig-port-dst", port]))
    };
    let [of4, of6] = tracked("30080");
    assert!(of4.contains("UNREPLIED") && of6.contains("UNREPLIED"), "what makes it hard: {of4}{of6}");
    lab.web(json!({"type": "NodePort", "externalIPs": ["203.0.113.10"]}), &["p1"]).set_node_port(30080);
    lab.apply(&[&n1]);
    for (flow, client) in flows.iter_mut().zip(clients) {
        let outcomes: Vec<_> = (0..3).map(|_| flow.exchange(patience)).collect();
        let served = outcomes.iter().any(|outcome| server(outcome).as_deref() == Some("p1"));
        let port = client.2.to_string();
        assert!(
            served,
            "{client:?}: {outcomes:?}, {:?}, {:?}\n{}",
            tracked(&port),
            n1.output(&["ipvsadm", "-Lnc"]),
            n1.shown()
        );
    }
}
