//! VLANs: where the kernel tells them apart; where it does not, they are refused and leave nothing.

use serde_json::{Value, json};
use test_netns::Namespace;

use crate::lab::{Lab, links};
use crate::packets::{PATIENCE, TIMEOUT, ask, serve};

/// Whether the kernel tells VLANs apart; a bridge of its own then, in `lab`.
fn make_filtering_bridge(lab: &Lab) -> bool {
    match lab.node.ip("link add name br0 type bridge vlan_filtering 1") {
        Ok(()) => true,
        Err(error) => {
            assert!(format!("{error:#}").contains("not supported"), "{error:#}");
            lab.node.ip("link add name br0 type bridge").unwrap();
            false
        }
    }
}

#[test]
fn a_bridge_that_is_there_is_taken_with_the_vlans_that_it_has() {
    let lab = Lab::new();
    let filters = make_filtering_bridge(&lab);
    let plain = lab.conf(json!({}));
    let mut vlan = lab.conf(json!({"vlan": 100, "preserveDefaultVlan": false}));
    vlan["ipam"]["ranges"] = json!([[{"subnet": "10.1.100.0/24"}]]);
    vlan["name"] = json!("net100");
    // Without a VLAN they are in that of the bridge.
    let (a, _) = lab.pod("a", &plain);
    let (b, _) = lab.pod("b", &plain);
    for namespace in [&b, &lab.node] {
        serve(namespace, "0.0.0.0:80");
    }
    assert_eq!(ask(&a, "10.1.2.3:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
    assert_eq!(ask(&a, "10.1.2.1:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
    let tagged = Namespace::new("tagged").unwrap();
    if !filters {
        let (code, words) = lab.add("t", &tagged, &vlan).refusal();
        assert_eq!(code, 999);
        assert!(words.ends_with("operation not supported"), "{words}");
        assert!(links(&tagged).is_empty() && lab.links().len() == 3, "{:?}", lab.links());
        return;
    }
    lab.add("t", &tagged, &vlan).success();
    assert_eq!(ask(&tagged, "10.1.100.1:80", TIMEOUT).as_deref(), Some("10.1.100.2"));
    // Not as a neighbour, whatever address it takes.
    tagged.ip("addr flush dev eth0\naddr add 10.1.2.77/24 dev eth0").unwrap();
    assert_eq!(ask(&tagged, "10.1.2.3:80", PATIENCE), None);
    for (id, pod, conf) in [("a", &a, &plain), ("b", &b, &plain), ("t", &tagged, &vlan)] {
        lab.del(id, pod, conf).success();
    }
    assert!(lab.links().iter().all(|name| name.starts_with("br0") || name.len() == 15), "{:?}", lab.links());
    assert_eq!(lab.reserved(), Vec::<String>::new());
}

/// What `ip` says of a bridge's filtering.
fn filtering(lab: &Lab) -> Value {
    let shown = lab.node.output("ip", &["-d", "-json", "link", "show", "br0"], "").unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0]["linkinfo"]["info_data"]["vlan_filtering"].clone()
}

#[test]
fn a_bridge_of_pods_alone_begins_to_tell_vlans_apart_and_they_notice_nothing() {
    let lab = Lab::new();
    let plain = lab.conf(json!({}));
    let mut vlan = lab.conf(json!({"vlan": 100, "preserveDefaultVlan": false}));
    vlan["ipam"]["ranges"] = json!([[{"subnet": "10.1.100.0/24"}]]);
    let (a, _) = lab.pod("a", &plain);
    let (b, _) = lab.pod("b", &plain);
    assert_eq!(filtering(&lab), 0);
    for namespace in [&b, &lab.node] {
        serve(namespace, "0.0.0.0:80");
    }
    let tagged = Namespace::new("tagged").unwrap();
    let answer = lab.add("t", &tagged, &vlan);
    if filtering(&lab) == 0 {
        let (code, words) = answer.refusal();
        assert_eq!(code, 999);
        assert!(words.ends_with("\"br0\" does not tell VLANs apart: operation not supported"), "{words}");
        assert!(links(&tagged).is_empty() && lab.reserved().len() == 4, "{:?}", lab.reserved());
    } else {
        answer.success();
        assert_eq!(ask(&tagged, "10.1.100.1:80", TIMEOUT).as_deref(), Some("10.1.100.2"));
        tagged.ip("addr flush dev eth0\naddr add 10.1.2.77/24 dev eth0").unwrap();
        assert_eq!(ask(&tagged, "10.1.2.3:80", PATIENCE), None);
    }
    assert_eq!(ask(&a, "10.1.2.3:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
    assert_eq!(ask(&a, "10.1.2.1:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
}

#[test]
fn a_bridge_with_a_port_that_is_no_pods_is_not_changed_and_no_pod_gets_a_vlan_that_is_none() {
    let lab = Lab::new();
    lab.node
        .ip("link add br0 type bridge\nlink add uplink type veth peer name far\nlink set uplink master br0")
        .unwrap();
    let pod = Namespace::new("pod").unwrap();
    for vlans in [json!({"vlan": 100}), json!({"vlanTrunk": [{"id": 7}]})] {
        let (code, words) = lab.add("t", &pod, &lab.conf(vlans)).refusal();
        assert_eq!(code, 999);
        assert!(words.contains("does not tell VLANs apart, and uplink may need"), "{words}");
        assert!(words.ends_with("ip link set br0 type bridge vlan_filtering 1"), "{words}");
        assert!(links(&pod).is_empty() && lab.reserved().is_empty(), "{:?}", lab.reserved());
    }
    assert_eq!(filtering(&lab), 0);
    lab.add("p", &pod, &lab.conf(json!({}))).success();
}

#[test]
fn pods_of_a_vlan_reach_each_other_and_their_gateway_and_no_other_vlan() {
    let lab = Lab::new();
    let conf = |vlan: u16, subnet: u16| {
        let mut conf = lab.conf(json!({"vlan": vlan, "preserveDefaultVlan": false}));
        conf["ipam"]["ranges"] = json!([[{"subnet": format!("10.1.{subnet}.0/24")}]]);
        conf["name"] = json!(format!("net{vlan}"));
        conf
    };
    let probe = Namespace::new("probe").unwrap();
    if let Err(error) = probe.ip("link add name br0 type bridge vlan_filtering 1") {
        let error = format!("{error:#}");
        assert!(error.contains("not supported"), "{error}");
        let pod = Namespace::new("pod").unwrap();
        let words = "failed to create bridge \"br0\": could not add \"br0\": operation not supported";
        assert_eq!(lab.add("a", &pod, &conf(100, 2)).refusal(), (999, words.to_owned()));
        lab.assert_nothing_left("after the refusal");
        assert!(links(&pod).is_empty());
        return;
    }
    let (a, result) = lab.pod("a", &conf(100, 2));
    let (b, _) = lab.pod("b", &conf(100, 2));
    let (other, _) = lab.pod("other", &conf(200, 3));
    assert_eq!(result["interfaces"][3]["name"], "br0.100");
    for namespace in [&b, &other, &lab.node] {
        serve(namespace, "0.0.0.0:80");
    }
    assert_eq!(ask(&a, "10.1.2.3:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
    assert_eq!(ask(&a, "10.1.2.1:80", TIMEOUT).as_deref(), Some("10.1.2.2"));
    assert_eq!(ask(&other, "10.1.3.1:80", TIMEOUT).as_deref(), Some("10.1.3.2"));
    // Not as a neighbour, whatever address it takes.
    other.ip("addr flush dev eth0\naddr add 10.1.2.77/24 dev eth0").unwrap();
    assert_eq!(ask(&other, "10.1.2.3:80", PATIENCE), None);
    // Trunks carry tags: the pod makes the device itself.
    let mut trunk = conf(0, 4);
    trunk["vlanTrunk"] = json!([{"id": 150}, {"minID": 99, "maxID": 101}]);
    let (t, _) = lab.pod("t", &trunk);
    t.ip("link add link eth0 name eth0.100 type vlan id 100\naddr add 10.1.2.88/24 dev eth0.100\nlink set eth0.100 up")
        .unwrap();
    assert_eq!(ask(&t, "10.1.2.3:80", TIMEOUT).as_deref(), Some("10.1.2.88"));
}
