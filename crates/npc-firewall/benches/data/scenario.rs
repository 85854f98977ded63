//! The node that every layout is made for: how many pods it has, which policies, who may talk to them.
//!
//! One policy isolates ten pods for ingress and allows a hundred peers on four ports. The peers are the same
//! hundred pods of another node for all policies, but each policy names them with a selector of its own, so
//! that each has a set of its own, as with kube-router, which never shares sets.

use std::net::Ipv4Addr;

use common_informer::decode;
use common_informer::intern::Interner;
use common_informer::object::{Kind, Object};
use serde_json::{Value, json};

/// Name of the node under test.
pub(crate) const NODE: &str = "n1";
/// How many pods share a policy.
pub(crate) const PODS_PER_POLICY: usize = 10;
/// How many peers a policy allows.
pub(crate) const PEERS: usize = 100;
/// What a policy opens, in this order.
pub(crate) const PORTS: [(&str, u16); 4] = [("TCP", 80), ("TCP", 443), ("UDP", UDP_PORT), ("TCP", TCP_PORT)];
/// The open TCP port that the load goes to.
pub(crate) const TCP_PORT: u16 = 8080;
/// The open UDP port that the load goes to.
pub(crate) const UDP_PORT: u16 = 5353;
/// A TCP port on which the pod listens and which no policy opens.
pub(crate) const CLOSED_PORT: u16 = 9999;

/// A node with this many pods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// Pods of the node.
    pub(crate) pods: usize,
}

impl Scenario {
    /// Address of a pod.
    pub(crate) fn pod(&self, index: usize) -> Ipv4Addr {
        // Each third octet holds 250 pods, so that no address ends in 0 or 255.
        let (high, low) = (index / 250, index % 250 + 1);
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + (high as u32) * 256 + low as u32)
    }

    /// The pod under test: the one in the middle.
    pub(crate) fn target(&self) -> Ipv4Addr {
        self.pod(self.pods / 2)
    }

    /// Address of a peer.
    pub(crate) fn peer(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, 0, index as u8 + 1)
    }

    /// The peer that the load comes from.
    pub(crate) fn client(&self) -> Ipv4Addr {
        self.peer(PEERS / 2)
    }

    /// How many policies there are.
    pub(crate) fn policies(&self) -> usize {
        self.pods.div_ceil(PODS_PER_POLICY)
    }

    /// The pods of a policy, by index.
    pub(crate) fn selected_by(&self, policy: usize) -> std::ops::Range<usize> {
        let first = policy * PODS_PER_POLICY;
        first..(first + PODS_PER_POLICY).min(self.pods)
    }

    /// All objects, as the informer gives them.
    ///
    /// # Errors
    /// When an object is not valid, which is a bug here.
    pub(crate) fn objects(&self) -> anyhow::Result<Vec<Object>> {
        let mut interner = Interner::new();
        let namespaces = ["apps", "clients"].map(|name| (Kind::Namespace, namespace(name)));
        let local = (0..self.pods).map(|index| {
            let app = format!("app-{}", index / PODS_PER_POLICY);
            (Kind::Pod, pod("apps", &format!("app-{index}"), &app, NODE, self.pod(index)))
        });
        let peers = (0..PEERS).map(|index| {
            (Kind::Pod, pod("clients", &format!("client-{index}"), "client", "n2", self.peer(index)))
        });
        let policies = (0..self.policies()).map(|index| (Kind::NetworkPolicy, policy(index)));
        namespaces
            .into_iter()
            .chain(local)
            .chain(peers)
            .chain(policies)
            .map(|(kind, value)| match decode::object_of(kind, &value, &mut interner) {
                Ok(decoded) => Ok(decoded.object),
                Err(excluded) => anyhow::bail!("{excluded:?}"),
            })
            .collect()
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
}

fn pod(namespace: &str, name: &str, app: &str, node: &str, address: Ipv4Addr) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}]}})
}

fn policy(index: usize) -> Value {
    let ports: Vec<_> =
        PORTS.iter().map(|(protocol, port)| json!({"protocol": protocol, "port": port})).collect();
    let own_selector = json!({"key": format!("not-for-{index}"), "operator": "DoesNotExist"});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "apps", "name": format!("policy-{index}")},
        "spec": {"podSelector": {"matchLabels": {"app": format!("app-{index}")}}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": ports, "from": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "clients"}},
                "podSelector": {"matchExpressions": [own_selector]}}]}]}})
}
