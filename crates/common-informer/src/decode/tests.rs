use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::object::{
    LabelSelector, NamedPort, NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyRule, PortRef, Protocol,
    RuleSpec, Service, ServicePort,
};

fn decoded(value: &Value) -> Decoded {
    object(value, &mut Interner::new()).expect("readable").expect("of a watched kind")
}

fn pod(spec: &Value, status: &Value) -> (Pod, Vec<String>) {
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "x"},
        "spec": spec, "status": status});
    match decoded(&value) {
        Decoded { object: Object::Pod(pod), notes } => (Arc::unwrap_or_clone(pod), notes),
        other => panic!("{other:?}"),
    }
}

fn policy(spec: &Value) -> (NetworkPolicy, Vec<String>) {
    let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "x"}, "spec": spec});
    match decoded(&value) {
        Decoded { object: Object::NetworkPolicy(policy), notes } => (Arc::unwrap_or_clone(policy), notes),
        other => panic!("{other:?}"),
    }
}

fn service(spec: &Value, ingress: &Value) -> (Service, Vec<String>) {
    let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
    match decoded(&value) {
        Decoded { object: Object::Service(service), notes } => (Arc::unwrap_or_clone(service), notes),
        other => panic!("{other:?}"),
    }
}

fn excluded(value: &Value) -> String {
    object(value, &mut Interner::new()).expect_err("not readable").to_string()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn pod_is_projected() {
    let value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "creationTimestamp": "2024-02-29T12:00:00Z",
            "labels": {"app": "web"}, "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    });
    let mut interner = Interner::new();
    let labels = BTreeMap::from([("app".into(), "web".into())]);
    let expected = Pod {
        key: ObjectKey { namespace: "shop".into(), name: "web-0".into() },
        labels: interner.labels(labels),
        created: 1_709_208_000,
        ips: ips(&["10.0.0.1", "fd00::1"]).into(),
        node: Some("n1".into()),
        host_network: true,
        finished: false,
        ports: interner.ports(&[NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }]),
    };
    assert_eq!(decoded(&value), Decoded { object: Object::Pod(Arc::new(expected)), notes: vec![] });
}

#[test]
fn equal_label_maps_of_two_pods_are_one() {
    let mut interner = Interner::new();
    let mut labels = |name: &str| {
        let value = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {}});
        match object_of(Kind::Pod, &value, &mut interner).unwrap().object {
            Object::Pod(pod) => pod.labels.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert!(Arc::ptr_eq(&labels("a"), &labels("b")));
}

#[test]
fn malformed_address_costs_only_itself() {
    let (pod, notes) = pod(&json!({}), &json!({"podIPs": [{"ip": "10.0.0.256"}, {"ip": "fd00::1"}, 7]}));
    assert_eq!(pod.ips.to_vec(), ips(&["fd00::1"]));
    assert_eq!(
        notes,
        [
            "status.podIPs[0].ip: \"10.0.0.256\" is not an address",
            "status.podIPs[2]: expected an object, got the number 7"
        ]
    );
}

#[test]
fn only_the_first_address_of_each_family_is_kept() {
    let status = json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, {"ip": "::ffff:10.0.0.3"}, {"ip": "fd00::1"}]});
    assert_eq!(pod(&json!({}), &status).0.ips.to_vec(), ips(&["10.0.0.1", "fd00::1"]));
}

#[test]
fn pod_ip_is_read_where_pod_ips_is_missing() {
    for status in [json!({"podIP": "10.0.0.1"}), json!({"podIP": "10.0.0.1", "podIPs": []})] {
        assert_eq!(pod(&json!({}), &status).0.ips.to_vec(), ips(&["10.0.0.1"]));
    }
    assert!(pod(&json!({}), &json!({"podIP": ""})).0.ips.is_empty());
    assert!(pod(&json!({}), &json!(null)).0.ips.is_empty());
}

#[test]
fn named_ports_are_those_of_containers_and_sidecars() {
    let spec = json!({
        "containers": [{"ports": [{"name": "a", "containerPort": 1, "protocol": "UDP"}]}],
        "initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "b", "containerPort": 2}]},
            {"ports": [{"name": "c", "containerPort": 3}]},
        ],
    });
    let (pod, notes) = pod(&spec, &json!({}));
    let names: Vec<(&str, Protocol, u16)> =
        pod.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
    assert_eq!(names, [("a", Protocol::Udp, 1), ("b", Protocol::Tcp, 2)]);
    assert!(notes.is_empty());
}

#[test]
fn ports_out_of_range_are_left_out_and_reported() {
    let port = |port: Value| json!({"containers": [{"ports": [{"name": "a", "containerPort": port}]}]});
    for (bad, why) in [
        (json!(0), "0 is not a port number (1 to 65535)"),
        (json!(65536), "65536 is not a port number (1 to 65535)"),
        (json!(-1), "-1 is not a port number (1 to 65535)"),
        (json!("http"), "expected an integer, got the string \"http\""),
        (json!(null), "is missing"),
    ] {
        let (pod, notes) = pod(&port(bad), &json!({}));
        assert!(pod.ports.is_empty());
        assert_eq!(notes, [format!("spec.containers[0].ports[0].containerPort: {why}")]);
    }
    assert_eq!(pod(&port(json!(65535)), &json!({})).0.ports[0].port, 65535);
}

#[test]
fn finished_pods_are_those_that_succeeded_or_failed() {
    for (phase, finished) in [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true)] {
        assert_eq!(pod(&json!({}), &json!({"phase": phase})).0.finished, finished);
    }
}

#[test]
fn objects_that_cannot_be_known_say_kind_name_and_field() {
    let pod = |metadata: Value, spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    for (value, reason) in [
        (pod(json!({"name": "p", "namespace": "x"}), json!(null)), "Pod x/p: spec: is missing"),
        (
            pod(json!({"name": "p"}), json!({"nodeName": 7})),
            "Pod default/p: spec.nodeName: expected a string, got the number 7 (put it in quotes)",
        ),
        (
            pod(json!({"name": "p"}), json!({"hostNetwork": "yes"})),
            "Pod default/p: spec.hostNetwork: expected true or false, got the string \"yes\"",
        ),
        (
            pod(json!({"name": "p", "labels": {"a": true}}), json!({})),
            "Pod default/p: metadata.labels[a]: expected a string, got true (put it in quotes)",
        ),
        (pod(json!({"name": "a/b"}), json!({})), "Pod default/: metadata.name: \"a/b\" is not a name"),
        (pod(json!(null), json!({})), "Pod default/: metadata: is missing"),
        (
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
                "spec": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": "x"}]}}}),
            "NetworkPolicy default/p: spec.podSelector.matchExpressions[0].values: expected a list, got the string \"x\"",
        ),
        (
            json!({"apiVersion": "extensions/v1beta1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}),
            "NetworkPolicy default/p: apiVersion: extensions/v1beta1 is no longer served, use networking.k8s.io/v1",
        ),
    ] {
        assert_eq!(excluded(&value), reason);
    }
}

#[test]
fn other_kinds_are_passed_over() {
    for (version, kind) in [("apps/v1", "Deployment"), ("serving.knative.dev/v1", "Service"), ("", "")] {
        let value = json!({"apiVersion": version, "kind": kind});
        assert_eq!(object(&value, &mut Interner::new()), Ok(None));
    }
}

#[test]
fn namespace_has_its_name_as_a_label_and_keeps_the_old_annotation() {
    let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x",
        "labels": {"a": null, "kubernetes.io/metadata.name": "other"},
        "annotations": {"net.beta.kubernetes.io/network-policy": "{bad", "other": "y"}}});
    let Object::Namespace(namespace) = decoded(&value).object else { panic!() };
    let labels: Vec<(&str, &str)> = namespace.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(labels, [("a", ""), ("kubernetes.io/metadata.name", "x")]);
    assert_eq!(namespace.network_policy_annotation.as_deref(), Some("{bad"));
}

#[test]
fn policy_types_default_as_the_api_server_sets_them() {
    for (spec, expected) in [
        (json!({}), (true, false)),
        (json!({"policyTypes": []}), (true, false)),
        (json!({"egress": []}), (true, false)),
        (json!({"egress": [{}]}), (true, true)),
        (json!({"policyTypes": ["Egress"]}), (false, true)),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), (true, false)),
        (json!({"policyTypes": ["Ingress", "Egress"]}), (true, true)),
        (json!(null), (true, false)),
    ] {
        let (policy, notes) = policy(&spec);
        assert_eq!((policy.isolates_ingress, policy.isolates_egress), expected, "{spec}");
        assert!(notes.is_empty());
    }
}

#[test]
fn policy_types_that_cannot_be_read_isolate_both_directions() {
    for spec in
        [json!({"policyTypes": ["ingress"]}), json!({"policyTypes": "Ingress"}), json!({"policyTypes": [1]})]
    {
        let (policy, notes) = policy(&spec);
        assert!(policy.isolates_ingress && policy.isolates_egress, "{spec}");
        assert!(notes[0].starts_with("spec.policyTypes"), "{notes:?}");
    }
}

#[test]
fn absent_null_and_empty_lists_are_the_same() {
    let rule = |rule: Value| policy(&json!({"ingress": [rule]})).0.ingress;
    let empty = vec![RuleSpec::Rule(PolicyRule::default())];
    assert_eq!(rule(json!({})), empty);
    assert_eq!(rule(json!({"from": null, "ports": null})), empty);
    assert_eq!(rule(json!({"from": [], "ports": []})), empty);
    assert_eq!(policy(&json!({"ingress": null})).0.ingress, []);
}

#[test]
fn peers_keep_the_difference_of_an_empty_selector_and_none() {
    let (policy, _) = policy(&json!({"egress": [{"to": [
        {"podSelector": {}}, {"namespaceSelector": {}, "podSelector": null}, {},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}));
    let RuleSpec::Rule(rule) = &policy.egress[0] else { panic!() };
    let everything = Some(LabelSelector::default());
    assert_eq!(rule.peers[0], PolicyPeer { pod_selector: everything.clone(), ..PolicyPeer::default() });
    assert_eq!(rule.peers[1], PolicyPeer { namespace_selector: everything, ..PolicyPeer::default() });
    assert_eq!(rule.peers[2], PolicyPeer::default());
    let block = rule.peers[3].ip_block.as_ref().unwrap();
    assert_eq!((block.cidr.as_str(), &block.except[..]), ("10.0.0.0/8", &["10.1.0.0/16".to_owned()][..]));
}

#[test]
fn policy_ports_default_to_tcp_and_are_not_judged() {
    let (policy, _) = policy(&json!({"ingress": [{"ports": [
        {}, {"protocol": "UDP", "port": "dns"}, {"port": 70000, "endPort": -1}, {"protocol": "ICMP", "port": 0}]}]}));
    let RuleSpec::Rule(rule) = &policy.ingress[0] else { panic!() };
    let port = |protocol: &str, port, end_port| PolicyPort { protocol: protocol.into(), port, end_port };
    assert_eq!(
        rule.ports,
        [
            port("TCP", None, None),
            port("UDP", Some(PortRef::Name("dns".into())), None),
            port("TCP", Some(PortRef::Number(70000)), Some(-1)),
            port("ICMP", Some(PortRef::Number(0)), None),
        ]
    );
}

#[test]
fn rules_of_the_wrong_shape_are_malformed_one_by_one() {
    let (policy, _) = policy(&json!({
        "ingress": [{}, {"from": "everyone"}, null, {"from": [{"ipBlock": {"cidr": 10}}]}, {"ports": [{"port": 1.5}]}],
        "egress": "none",
    }));
    let expected = [
        "ingress[1].from: expected a list, got the string \"everyone\"",
        "ingress[2]: expected an object, got null",
        "ingress[3].from[0].ipBlock.cidr: expected a string, got the number 10 (put it in quotes)",
        "ingress[4].ports[0].port: expected an integer, got the number 1.5",
    ]
    .map(|text| RuleSpec::Malformed(text.to_owned()));
    assert_eq!(policy.ingress[0], RuleSpec::Rule(PolicyRule::default()));
    assert_eq!(policy.ingress[1..], expected);
    let egress = "egress: expected a list, got the string \"none\"";
    assert_eq!(policy.egress, [RuleSpec::Malformed(egress.to_owned())]);
    assert!(policy.isolates_egress, "there are egress rules, so it isolates");
}

#[test]
fn service_has_all_its_addresses_once() {
    let spec = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
        "externalIPs": ["192.0.2.1", "10.96.0.1"], "healthCheckNodePort": 30001,
        "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP", "nodePort": 0}]});
    let ingress = json!([{"ip": "192.0.2.2"}, {"hostname": "lb.example"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"ip": "192.0.2.4", "ipMode": "VIP"}]);
    let (service, notes) = service(&spec, &ingress);
    assert_eq!(service.ips.to_vec(), ips(&["10.96.0.1", "fd00::1", "192.0.2.1", "192.0.2.2", "192.0.2.4"]));
    assert_eq!(
        service.ports,
        [
            ServicePort { protocol: Protocol::Tcp, port: 80, node_port: Some(30080) },
            ServicePort { protocol: Protocol::Udp, port: 53, node_port: None },
        ]
    );
    assert_eq!(service.health_check_node_port, Some(30001));
    assert!(notes.is_empty());
}

#[test]
fn headless_and_external_name_services_have_no_cluster_address() {
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIPs": ["None"]}),
        json!({"clusterIP": "None", "externalIPs": ["192.0.2.1"], "ports": [{"port": 10250}]}),
        json!({"clusterIP": ""}),
        json!({"type": "ExternalName", "externalName": "a.example", "externalIPs": ["192.0.2.1"]}),
    ] {
        assert!(service(&spec, &json!([])).0.ips.is_empty(), "{spec}");
    }
}

#[test]
fn mistakes_in_a_service_cost_only_themselves() {
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["nonsense"],
        "ports": [{"port": 0}, {"port": 80, "protocol": "ICMP"}, {"port": 81}]});
    let (service, notes) = service(&spec, &json!("x"));
    assert_eq!(service.ips.to_vec(), ips(&["10.96.0.1"]));
    assert_eq!(service.ports.len(), 1);
    assert_eq!(notes.len(), 4, "{notes:?}");
}

/// Every way in which an object can be read.
pub(crate) fn every_reading() -> impl Iterator<Item = (Kind, ServiceDetail)> {
    let addresses = Kind::ALL.into_iter().map(|kind| (kind, ServiceDetail::Addresses));
    addresses.chain([ServiceDetail::Full, ServiceDetail::Labelled].map(|detail| (Kind::Service, detail)))
}

/// JSON of any shape, with the field names that are read here.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "spec",
        "status",
        "containers",
        "initContainers",
        "ports",
        "containerPort",
        "podIPs",
        "ip",
        "podSelector",
        "matchLabels",
        "matchExpressions",
        "ingress",
        "egress",
        "from",
        "to",
        "ipBlock",
        "except",
        "cidr",
        "policyTypes",
        "clusterIPs",
        "externalIPs",
        "loadBalancer",
        "creationTimestamp",
        "restartPolicy",
        "port",
        "endPort",
        "addressType",
        "endpoints",
        "addresses",
        "address",
        "conditions",
        "ready",
        "nodeName",
        "hints",
        "forZones",
        "forNodes",
        "podCIDRs",
        "ipFamilies",
        "ipFamilyPolicy",
        "sessionAffinity",
        "sessionAffinityConfig",
        "clientIP",
        "timeoutSeconds",
        "externalTrafficPolicy",
        "loadBalancerSourceRanges",
        "loadBalancerIP",
        "kube-router.io/service.local",
        "type",
        "protocol",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "v1",
            "Pod",
            "10.0.0.1",
            "::1",
            "fd00::1",
            "None",
            "Always",
            "2024-01-01T00:00:00Z",
            "10.0.0.0/8",
            "InternalIP",
            "IPv4",
            "ClientIP",
            "Local",
            "LoadBalancer",
        ])
        .prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::hash_map(names.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_read_or_excluded(
        value in any_json(), metadata in any_json(), spec in any_json(), status in any_json(),
        endpoints in any_json(), ports in any_json(),
    ) {
        let mut interner = Interner::new();
        let named = json!({"metadata": {"name": "a"}, "spec": spec, "status": status,
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        let mut whole = named.clone();
        whole["metadata"] = metadata;
        for (kind, detail) in every_reading() {
            for value in [&value, &named, &whole] {
                match object_of_with(detail, kind, value, &mut interner) {
                    Ok(decoded) => prop_assert_eq!(decoded.object.object_ref().kind, kind),
                    Err(excluded) => prop_assert!(excluded.object.kind == kind && !excluded.reason.is_empty()),
                }
            }
        }
    }
}
