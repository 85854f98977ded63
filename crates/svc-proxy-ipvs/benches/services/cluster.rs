//! A cluster of a given size: Services with five endpoints each, spread over 200 nodes of which `n0` is ours.

use std::net::Ipv4Addr;

use common_informer::decode::{self, ServiceDetail};
use common_informer::intern::Interner;
use common_informer::object::{Change, Kind};
use serde_json::{Value, json};

/// Our node.
pub(crate) const NODE: &str = "n0";
/// Its address.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// How many endpoints a Service has.
pub(crate) const ENDPOINTS: usize = 5;
/// Services in a namespace.
const NAMESPACE: usize = 100;
const NODES: usize = 200;
const CLUSTER_IPS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// The cluster IP of a Service; its port is 80.
pub(crate) fn cluster_ip(service: usize) -> Ipv4Addr {
    plus(CLUSTER_IPS, service + 1)
}

fn plus(base: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + number as u32)
}

/// An endpoint of a slice: which pod, and on which node it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod {
    pub(crate) ip: Ipv4Addr,
    pub(crate) node: usize,
}

/// The pods of a Service.
pub(crate) fn pods(service: usize) -> Vec<Pod> {
    let numbers = service * ENDPOINTS..(service + 1) * ENDPOINTS;
    numbers.map(|number| Pod { ip: plus(PODS, number + 1), node: number % NODES }).collect()
}

/// A pod that is none of those, on another node than ours.
pub(crate) fn other_pod(number: usize) -> Pod {
    Pod { ip: plus(PODS, 1_000_000 + number), node: 1 }
}

/// A Service as big as they come from an API server, with what nobody reads.
pub(crate) fn service(number: usize) -> Value {
    let name = format!("service-{number:05}");
    let ip = cluster_ip(number).to_string();
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": metadata(number, &name),
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}}})
}

/// The slice of a Service.
pub(crate) fn slice(number: usize, pods: &[Pod]) -> Value {
    let service = format!("service-{number:05}");
    let mut metadata = metadata(number, &format!("{service}-x7k2p"));
    metadata["labels"]["kubernetes.io/service-name"] = json!(service);
    let endpoints: Vec<_> = pods
        .iter()
        .map(|pod| {
            json!({"addresses": [pod.ip.to_string()], "nodeName": format!("n{}", pod.node), "zone": "a",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "name": format!("pod-{}", pod.ip), "namespace": "x"}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn metadata(number: usize, name: &str) -> Value {
    let managed: Vec<_> = (0..10).map(|n| json!({format!("f:field-{n}"): {"f:value": {}}})).collect();
    json!({"namespace": format!("ns-{}", number / NAMESPACE), "name": name,
        "uid": format!("{number:08x}-0000-4000-8000-000000000000"),
        "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app": format!("app-{}", number % 50)},
        "annotations": {"example.com/config": "x".repeat(100)},
        "managedFields": [{"manager": "controller", "operation": "Update", "fieldsV1": managed}]})
}

/// Our node.
pub(crate) fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "resourceVersion": "1"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS.to_string()}]}})
}

/// Everything, as the informer gives it.
pub(crate) fn changes(services: usize) -> Vec<Change> {
    let mut interner = Interner::new();
    let mut decode = |kind, value: Value| applied(kind, &value, &mut interner);
    let mut changes = vec![decode(Kind::Node, node())];
    changes.extend((0..services).map(|number| decode(Kind::Service, service(number))));
    changes.extend((0..services).map(|number| decode(Kind::EndpointSlice, slice(number, &pods(number)))));
    changes
}

/// The slice of a Service is now this one.
pub(crate) fn changed(service: usize, pods: &[Pod]) -> Vec<Change> {
    vec![applied(Kind::EndpointSlice, &slice(service, pods), &mut Interner::new())]
}

/// A Service and its slice come.
pub(crate) fn added(number: usize) -> Vec<Change> {
    let mut changes = vec![applied(Kind::Service, &service(number), &mut Interner::new())];
    changes.extend(changed(number, &pods(number)));
    changes
}

fn applied(kind: Kind, value: &Value, interner: &mut Interner) -> Change {
    let decoded = decode::object_of_with(ServiceDetail::Full, kind, value, interner);
    Change::Applied(decoded.expect("a valid object").object)
}
