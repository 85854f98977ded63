//! One bad object costs itself alone.

use serde_json::json;
use test_netns::Protocol;

use crate::lab::{Lab, WEB, ip};
use crate::objects::Service;
use crate::tries::{from, served_itself};

fn other(last: u8) -> Service {
    let addresses = [format!("10.96.2.{last}"), format!("fd00:96::20{last}")];
    Service::new(json!({"clusterIP": addresses[0], "clusterIPs": addresses}))
}

#[test]
fn w12_an_endpoint_that_the_kernel_refuses_costs_itself_alone() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1"]);
    let n1 = lab.start("n1", &[]);
    // Broadcast: the API takes it, IPVS does not.
    let bad = json!({
        "addressType": "IPv4", "ports": [{"name": "tcp", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["255.255.255.255"], "conditions": {"ready": true}, "nodeName": "n2"}],
    });
    lab.service("a-bad", other(1), &["p1"]).slices.push(bad);
    lab.service("z-good", other(2), &["p2"]);
    lab.set_endpoints(lab.endpoints(&["p2"]));
    lab.apply(&[&n1]);
    let mut tries: Vec<_> = WEB.map(|web| from("p3", ip(web), 80, served_itself(&["p2"]))).into();
    for (last, server) in [(1, "p1"), (2, "p2")] {
        for to in [format!("10.96.2.{last}"), format!("fd00:96::20{last}")] {
            tries.push(from("p3", ip(&to), 80, served_itself(&[server])));
        }
    }
    lab.check("beside a bad endpoint", &tries);
    n1.until("it is reported", || n1.state()["excluded"].to_string().contains("x/a-bad"));
    lab.objects.services.get_mut("a-bad").unwrap().slices.clear();
    lab.apply(&[&n1]);
    n1.until("all is well again", || n1.state()["in_force"] == json!(true));
}

#[test]
fn w13_slices_without_ports_or_conditions_cost_nobody_else_anything() {
    let mut lab = Lab::routed();
    let address = lab.addresses("p1")[0];
    // Valid: `port: null` is all ports, absent conditions are ready.
    let slices = [
        json!({"addressType": "IPv4", "ports": [{"name": "tcp"}], "endpoints": [{"addresses": [address]}]}),
        json!({"addressType": "IPv4", "ports": null, "endpoints": [{"addresses": [address]}]}),
        json!({"addressType": "IPv4", "ports": [{"name": "tcp", "port": 8080}], "endpoints": null}),
        json!({"addressType": "FQDN", "ports": [], "endpoints": [{"addresses": ["example.org"]}]}),
        json!({
            "addressType": "IPv4", "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address]}],
        }),
        // Not valid.
        json!({"addressType": "IPv4", "ports": [{"name": "tcp", "port": 8080}], "endpoints": "none"}),
    ];
    lab.service("odd", other(1), &[]).slices = slices.into();
    lab.service("broken", other(3), &["p1"]).spec["ports"] = json!("none");
    lab.web(json!({}), &["p2"]);
    let n1 = lab.start("n1", &[]);
    let mut tries: Vec<_> = WEB.map(|web| from("p3", ip(web), 80, served_itself(&["p2"]))).into();
    tries.push(from("p3", ip("10.96.2.1"), 80, served_itself(&["p1"])).by(Protocol::Tcp));
    lab.check("beside odd and broken objects", &tries);
    // As what was passed over in reading.
    let notes = &n1.state()["source"]["kinds"];
    assert!(notes["Service"]["notes"]["x/broken"].is_array(), "{notes}");
    assert!(notes["EndpointSlice"]["notes"]["x/odd-5"].is_array(), "{notes}");
}
