//! What a cluster should look like: plain data, checked and turned into links by [`crate::Cluster`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::outcome::{Family, Protocol};

/// How pods hang on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// One veth pair per pod and a host route to it, as Calico or the VPC CNIs do: every packet is routed by
    /// the node, also between two of its pods. The pod's gateway is 169.254.1.1 (fe80::1).
    Routed,
    /// One Linux bridge per node: packets between two pods of a node are switched. The
    /// `bridge-nf-call-*` sysctls start at 0, so that whoever needs them at 1 has to set them.
    Bridge,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<IpNet>,
}

impl NodeSpec {
    /// A node with addresses of its own choosing: the n-th node gets `172.18.0.<n+1>` and
    /// `fd00:172:18::<n+1>`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), addresses: Vec::new(), pod_cidrs: Vec::new() }
    }

    /// Gives an address instead of the chosen one of that family. IPv4 within 172.18.0.0/16, IPv6 within
    /// fd00:172:18::/64: nodes are neighbours.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Adds a pod CIDR: it is routed as a whole, and its first address is the gateway of a bridge. Pods
    /// outside every CIDR of their node get host routes.
    #[must_use]
    pub fn pod_cidr(mut self, cidr: IpNet) -> Self {
        self.pod_cidrs.push(cidr);
        self
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) serves: Vec<(Protocol, u16)>,
}

impl PodSpec {
    /// A pod on a node. Names are free; `namespace/name` is what the conformance data uses. The first
    /// address of each family is the one that probes by name go to.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        node: impl Into<String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let addresses = addresses.into_iter().collect();
        Self { name: name.into(), node: node.into(), addresses, serves: Vec::new() }
    }

    /// Adds a port that only this pod serves, beside the cluster's.
    #[must_use]
    pub fn serve(mut self, protocol: Protocol, port: u16) -> Self {
        self.serves.push((protocol, port));
        self
    }
}

/// A whole cluster. Build it with [`ClusterSpec::build`].
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    pub(crate) attachment: Attachment,
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) outside: Vec<IpAddr>,
    pub(crate) serves: Vec<(Protocol, u16)>,
}

impl ClusterSpec {
    /// Nothing but an outside host with 172.18.0.254 and fd00:172:18::fe.
    #[must_use]
    pub fn new(attachment: Attachment) -> Self {
        Self { attachment, nodes: Vec::new(), pods: Vec::new(), outside: Vec::new(), serves: Vec::new() }
    }

    /// `nodes` nodes `n1`, `n2`, … with `pods` pods each. Pods are `x/a`, `y/a`, `z/a`, `x/b`, … dealt in
    /// turn to the nodes, with addresses 10.244.<node>.<10…> and fd00:10:244:<node>::<10…>.
    #[must_use]
    pub fn uniform(attachment: Attachment, families: &[Family], nodes: u8, pods: u8) -> Self {
        let mut spec = Self::new(attachment);
        let wanted = |family| families.contains(&family);
        for node in 1..=nodes {
            let mut one = NodeSpec::new(format!("n{node}"));
            let v4 = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 244, node, 0), 24);
            let v6 =
                ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, 0), 64);
            one.pod_cidrs.extend(wanted(Family::V4).then_some(IpNet::V4(v4)));
            one.pod_cidrs.extend(wanted(Family::V6).then_some(IpNet::V6(v6)));
            spec = spec.node(one);
        }
        for index in 0..u16::from(nodes) * u16::from(pods) {
            let (node, host) = (index % u16::from(nodes) + 1, index / u16::from(nodes) + 10);
            let v4 = Ipv4Addr::new(10, 244, node as u8, host as u8);
            let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, node, 0, 0, 0, host);
            let addresses = [IpAddr::V4(v4), IpAddr::V6(v6)];
            let namespace = ["x", "y", "z"][usize::from(index % 3)];
            let name = format!("{namespace}/{}", letters(index / 3));
            let addresses = addresses.into_iter().filter(|a| wanted(Family::of(*a)));
            spec = spec.pod(PodSpec::new(name, format!("n{node}"), addresses));
        }
        spec
    }

    /// Adds a node.
    #[must_use]
    pub fn node(mut self, node: NodeSpec) -> Self {
        self.nodes.push(node);
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds an address to the outside host. Every node has a route to it; it is an endpoint of its own,
    /// named by its text.
    #[must_use]
    pub fn outside(mut self, address: IpAddr) -> Self {
        self.outside.push(address);
        self
    }

    /// Adds a port that every pod and the outside host serve. (Nodes serve nothing unless asked:
    /// [`crate::Cluster::serve`]. ICMP echo is always answered.)
    #[must_use]
    pub fn serve(mut self, protocol: Protocol, port: u16) -> Self {
        self.serves.push((protocol, port));
        self
    }
}

/// a … z, aa, ab, …
fn letters(index: u16) -> String {
    let letter = char::from(b'a' + (index % 26) as u8);
    if index < 26 { letter.to_string() } else { letters(index / 26 - 1) + &letter.to_string() }
}
