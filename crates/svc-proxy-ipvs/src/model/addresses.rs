//! The node's own addresses: on which of them node ports are served, and which one packets of the node itself
//! come from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use common_informer::object::{Family, NodeAddress, NodeAddressKind};
use ipnet::IpNet;

/// On which addresses of the node node ports are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first address of each family that the Node object names: `InternalIP`, else `ExternalIP`.
    #[default]
    Primary,
    /// `--nodeport-bindon-all-ip`: every address but those of loopback and of devices of containers.
    All,
    /// `--nodeport-addresses`: those in these ranges.
    Ranges(Vec<IpNet>),
}

/// An address that the kernel says is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// Name of its device.
    pub device: String,
}

/// The node's own addresses, by use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those that node ports are served on.
    pub node_ports: BTreeSet<IpAddr>,
    /// All of them.
    pub own: BTreeSet<IpAddr>,
    /// What packets of the node to a virtual address come from.
    pub source: [Option<IpAddr>; 2],
}

impl Addresses {
    /// From what the kernel and the Node object say.
    pub fn of(choice: &NodePortAddresses, local: &[LocalAddress], node: &[NodeAddress]) -> Self {
        let own: BTreeSet<_> = local.iter().map(|address| address.ip).collect();
        let primary = |family| {
            let named = |kind| {
                let mut of_kind = node.iter().filter(move |address| address.kind == kind);
                of_kind.find(|address| Family::of(address.ip) == family && own.contains(&address.ip))
            };
            let named = named(NodeAddressKind::Internal).or_else(|| named(NodeAddressKind::External));
            named.map(|address| address.ip).or_else(|| {
                // The Node object may be late, or name addresses of another place (NAT).
                let mut usable = local.iter().filter(|address| is_reachable(address));
                usable.find(|address| Family::of(address.ip) == family).map(|address| address.ip)
            })
        };
        let source = [primary(Family::V4), primary(Family::V6)];
        let node_ports = match choice {
            NodePortAddresses::Primary => source.into_iter().flatten().collect(),
            NodePortAddresses::All => {
                local.iter().filter(|address| is_reachable(address)).map(|address| address.ip).collect()
            }
            NodePortAddresses::Ranges(ranges) => own
                .iter()
                .copied()
                .filter(|ip| is_usable(*ip) && ranges.iter().any(|range| range.contains(ip)))
                .collect(),
        };
        Self { node_ports, own, source }
    }

    /// What packets of the node to a virtual address of a family come from.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.source[usize::from(family == Family::V6)]
    }
}

/// KERNEL: IPVS does not serve clients on loopback addresses (`crosses_local_route_boundary`).
fn is_usable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !link_local && !ip.is_unspecified()
}

/// kube-router passes over devices with these words in their names.
fn is_reachable(address: &LocalAddress) -> bool {
    let internal = ["dummy", "kube", "docker"].iter().any(|word| address.device.contains(word));
    !internal && is_usable(address.ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(list: &[(&str, &str)]) -> Vec<LocalAddress> {
        list.iter()
            .map(|(ip, device)| LocalAddress { ip: ip.parse().unwrap(), device: (*device).into() })
            .collect()
    }

    fn set(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    const LOCAL: [(&str, &str); 6] = [
        ("127.0.0.1", "lo"),
        ("10.0.0.5", "eth0"),
        ("192.168.1.5", "eth1"),
        ("10.244.1.1", "kube-bridge"),
        ("fe80::1", "eth0"),
        ("fd00::5", "eth0"),
    ];

    #[test]
    fn the_first_address_that_the_node_object_names_and_the_kernel_has_is_the_primary_one() {
        let node = [
            NodeAddress { kind: NodeAddressKind::External, ip: "10.0.0.5".parse().unwrap() },
            NodeAddress { kind: NodeAddressKind::Internal, ip: "203.0.113.1".parse().unwrap() },
            NodeAddress { kind: NodeAddressKind::Internal, ip: "192.168.1.5".parse().unwrap() },
        ];
        let addresses = Addresses::of(&NodePortAddresses::Primary, &local(&LOCAL), &node);
        assert_eq!(addresses.node_ports, set(&["192.168.1.5", "fd00::5"]));
        assert_eq!(addresses.source(Family::V4), Some("192.168.1.5".parse().unwrap()));
    }

    #[test]
    fn all_addresses_are_those_that_somebody_else_can_reach() {
        let addresses = Addresses::of(&NodePortAddresses::All, &local(&LOCAL), &[]);
        assert_eq!(addresses.node_ports, set(&["10.0.0.5", "192.168.1.5", "fd00::5"]));
    }

    #[test]
    fn ranges_choose_among_the_nodes_own_addresses_but_never_loopback() {
        let ranges = vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.0/8".parse().unwrap()];
        let addresses = Addresses::of(&NodePortAddresses::Ranges(ranges), &local(&LOCAL), &[]);
        assert_eq!(addresses.node_ports, set(&["10.0.0.5", "10.244.1.1"]));
    }
}
