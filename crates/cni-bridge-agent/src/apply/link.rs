//! The link that carries packets of pods to other nodes, and its MTU; what stands in the way on the bridge.
//!
//! It is the link that has the node's internal address. Where that is on loopback or a dummy (nodes that announce
//! their own address by BGP have it there) or on no link at all (it is translated on the way), it is the link of the
//! default route.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel_netlink::Error;
use kernel_netlink::route::{Link, LinkIndex, LinkKind, LinkName, RouteFilter, RouteType, Rtnetlink, Table};

/// An MTU, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkMtu {
    /// Name of the link.
    pub link: String,
    /// Bytes.
    pub mtu: u32,
}

/// Why there is no MTU.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Nothing leads anywhere.
    #[error(
        "no link of this node has one of the Node's internal addresses ({}), and there is no default route; give --mtu",
        list(.0)
    )]
    None(Vec<IpAddr>),
}

fn list(ips: &[IpAddr]) -> String {
    match ips {
        [] => "it has none".to_owned(),
        ips => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The smallest MTU of the links that have the addresses, or else of those of default routes.
///
/// # Errors
/// [`LinkError`]
pub fn smallest_mtu(kernel: &mut impl Rtnetlink, internal: &[IpAddr]) -> Result<LinkMtu, LinkError> {
    let links = kernel.observe_links()?;
    let addresses = kernel.observe_addresses()?;
    let holders = addresses
        .iter()
        .filter(|address| internal.contains(&address.address.addr()))
        .map(|address| address.link);
    if let Some(found) = smallest(&links, holders) {
        return Ok(found);
    }
    let main = RouteFilter { table: Some(Table::MAIN), ..RouteFilter::default() };
    let routes = kernel.observe_routes(&main)?;
    let ways = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0 && route.kind == RouteType::Unicast)
        .flat_map(|route| route.next_hops.iter().filter_map(|hop| hop.link));
    smallest(&links, ways).ok_or_else(|| LinkError::None(internal.to_vec()))
}

/// IPv4 addresses of the bridge in none of these networks. The plugin gives it no second one, so pods of the next CIDR
/// do not start.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn gateways_of_before(
    kernel: &mut impl Rtnetlink,
    bridge: &str,
    cidrs: &[IpNet],
) -> Result<Vec<IpNet>, Error> {
    let Some(name) = LinkName::new(bridge) else { return Ok(Vec::new()) };
    let Some(bridge) = kernel.observe_link(&name)? else { return Ok(Vec::new()) };
    let addresses = kernel.observe_addresses()?.into_iter().filter(|address| address.link == bridge.index);
    let of_before = |network: &IpNet| {
        network.addr().is_ipv4() && !cidrs.iter().any(|cidr| cidr.contains(&network.addr()))
    };
    Ok(addresses.map(|address| address.address).filter(of_before).collect())
}

/// Of links that lead away from this node. Loopback has 65536 bytes, and packets of nobody else.
fn smallest(links: &[Link], of: impl Iterator<Item = LinkIndex>) -> Option<LinkMtu> {
    let found = of.filter_map(|index| links.iter().find(|link| link.index == index));
    let leads_away = |link: &&Link| link.name.as_str() != "lo" && link.kind != LinkKind::Dummy;
    let smallest = found.filter(leads_away).min_by_key(|link| link.mtu)?;
    Some(LinkMtu { link: smallest.name.to_string(), mtu: smallest.mtu })
}
