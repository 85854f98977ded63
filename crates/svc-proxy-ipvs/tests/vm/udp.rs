//! UDP: flows are moved at once, since their clients would go on for ever.

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
    let patience = std::time::Duration::from_millis(1500);
    let targets: Vec<_> = lab.addresses("n1").map(|node| (node, 30080)).into();
    let mut flows: Vec<Flow> = targets
        .iter()
        .map(|(to, port)| lab.cluster.connect("outside", *to, Protocol::Udp, *port, patience).unwrap())
        .collect();
    for flow in &mut flows {
        assert_eq!(server(flow.opened()), None, "nobody is there");
        flow.exchange(patience);
    }
    lab.web(json!({"type": "NodePort"}), &["p1"]).set_node_port(30080);
    lab.apply(&[&n1]);
    for flow in &mut flows {
        n1.until("the flow is served", || server(&flow.exchange(patience)).as_deref() == Some("p1"));
    }
}
