//! Small nasty clusters and histories of changes, for proptest.
//!
//! Few names, addresses and ports, so that everything meets everything: Services share addresses and want the
//! same ones, pods serve several of them, names collide when joined with dashes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use common_informer::decode::{self, ServiceDetail};
use common_informer::intern::Interner;
use common_informer::object::{Change, Family, Kind, Object, ObjectRef, Protocol};
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use serde_json::{Map, Value, json};

use super::node::{Connection, Place};

/// Names of Services, that of another's namespace and name joined among them.
const SERVICES: [(&str, &str); 4] = [("a", "b-c"), ("a-b", "c"), ("s", "one"), ("s", "two")];
const EXTERNAL: [&str; 6] =
    ["203.0.113.10", "203.0.113.11", "2001:db8:e::10", "8.8.8.8", "10.96.0.2", "192.168.50.1"];
const BALANCER: [&str; 3] = ["198.51.100.7", "198.51.100.8", "203.0.113.10"];
/// Name, protocol and number of ports of Services.
const PORTS: [(&str, &str, u16); 5] = [
    ("http", "TCP", 80),
    ("dns", "UDP", 80),
    ("sig", "SCTP", 80),
    ("tls", "TCP", 443),
    ("odd", "TCP", 30080),
];
/// Addresses of endpoints, with the node that they are on.
const ENDPOINTS: [(&str, Option<&str>); 12] = [
    ("10.244.1.11", Some("n1")),
    ("10.244.1.12", Some("n1")),
    ("10.200.0.1", Some("n1")), // a pod of this node outside of its ranges
    ("192.168.50.1", Some("n1")),
    ("10.244.2.21", Some("n2")),
    ("192.168.50.2", Some("n2")),
    ("172.20.0.5", None),
    ("fd00:244:1::11", Some("n1")),
    ("fd00:244:1::12", Some("n1")),
    ("fd50::1", Some("n1")),
    ("fd00:244:2::21", Some("n2")),
    ("fd00:20::5", None),
];
const CLIENTS: [(Place, &str); 13] = [
    (Place::Pod, "10.244.1.11"),
    (Place::Pod, "10.244.1.12"),
    (Place::Pod, "10.244.1.99"),
    (Place::Node, "192.168.50.1"),
    (Place::Elsewhere, "192.0.2.5"),
    (Place::Elsewhere, "192.0.2.200"),
    (Place::Elsewhere, "10.244.2.21"),
    (Place::Elsewhere, "192.168.50.2"),
    (Place::Pod, "fd00:244:1::11"),
    (Place::Pod, "fd00:244:1::99"),
    (Place::Node, "fd50::1"),
    (Place::Elsewhere, "2001:db8:c::5"),
    (Place::Elsewhere, "fd00:244:2::21"),
];
const RANGES: [&str; 6] =
    ["192.0.2.0/25", "192.0.2.0/24", "10.244.1.0/24", "2001:db8:c::/48", "0.0.0.0/0", "everybody"];

/// Flags that change what is wanted.
pub fn flags() -> impl Strategy<Value = Vec<String>> {
    let either = |one: &'static str, other: &'static str| prop_oneof![2 => Just(None), 1 => select(vec![one, other]).prop_map(Some)];
    let parts = (
        either("--masquerade-all=true", "--masquerade-all=false"),
        either("--ipvs-permit-all=false", "--ipvs-permit-all=true"),
        either("--nodeport-bindon-all-ip", "--nodeport-addresses=172.16.0.0/12,fd50::/64"),
        either("--strict-external-ip-validation=false", "--strict-external-ip-validation=true"),
        either("--excluded-cidrs=203.0.113.11", "--excluded-cidrs=10.96.0.3"),
        either("--enable-ipv6=false", "--enable-ipv6=true"),
    );
    parts.prop_map(|(a, b, c, d, e, f)| {
        let mut flags: Vec<String> = [a, b, c, d, e, f].into_iter().flatten().map(str::to_owned).collect();
        if f == Some("--enable-ipv6=false") {
            flags.push("--service-cluster-ip-range=10.96.0.0/12".into());
            flags.push("--service-external-ip-range=203.0.113.0/24,192.168.50.1".into());
        } else {
            flags.push("--service-external-ip-range=203.0.113.0/24,192.168.50.1,2001:db8:e::/64".into());
        }
        flags.push("--loadbalancer-ip-range=198.51.100.0/24,203.0.113.10".into());
        flags
    })
}

fn of_service(index: usize) -> (&'static str, &'static str) {
    SERVICES[index]
}

fn some(of: usize, then: Value) -> impl Strategy<Value = Option<Value>> {
    let of = u32::try_from(of).unwrap();
    prop_oneof![of => Just(None), 1 => Just(Some(then))]
}

fn service() -> impl Strategy<Value = Value> {
    let identity = (0..SERVICES.len(), select(vec!["2024-01-01T00:00:00Z", "2024-05-01T00:00:00Z"]));
    // Mostly its own cluster IP; now and then one that another has, as it can seem while both change.
    let place = (prop_oneof![9 => Just(None), 1 => (0..SERVICES.len()).prop_map(Some)], 0..4usize);
    let ports = (subsequence(PORTS.to_vec(), 1..=3), prop_oneof![4 => Just(false), 1 => Just(true)]);
    let kind = select(vec!["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
    let addresses = (
        prop_oneof![1 => Just(vec![]), 1 => subsequence(EXTERNAL.to_vec(), 1..=3)],
        subsequence(BALANCER.to_vec(), 0..=2),
    );
    let policies = (
        some(2, json!("Local")),
        some(3, json!("Local")),
        prop_oneof![
            6 => Just(None),
            2 => subsequence(RANGES.to_vec(), 1..=2).prop_map(Some),
            1 => Just(Some(vec!["everybody"])),
        ],
        some(4, json!("ClientIP")),
    );
    let oddities = (
        some(12, json!({"service.kubernetes.io/headless": ""})),
        some(12, json!({"service.kubernetes.io/service-proxy-name": "other"})),
        prop_oneof![
            5 => Just(None),
            1 => select(vec![
                ("service.local", "true"),
                ("service.local", "false"),
                ("service.skiplbips", "true"),
                ("service.skiplbips", "nonsense"),
                ("service.scheduler", "sh"),
            ])
            .prop_map(Some)
        ],
        some(15, json!("None")),
    );
    (identity, place, ports, kind, addresses, policies, oddities).prop_map(
        |((index, created), (shared, families), (ports, fixed), kind, addresses, policies, oddities)| {
            let (namespace, name) = of_service(index);
            let number = shared.unwrap_or(index) + 1;
            let (four, six) = (format!("10.96.0.{number}"), format!("fd00:96::{number}"));
            let (ips, families) = match families {
                0 => (vec![four.clone()], vec!["IPv4"]),
                1 => (vec![six.clone()], vec!["IPv6"]),
                2 => (vec![four.clone(), six.clone()], vec!["IPv4", "IPv6"]),
                _ => (vec![six.clone(), four.clone()], vec!["IPv6", "IPv4"]),
            };
            let (external, balancer) = addresses;
            let (etp, itp, ranges, affinity) = policies;
            let (headless_label, other_proxy, annotation, headless) = oddities;
            let port = |(place, (name, protocol, port)): (usize, &(&str, &str, u16))| {
                let mut value = json!({"name": name, "protocol": protocol, "port": port});
                if kind != "ClusterIP" {
                    value["nodePort"] = json!(if fixed { 30080 + place } else { 30100 + index * 10 + place });
                }
                value
            };
            let mut labels = Map::new();
            for label in [headless_label, other_proxy].into_iter().flatten() {
                labels.extend(label.as_object().unwrap().clone());
            }
            let mut value = json!({
                "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created, "labels": labels},
                "spec": {
                    "type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families,
                    "ports": ports.iter().enumerate().map(port).collect::<Vec<_>>(),
                    "externalIPs": external,
                },
            });
            if let Some((name, word)) = annotation {
                value["metadata"]["annotations"] = json!({(format!("kube-router.io/{name}")): word});
            }
            let spec = &mut value["spec"];
            if headless.is_some() && kind == "ClusterIP" {
                spec["clusterIP"] = json!("None");
                spec["clusterIPs"] = json!(["None"]);
            }
            if kind != "ClusterIP" && let Some(policy) = etp {
                spec["externalTrafficPolicy"] = policy;
            }
            if let Some(policy) = itp {
                spec["internalTrafficPolicy"] = policy;
            }
            if let Some(ranges) = ranges {
                spec["loadBalancerSourceRanges"] = json!(ranges);
            }
            if let Some(affinity) = affinity {
                spec["sessionAffinity"] = affinity;
            }
            if kind == "LoadBalancer" {
                let ingress = balancer.iter().map(|ip| {
                    let mode = if ip.ends_with(".8") { "Proxy" } else { "VIP" };
                    json!({"ip": ip, "ipMode": mode})
                });
                value["status"] = json!({"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}});
            }
            value
        },
    )
}

fn condition() -> impl Strategy<Value = Value> {
    let states = [
        json!({}),
        json!({"ready": true}),
        json!({"ready": true, "serving": true, "terminating": false}),
        json!({"ready": false}),
        json!({"ready": false, "serving": true, "terminating": true}),
        json!({"ready": false, "serving": false, "terminating": true}),
        json!({"ready": true, "serving": false, "terminating": true}), // publishNotReadyAddresses
    ];
    select(states.to_vec())
}

fn endpoint((ip, node): (&'static str, Option<&'static str>)) -> impl Strategy<Value = Value> {
    condition().prop_map(move |conditions| {
        let mut endpoint = json!({"addresses": [ip], "conditions": conditions});
        if let Some(node) = node {
            endpoint["nodeName"] = json!(node);
        }
        endpoint
    })
}

/// Hints as the controller writes them: for all endpoints of a Service, or for none. So the copies of an endpoint
/// that is in several slices agree. Who is on no node has none.
fn hints(service: usize, endpoint: &Value) -> Option<Value> {
    let node = endpoint["nodeName"].as_str()?;
    let zones = json!([{"name": if node == "n1" { "a" } else { "b" }}]);
    let pod_out_of_ranges = endpoint["addresses"][0] == "10.200.0.1";
    match service {
        0 => None,
        1 => Some(json!({"forZones": zones})),
        _ if pod_out_of_ranges => Some(json!({"forZones": zones})),
        _ => Some(json!({"forZones": zones, "forNodes": [{"name": node}]})),
    }
}

fn slice() -> impl Strategy<Value = Value> {
    let port = |(name, protocol, _): (&'static str, &'static str, u16)| {
        // Sometimes without a number, sometimes of another protocol than the Service has.
        let number = prop_oneof![1 => Just(None), 6 => select(vec![8080u16, 8081]).prop_map(Some)];
        let protocol = prop_oneof![12 => Just(protocol), 1 => Just("TCP")];
        (number, protocol).prop_map(move |(number, protocol)| match number {
            Some(number) => json!({"name": name, "protocol": protocol, "port": number}),
            None => json!({"name": name, "protocol": protocol}),
        })
    };
    let ports = subsequence(PORTS.to_vec(), 2..=5)
        .prop_flat_map(move |ports| ports.into_iter().map(port).collect::<Vec<_>>());
    let is_six = any::<bool>();
    is_six
        .prop_flat_map(move |is_six| {
            let pool: Vec<_> = ENDPOINTS.into_iter().filter(|(ip, _)| ip.contains(':') == is_six).collect();
            let count = pool.len();
            let endpoints = subsequence(pool, 0..=count.min(4))
                .prop_flat_map(|chosen| chosen.into_iter().map(endpoint).collect::<Vec<_>>());
            (Just(is_six), 0..SERVICES.len(), 0..2usize, ports.clone(), endpoints)
        })
        .prop_map(|(is_six, index, copy, ports, mut endpoints)| {
            let (namespace, name) = of_service(index);
            let family = if is_six { "IPv6" } else { "IPv4" };
            for endpoint in &mut endpoints {
                if let Some(hints) = hints(index, endpoint) {
                    endpoint["hints"] = hints;
                }
            }
            json!({
                "metadata": {
                    "namespace": namespace, "name": format!("{name}-{family}-{copy}").to_lowercase(),
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family, "ports": ports, "endpoints": endpoints,
            })
        })
}

fn node() -> impl Strategy<Value = Value> {
    (any::<bool>(), any::<bool>()).prop_map(|(zoned, ranges)| {
        let labels = if zoned { json!({"topology.kubernetes.io/zone": "a"}) } else { json!({}) };
        let cidrs = if ranges {
            json!(["10.244.1.0/24", "fd00:244:1::/64"])
        } else {
            json!(["10.244.1.0/25", "fd00:244:1::/64"])
        };
        json!({
            "metadata": {"name": "n1", "labels": labels},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.50.1"},
                {"type": "InternalIP", "address": "fd50::1"},
                {"type": "ExternalIP", "address": "172.16.9.1"},
            ]},
        })
    })
}

fn read(kind: Kind, value: &Value) -> Object {
    let decoded = decode::object_of_with(ServiceDetail::Full, kind, value, &mut Interner::new());
    decoded.unwrap_or_else(|error| panic!("{error:?}: {value}")).object
}

/// Some object.
pub fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        6 => service().prop_map(|value| read(Kind::Service, &value)),
        6 => slice().prop_map(|value| read(Kind::EndpointSlice, &value)),
        1 => node().prop_map(|value| read(Kind::Node, &value)),
    ]
}

/// A cluster: its node, and up to four Services with slices.
pub fn cluster() -> impl Strategy<Value = Vec<Object>> {
    let services = prop::collection::vec(service(), 1..6);
    let slices = prop::collection::vec(slice(), 1..10);
    (node(), services, slices).prop_map(|(node, services, slices)| {
        let services = services.iter().map(|value| read(Kind::Service, value));
        let slices = slices.iter().map(|value| read(Kind::EndpointSlice, value));
        [read(Kind::Node, &node)].into_iter().chain(services).chain(slices).collect()
    })
}

/// A change: an object that is new or another than before, or one that goes.
#[derive(Clone, Debug)]
pub enum Edit {
    Apply(Object),
    Delete(Index),
    Unreadable(Index),
}

impl Edit {
    /// The change, with the objects that there are before it.
    pub fn change(&self, objects: &super::oracle::Objects) -> Option<Change> {
        let there: Vec<ObjectRef> =
            objects.keys().filter(|object| object.kind != Kind::Node).cloned().collect();
        match self {
            Self::Apply(object) => Some(Change::Applied(object.clone())),
            Self::Delete(_) | Self::Unreadable(_) if there.is_empty() => None,
            Self::Delete(which) => Some(Change::Deleted(which.get(&there).clone())),
            Self::Unreadable(which) => {
                Some(Change::Excluded { object: which.get(&there).clone(), reason: "bad".into() })
            }
        }
    }
}

/// Batches of changes.
pub fn history() -> impl Strategy<Value = Vec<Vec<Edit>>> {
    let edit = prop_oneof![
        8 => object().prop_map(Edit::Apply),
        3 => any::<Index>().prop_map(Edit::Delete),
        1 => any::<Index>().prop_map(Edit::Unreadable),
    ];
    prop::collection::vec(prop::collection::vec(edit, 1..4), 1..10)
}

/// Connections worth trying: every client to every address that means something, on ports that do and do not.
pub fn connections(objects: &super::oracle::Objects) -> Vec<Connection> {
    let mut ports = BTreeSet::from([22, 80, 443, 30080, 30081]);
    let mut addresses: BTreeSet<IpAddr> =
        ["10.96.7.7", "10.96.0.1", "192.168.50.1", "172.16.9.1", "10.244.1.12"]
            .iter()
            .chain(&[
                "10.244.2.21",
                "fd00:96::77",
                "fd50::1",
                "fd00:244:1::11",
                "203.0.113.77",
                "203.0.113.11",
            ])
            .map(|ip| ip.parse().unwrap())
            .collect();
    for object in objects.values() {
        let Object::FullService(service) = object else { continue };
        let settings = &service.settings;
        addresses.extend(&service.cluster_ips);
        addresses.extend(&settings.external_ips);
        addresses.extend(settings.load_balancer_ips.iter().map(|address| address.ip));
        ports.extend(service.ports.iter().filter_map(|port| port.node_port));
    }
    let mut connections = Vec::new();
    for (place, source) in CLIENTS {
        let source: IpAddr = source.parse().unwrap();
        for &destination in addresses.iter().filter(|ip| Family::of(**ip) == Family::of(source)) {
            for &port in &ports {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    connections.push(Connection { place, source, destination, protocol, port });
                }
            }
        }
    }
    connections
}
