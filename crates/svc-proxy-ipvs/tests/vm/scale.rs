//! A large cluster.

use serde_json::json;

use crate::lab::{Lab, PATIENCE, ip};
use crate::objects::Service;
use crate::tries::Seen::{Itself, Virtual};
use crate::tries::{from, served};
use test_netns::Protocol;

const SERVICES: u32 = 5000;

#[test]
fn w14_five_thousand_services_are_served_and_one_endpoint_costs_a_few_messages() {
    let mut lab = Lab::routed();
    let ports = json!([{"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080}]);
    for number in 0..SERVICES {
        let address = format!("10.96.{}.{}", 100 + number / 250, 1 + number % 250);
        let service = Service::new(json!({
            "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": ports,
        }));
        lab.service(&format!("s{number:04}"), service, &["p1", "p2", "p3", "q1", "q2"]);
    }
    lab.write();
    let n1 = lab.spawn("n1", &[]);
    n1.until_within(10 * PATIENCE, "ready", || n1.is_ready());
    let ipvs = n1.ipvs();
    let count = |word| ipvs.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((count("-A"), count("-a")), (5000, 25000));
    assert_eq!(n1.routes().lines().count(), 5000);
    let last = ip("10.96.119.250");
    let all = served(&[("p1", Itself), ("p2", Itself), ("p3", Virtual), ("q1", Itself), ("q2", Itself)]);
    lab.check("the last", &[from("p3", last, 80, all).by(Protocol::Tcp)]);
    let before = n1.kernel_ops();
    let endpoints = lab.endpoints(&["p1", "p2", "q1", "q2"]);
    lab.objects.services.get_mut("s4999").unwrap().endpoints = endpoints;
    lab.write();
    n1.until_within(10 * PATIENCE, "one endpoint is drained", || n1.ipvs().contains("-w 0"));
    let cost = n1.kernel_ops() - before;
    assert!((1..=10).contains(&cost), "{cost} operations");
}
