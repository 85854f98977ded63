//! A large cluster.

use serde_json::json;

use crate::lab::{Lab, PATIENCE, ip};
use crate::objects::Service;
use crate::tries::Seen::{Itself, Virtual};
use crate::tries::{from, served};
use test_netns::Protocol;

/// Four minutes on an emulated machine.
const SERVICES: usize = 5000;

#[test]
fn w14_each_of_many_services_is_served_and_one_endpoint_costs_a_few_messages_whatever_their_number() {
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
    assert_eq!((count("-A"), count("-a")), (SERVICES, 5 * SERVICES));
    assert_eq!(n1.routes().lines().count(), SERVICES);
    let last = ip(&format!("10.96.{}.250", 99 + SERVICES / 250));
    let all = served(&[("p1", Itself), ("p2", Itself), ("p3", Virtual), ("q1", Itself), ("q2", Itself)]);
    lab.check("the last", &[from("p3", last, 80, all).by(Protocol::Tcp)]);
    let before = n1.kernel_ops();
    let endpoints = lab.endpoints(&["p1", "p2", "q1", "q2"]);
    lab.objects.services.get_mut(&format!("s{:04}", SERVICES - 1)).unwrap().endpoints = endpoints;
    lab.write();
    // It may be drained and gone before the services are all listed.
    let serving = format!("-a -t {last}:80 -r {}:8080 -m -w 1\n", lab.addresses("p3")[0]);
    assert!(ipvs.contains(&serving), "{serving}");
    n1.until_within(10 * PATIENCE, "one endpoint leaves", || !n1.ipvs().contains(&serving));
    let cost = n1.kernel_ops() - before;
    assert!((1..=10).contains(&cost), "{cost} operations");
}
