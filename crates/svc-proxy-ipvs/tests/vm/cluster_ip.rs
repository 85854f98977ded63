//! Cluster IPs.

use serde_json::json;

use crate::lab::{Lab, WEB, ip};
use crate::tries::Seen::{As, Itself, Virtual};
use crate::tries::{from, served};

#[test]
fn a_cluster_ip_is_served_to_pods_nodes_and_the_outside_by_every_protocol() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1", "p2", "q1"]);
    let [n1, _n2] = lab.start_all(&[]);
    println!("{}", n1.shown());
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        tries.extend([
            from("p3", web, 80, served(&[("p1", Itself), ("p2", Itself), ("q1", Itself)])),
            from("p1", web, 80, served(&[("p1", Virtual), ("p2", Itself), ("q1", Itself)])),
            from("q2", web, 80, served(&[("p1", Itself), ("p2", Itself), ("q1", Itself)])),
            from("n1", web, 80, served(&[("p1", Itself), ("p2", Itself), ("q1", Itself)])),
            from("n2", web, 80, served(&[("p1", Itself), ("p2", Itself), ("q1", Itself)])),
            from("outside", web, 80, served(&[("p1", Itself), ("p2", Itself), ("q1", As("n1"))])),
        ]);
    }
    lab.check("cluster IP", &tries);
}
