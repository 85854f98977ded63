//! Ports of the node that lead to containers (`portMappings`, "hostPort").
//!
//! The destination is translated where a packet is for the node. Where the source is in the container's own subnet
//! or is the node's loopback, the answer would not come back here to be translated back, so the source becomes the
//! bridge's address.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use kernel_netlink::Protocol;
use kernel_nft::{IpVersion, Key, NatFlags, Rule, Side, Value, Verdict};

use crate::conf::PortMapping;
use crate::masquerade::{chain_of, version_of};
use crate::spec::{CniError, Code};
use crate::table::{Element, Map};

/// A mapping, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Of the node.
    pub host_port: u16,
    /// Of the container.
    pub container_port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node's address; all of both versions if absent.
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    /// Reads a mapping.
    ///
    /// # Errors
    /// A port, protocol or address that is none.
    pub fn parse(mapping: &PortMapping) -> Result<Self, CniError> {
        let invalid = |what: String| CniError::new(Code::Config, format!("portMappings: {what}"));
        let port = |number: i64| {
            let port = u16::try_from(number).ok().filter(|port| *port != 0);
            port.ok_or_else(|| invalid(format!("{number} is no port")))
        };
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::TCP,
            "udp" => Protocol::UDP,
            "sctp" => Protocol::SCTP,
            _ => return Err(invalid(format!("protocol {:?} has no ports", mapping.protocol))),
        };
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid(format!("hostIP {text:?} is no address")))?),
        };
        Ok(Self {
            host_port: port(mapping.host_port)?,
            container_port: port(mapping.container_port)?,
            protocol,
            // All addresses of a version.
            host_ip,
        })
    }

    /// Reads mappings; those without a port of the node (`hostPort: 0`) mean nothing.
    ///
    /// # Errors
    /// As [`HostPort::parse`].
    pub fn parse_all(mappings: &[PortMapping]) -> Result<Vec<Self>, CniError> {
        mappings.iter().filter(|mapping| mapping.host_port != 0).map(Self::parse).collect()
    }

    fn applies_to(self, version: IpVersion) -> bool {
        self.host_ip.is_none_or(|ip| version_of(ip) == version)
    }

    fn host_key(self, version: IpVersion) -> (Map, IpVersion, Key) {
        let (protocol, port) = (self.protocol.0, self.host_port);
        match self.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(ip) => (Map::HostIpPorts, version, Key::address_proto_port(ip, protocol, port)),
            None => (Map::HostPorts, version, Key::concat(&[&[protocol], &port.to_be_bytes()])),
        }
    }

    fn hairpin_key(self, container: IpAddr) -> (Map, IpVersion, Key) {
        let key = Key::address_proto_port(container, self.protocol.0, self.host_port);
        (Map::Hairpin, version_of(container), key)
    }

    /// The elements that lead it to a container's address.
    fn elements(self, container: IpNet) -> [Element; 2] {
        let version = version_of(container.addr());
        let (map, version, key) = self.host_key(version);
        let value = Value::Data(Key::address_port(container.addr(), self.container_port));
        let there = Element { map, version, key, value, chain: None };
        let chain = chain_of("hairpin", container);
        let near =
            |prefix| Rule::new().address_in_prefix(Side::Source, prefix).masquerade(NatFlags::default());
        let mut rules = vec![near(container.trunc())];
        if version == IpVersion::V4 {
            rules.push(near(IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8)));
        }
        let (map, version, key) = self.hairpin_key(container.addr());
        // A jump: what is not from near may still be masqueraded for another reason.
        let value = Value::Verdict(Verdict::Jump(chain.clone()));
        [there, Element { map, version, key, value, chain: Some((chain, rules)) }]
    }
}

/// The elements that lead ports of the node to a container: of each IP version to its first address.
pub fn elements(ports: &[HostPort], addresses: &[IpNet]) -> Vec<Element> {
    let mut elements = Vec::new();
    for version in crate::table::VERSIONS {
        let Some(container) = addresses.iter().find(|address| version_of(address.addr()) == version) else {
            continue;
        };
        for port in ports.iter().filter(|port| port.applies_to(version)) {
            elements.extend(port.elements(*container));
        }
    }
    elements
}

/// What of the maps leads to an address, or away from it: keys to be removed when the container is gone, found by
/// what is there, as the runtime need not tell the ports again.
pub fn keys_of(table: &kernel_nft::Ruleset, gone: impl Fn(IpAddr) -> bool) -> Vec<(Map, IpVersion, Key)> {
    let mut keys = Vec::new();
    for version in crate::table::VERSIONS {
        for map in [Map::HostPorts, Map::HostIpPorts, Map::Hairpin] {
            let Some(set) = table.sets.get(&map.name(version)) else { continue };
            for (key, value) in &set.elements {
                let bytes = match &value {
                    Value::Data(target) => target.as_bytes(),
                    _ => key.as_bytes(),
                };
                if address(version, bytes).is_some_and(&gone) {
                    keys.push((map, version, key));
                }
            }
        }
    }
    keys
}

/// Whether an element leads UDP away from a container, as each of UDP that leads to one has its counterpart do.
pub fn is_udp(map: Map, version: IpVersion, key: &Key) -> bool {
    let address = match version {
        IpVersion::V4 => 4,
        IpVersion::V6 => 16,
    };
    map == Map::Hairpin && key.as_bytes().get(address) == Some(&Protocol::UDP.0)
}

/// The address that a key begins with.
pub fn address(version: IpVersion, bytes: &[u8]) -> Option<IpAddr> {
    match version {
        IpVersion::V4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        IpVersion::V6 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

#[cfg(test)]
mod tests {
    use kernel_nft::{Fake, Family, Nftables};

    use super::*;
    use crate::{owned, table};

    fn mapping(host_port: i64, protocol: &str, host_ip: &str) -> PortMapping {
        PortMapping { host_port, container_port: 80, protocol: protocol.into(), host_ip: host_ip.into() }
    }

    #[test]
    fn mappings_that_are_none_are_refused_and_without_a_host_port_they_mean_nothing() {
        for bad in
            [mapping(65_536, "", ""), mapping(-1, "", ""), mapping(80, "icmp", ""), mapping(80, "", "x")]
        {
            assert!(HostPort::parse_all(&[bad]).is_err());
        }
        assert_eq!(HostPort::parse_all(&[mapping(0, "tcp", "")]), Ok(Vec::new()));
    }

    #[test]
    fn ports_lead_to_the_first_address_of_each_version_and_are_found_by_it() {
        let mappings =
            [mapping(8080, "TCP", ""), mapping(53, "udp", "192.0.2.1"), mapping(53, "sctp", "fd01::1")];
        let ports = HostPort::parse_all(&mappings).unwrap();
        let addresses = ["10.1.2.2/24", "10.1.3.2/24", "fd00::2/64"].map(|text| text.parse().unwrap());
        let elements = elements(&ports, &addresses);
        // Two of both versions, and one of each; each with its way back.
        assert_eq!(elements.len(), 8);
        let mut nft = Fake::new();
        table::add(&mut nft, &elements, &|_| true).unwrap();
        let seen = nft.observe(Family::Inet, owned::TABLE).unwrap().unwrap().ruleset;
        let other: [IpNet; 1] = ["10.1.2.9/24".parse().unwrap()];
        let wanted = super::elements(&ports[..1], &other);
        let error = table::add(&mut nft, &wanted, &|_| true).unwrap_err();
        assert_eq!(error.message, "portMappings: a port of the node already leads to 10.1.2.2");
        assert_eq!(keys_of(&seen, |ip| ip == addresses[1].addr()), []);
        let keys = keys_of(&seen, |ip| ip == addresses[0].addr() || ip == addresses[2].addr());
        assert_eq!(keys.len(), 8);
        assert_eq!(keys.iter().filter(|(map, version, key)| is_udp(*map, *version, key)).count(), 1);
        table::remove(&mut nft, &keys, &table::unused_chains(&seen, &keys)).unwrap();
        let seen = nft.observe(Family::Inet, owned::TABLE).unwrap().unwrap().ruleset;
        assert_eq!(seen, table::empty());
    }
}
