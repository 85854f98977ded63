//! Entries and commands as rtnetlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use nix::libc;

use super::command::Command;
use super::entry::*;
use super::link::*;
use super::port;
use super::uapi::*;
use crate::attribute::{Attribute, Message, Value, attributes, find, u8_of, u16_of, u32_of};
use crate::family::Family;
use crate::namespace::Namespace;

const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const FIB_RULE_HDR: usize = 12;
const RTNEXTHOP: usize = 8;

/// The message for a command, and its flags.
pub(super) fn command(command: &Command) -> (Message, u16) {
    let new = NLM_F_CREATE | NLM_F_EXCL;
    match command {
        Command::AddLink(link) => (new_link(link), new),
        Command::SetLink(index, change) => (set_link(*index, change), 0),
        Command::SetPort(index, change) => (port::set_port(*index, *change), 0),
        Command::FilterVlans(index, on) => (port::filter_vlans(*index, *on), 0),
        Command::AddVlans(vlans) => (port::port_vlans(RTM_SETLINK, *vlans), 0),
        Command::DeleteVlans(vlans) => (port::port_vlans(RTM_DELLINK, *vlans), 0),
        Command::AddForwarding(entry) => (port::forwarding(*entry), new),
        Command::DeleteLink(index) => (message(RTM_DELLINK, ifinfomsg(*index, 0, 0), Vec::new()), 0),
        Command::AddAddress(entry) => (address(RTM_NEWADDR, entry), new),
        Command::DeleteAddress(entry) => (address(RTM_DELADDR, entry), 0),
        Command::AddRoute(entry) => (route(RTM_NEWROUTE, entry), new),
        Command::ReplaceRoute(entry) => (route(RTM_NEWROUTE, entry), NLM_F_CREATE | NLM_F_REPLACE),
        Command::DeleteRoute(entry) => (route(RTM_DELROUTE, entry), 0),
        Command::AddRule(entry) => (rule(RTM_NEWRULE, entry), new),
        Command::DeleteRule(entry) => (rule(RTM_DELRULE, entry), 0),
    }
}

/// Asks for all links.
pub(super) fn get_links() -> Message {
    let skip = Attribute::new(IFLA_EXT_MASK, Value::U32(RTEXT_FILTER_SKIP_STATS));
    message(RTM_GETLINK, ifinfomsg(LinkIndex(0), 0, 0), vec![skip])
}

/// Asks for one link.
pub(super) fn get_link(name: &LinkName) -> Message {
    let mut ask = get_links();
    ask.attributes.push(Attribute::new(IFLA_IFNAME, Value::Text(name.as_str().to_owned())));
    ask
}

/// Asks for all addresses.
pub(super) fn get_addresses() -> Message {
    message(RTM_GETADDR, vec![0; IFADDRMSG], Vec::new())
}

/// Asks for routes of a family. KERNEL: filters are kept since Linux 4.20, with `NETLINK_GET_STRICT_CHK`.
pub(super) fn get_routes(family: Family, filter: &RouteFilter) -> Message {
    let mut header = vec![0; RTMSG];
    header[0] = family_number(family);
    header[5] = filter.protocol.map_or(0, |protocol| protocol.0);
    let table = filter.table.map(|table| Attribute::new(RTA_TABLE, Value::U32(table.0)));
    message(RTM_GETROUTE, header, table.into_iter().collect())
}

/// Asks for the rules of a family.
pub(super) fn get_rules(family: Family) -> Message {
    let mut header = vec![0; FIB_RULE_HDR];
    header[0] = family_number(family);
    message(RTM_GETRULE, header, Vec::new())
}

pub(super) fn message(kind: u16, header: Vec<u8>, attributes: Vec<Attribute>) -> Message {
    Message { kind, header, attributes }
}

/// `AF_INET`, `AF_INET6`.
pub(super) const fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => libc::AF_INET as u8,
        Family::Ipv6 => libc::AF_INET6 as u8,
    }
}

fn family_of(number: u8) -> Option<Family> {
    [Family::Ipv4, Family::Ipv6].into_iter().find(|family| family_number(*family) == number)
}

pub(super) fn ifinfomsg(index: LinkIndex, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend_from_slice(&index.0.to_ne_bytes());
    header.extend_from_slice(&flags.to_ne_bytes());
    header.extend_from_slice(&change.to_ne_bytes());
    header
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ip(kind: u16, address: impl Into<IpAddr>) -> Attribute {
    Attribute::new(kind, Value::Bytes(bytes_of(address.into())))
}

fn mac(address: MacAddress) -> Attribute {
    Attribute::new(IFLA_ADDRESS, Value::Bytes(address.0.to_vec()))
}

fn name(kind: u16, name: &LinkName) -> Attribute {
    Attribute::new(kind, Value::Text(name.as_str().to_owned()))
}

fn namespace(namespace: &Namespace) -> Attribute {
    Attribute::new(IFLA_NET_NS_FD, Value::U32(namespace.as_raw_fd().unsigned_abs()))
}

fn new_link(link: &NewLink) -> Message {
    let up = if link.up { IFF_UP } else { 0 };
    let mut attributes = vec![name(IFLA_IFNAME, &link.name)];
    attributes.extend(link.mtu.map(|mtu| Attribute::new(IFLA_MTU, Value::U32(mtu))));
    attributes.extend(link.mac.map(mac));
    attributes.extend(link.master.map(|master| Attribute::new(IFLA_MASTER, Value::U32(master.0))));
    let mut info = vec![Attribute::new(IFLA_INFO_KIND, Value::Text(link.kind.name().to_owned()))];
    let data = link_data(&link.kind);
    if !data.is_empty() {
        info.push(Attribute::new(IFLA_INFO_DATA, Value::Nested(data)));
    }
    attributes.push(Attribute::new(IFLA_LINKINFO, Value::Nested(info)));
    message(RTM_NEWLINK, ifinfomsg(LinkIndex(0), up, up), attributes)
}

fn link_data(kind: &NewLinkKind) -> Vec<Attribute> {
    match kind {
        NewLinkKind::Dummy => Vec::new(),
        NewLinkKind::Bridge(bridge) => {
            let flag =
                |kind, value: Option<bool>| value.map(|value| Attribute::new(kind, Value::U8(value.into())));
            let filtering = flag(IFLA_BR_VLAN_FILTERING, bridge.vlan_filtering);
            filtering.into_iter().chain(flag(IFLA_BR_MCAST_SNOOPING, bridge.multicast_snooping)).collect()
        }
        NewLinkKind::Veth(peer) => vec![veth_peer(peer)],
        NewLinkKind::Ipip(tunnel) => {
            let mut data = Vec::new();
            data.extend(tunnel.local.map(|address| ip(IFLA_IPTUN_LOCAL, address)));
            data.extend(tunnel.remote.map(|address| ip(IFLA_IPTUN_REMOTE, address)));
            data.push(Attribute::new(IFLA_IPTUN_TTL, Value::U8(tunnel.ttl)));
            data.push(Attribute::new(IFLA_IPTUN_PMTUDISC, Value::U8(tunnel.path_mtu_discovery.into())));
            data
        }
        NewLinkKind::Ip6tnl(tunnel) => {
            let mut data = Vec::new();
            data.extend(tunnel.local.map(|address| ip(IFLA_IPTUN_LOCAL, address)));
            data.extend(tunnel.remote.map(|address| ip(IFLA_IPTUN_REMOTE, address)));
            data.push(Attribute::new(IFLA_IPTUN_TTL, Value::U8(tunnel.hop_limit)));
            // Without the extension header that says how often it may be tunnelled again: many drop it.
            data.push(Attribute::new(IFLA_IPTUN_FLAGS, Value::U32(IP6_TNL_F_IGN_ENCAP_LIMIT)));
            data.push(Attribute::new(IFLA_IPTUN_ENCAP_LIMIT, Value::U8(0)));
            let inside = match tunnel.mode {
                Ip6TunnelMode::Any => 0,
                Ip6TunnelMode::Ipv4 => libc::IPPROTO_IPIP as u8,
                Ip6TunnelMode::Ipv6 => libc::IPPROTO_IPV6 as u8,
            };
            data.push(Attribute::new(IFLA_IPTUN_PROTO, Value::U8(inside)));
            data
        }
    }
}

/// KERNEL: a whole message inside an attribute (`veth_newlink`, drivers/net/veth.c).
fn veth_peer(peer: &Peer) -> Attribute {
    let mut attributes = vec![name(IFLA_IFNAME, &peer.name)];
    attributes.extend(peer.mac.map(mac));
    attributes.extend(peer.mtu.map(|mtu| Attribute::new(IFLA_MTU, Value::U32(mtu))));
    attributes.extend(peer.namespace.as_ref().map(namespace));
    let mut bytes = ifinfomsg(LinkIndex(0), 0, 0);
    append(&mut bytes, &attributes);
    Attribute::new(VETH_INFO_PEER, Value::Bytes(bytes))
}

fn append(bytes: &mut Vec<u8>, attributes: &[Attribute]) {
    let start = bytes.len();
    bytes.resize(start + attributes.buffer_len(), 0);
    attributes.emit(&mut bytes[start..]);
}

fn set_link(index: LinkIndex, change: &LinkChange) -> Message {
    let LinkChange { up, mtu, name: new_name, mac: new_mac, master, promiscuous, alias, namespace: target } =
        change;
    let (mut flags, mut mask) = (0, 0);
    for (wanted, flag) in [(up, IFF_UP), (promiscuous, IFF_PROMISC)] {
        if let Some(wanted) = wanted {
            mask |= flag;
            flags |= if *wanted { flag } else { 0 };
        }
    }
    let mut attributes = Vec::new();
    attributes.extend(mtu.map(|mtu| Attribute::new(IFLA_MTU, Value::U32(mtu))));
    attributes.extend(new_mac.map(mac));
    attributes.extend(new_name.as_ref().map(|new| name(IFLA_IFNAME, new)));
    attributes.extend(
        master.map(|master| Attribute::new(IFLA_MASTER, Value::U32(master.map_or(0, |master| master.0)))),
    );
    // KERNEL: without the NUL that other texts end with (`rtnl_setlink`, `dev_set_alias`).
    attributes.extend(
        alias.as_ref().map(|alias| Attribute::new(IFLA_IFALIAS, Value::Bytes(alias.as_bytes().to_vec()))),
    );
    attributes.extend(target.as_ref().map(namespace));
    message(RTM_SETLINK, ifinfomsg(index, flags, mask), attributes)
}

fn address(kind: u16, entry: &Address) -> Message {
    let local = entry.address.addr();
    let flags = entry.flags.0;
    let mut header =
        vec![family_number(Family::of(local)), entry.address.prefix_len(), flags as u8, entry.scope.0];
    header.extend_from_slice(&entry.link.0.to_ne_bytes());
    let mut attributes = vec![ip(IFA_LOCAL, local), ip(IFA_ADDRESS, entry.peer.unwrap_or(local))];
    attributes.extend(entry.broadcast.map(|broadcast| ip(IFA_BROADCAST, broadcast)));
    attributes.push(Attribute::new(IFA_FLAGS, Value::U32(flags)));
    message(kind, header, attributes)
}

fn route(kind: u16, entry: &Route) -> Message {
    let header = vec![
        family_number(entry.family()),
        entry.destination.prefix_len(),
        0,
        entry.tos,
        RT_TABLE_UNSPEC,
        entry.protocol.0,
        entry.scope.0,
        entry.kind.number(),
        0,
        0,
        0,
        0,
    ];
    let mut message = message(kind, header, vec![Attribute::new(RTA_TABLE, Value::U32(entry.table.0))]);
    let attributes = &mut message.attributes;
    if entry.destination.prefix_len() > 0 {
        attributes.push(ip(RTA_DST, entry.destination.addr()));
    }
    attributes.extend(entry.preferred_source.map(|source| ip(RTA_PREFSRC, source)));
    if entry.metric != 0 {
        attributes.push(Attribute::new(RTA_PRIORITY, Value::U32(entry.metric)));
    }
    let metrics: Vec<_> = [(RTAX_MTU, entry.mtu), (RTAX_ADVMSS, entry.advmss)]
        .into_iter()
        .filter_map(|(kind, value)| value.map(|value| Attribute::new(kind, Value::U32(value))))
        .collect();
    if !metrics.is_empty() {
        attributes.push(Attribute::new(RTA_METRICS, Value::Nested(metrics)));
    }
    match entry.next_hops.as_slice() {
        [] => {}
        [hop] => {
            attributes.extend(hop.link.map(|link| Attribute::new(RTA_OIF, Value::U32(link.0))));
            attributes.extend(hop.gateway.map(|gateway| via(entry.family(), gateway)));
            message.header[8..].copy_from_slice(&u32::from(hop_flags(hop)).to_ne_bytes());
        }
        several => {
            let mut bytes = Vec::new();
            for hop in several {
                next_hop(&mut bytes, entry.family(), hop);
            }
            attributes.push(Attribute::new(RTA_MULTIPATH, Value::Bytes(bytes)));
        }
    }
    message
}

fn via(family: Family, gateway: IpAddr) -> Attribute {
    let of = Family::of(gateway);
    if of == family {
        return ip(RTA_GATEWAY, gateway);
    }
    let mut bytes = u16::from(family_number(of)).to_ne_bytes().to_vec();
    bytes.extend(bytes_of(gateway));
    Attribute::new(RTA_VIA, Value::Bytes(bytes))
}

const fn hop_flags(hop: &NextHop) -> u8 {
    if hop.on_link { RTNH_F_ONLINK } else { 0 }
}

/// `struct rtnexthop` and its attributes.
fn next_hop(bytes: &mut Vec<u8>, family: Family, hop: &NextHop) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0, 0, hop_flags(hop)]);
    bytes.push(u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX));
    bytes.extend_from_slice(&hop.link.map_or(0, |link| link.0).to_ne_bytes());
    let gateway: Vec<_> = hop.gateway.map(|gateway| via(family, gateway)).into_iter().collect();
    append(bytes, &gateway);
    let len = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

fn rule(kind: u16, entry: &Rule) -> Message {
    let (action, table) = match entry.action {
        RuleAction::Lookup(table) => (FR_ACT_TO_TBL, Some(table)),
        RuleAction::Blackhole => (FR_ACT_BLACKHOLE, None),
        RuleAction::Unreachable => (FR_ACT_UNREACHABLE, None),
        RuleAction::Prohibit => (FR_ACT_PROHIBIT, None),
        RuleAction::Other(number) => (number, None),
    };
    let bits = |prefix: Option<IpNet>| prefix.map_or(0, |prefix| prefix.prefix_len());
    let mut header = vec![family_number(entry.family), bits(entry.to), bits(entry.from), 0];
    header.extend_from_slice(&[RT_TABLE_UNSPEC, 0, 0, action]);
    let flags = if entry.inverted { FIB_RULE_INVERT } else { 0 };
    header.extend_from_slice(&flags.to_ne_bytes());
    let number = |kind, number| Attribute::new(kind, Value::U32(number));
    let mut attributes = vec![number(FRA_PRIORITY, entry.preference)];
    attributes.push(Attribute::new(FRA_PROTOCOL, Value::U8(entry.protocol.0)));
    attributes.extend(table.map(|table| number(FRA_TABLE, table.0)));
    if let Some(mark) = entry.mark {
        attributes.extend([number(FRA_FWMARK, mark.value), number(FRA_FWMASK, mark.mask)]);
    }
    for (kind, prefix) in [(FRA_SRC, entry.from), (FRA_DST, entry.to)] {
        attributes.extend(prefix.filter(|p| p.prefix_len() > 0).map(|prefix| ip(kind, prefix.addr())));
    }
    attributes.extend(entry.input.as_ref().map(|input| name(FRA_IIFNAME, input)));
    attributes.extend(entry.suppress_prefix_length.map(|length| number(FRA_SUPPRESS_PREFIXLEN, length)));
    message(kind, header, attributes)
}

fn split(body: &[u8], header: usize) -> Result<(&[u8], &[u8]), &'static str> {
    body.split_at_checked(header).ok_or("a message that ends within its header")
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    header.get(at..).and_then(u32_of).unwrap_or_default()
}

fn ip_of(family: Family, value: &[u8]) -> Option<IpAddr> {
    match family {
        Family::Ipv4 => value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        Family::Ipv6 => value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
    }
}

fn v4_of(value: &[u8]) -> Option<Ipv4Addr> {
    value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes)).filter(|address| !address.is_unspecified())
}

fn v6_of(value: &[u8]) -> Option<Ipv6Addr> {
    value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes)).filter(|address| !address.is_unspecified())
}

/// Reads the body of `RTM_NEWLINK` or `RTM_DELLINK`.
///
/// `None` is something else: KERNEL: the group for links also tells of bridge ports (`AF_BRIDGE`).
pub(super) fn read_link(body: &[u8]) -> Result<Option<Link>, &'static str> {
    let (header, bytes) = split(body, IFINFOMSG)?;
    if header[0] != libc::AF_UNSPEC as u8 {
        return Ok(None);
    }
    let ether = header.get(2..).and_then(u16_of) == Some(ARPHRD_ETHER);
    let flags = u32_at(header, 8);
    let info = find(bytes, IFLA_LINKINFO).unwrap_or_default();
    let mac = find(bytes, IFLA_ADDRESS).filter(|_| ether).and_then(|mac| mac.try_into().ok());
    let number = |kind| find(bytes, kind).and_then(u32_of);
    Ok(Some(Link {
        index: LinkIndex(u32_at(header, 4)),
        name: LinkName::told(find(bytes, IFLA_IFNAME).ok_or("a link without a name")?),
        kind: read_kind(info),
        mtu: number(IFLA_MTU).unwrap_or_default(),
        mac: mac.map(MacAddress),
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        promiscuous: flags & IFF_PROMISC != 0,
        alias: find(bytes, IFLA_IFALIAS).map(read_text),
        carrier: flags & IFF_LOWER_UP != 0,
        master: number(IFLA_MASTER).filter(|index| *index != 0).map(LinkIndex),
        port: read_port(info),
        vlan_filtering: port::read_filtering(info),
        peer: number(IFLA_LINK).filter(|index| *index != 0).map(LinkIndex),
        peer_namespace: find(bytes, IFLA_LINK_NETNSID)
            .and_then(|value| value.first_chunk().copied().map(i32::from_ne_bytes)),
    }))
}

/// A text that ends with a NUL.
fn read_text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn read_port(info: &[u8]) -> Option<Port> {
    find(info, IFLA_INFO_SLAVE_KIND).filter(|kind| kind.starts_with(b"bridge\0"))?;
    let data = find(info, IFLA_INFO_SLAVE_DATA)?;
    let flag = |kind| find(data, kind).and_then(u8_of).is_some_and(|value| value != 0);
    Some(Port {
        hairpin: flag(IFLA_BRPORT_MODE),
        isolated: flag(IFLA_BRPORT_ISOLATED),
        locked: flag(IFLA_BRPORT_LOCKED),
    })
}

fn read_kind(info: &[u8]) -> LinkKind {
    let Some(kind) = find(info, IFLA_INFO_KIND) else { return LinkKind::Device };
    let data = find(info, IFLA_INFO_DATA).unwrap_or_default();
    let end = kind.iter().position(|byte| *byte == 0).unwrap_or(kind.len());
    let number = |kind| find(data, kind).and_then(u8_of).unwrap_or_default();
    match &kind[..end] {
        b"dummy" => LinkKind::Dummy,
        b"bridge" => LinkKind::Bridge,
        b"veth" => LinkKind::Veth,
        b"ipip" => LinkKind::Ipip(IpipTunnel {
            local: find(data, IFLA_IPTUN_LOCAL).and_then(v4_of),
            remote: find(data, IFLA_IPTUN_REMOTE).and_then(v4_of),
            ttl: number(IFLA_IPTUN_TTL),
            path_mtu_discovery: number(IFLA_IPTUN_PMTUDISC) != 0,
        }),
        b"ip6tnl" => LinkKind::Ip6tnl(Ip6Tunnel {
            local: find(data, IFLA_IPTUN_LOCAL).and_then(v6_of),
            remote: find(data, IFLA_IPTUN_REMOTE).and_then(v6_of),
            hop_limit: number(IFLA_IPTUN_TTL),
            mode: match i32::from(number(IFLA_IPTUN_PROTO)) {
                libc::IPPROTO_IPIP => Ip6TunnelMode::Ipv4,
                libc::IPPROTO_IPV6 => Ip6TunnelMode::Ipv6,
                _ => Ip6TunnelMode::Any,
            },
        }),
        other => LinkKind::Other(String::from_utf8_lossy(other).into_owned()),
    }
}

/// Reads the body of `RTM_NEWADDR` or `RTM_DELADDR`; `None` is an address of another family.
pub(super) fn read_address(body: &[u8]) -> Result<Option<Address>, &'static str> {
    let (header, bytes) = split(body, IFADDRMSG)?;
    let Some(family) = family_of(header[0]) else { return Ok(None) };
    let ip = |kind| find(bytes, kind).and_then(|value| ip_of(family, value));
    let other = ip(IFA_ADDRESS);
    let local = ip(IFA_LOCAL).or(other).ok_or("an address without the address")?;
    let address = IpNet::new(local, header[1]).map_err(|_| "a prefix that is longer than its address")?;
    Ok(Some(Address {
        link: LinkIndex(u32_at(header, 4)),
        address,
        peer: other.filter(|peer| *peer != local),
        broadcast: find(bytes, IFA_BROADCAST).filter(|_| family == Family::Ipv4).and_then(v4_of),
        scope: Scope(header[3]),
        // KERNEL: the header has room for eight.
        flags: AddressFlags(find(bytes, IFA_FLAGS).and_then(u32_of).unwrap_or(header[2].into())),
    }))
}

/// Reads the body of `RTM_NEWROUTE` or `RTM_DELROUTE`; `None` is a route of another family, or one that the
/// kernel keeps for itself as what it has looked up.
pub(super) fn read_route(body: &[u8]) -> Result<Option<Route>, &'static str> {
    let (header, bytes) = split(body, RTMSG)?;
    let Some(family) = family_of(header[0]) else { return Ok(None) };
    let flags = u32_at(header, 8);
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let ip = |kind| find(bytes, kind).and_then(|value| ip_of(family, value));
    let kind = RouteType::from_number(header[7]);
    let table = find(bytes, RTA_TABLE).and_then(u32_of).unwrap_or(header[4].into());
    let metrics = find(bytes, RTA_METRICS).unwrap_or_default();
    Ok(Some(Route {
        destination: prefix(family, ip(RTA_DST), header[1])?,
        table: Table(table),
        protocol: RouteProtocol(header[5]),
        scope: Scope(header[6]),
        kind,
        // KERNEL: IPv6 leads refusals to the loopback device.
        next_hops: if kind.is_refusal() { Vec::new() } else { read_next_hops(family, bytes, flags) },
        preferred_source: ip(RTA_PREFSRC),
        metric: find(bytes, RTA_PRIORITY).and_then(u32_of).unwrap_or_default(),
        tos: header[3],
        mtu: find(metrics, RTAX_MTU).and_then(u32_of),
        advmss: find(metrics, RTAX_ADVMSS).and_then(u32_of),
    }))
}

fn prefix(family: Family, address: Option<IpAddr>, bits: u8) -> Result<IpNet, &'static str> {
    let none = match family {
        Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(address.unwrap_or(none), bits).map_err(|_| "a prefix that is longer than its address")
}

fn read_next_hops(family: Family, bytes: &[u8], flags: u32) -> Vec<NextHop> {
    if let Some(mut rest) = find(bytes, RTA_MULTIPATH) {
        let mut hops = Vec::new();
        while let Some((hop, next)) = read_next_hop(family, rest) {
            hops.push(hop);
            rest = next;
        }
        return hops;
    }
    let link = find(bytes, RTA_OIF).and_then(u32_of).map(LinkIndex);
    let gateway = read_gateway(family, bytes);
    if link.is_none() && gateway.is_none() {
        return Vec::new();
    }
    vec![NextHop { link, gateway, weight: 1, on_link: flags & u32::from(RTNH_F_ONLINK) != 0 }]
}

/// The first `struct rtnexthop`, and what follows it.
fn read_next_hop(family: Family, bytes: &[u8]) -> Option<(NextHop, &[u8])> {
    let len = usize::from(u16_of(bytes)?);
    let (header, inner) = bytes.get(..len)?.split_at_checked(RTNEXTHOP)?;
    let hop = NextHop {
        link: Some(LinkIndex(u32_at(header, 4))).filter(|link| link.0 != 0),
        gateway: read_gateway(family, inner),
        weight: u16::from(header[3]) + 1,
        on_link: header[2] & RTNH_F_ONLINK != 0,
    };
    Some((hop, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn read_gateway(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    if let Some(gateway) = find(bytes, RTA_GATEWAY) {
        return ip_of(family, gateway);
    }
    let via = find(bytes, RTA_VIA)?;
    let family = family_of(u8::try_from(u16_of(via)?).ok()?)?;
    ip_of(family, via.get(2..)?)
}

/// Reads the body of `RTM_NEWRULE` or `RTM_DELRULE`; `None` is a rule of another family.
pub(super) fn read_rule(body: &[u8]) -> Result<Option<Rule>, &'static str> {
    let (header, bytes) = split(body, FIB_RULE_HDR)?;
    let Some(family) = family_of(header[0]) else { return Ok(None) };
    let ip = |kind| find(bytes, kind).and_then(|value| ip_of(family, value));
    let number = |kind| find(bytes, kind).and_then(u32_of);
    let prefix = |kind, bits| match bits {
        0 => Ok(None),
        bits => prefix(family, ip(kind), bits).map(Some),
    };
    let table = Table(number(FRA_TABLE).unwrap_or(header[4].into()));
    let (value, mask) = (number(FRA_FWMARK), number(FRA_FWMASK));
    Ok(Some(Rule {
        family,
        preference: number(FRA_PRIORITY).unwrap_or_default(),
        mark: (value.is_some() || mask.is_some())
            .then(|| Mark { value: value.unwrap_or_default(), mask: mask.unwrap_or(u32::MAX) }),
        from: prefix(FRA_SRC, header[2])?,
        to: prefix(FRA_DST, header[1])?,
        input: find(bytes, FRA_IIFNAME).map(LinkName::told),
        inverted: u32_at(header, 8) & FIB_RULE_INVERT != 0,
        action: match header[7] {
            FR_ACT_TO_TBL => RuleAction::Lookup(table),
            FR_ACT_BLACKHOLE => RuleAction::Blackhole,
            FR_ACT_UNREACHABLE => RuleAction::Unreachable,
            FR_ACT_PROHIBIT => RuleAction::Prohibit,
            other => RuleAction::Other(other),
        },
        // KERNEL: -1 is none, and is told.
        suppress_prefix_length: number(FRA_SUPPRESS_PREFIXLEN).filter(|length| *length != u32::MAX),
        protocol: RouteProtocol(find(bytes, FRA_PROTOCOL).and_then(u8_of).unwrap_or_default()),
        has_more: header[3] != 0 || attributes(bytes).any(|(kind, value)| is_condition(kind, value)),
    }))
}

/// Whether an attribute makes a rule another one in a way that [`Rule`] does not tell.
fn is_condition(kind: u16, value: &[u8]) -> bool {
    match kind {
        // -1 is none.
        FRA_SUPPRESS_IFGROUP => u32_of(value) != Some(u32::MAX),
        FRA_L3MDEV => u8_of(value) != Some(0),
        FRA_GOTO | FRA_FLOW | FRA_TUN_ID | FRA_OIFNAME | FRA_UID_RANGE => true,
        FRA_IP_PROTO | FRA_SPORT_RANGE | FRA_DPORT_RANGE => true,
        _ => kind >= FRA_DSCP,
    }
}
