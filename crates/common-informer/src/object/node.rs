//! core/v1 Node.

use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{Labels, Str};

/// core/v1 Node: where it is, and which addresses are its own and its pods'.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `metadata.name`
    pub name: Str,
    /// The label `topology.kubernetes.io/zone`, unless it is empty.
    pub zone: Option<Str>,
    /// It has the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub excluded_from_load_balancers: bool,
    /// It is being deleted, or has the taint `ToBeDeletedByClusterAutoscaler`. K8S: kube-proxy's `nodeEligible`.
    pub leaving: bool,
    /// `status.addresses` that are IP addresses, in order.
    pub addresses: Vec<NodeAddress>,
    /// `spec.podCIDRs` (or `podCIDR`), host bits cleared.
    pub pod_cidrs: SmallVec<[IpNet; 2]>,
    /// Something in `spec.podCIDRs` (or `podCIDR`) could not be read and is missing from [`Node::pod_cidrs`].
    pub pod_cidrs_in_part: bool,
    /// Whether the condition `NetworkUnavailable` is anything but `False`; `None` if there is no such condition.
    pub network_unavailable: Option<bool>,
    /// `metadata.annotations` whose name begins with `kube-router.io/`, interned as a whole.
    pub annotations: Labels,
}

/// core/v1 NodeAddress that is an IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    /// `type`
    pub kind: NodeAddressKind,
    /// `address`
    pub ip: IpAddr,
}

/// `type` of a node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeAddressKind {
    /// `InternalIP`
    Internal,
    /// `ExternalIP`
    External,
}
