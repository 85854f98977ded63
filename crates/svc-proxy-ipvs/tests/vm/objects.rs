//! The objects of a lab: Nodes, Services, and their EndpointSlices as the controllers of Kubernetes write them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use test_netns::{Cluster, Family};

/// Objects by name, all in the namespace `x`.
pub(crate) struct Objects {
    nodes: Vec<Value>,
    pub(crate) services: BTreeMap<String, Service>,
}

/// A Service with its endpoints.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) spec: Value,
    /// Addresses that a load balancer has given.
    pub(crate) ingress: Vec<String>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Ports of the slices.
    pub(crate) ports: Value,
    /// Whole slices beside those of `endpoints`, without `metadata`.
    pub(crate) slices: Vec<Value>,
}

/// Addresses of a pod in the slices of a Service.
#[derive(Clone)]
pub(crate) struct Endpoint {
    addresses: Vec<IpAddr>,
    node: String,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Endpoint {
    /// A ready endpoint: a pod, or a node (a pod with `hostNetwork`).
    pub(crate) fn of(cluster: &Cluster, name: &str) -> Self {
        let host = cluster.host(name).expect("a pod or node");
        let node = host.node.clone().unwrap_or_else(|| name.to_owned());
        Self { addresses: host.addresses.clone(), node, ready: true, serving: true, terminating: false }
    }

    /// It is being deleted, and still serves or not.
    pub(crate) fn terminating(self, serving: bool) -> Self {
        Self { ready: false, serving, terminating: true, ..self }
    }

    /// It does not serve yet.
    pub(crate) fn unready(self) -> Self {
        Self { ready: false, serving: false, ..self }
    }

    fn value(&self, family: Family) -> Option<Value> {
        let addresses: Vec<_> = self.addresses.iter().filter(|ip| Family::of(**ip) == family).collect();
        let conditions =
            json!({"ready": self.ready, "serving": self.serving, "terminating": self.terminating});
        (!addresses.is_empty())
            .then(|| json!({"addresses": [addresses[0]], "nodeName": self.node, "conditions": conditions}))
    }
}

impl Service {
    /// A Service of these fields beside the usual ones: ports 80 of TCP, UDP and SCTP, which are 8080 of the pods.
    pub(crate) fn new(spec: Value) -> Self {
        let mut whole = json!({
            "type": "ClusterIP",
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080},
                {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": 8080},
                {"name": "sctp", "protocol": "SCTP", "port": 80, "targetPort": 8080},
            ],
        });
        merge(&mut whole, spec);
        let ports = json!([
            {"name": "tcp", "protocol": "TCP", "port": 8080},
            {"name": "udp", "protocol": "UDP", "port": 8080},
            {"name": "sctp", "protocol": "SCTP", "port": 8080},
        ]);
        Self {
            annotations: BTreeMap::new(),
            spec: whole,
            ingress: Vec::new(),
            endpoints: Vec::new(),
            ports,
            slices: Vec::new(),
        }
    }

    /// The same with an annotation `kube-router.io/…`.
    pub(crate) fn annotated(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(format!("kube-router.io/{name}"), value.into());
        self
    }

    /// Gives every port this node port.
    pub(crate) fn set_node_port(&mut self, port: u16) -> &mut Self {
        for one in self.spec["ports"].as_array_mut().expect("ports") {
            one["nodePort"] = json!(port);
        }
        self
    }

    fn values(&self, name: &str) -> Vec<Value> {
        let ingress: Vec<_> = self.ingress.iter().map(|ip| json!({"ip": ip})).collect();
        let mut values = vec![json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "x", "annotations": self.annotations},
            "spec": self.spec, "status": {"loadBalancer": {"ingress": ingress}},
        })];
        let mut slices = self.slices.clone();
        for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let endpoints: Vec<_> = self.endpoints.iter().filter_map(|one| one.value(family)).collect();
            if !endpoints.is_empty() {
                slices.push(json!({"addressType": kind, "ports": self.ports, "endpoints": endpoints}));
            }
        }
        for (number, mut slice) in slices.into_iter().enumerate() {
            let metadata = json!({
                "name": format!("{name}-{number}"), "namespace": "x",
                "labels": {"kubernetes.io/service-name": name},
            });
            merge(
                &mut slice,
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata}),
            );
            values.push(slice);
        }
        values
    }
}

impl Objects {
    /// The nodes of a cluster, and no Services.
    pub(crate) fn of(cluster: &Cluster, pod_cidrs: impl Fn(&str) -> Vec<String>) -> Self {
        let node = |name: &str| {
            let addresses: Vec<_> = cluster
                .host(name)
                .expect("a node")
                .addresses
                .iter()
                .map(|ip| json!({"type": "InternalIP", "address": ip}))
                .collect();
            let cidrs = pod_cidrs(name);
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}, "status": {"addresses": addresses},
            })
        };
        Self { nodes: cluster.nodes().map(node).collect(), services: BTreeMap::new() }
    }

    /// All of them as one document.
    pub(crate) fn text(&self, more: Vec<Value>) -> String {
        let services = self.services.iter().flat_map(|(name, service)| service.values(name));
        let items: Vec<_> = self.nodes.iter().cloned().chain(services).chain(more).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }
}

/// Puts the fields of an object over those of another.
fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else { panic!("two objects") };
    into.extend(from);
}
