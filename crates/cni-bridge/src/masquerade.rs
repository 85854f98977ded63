//! Packets of containers to other networks leave with the node's address (`ipMasq`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kernel_nft::{IpVersion, Key, Name, NatFlags, Rule, Side, Value, Verdict};

use crate::table::{Element, Map};

/// The IP version of an address.
pub const fn version_of(ip: IpAddr) -> IpVersion {
    match ip {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

/// The name of the chain of a subnet: `masquerade_10.1.2.0_24`. nft has no colons in names.
pub fn chain_of(word: &str, subnet: IpNet) -> Name {
    let subnet = subnet.trunc();
    let address = match subnet.addr() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|segment| format!("{segment:x}")).join("-"),
    };
    format!("{word}_{address}_{}", subnet.prefix_len()).into()
}

/// The element for a container's address, with the length of its network: packets to that network and to groups
/// leave as they are.
pub fn element(address: IpNet) -> Element {
    let groups = match address {
        IpNet::V4(_) => IpNet::new_assert(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        IpNet::V6(_) => IpNet::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    let chain = chain_of("masquerade", address);
    let rules = vec![
        Rule::new().address_in_prefix(Side::Destination, address.trunc()).ret(),
        Rule::new().address_in_prefix(Side::Destination, groups).ret(),
        Rule::new().masquerade(NatFlags::default()),
    ];
    let (map, version, key) = key(address.addr());
    Element {
        map,
        version,
        key,
        value: Value::Verdict(Verdict::Goto(chain.clone())),
        chain: Some((chain, rules)),
    }
}

/// Where the element for an address is.
pub fn key(address: IpAddr) -> (Map, IpVersion, Key) {
    (Map::Masquerade, version_of(address), address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_by_the_subnet() {
        let name = |text: &str| chain_of("masquerade", text.parse().unwrap()).to_string();
        assert_eq!(name("10.1.2.7/24"), "masquerade_10.1.2.0_24");
        assert_eq!(name("fd00::7/64"), "masquerade_fd00-0-0-0-0-0-0-0_64");
    }
}
