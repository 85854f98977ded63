//! Cluster IPs: who reaches what by them, and as whom.

use serde_json::json;
use test_netns::{Attachment, Protocol};

use crate::lab::{Lab, WEB, ip};
use crate::objects::Service;
use crate::tries::Seen::{As, Itself, Virtual};
use crate::tries::{from, served, served_itself};

#[test]
fn a_cluster_ip_is_served_to_pods_nodes_and_the_outside_by_every_protocol() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1", "p2", "q1"]);
    let [n1, _n2] = lab.start_all(&[]);
    let all = served_itself(&["p1", "p2", "q1"]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        tries.extend(["p3", "q2", "n1", "n2"].map(|client| from(client, web, 80, all.clone())));
        tries.push(from("p1", web, 80, served(&[("p1", Virtual), ("p2", Itself), ("q1", Itself)])));
        tries.push(from("outside", web, 80, served(&[("p1", Itself), ("p2", Itself), ("q1", As("n1"))])));
    }
    lab.check("cluster IP", &tries);
    // KERNEL: counted up every two seconds.
    n1.until("connections are counted", || {
        n1.metric("svc_proxy_ipvs_service_connections_total", "service_vip=\"10.96.0.10\"") >= 9
    });
    // What packets cannot show: why they pass.
    for (name, value) in [("conntrack", "1"), ("expire_nodest_conn", "1"), ("expire_quiescent_template", "1")]
    {
        let path = format!("/proc/sys/net/ipv4/vs/{name}");
        assert_eq!(n1.output(&["cat", &path]).trim(), value, "{name}");
    }
    let routes = n1.routes();
    assert!(routes.contains("local 10.96.0.10 dev kube-dummy-if scope host src 172.18.0.2"), "{routes}");
    assert_eq!(routes.lines().count(), 2, "{routes}");
    assert_eq!(n1.output(&["ip", "-o", "address", "show", "dev", "kube-dummy-if", "scope", "global"]), "");
}

#[test]
fn pods_on_one_bridge_reach_each_other_and_themselves_by_a_cluster_ip() {
    let mut lab = Lab::new(Attachment::Bridge);
    for pod in ["p1", "p2"] {
        // What CNI plugins do that are told hairpinMode.
        let port = lab.cluster.host(pod).unwrap().node_link().to_owned();
        lab.output("n1", &["ip", "link", "set", "dev", &port, "type", "bridge_slave", "hairpin", "on"]);
    }
    lab.web(json!({}), &["p1", "p2", "q1"]);
    let _n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        tries.push(from("p3", web, 80, served_itself(&["p1", "p2", "q1"])));
        tries.push(from("p1", web, 80, served(&[("p1", Virtual), ("p2", Itself), ("q1", Itself)])));
    }
    lab.check("bridge", &tries);
}

#[test]
fn endpoints_with_the_nodes_network_are_served() {
    let mut lab = Lab::routed();
    for node in ["n1", "n2"] {
        lab.cluster.serve(node, Protocol::Tcp, 8080).unwrap();
        lab.cluster.serve(node, Protocol::Udp, 8080).unwrap();
    }
    lab.web(json!({}), &["n1", "n2"]);
    let _n1 = lab.start("n1", &[]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            tries.push(from("p3", web, 80, served_itself(&["n1", "n2"])).by(protocol));
            tries.push(from("n1", web, 80, served_itself(&["n1", "n2"])).by(protocol));
            let outside = served(&[("n1", Itself), ("n2", As("n1"))]);
            tries.push(from("outside", web, 80, outside).by(protocol));
        }
    }
    lab.check("host network", &tries);
}

#[test]
fn masquerade_all_shows_a_node_in_the_place_of_every_client() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1", "q1"]);
    let _n1 = lab.start("n1", &["--masquerade-all"]);
    let mut tries = Vec::new();
    for web in WEB.map(ip) {
        for client in ["p3", "outside"] {
            tries.push(from(client, web, 80, served(&[("p1", As("n1")), ("q1", As("n1"))])));
        }
        tries.push(from("p1", web, 80, served(&[("p1", Virtual), ("q1", As("n1"))])));
    }
    lab.check("masquerade all", &tries);
}

#[test]
fn w3_services_and_ports_whose_names_run_together_are_told_apart() {
    let mut lab = Lab::routed();
    lab.cluster.serve("p2", Protocol::Tcp, 8081).unwrap();
    let port = |name: &str| json!([{"name": name, "protocol": "TCP", "port": 80, "targetPort": "web"}]);
    let slice = |name: &str, pod: &str, number: u16| {
        json!({
            "addressType": "IPv4", "ports": [{"name": name, "protocol": "TCP", "port": number}],
            "endpoints": [{"addresses": [lab.addresses(pod)[0]], "nodeName": "n1"}],
        })
    };
    // A named port is another number in each pod.
    let slices = [
        ("a-b", "c", vec![slice("c", "p1", 8080), slice("c", "p2", 8081)]),
        ("a", "b-c", vec![slice("b-c", "p3", 8080)]),
    ];
    for ((name, port_name, slices), last) in slices.into_iter().zip([21, 22]) {
        let v4 = format!("10.96.0.{last}");
        let mut service = Service::new(json!({
            "clusterIP": v4, "clusterIPs": [v4], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": port(port_name),
        }));
        service.slices = slices;
        lab.service(name, service, &[]);
    }
    let _n1 = lab.start("n1", &[]);
    lab.check(
        "names",
        &[
            from("n1", ip("10.96.0.21"), 80, served_itself(&["p1", "p2"])).by(Protocol::Tcp),
            from("n1", ip("10.96.0.22"), 80, served_itself(&["p3"])).by(Protocol::Tcp),
        ],
    );
}
