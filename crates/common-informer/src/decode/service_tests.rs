//! Reading of what a service proxy needs: Services in full, EndpointSlices, Nodes.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::tests::any_json;
use super::*;
use crate::object::{
    AddressType, Endpoint, EndpointPort, EndpointSlice, Family, FullService, FullServicePort, Hints,
    LoadBalancerIp, Node, NodeAddress, NodeAddressKind, Protocol, ServiceSettings, ServiceType,
    TrafficPolicy, Uid,
};

/// A Service that has every field that is read.
pub(crate) fn full_service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "uid": "9f0c3a52-6a3e-4f5d-8a43-2f6a5a0d1c11", "creationTimestamp": "2024-02-29T12:00:00Z",
            "labels": {"service.kubernetes.io/service-proxy-name": "kube-router", "service.kubernetes.io/headless": "", "a": "b"},
            "annotations": {"kube-router.io/service.scheduler": "sh", "kubectl.kubernetes.io/x": "y"}},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "externalIPs": ["192.0.2.1", "192.0.2.1"],
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "appProtocol": "http"},
                {"name": "dns", "port": 53, "protocol": "UDP"}],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
            "publishNotReadyAddresses": true, "healthCheckNodePort": 30001, "loadBalancerIP": "192.0.2.9",
            "loadBalancerSourceRanges": ["10.1.2.3/8", " fd00::/8 "], "loadBalancerClass": "kube-router",
            "allocateLoadBalancerNodePorts": false},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}, {"hostname": "lb.example"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"}]}},
    })
}

/// An EndpointSlice that has every field that is read.
pub(crate) fn slice() -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}, {"protocol": "UDP"}],
        "endpoints": [
            {"addresses": ["10.1.0.1", "10.1.0.9"], "nodeName": "n1", "zone": "z1",
                "conditions": {"ready": false, "serving": true, "terminating": true},
                "targetRef": {"kind": "Pod", "name": "web-0"},
                "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "n1"}]}},
            {"addresses": ["10.1.0.2"]},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}, "nodeName": "n1"},
        ],
    })
}

/// A Node that has every field that is read.
pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1",
                "node.kubernetes.io/exclude-from-external-load-balancers": ""},
            "annotations": {"kube-router.io/node.asn": "64512", "other": "x"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"],
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}, {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "InternalIP", "address": "fd01::1"}],
            "conditions": [{"type": "Ready", "status": "False"}, {"type": "NetworkUnavailable", "status": "Unknown"}]},
    })
}

fn read(value: &Value) -> (Object, Vec<String>) {
    let decoded = object_with(ServiceDetail::Full, value, &mut Interner::new());
    let Decoded { object, notes } = decoded.expect("readable").expect("of a watched kind");
    (object, notes)
}

fn read_service(value: &Value) -> (FullService, Vec<String>) {
    match read(value) {
        (Object::FullService(service), notes) => (Arc::unwrap_or_clone(service), notes),
        other => panic!("{other:?}"),
    }
}

fn read_slice(value: &Value) -> (EndpointSlice, Vec<String>) {
    match read(value) {
        (Object::EndpointSlice(slice), notes) => (Arc::unwrap_or_clone(slice), notes),
        other => panic!("{other:?}"),
    }
}

fn read_node(value: &Value) -> (Node, Vec<String>) {
    match read(value) {
        (Object::Node(node), notes) => (Arc::unwrap_or_clone(node), notes),
        other => panic!("{other:?}"),
    }
}

/// A Service with these fields of the spec.
fn with_spec(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})
}

fn excluded(value: &Value) -> String {
    let decoded = object_with(ServiceDetail::Full, value, &mut Interner::new());
    decoded.expect_err("not readable").to_string()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn full_service_is_projected() {
    let annotations = BTreeMap::from([("kube-router.io/service.scheduler".into(), "sh".into())]);
    let port = |name: &str, protocol, port, node_port| FullServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
    };
    let settings = ServiceSettings {
        service_type: ServiceType::LoadBalancer,
        headless: false,
        families: vec![Family::V4, Family::V6].into(),
        requires_dual_stack: true,
        external_ips: ips(&["192.0.2.1"]).into(),
        load_balancer_ips: [
            LoadBalancerIp { ip: "192.0.2.2".parse().unwrap(), proxied: false },
            LoadBalancerIp { ip: "192.0.2.3".parse().unwrap(), proxied: true },
        ]
        .into(),
        affinity_seconds: Some(600),
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        distribution: Some("PreferClose".into()),
        publish_not_ready: true,
        source_ranges: Some(["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap()).into()),
        class: Some("kube-router".into()),
        wanted_ip: Some("192.0.2.9".parse().unwrap()),
        allocate_node_ports: false,
        annotations: Arc::new(annotations),
        proxy_name: Some("kube-router".into()),
        headless_label: true,
    };
    let expected = FullService {
        key: ObjectKey { namespace: "shop".into(), name: "web".into() },
        uid: Uid::parse("9f0c3a52-6a3e-4f5d-8a43-2f6a5a0d1c11"),
        created: 1_709_208_000,
        labels: Arc::default(),
        cluster_ips: ips(&["10.96.0.1", "fd00::1"]).into(),
        ports: [port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)].into(),
        health_check_node_port: Some(30001),
        settings: settings.into(),
    };
    assert_eq!(read_service(&full_service()), (expected, vec![]));
}

#[test]
fn labels_of_a_service_are_kept_for_those_who_ask() {
    let read = |detail| match object_with(detail, &full_service(), &mut Interner::new()) {
        Ok(Some(Decoded { object: Object::FullService(service), .. })) => service.labels.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!((read(ServiceDetail::Full), read(ServiceDetail::Labelled)), (0, 3));
}

#[test]
fn absent_fields_of_a_service_are_as_the_api_server_sets_them() {
    let (service, notes) =
        read_service(&with_spec(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    assert_eq!(notes, [""; 0]);
    assert_eq!(service.settings.service_type, ServiceType::ClusterIp);
    assert_eq!(service.settings.families.to_vec(), [Family::V4]);
    assert_eq!((service.settings.internal_policy, service.settings.external_policy), Default::default());
    assert_eq!((service.settings.affinity_seconds, &service.settings.source_ranges), (None, &None));
    assert_eq!((service.created, service.uid, service.settings.allocate_node_ports), (0, None, true));
    let port = FullServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    assert_eq!(*service.ports, [port]);
}

#[test]
fn session_affinity_lasts_three_hours_unless_told() {
    let seconds = |config: Value| {
        read_service(&with_spec(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})))
    };
    for config in
        [json!(null), json!({}), json!({"clientIP": {}}), json!({"clientIP": {"timeoutSeconds": null}})]
    {
        assert_eq!(seconds(config).0.settings.affinity_seconds, Some(10_800));
    }
    for bad in [0, -1, 86_401, i64::MAX] {
        let (service, notes) = seconds(json!({"clientIP": {"timeoutSeconds": bad}}));
        assert_eq!(service.settings.affinity_seconds, None);
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        assert_eq!(notes, [format!("{path}: {bad} is not from 1 to 86400")]);
    }
}

#[test]
fn source_ranges_that_cannot_be_read_let_nobody_in() {
    let ranges = |value: Value| read_service(&with_spec(json!({"loadBalancerSourceRanges": value})));
    assert_eq!(ranges(json!([])).0.settings.source_ranges, None);
    for (bad, why) in [
        (json!(["10.0.0.0/33"]), "[0]: \"10.0.0.0/33\" is not a network, such as 10.0.0.0/8"),
        (json!("10.0.0.0/8"), ": expected a list, got the string \"10.0.0.0/8\""),
    ] {
        let (service, notes) = ranges(bad);
        assert_eq!(service.settings.source_ranges.as_deref(), Some(&[][..]));
        assert_eq!(notes, [format!("spec.loadBalancerSourceRanges{why}")]);
    }
}

#[test]
fn addresses_of_the_node_itself_are_no_external_addresses() {
    for bad in [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.5",
        "::1",
        "fe80::1",
        "ff02::1",
        "0.0.0.0",
        "::ffff:127.0.0.1",
    ] {
        let mut value = with_spec(json!({"externalIPs": [bad, "192.0.2.1"], "loadBalancerIP": bad}));
        value["status"] = json!({"loadBalancer": {"ingress": [{"ip": bad}, {"ip": "192.0.2.2"}]}});
        let (service, notes) = read_service(&value);
        assert_eq!(service.settings.external_ips.to_vec(), ips(&["192.0.2.1"]), "{bad}");
        assert_eq!(service.settings.load_balancer_ips.len(), 1, "{bad}");
        assert_eq!((service.settings.wanted_ip, notes.len()), (None, 3), "{bad}");
    }
}

#[test]
fn headless_service_has_no_cluster_address() {
    for spec in [json!({"clusterIP": "None"}), json!({"clusterIPs": ["None"]})] {
        let (service, _) = read_service(&with_spec(spec));
        assert!(
            service.settings.headless
                && service.cluster_ips.is_empty()
                && service.settings.families.is_empty()
        );
    }
}

#[test]
fn service_whose_type_is_unknown_is_excluded() {
    assert_eq!(
        excluded(&with_spec(json!({"type": "Clusterip"}))),
        "Service default/s: spec.type: \"Clusterip\" is no type of a Service"
    );
}

#[test]
fn annotation_that_is_not_quoted_costs_itself() {
    let mut value = with_spec(json!({}));
    value["metadata"]["annotations"] =
        json!({"kube-router.io/service.local": true, "kube-router.io/service.dsr": "tunnel", "a": 1});
    let (service, notes) = read_service(&value);
    assert_eq!(service.settings.annotation("service.dsr"), Some("tunnel"));
    assert_eq!(service.settings.flag("service.local"), Ok(None));
    let reason = "expected a string, got true (put it in quotes)";
    assert_eq!(notes, [format!("metadata.annotations[kube-router.io/service.local]: {reason}")]);
}

#[test]
fn flags_are_read_in_go_words() {
    let flag = |text: &str| {
        let mut value = with_spec(json!({}));
        value["metadata"]["annotations"] = json!({"kube-router.io/x": text});
        read_service(&value).0.settings.flag("x").map_err(str::to_owned)
    };
    for text in ["1", "t", "T", "true", "TRUE", "True", " true"] {
        assert_eq!(flag(text), Ok(Some(true)));
    }
    for text in ["0", "f", "F", "false", "FALSE", "False"] {
        assert_eq!(flag(text), Ok(Some(false)));
    }
    for text in ["", "yes", "tRUE", "truee"] {
        assert_eq!(flag(text), Err(text.to_owned()));
    }
}

#[test]
fn uids_are_read_as_they_are_written() {
    for text in ["9f0c3a52-6a3e-4f5d-8a43-2f6a5a0d1c11", "00000000-0000-0000-0000-000000000001"] {
        assert_eq!(Uid::parse(text).unwrap().to_string(), text);
    }
    for text in [
        "",
        "9f0c3a526a3e4f5d8a432f6a5a0d1c11",
        "9F0C3A52-6a3e-4f5d-8a43-2f6a5a0d1c11",
        "+f0c3a52-6a3e-4f5d-8a43-2f6a5a0d1c11",
        "s-1",
    ] {
        assert_eq!(Uid::parse(text), None, "{text}");
    }
}

#[test]
fn plain_services_share_their_settings() {
    let mut interner = Interner::new();
    let mut settings = |address: &str| {
        let value = with_spec(json!({"clusterIP": address, "ports": [{"port": 80}]}));
        match object_with(ServiceDetail::Full, &value, &mut interner) {
            Ok(Some(Decoded { object: Object::FullService(service), .. })) => service.settings.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert!(Arc::ptr_eq(&settings("10.96.0.1"), &settings("10.96.0.2")));
}

#[test]
fn slice_is_projected() {
    let port = |name: &str, protocol, port| EndpointPort { name: name.into(), protocol, port };
    let plain = |address: &str| Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    };
    let hints = Hints { zones: ["z1".into(), "z2".into()].into(), nodes: ["n1".into()].into() };
    let expected = EndpointSlice {
        key: ObjectKey { namespace: "shop".into(), name: "web-abc".into() },
        service: Some("web".into()),
        address_type: AddressType::Ip(Family::V4),
        ports: [port("http", Protocol::Tcp, Some(8080)), port("", Protocol::Udp, None)].into(),
        endpoints: [
            Endpoint {
                ready: false,
                terminating: true,
                node: Some("n1".into()),
                hints: Some(hints.into()),
                ..plain("10.1.0.1")
            },
            plain("10.1.0.2"),
            Endpoint { ready: false, node: Some("n1".into()), ..plain("10.1.0.3") },
        ]
        .into(),
    };
    assert_eq!(read_slice(&slice()), (expected, vec![]));
}

#[test]
fn absent_conditions_are_ready_serving_and_not_terminating() {
    for conditions in [json!(null), json!({}), json!({"ready": null, "serving": null, "terminating": null})] {
        let mut value = slice();
        value["endpoints"] = json!([{"addresses": ["10.1.0.1"], "conditions": conditions}]);
        let endpoint = read_slice(&value).0.endpoints.iter().next().unwrap();
        assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating), (true, true, false));
    }
}

#[test]
fn slice_may_be_empty_or_made_for_nobody() {
    let mut value = slice();
    for nothing in [json!(null), json!([])] {
        value["endpoints"] = nothing.clone();
        value["ports"] = nothing;
        value["metadata"]["labels"] = json!({"kubernetes.io/service-name": ""});
        let (slice, notes) = read_slice(&value);
        assert_eq!((slice.endpoints.len(), slice.ports.len(), slice.service, notes.len()), (0, 0, None, 0));
    }
}

#[test]
fn names_are_no_endpoints() {
    let mut value = slice();
    value["addressType"] = "FQDN".into();
    value["endpoints"] = json!([{"addresses": ["db.example"]}]);
    let (slice, notes) = read_slice(&value);
    assert_eq!((slice.address_type, slice.endpoints.len(), notes.len()), (AddressType::Fqdn, 0, 0));
}

#[test]
fn slice_of_an_unknown_address_type_is_excluded() {
    for (bad, why) in
        [(json!("ipv4"), "\"ipv4\" is none of IPv4, IPv6 and FQDN"), (json!(null), "is missing")]
    {
        let mut value = slice();
        value["addressType"] = bad;
        assert_eq!(excluded(&value), format!("EndpointSlice shop/web-abc: addressType: {why}"));
    }
}

#[test]
fn endpoints_that_cannot_be_read_cost_themselves() {
    for (bad, why) in [
        (json!("10.1.0.1"), ": expected an object, got the string \"10.1.0.1\""),
        (json!({}), ".addresses: there is none"),
        (json!({"addresses": ["fd00::1"]}), ".addresses[0]: fd00::1 is not an IPv4 address"),
        (json!({"addresses": ["127.0.0.1"]}), ".addresses[0]: 127.0.0.1 is a loopback address"),
        (json!({"addresses": ["169.254.169.254"]}), ".addresses[0]: 169.254.169.254 is a link-local address"),
        (json!({"addresses": ["010.0.0.1"]}), ".addresses[0]: \"010.0.0.1\" is not an address"),
        (
            json!({"addresses": ["10.1.0.1"], "conditions": {"ready": "yes"}}),
            ".conditions.ready: expected true or false, got the string \"yes\"",
        ),
    ] {
        let mut value = slice();
        value["endpoints"][0] = bad;
        let (slice, notes) = read_slice(&value);
        assert_eq!(notes, [format!("endpoints[0]{why}")]);
        assert_eq!(slice.endpoints.len(), 2);
    }
}

#[test]
fn node_and_hints_that_cannot_be_read_cost_only_themselves() {
    let mut value = slice();
    value["endpoints"][0]["nodeName"] = 7.into();
    value["endpoints"][0]["hints"]["forZones"][1] = "z2".into();
    let (slice, notes) = read_slice(&value);
    assert_eq!(
        notes,
        [
            "endpoints[0].nodeName: expected a string, got the number 7 (put it in quotes)",
            "endpoints[0].hints.forZones[1]: expected an object, got the string \"z2\"",
        ]
    );
    let endpoint = slice.endpoints.iter().next().unwrap();
    assert_eq!((slice.endpoints.len(), endpoint.node, endpoint.hints), (3, None, None));
}

#[test]
fn equal_ports_and_hints_of_two_slices_are_one() {
    let mut interner = Interner::new();
    let mut read = || match object(&slice(), &mut interner) {
        Ok(Some(Decoded { object: Object::EndpointSlice(slice), .. })) => slice,
        other => panic!("{other:?}"),
    };
    let (one, other) = (read(), read());
    assert!(Arc::ptr_eq(&one.ports, &other.ports));
    let hints = |slice: &EndpointSlice| slice.endpoints.iter().next().unwrap().hints.unwrap();
    assert!(Arc::ptr_eq(&hints(&one), &hints(&other)));
}

#[test]
fn node_is_projected() {
    let address = |kind, ip: &str| NodeAddress { kind, ip: ip.parse().unwrap() };
    let expected = Node {
        name: "n1".into(),
        zone: Some("z1".into()),
        excluded_from_load_balancers: true,
        leaving: true,
        addresses: vec![
            address(NodeAddressKind::Internal, "192.168.0.1"),
            address(NodeAddressKind::External, "198.51.100.1"),
            address(NodeAddressKind::Internal, "fd01::1"),
        ],
        pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"].iter().map(|text| text.parse().unwrap()).collect(),
        pod_cidrs_in_part: false,
        network_unavailable: Some(true),
        annotations: Arc::new(BTreeMap::from([("kube-router.io/node.asn".into(), "64512".into())])),
    };
    assert_eq!(read_node(&node()), (expected, vec![]));
}

#[test]
fn node_needs_only_a_name() {
    let bare = |spec: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "namespace": "x"}, "spec": spec});
    let (node, notes) = read_node(&bare(json!(null)));
    assert_eq!((&*node.name, node.zone, notes.len()), ("n1", None, 0));
    let (node, _) = read_node(&bare(json!({"podCIDR": "10.1.0.7/24"})));
    assert_eq!(node.pod_cidrs.to_vec(), ["10.1.0.0/24".parse().unwrap()]);
    assert_eq!(key_of(Kind::Node, &bare(json!(null)), &mut Interner::new()).to_string(), "n1");
}

#[test]
fn a_network_is_available_only_where_a_condition_says_so() {
    let unavailable = |conditions: Value| {
        let mut value = node();
        value["status"]["conditions"] = conditions;
        read_node(&value).0.network_unavailable
    };
    let condition = |status: Value| json!([{"type": "NetworkUnavailable", "status": status}]);
    assert_eq!(unavailable(condition(json!("True"))), Some(true));
    assert_eq!(unavailable(condition(json!("False"))), Some(false));
    assert_eq!(unavailable(condition(json!(null))), Some(true));
    assert_eq!(unavailable(json!([{"type": "Ready", "status": "True"}, 7])), None);
    assert_eq!(unavailable(json!("True")), None);
}

#[test]
fn mistakes_in_a_node_cost_only_themselves() {
    let mut value = node();
    value["spec"]["podCIDRs"][0] = "10.1.0.0".into();
    value["status"]["addresses"][0]["address"] = "n1".into();
    let (node, notes) = read_node(&value);
    assert_eq!((node.addresses.len(), node.pod_cidrs.len()), (2, 1));
    assert!(node.pod_cidrs_in_part);
    assert_eq!(
        notes,
        [
            "status.addresses[0].address: \"n1\" is not an address",
            "spec.podCIDRs[0]: \"10.1.0.0\" is not a network, such as 10.0.0.0/8",
        ]
    );
}

#[test]
fn what_the_firewall_keeps_of_a_service_does_not_grow_with_what_a_proxy_reads() {
    let addresses = |value: &Value| match object(value, &mut Interner::new()) {
        Ok(Some(Decoded { object: Object::Service(service), .. })) => service,
        other => panic!("{other:?}"),
    };
    let mut value = full_service();
    let before = addresses(&value);
    value["metadata"]["annotations"] = json!({"kube-router.io/service.local": "true"});
    value["metadata"]["uid"] = "other".into();
    for field in
        ["sessionAffinity", "externalTrafficPolicy", "loadBalancerSourceRanges", "trafficDistribution"]
    {
        value["spec"][field] = Value::Null;
    }
    assert_eq!(before, addresses(&value));
    // Key, addresses, ports, a port number.
    assert!(size_of::<crate::object::Service>() <= 112);
}

proptest! {
    #[test]
    fn any_json_in_place_of_an_endpoint_leaves_the_others(index in 0usize..3, bad in any_json()) {
        let whole = read_slice(&slice()).0.endpoints;
        let mut value = slice();
        value["endpoints"][index] = bad;
        let mut left: Vec<_> = read_slice(&value).0.endpoints.iter().collect();
        if left.len() == 3 {
            left.remove(index);
        }
        let mut expected: Vec<_> = whole.iter().collect();
        expected.remove(index);
        prop_assert_eq!(left, expected);
    }

    #[test]
    fn any_json_in_place_of_a_field_leaves_the_other_fields(
        field in prop::sample::select(vec!["externalIPs", "ports", "loadBalancerSourceRanges", "healthCheckNodePort",
            "sessionAffinity", "externalTrafficPolicy", "internalTrafficPolicy", "loadBalancerIP", "loadBalancerClass",
            "trafficDistribution", "publishNotReadyAddresses", "allocateLoadBalancerNodePorts"]),
        bad in any_json(),
    ) {
        let expected = read_service(&full_service()).0;
        let mut value = full_service();
        value["spec"][field] = bad;
        let mut service = read_service(&value).0;
        let mut settings = (*service.settings).clone();
        match field {
            "externalIPs" => settings.external_ips = expected.settings.external_ips.clone(),
            "ports" => service.ports = expected.ports.clone(),
            "loadBalancerSourceRanges" => settings.source_ranges = expected.settings.source_ranges.clone(),
            "healthCheckNodePort" => service.health_check_node_port = expected.health_check_node_port,
            "sessionAffinity" => settings.affinity_seconds = expected.settings.affinity_seconds,
            "externalTrafficPolicy" => settings.external_policy = expected.settings.external_policy,
            "internalTrafficPolicy" => settings.internal_policy = expected.settings.internal_policy,
            "loadBalancerIP" => settings.wanted_ip = expected.settings.wanted_ip,
            "loadBalancerClass" => settings.class = expected.settings.class.clone(),
            "trafficDistribution" => settings.distribution = expected.settings.distribution.clone(),
            "publishNotReadyAddresses" => settings.publish_not_ready = expected.settings.publish_not_ready,
            _ => settings.allocate_node_ports = expected.settings.allocate_node_ports,
        }
        service.settings = settings.into();
        prop_assert_eq!(service, expected);
    }
}
