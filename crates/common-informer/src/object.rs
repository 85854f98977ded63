//! The small types that Kubernetes objects are projected to at once when they arrive.
//!
//! Only fields that a controller reads are kept; strings are interned, so that 15,000 pods with the same
//! few label keys share them. `managedFields`, annotations that nobody reads and status are dropped before
//! an object reaches the cache.

mod by_key;
mod endpoint;
mod node;
mod service;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

pub use by_key::{ByKey, Keyed};
pub use endpoint::{AddressType, Endpoint, EndpointPort, EndpointSlice, Endpoints, Hints, Site};
pub use node::{Node, NodeAddress, NodeAddressKind};
pub use service::{
    FullService, FullServicePort, LoadBalancerIp, ServiceSettings, ServiceType, TrafficPolicy, Uid,
};

/// An interned string.
pub type Str = Arc<str>;

/// Labels of an object, interned as a whole: the pods of one ReplicaSet share one map.
pub type Labels = Arc<BTreeMap<Str, Str>>;

/// What the names of our annotations begin with: kube-router's own, so that its objects need no change.
pub const ANNOTATIONS: &str = "kube-router.io/";

/// Kinds that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Pod
    Pod,
    /// core/v1 Namespace
    Namespace,
    /// networking.k8s.io/v1 NetworkPolicy
    NetworkPolicy,
    /// core/v1 Service
    Service,
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice,
    /// core/v1 Node
    Node,
}

/// What names an object in its kind. `namespace` is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `metadata.namespace`, or empty.
    pub namespace: Str,
    /// `metadata.name`
    pub name: Str,
}

/// An object, by kind and key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: ObjectKey,
}

/// Transport protocol of a port (core/v1 `Protocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// Family of an IP address (core/v1 `IPFamily`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `IPv4`
    V4,
    /// `IPv6`
    V6,
}

/// A declared port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// `name`
    pub name: Str,
    /// `protocol`, TCP by default.
    pub protocol: Protocol,
    /// `containerPort`, 1–65535.
    pub port: u16,
}

/// core/v1 Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.labels`
    pub labels: Labels,
    /// `metadata.creationTimestamp`, seconds since 1970; 0 when absent.
    pub created: i64,
    /// `status.podIPs` (or `status.podIP`), at most one for each family, the first that parses.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// `spec.nodeName`
    pub node: Option<Str>,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its addresses may be given to another pod.
    pub finished: bool,
    /// Named ports of containers and of sidecars (init containers with `restartPolicy: Always`), interned.
    pub ports: Arc<[NamedPort]>,
}

/// core/v1 Namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// `metadata.name`
    pub name: Str,
    /// `metadata.labels`; `kubernetes.io/metadata.name` is added if it is missing, as the API server does.
    pub labels: Labels,
    /// The annotation `net.beta.kubernetes.io/network-policy`, as it stands.
    pub network_policy_annotation: Option<Str>,
}

/// meta/v1 LabelSelector, not yet validated: an operator that does not exist must cost one rule of one
/// policy, not the object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    /// `matchLabels`
    pub match_labels: BTreeMap<Str, Str>,
    /// `matchExpressions`
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// meta/v1 LabelSelectorRequirement as it stands in the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelectorRequirement {
    /// `key`
    pub key: Str,
    /// `operator`: `In`, `NotIn`, `Exists`, `DoesNotExist`, or a mistake.
    pub operator: Str,
    /// `values`
    pub values: Vec<Str>,
}

/// networking.k8s.io/v1 NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.podSelector`
    pub pod_selector: LabelSelector,
    /// `spec.policyTypes` contains Ingress, or is absent.
    pub isolates_ingress: bool,
    /// `spec.policyTypes` contains Egress, or is absent and there are egress rules.
    pub isolates_egress: bool,
    /// `spec.ingress`
    pub ingress: Vec<RuleSpec>,
    /// `spec.egress`
    pub egress: Vec<RuleSpec>,
}

/// A rule of a policy, or why it could not be read. A rule that could not be read allows nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RuleSpec {
    /// It has the right shape; its values are not validated.
    Rule(PolicyRule),
    /// It has not: field path and reason, e.g. `ingress[0].ports: expected a list, got a string`.
    Malformed(String),
}

/// NetworkPolicyIngressRule or NetworkPolicyEgressRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyRule {
    /// `from` or `to`; empty means everybody.
    pub peers: Vec<PolicyPeer>,
    /// `ports`; empty means all ports of all protocols.
    pub ports: Vec<PolicyPort>,
}

/// NetworkPolicyPeer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyPeer {
    /// `podSelector`
    pub pod_selector: Option<LabelSelector>,
    /// `namespaceSelector`
    pub namespace_selector: Option<LabelSelector>,
    /// `ipBlock`
    pub ip_block: Option<IpBlock>,
}

/// networking.k8s.io/v1 IPBlock as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IpBlock {
    /// `cidr`
    pub cidr: String,
    /// `except`
    pub except: Vec<String>,
}

/// NetworkPolicyPort as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyPort {
    /// `protocol`, `TCP` by default; may be a word that is no protocol.
    pub protocol: Str,
    /// `port`
    pub port: Option<PortRef>,
    /// `endPort`
    pub end_port: Option<i64>,
}

/// IntOrString of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortRef {
    /// A number, any that the object has.
    Number(i64),
    /// A name.
    Name(Str),
}

/// core/v1 Service: what is needed to know which packets go to a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.clusterIPs` (or `clusterIP`) without `None`, `spec.externalIPs`, and those
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is not `Proxy`; none for `ExternalName`.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
    /// `spec.healthCheckNodePort`
    pub health_check_node_port: Option<u16>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// `protocol`
    pub protocol: Protocol,
    /// `port`
    pub port: u16,
    /// `nodePort`, if it has one.
    pub node_port: Option<u16>,
}

/// An object of one of the watched kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// A pod.
    Pod(Arc<Pod>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A network policy.
    NetworkPolicy(Arc<NetworkPolicy>),
    /// A service.
    Service(Arc<Service>),
    /// A service, where the informer was asked for all of it.
    FullService(Arc<FullService>),
    /// A part of the endpoints of a service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A node.
    Node(Arc<Node>),
}

/// One change of the cluster. Level, not edge: the same object may be applied again unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The object is now so.
    Applied(Object),
    /// The object is gone.
    Deleted(ObjectRef),
    /// The object is there but could not be read. Whatever was known of it no longer holds.
    Excluded {
        /// Which object.
        object: ObjectRef,
        /// Field and reason, for people.
        reason: String,
    },
}

/// Changes in the order of the source; of several of one object only the last is kept.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What changed.
    pub changes: Vec<Change>,
    /// Every watched kind has been listed completely at least once, and the changes up to then are in this
    /// batch or in earlier ones.
    pub synced: bool,
}

impl Object {
    /// Kind and key.
    pub fn object_ref(&self) -> ObjectRef {
        match self {
            Self::Pod(pod) => ObjectRef { kind: Kind::Pod, key: pod.key.clone() },
            Self::Namespace(namespace) => ObjectRef {
                kind: Kind::Namespace,
                key: ObjectKey { namespace: "".into(), name: namespace.name.clone() },
            },
            Self::NetworkPolicy(policy) => ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() },
            Self::Service(service) => ObjectRef { kind: Kind::Service, key: service.key.clone() },
            Self::FullService(service) => ObjectRef { kind: Kind::Service, key: service.key.clone() },
            Self::EndpointSlice(slice) => ObjectRef { kind: Kind::EndpointSlice, key: slice.key.clone() },
            Self::Node(node) => ObjectRef {
                kind: Kind::Node,
                key: ObjectKey { namespace: "".into(), name: node.name.clone() },
            },
        }
    }
}

impl Change {
    /// Kind and key of the object that changed.
    pub fn object_ref(&self) -> ObjectRef {
        match self {
            Self::Applied(object) => object.object_ref(),
            Self::Deleted(object) | Self::Excluded { object, .. } => object.clone(),
        }
    }
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Pod, Self::Namespace, Self::NetworkPolicy, Self::Service, Self::EndpointSlice, Self::Node];

    /// Whether its objects are in no namespace.
    pub fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }

    /// The kind that an object with this `apiVersion` and `kind` is of.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "Namespace") => Some(Self::Namespace),
            ("networking.k8s.io/v1", "NetworkPolicy") => Some(Self::NetworkPolicy),
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("v1", "Node") => Some(Self::Node),
            _ => None,
        }
    }
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Parses `TCP`, `UDP` or `SCTP`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        })
    }
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Parses `IPv4` or `IPv6`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// As displayed, so that it can be a key of a JSON object.
impl serde::Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// As displayed, so that it can be a key of a JSON object.
impl serde::Serialize for ObjectKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
