//! The MTU of pods: that of the link that carries their packets to other nodes, less what a tunnel adds.
//!
//! kube-router takes the link's as it is (W26 of its weak points): with its overlay, which is on by default, each large
//! packet to another subnet depends on path MTU discovery.
//!
//! `--overlay-type` makes no difference: with `subnet` too, some nodes are reached through tunnels, and a pod has one
//! MTU for all of them.

use std::net::IpAddr;

use common_informer::object::Family;

/// What the flags ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `--mtu`
    Given(u32),
    /// That of the link, less an overlay if there is one.
    OfTheLink(Option<Overlay>),
    /// Whatever stands in the configuration.
    Untouched,
}

/// The tunnels between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// What they are.
    pub encapsulation: Encapsulation,
}

/// What a tunnel puts around a packet, beside the outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// Nothing.
    IpIp,
    /// UDP and GUE (`--overlay-encap=fou`; kube-router calls it so and makes `encap gue`).
    Gue,
}

/// KERNEL: `sizeof(struct iphdr)`; net/ipv4/ip_tunnel.c `ip_tunnel_bind_dev` takes just that off.
const IPV4_HEADER: u32 = 20;
/// KERNEL: `sizeof(struct ipv6hdr)`, and 8 for the encapsulation limit that an ip6tnl sends unless it was made with
/// `encaplimit none`: net/ipv6/ip6_tunnel.c `ip6_tnl_link_config` (`IP6_TNL_F_IGN_ENCAP_LIMIT`). kube-router's send it.
const IPV6_HEADER: u32 = 40 + 8;
/// KERNEL: `sizeof(struct udphdr)` and `sizeof(struct guehdr)`: net/ipv4/fou_core.c (fou.c in older
/// kernels) `gue_encap_hlen`, without remote checksum offload.
const GUE_HEADERS: u32 = 8 + 4;
/// RFC 8200 §5. KERNEL: net/ipv6/addrconf.c takes IPv6 off a link with less.
pub const IPV6_MINIMUM: u32 = 1280;
/// RFC 791 §3.2. KERNEL: `ETH_MIN_MTU`.
const MINIMUM: u32 = 68;

impl Overlay {
    /// Bytes that a packet grows by, between nodes of these addresses, for pods of these families. A pod's packet goes
    /// through a tunnel of its own family if the node has an address of that, else through one of the other.
    pub fn bytes(self, pods: &[Family], node: &[IpAddr]) -> u32 {
        let has = |family| node.iter().any(|ip| Family::of(*ip) == family);
        let outer = |pods: &Family| match pods {
            Family::V4 if has(Family::V4) || !has(Family::V6) => IPV4_HEADER,
            Family::V6 if has(Family::V6) || !has(Family::V4) => IPV6_HEADER,
            Family::V4 => IPV6_HEADER,
            Family::V6 => IPV4_HEADER,
        };
        let header = pods.iter().map(outer).max().unwrap_or(IPV6_HEADER);
        match self.encapsulation {
            Encapsulation::IpIp => header,
            Encapsulation::Gue => header + GUE_HEADERS,
        }
    }
}

/// The MTU of pods, on a link with `link` bytes.
///
/// # Errors
/// When there is nothing left for a packet.
pub fn of_link(link: u32, overlay: Option<Overlay>, pods: &[Family], node: &[IpAddr]) -> Result<u32, String> {
    let overhead = overlay.map_or(0, |overlay| overlay.bytes(pods, node));
    // The kernel takes no more for a veth (`ETH_MAX_MTU`).
    let left = link.min(65535).checked_sub(overhead).filter(|left| *left >= MINIMUM);
    left.ok_or_else(|| format!("of {link} bytes nothing is left when the overlay has taken {overhead}"))
}

/// Why IPv6 would not work with an MTU.
pub fn complaint(mtu: Option<u32>, pods: &[Family]) -> Option<String> {
    let mtu = mtu.filter(|mtu| *mtu < IPV6_MINIMUM && pods.contains(&Family::V6))?;
    Some(format!("{mtu} bytes are less than the {IPV6_MINIMUM} that IPv6 needs: pods get no IPv6 address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(encapsulation: Encapsulation, pods: &[Family], node: &[&str]) -> u32 {
        let node: Vec<IpAddr> = node.iter().map(|ip| ip.parse().unwrap()).collect();
        Overlay { encapsulation }.bytes(pods, &node)
    }

    #[test]
    fn the_largest_outer_header_that_a_pod_may_meet_is_taken_off() {
        use Encapsulation::{Gue, IpIp};
        use Family::{V4, V6};
        let (v4, v6) = ("192.0.2.1", "2001:db8::1");
        assert_eq!(bytes(IpIp, &[V4], &[v4]), 20);
        assert_eq!(bytes(IpIp, &[V4], &[v4, v6]), 20);
        assert_eq!(bytes(IpIp, &[V6], &[v4, v6]), 48);
        assert_eq!(bytes(IpIp, &[V4, V6], &[v4, v6]), 48);
        assert_eq!(bytes(IpIp, &[V4], &[v6]), 48);
        assert_eq!(bytes(IpIp, &[V6], &[v4]), 20);
        assert_eq!(bytes(Gue, &[V4], &[v4]), 32);
        assert_eq!(bytes(Gue, &[V4, V6], &[v4, v6]), 60);
    }

    #[test]
    fn links_that_are_too_small_or_too_large_for_a_packet_give_what_is_possible() {
        let overlay = Some(Overlay { encapsulation: Encapsulation::IpIp });
        let node = ["192.0.2.1".parse().unwrap()];
        assert_eq!(of_link(1500, overlay, &[Family::V4], &node), Ok(1480));
        assert_eq!(of_link(9000, None, &[Family::V4], &node), Ok(9000));
        assert_eq!(of_link(65536, None, &[Family::V4], &node), Ok(65535));
        assert!(of_link(87, overlay, &[Family::V4], &node).is_err());
        assert!(of_link(0, None, &[], &[]).is_err());
    }

    #[test]
    fn an_mtu_below_that_of_ipv6_is_complained_of_only_where_there_is_ipv6() {
        assert!(complaint(Some(1279), &[Family::V4, Family::V6]).is_some());
        assert_eq!(complaint(Some(1280), &[Family::V6]), None);
        assert_eq!(complaint(Some(576), &[Family::V4]), None);
        assert_eq!(complaint(None, &[Family::V6]), None);
    }
}
