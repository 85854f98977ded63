//! A cluster of a given size: namespaces of 100 pods, policies that each select ten pods and allow a hundred.

use std::net::{IpAddr, Ipv4Addr};

use common_informer::decode;
use common_informer::intern::Interner;
use common_informer::object::{Kind, Object};
use serde_json::{Value, json};

/// How many pods share a namespace.
const NAMESPACE: usize = 100;

/// Objects by number.
pub(crate) struct Cluster {
    pods: usize,
    policies: usize,
    /// Every nth pod is on node `n1`.
    pub(crate) spread: usize,
}

impl Cluster {
    /// All pods on node `n1`.
    pub(crate) fn new(pods: usize, policies: usize) -> Self {
        Self { pods, policies, spread: 1 }
    }

    fn namespaces(&self) -> usize {
        self.pods.div_ceil(NAMESPACE).max(1)
    }

    /// Everything, as the informer gives it.
    pub(crate) fn objects(&self) -> Vec<Object> {
        let mut interner = Interner::new();
        [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy]
            .into_iter()
            .flat_map(|kind| (0..self.count(kind)).map(move |number| (kind, number)))
            .map(|(kind, number)| decoded(kind, &self.json(kind, number), &mut interner))
            .collect()
    }

    /// How many objects of a kind there are.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces(),
            Kind::Pod => self.pods,
            Kind::NetworkPolicy => self.policies,
            Kind::Service | Kind::EndpointSlice | Kind::Node => 0,
        }
    }

    /// One object, as the API server gives it.
    pub(crate) fn json(&self, kind: Kind, number: usize) -> Value {
        match kind {
            Kind::Namespace => self.namespace_json(number, false),
            Kind::Pod => self.pod_json(number),
            Kind::NetworkPolicy => self.policy_json(number, 8000),
            Kind::Service | Kind::EndpointSlice | Kind::Node => Value::Null,
        }
    }

    fn pod_json(&self, number: usize) -> Value {
        let node = if number.is_multiple_of(self.spread) { "n1" } else { "n2" };
        pod(number / NAMESPACE, number, node)
    }

    fn namespace_json(&self, number: usize, blue: bool) -> Value {
        let name = format!("ns-{number}");
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "resourceVersion": "1",
            "labels": {"kubernetes.io/metadata.name": name, "team": if blue { "blue" } else { "red" }}}})
    }

    fn policy_json(&self, number: usize, port: i64) -> Value {
        let namespace = number % self.namespaces();
        // With more policies than groups of pods, several select the same group.
        let group = (number / self.namespaces()) % (NAMESPACE / 10);
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": format!("ns-{namespace}"), "name": format!("policy-{number}"), "resourceVersion": "1"},
            "spec": {"podSelector": {"matchLabels": {"group": group.to_string()}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [{"podSelector": {}}], "ports": [{"port": 80, "protocol": "TCP"}, {"port": port, "protocol": "TCP"}]},
                    {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": format!("ns-{}", (namespace + 1) % self.namespaces())}}}],
                     "ports": [{"port": 443, "protocol": "TCP"}]},
                    {"from": [{"ipBlock": {"cidr": "192.168.0.0/16"}}, {"namespaceSelector": {"matchLabels": {"team": "blue"}}}],
                     "ports": [{"port": 9100 + number % 7, "protocol": "TCP"}]}]}})
    }

    /// A pod that is not in `objects`, in the first namespace.
    pub(crate) fn extra_pod(&self, number: usize, node: &str) -> Object {
        decoded(Kind::Pod, &pod(0, self.pods + number, node), &mut Interner::new())
    }

    /// A policy with one port changed.
    pub(crate) fn policy(&self, number: usize, port: i64) -> Object {
        decoded(Kind::NetworkPolicy, &self.policy_json(number, port), &mut Interner::new())
    }

    /// A namespace that is or is not one of those that all policies let in.
    pub(crate) fn namespace(&self, number: usize, blue: bool) -> Object {
        decoded(Kind::Namespace, &self.namespace_json(number, blue), &mut Interner::new())
    }
}

fn decoded(kind: Kind, value: &Value, interner: &mut Interner) -> Object {
    decode::object_of(kind, value, interner).expect("a valid object").object
}

/// A pod as big as they come from an API server, with what nobody reads.
pub(crate) fn pod(namespace: usize, number: usize, node: &str) -> Value {
    let address = IpAddr::V4(Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number as u32));
    let name = format!("app-{}-7d4b9c6f5d-{number:05}", number % 50);
    let managed: Vec<_> = (0..20).map(|n| json!({format!("f:field-{n}"): {"f:value": {}}})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": format!("ns-{namespace}"), "name": name, "uid": format!("{number:032x}"),
            "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": format!("app-{}", number % 50), "group": (number % 10).to_string(),
                "pod-template-hash": "7d4b9c6f5d"},
            "annotations": {"example.com/config": "x".repeat(300)},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": managed}]},
        "spec": {"nodeName": node, "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "registry.example.com/app:1.0",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": (0..10).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "value"})).collect::<Vec<_>>()}]},
        "status": {"phase": "Running", "hostIP": "192.168.0.1", "podIP": address.to_string(),
            "podIPs": [{"ip": address.to_string()}],
            "conditions": (0..4).map(|n| json!({"type": format!("Condition{n}"), "status": "True"})).collect::<Vec<_>>()}})
}
