//! Entries and commands as attributes of generic netlink, and back.
//!
//! KERNEL: addresses are always 16 bytes (`union nf_inet_addr`), ports in network order, everything else in host
//! order but the netmask of IPv4, which is 4 bytes of an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU16, NonZeroU32};

use super::entry::*;
use super::uapi::*;
use crate::attribute::{Attribute, Value, be16_of, find, u8_of, u16_of, u32_of, u64_of};
use crate::genl;

/// The message that carries out a command.
pub(super) fn command(command: &Command) -> genl::Command {
    let service = |key| Attribute::new(IPVS_CMD_ATTR_SERVICE, Value::Nested(service_key(key)));
    let dest = |attributes| Attribute::new(IPVS_CMD_ATTR_DEST, Value::Nested(attributes));
    let (number, attributes) = match command {
        Command::AddService(wanted) => (IPVS_CMD_NEW_SERVICE, vec![whole_service(wanted)]),
        Command::SetService(wanted) => (IPVS_CMD_SET_SERVICE, vec![whole_service(wanted)]),
        Command::DeleteService(key) => (IPVS_CMD_DEL_SERVICE, vec![service(key)]),
        Command::AddDestination(key, to) => (IPVS_CMD_NEW_DEST, vec![service(key), dest(whole_dest(to))]),
        Command::SetDestination(key, to) => (IPVS_CMD_SET_DEST, vec![service(key), dest(whole_dest(to))]),
        Command::DeleteDestination(key, to) => (IPVS_CMD_DEL_DEST, vec![service(key), dest(dest_key(to))]),
        Command::Zero(key) => (IPVS_CMD_ZERO, vec![service(key)]),
        Command::ZeroAll => (IPVS_CMD_ZERO, Vec::new()),
        Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => (
            IPVS_CMD_SET_CONFIG,
            vec![
                Attribute::new(IPVS_CMD_ATTR_TIMEOUT_TCP, Value::U32(*tcp)),
                Attribute::new(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, Value::U32(*tcp_fin)),
                Attribute::new(IPVS_CMD_ATTR_TIMEOUT_UDP, Value::U32(*udp)),
            ],
        ),
    };
    request(number, attributes)
}

pub(super) fn get_services() -> genl::Command {
    request(IPVS_CMD_GET_SERVICE, Vec::new())
}

pub(super) fn get_service(key: &ServiceKey) -> genl::Command {
    let service = Attribute::new(IPVS_CMD_ATTR_SERVICE, Value::Nested(service_key(key)));
    request(IPVS_CMD_GET_SERVICE, vec![service])
}

pub(super) fn get_destinations(key: &ServiceKey) -> genl::Command {
    let service = Attribute::new(IPVS_CMD_ATTR_SERVICE, Value::Nested(service_key(key)));
    request(IPVS_CMD_GET_DEST, vec![service])
}

pub(super) fn get_config() -> genl::Command {
    request(IPVS_CMD_GET_CONFIG, Vec::new())
}

pub(super) fn get_info() -> genl::Command {
    request(IPVS_CMD_GET_INFO, Vec::new())
}

fn request(command: u8, attributes: Vec<Attribute>) -> genl::Command {
    genl::Command { command, version: IPVS_GENL_VERSION, attributes }
}

fn service_key(key: &ServiceKey) -> Vec<Attribute> {
    let family = Attribute::new(IPVS_SVC_ATTR_AF, Value::U16(family_number(key.family())));
    match *key {
        ServiceKey::Address { protocol, address, port } => vec![
            family,
            Attribute::new(IPVS_SVC_ATTR_PROTOCOL, Value::U16(protocol.0.into())),
            Attribute::new(IPVS_SVC_ATTR_ADDR, address_value(address)),
            Attribute::new(IPVS_SVC_ATTR_PORT, port_value(port)),
        ],
        ServiceKey::Mark { mark, .. } => {
            vec![family, Attribute::new(IPVS_SVC_ATTR_FWMARK, Value::U32(mark.get()))]
        }
    }
}

fn whole_service(service: &Service) -> Attribute {
    let persistent = if service.persistence.is_some() { IP_VS_SVC_F_PERSISTENT } else { 0 };
    // struct ip_vs_flags: the flags, and which of them are meant. HASHED is the kernel's.
    let mut flags = (service.flags.bits() | persistent).to_ne_bytes().to_vec();
    flags.extend_from_slice(&(!IP_VS_SVC_F_HASHED).to_ne_bytes());
    let (timeout, netmask) = match service.persistence {
        Some(persistence) => (persistence.timeout, persistence.netmask),
        // KERNEL: they must be there, and be valid, in any case.
        None => (0, Netmask::Prefix(service.key.family().bits())),
    };
    let mut attributes = service_key(&service.key);
    attributes.extend([
        Attribute::new(IPVS_SVC_ATTR_SCHED_NAME, Value::Text(service.scheduler.as_str().to_owned())),
        Attribute::new(IPVS_SVC_ATTR_FLAGS, Value::Bytes(flags)),
        Attribute::new(IPVS_SVC_ATTR_TIMEOUT, Value::U32(timeout)),
        Attribute::new(IPVS_SVC_ATTR_NETMASK, netmask_value(netmask, service.key.family())),
    ]);
    Attribute::new(IPVS_CMD_ATTR_SERVICE, Value::Nested(attributes))
}

fn dest_key(key: &DestinationKey) -> Vec<Attribute> {
    vec![
        Attribute::new(IPVS_DEST_ATTR_ADDR_FAMILY, Value::U16(family_number(Family::of(key.address)))),
        Attribute::new(IPVS_DEST_ATTR_ADDR, address_value(key.address)),
        Attribute::new(IPVS_DEST_ATTR_PORT, port_value(key.port)),
    ]
}

fn whole_dest(destination: &Destination) -> Vec<Attribute> {
    let method = match destination.forward {
        Forward::Masquerade => IP_VS_CONN_F_MASQ,
        Forward::Local => IP_VS_CONN_F_LOCALNODE,
        Forward::Tunnel(_) => IP_VS_CONN_F_TUNNEL,
        Forward::Route => IP_VS_CONN_F_DROUTE,
        Forward::Bypass => IP_VS_CONN_F_BYPASS,
    };
    let (tunnel, port, checksum) = match destination.forward {
        Forward::Tunnel(Tunnel::Gue { port, checksum }) => {
            (IP_VS_CONN_F_TUNNEL_TYPE_GUE, port.get(), checksum)
        }
        Forward::Tunnel(Tunnel::Gre { checksum }) => (IP_VS_CONN_F_TUNNEL_TYPE_GRE, 0, checksum),
        _ => (IP_VS_CONN_F_TUNNEL_TYPE_IPIP, 0, Checksum::NONE),
    };
    let mut attributes = dest_key(&destination.key);
    attributes.extend([
        Attribute::new(IPVS_DEST_ATTR_FWD_METHOD, Value::U32(method)),
        Attribute::new(IPVS_DEST_ATTR_WEIGHT, Value::U32(destination.weight)),
        Attribute::new(IPVS_DEST_ATTR_U_THRESH, Value::U32(destination.upper_threshold)),
        Attribute::new(IPVS_DEST_ATTR_L_THRESH, Value::U32(destination.lower_threshold)),
        Attribute::new(IPVS_DEST_ATTR_TUN_TYPE, Value::U8(tunnel)),
        Attribute::new(IPVS_DEST_ATTR_TUN_PORT, port_value(port)),
        Attribute::new(IPVS_DEST_ATTR_TUN_FLAGS, Value::U16(checksum.0)),
    ]);
    attributes
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    }
}

fn address_value(address: IpAddr) -> Value {
    let mut bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.resize(16, 0);
    Value::Bytes(bytes)
}

fn port_value(port: u16) -> Value {
    Value::Bytes(port.to_be_bytes().to_vec())
}

fn netmask_value(netmask: Netmask, family: Family) -> Value {
    match (family, netmask) {
        (Family::Ipv4, Netmask::Prefix(bits)) => {
            let clear = u32::from(32_u8.saturating_sub(bits));
            Value::Bytes(u32::MAX.checked_shl(clear).unwrap_or(0).to_be_bytes().to_vec())
        }
        (Family::Ipv4, Netmask::Mask(mask)) => Value::Bytes(mask.to_be_bytes().to_vec()),
        (Family::Ipv6, Netmask::Prefix(bits)) => Value::U32(bits.min(128).into()),
        (Family::Ipv6, Netmask::Mask(_)) => Value::U32(128),
    }
}

/// The service in a message; `None` if the message is about something else.
pub(super) fn service(body: &[u8]) -> Result<Option<ServiceState>, &'static str> {
    let Some(attributes) = content(body, IPVS_CMD_NEW_SERVICE, IPVS_CMD_ATTR_SERVICE)? else {
        return Ok(None);
    };
    let key = service_key_of(attributes).ok_or("a service without a whole key")?;
    let scheduler = find(attributes, IPVS_SVC_ATTR_SCHED_NAME)
        .and_then(|name| Scheduler::from_bytes(name.split(|byte| *byte == 0).next()?))
        .ok_or("a service without a scheduler")?;
    let flags = find(attributes, IPVS_SVC_ATTR_FLAGS).and_then(u32_of).ok_or("a service without flags")?;
    let persistence = if flags & IP_VS_SVC_F_PERSISTENT == 0 {
        None
    } else {
        let timeout = find(attributes, IPVS_SVC_ATTR_TIMEOUT).and_then(u32_of);
        let netmask =
            find(attributes, IPVS_SVC_ATTR_NETMASK).and_then(|value| netmask_of(value, key.family()));
        let whole = timeout.zip(netmask).map(|(timeout, netmask)| Persistence { timeout, netmask });
        Some(whole.ok_or("a persistent service without timeout or netmask")?)
    };
    let service = Service { key, scheduler, flags: Flags::from_bits(flags), persistence };
    Ok(Some(ServiceState { service, stats: stats(find(attributes, IPVS_SVC_ATTR_STATS64)) }))
}

/// The destination in a message about a service of `family`; `None` if the message is about something else.
pub(super) fn destination(body: &[u8], family: Family) -> Result<Option<DestinationState>, &'static str> {
    let Some(attributes) = content(body, IPVS_CMD_NEW_DEST, IPVS_CMD_ATTR_DEST)? else {
        return Ok(None);
    };
    let number = |kind| find(attributes, kind).and_then(u32_of).unwrap_or_default();
    // Linux before 3.18 has no family of its own for destinations.
    let family = match find(attributes, IPVS_DEST_ATTR_ADDR_FAMILY).and_then(u16_of) {
        None => family,
        Some(number) => family_of(number).ok_or("a destination of an unknown family")?,
    };
    let address = find(attributes, IPVS_DEST_ATTR_ADDR).and_then(|value| address_of(value, family));
    let port = find(attributes, IPVS_DEST_ATTR_PORT).and_then(be16_of);
    let (address, port) = address.zip(port).ok_or("a destination without a whole key")?;
    let destination = Destination {
        key: DestinationKey { address, port },
        forward: forward_of(attributes).ok_or("a destination that is reached in an unknown way")?,
        weight: find(attributes, IPVS_DEST_ATTR_WEIGHT)
            .and_then(u32_of)
            .ok_or("a destination without a weight")?,
        upper_threshold: number(IPVS_DEST_ATTR_U_THRESH),
        lower_threshold: number(IPVS_DEST_ATTR_L_THRESH),
    };
    Ok(Some(DestinationState {
        destination,
        active_connections: number(IPVS_DEST_ATTR_ACTIVE_CONNS),
        inactive_connections: number(IPVS_DEST_ATTR_INACT_CONNS),
        persistent_connections: number(IPVS_DEST_ATTR_PERSIST_CONNS),
        stats: stats(find(attributes, IPVS_DEST_ATTR_STATS64)),
    }))
}

/// The timeouts in a message; `None` if the message is about something else.
pub(super) fn timeouts(body: &[u8]) -> Result<Option<Timeouts>, &'static str> {
    let Some((command, attributes)) = genl::command(body) else {
        return Err("a message without a header");
    };
    // KERNEL: a protocol that was left out when the kernel was built has none.
    let number = |kind| find(attributes, kind).and_then(u32_of).unwrap_or_default();
    Ok((command == IPVS_CMD_SET_CONFIG).then(|| Timeouts {
        tcp: number(IPVS_CMD_ATTR_TIMEOUT_TCP),
        tcp_fin: number(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN),
        udp: number(IPVS_CMD_ATTR_TIMEOUT_UDP),
    }))
}

/// What IPVS says of itself; `None` if the message is about something else.
pub(super) fn info(body: &[u8]) -> Result<Option<Info>, &'static str> {
    let Some((command, attributes)) = genl::command(body) else {
        return Err("a message without a header");
    };
    if command != IPVS_CMD_SET_INFO {
        return Ok(None);
    }
    let number = |kind| find(attributes, kind).and_then(u32_of).ok_or("information that is not whole");
    let [_, major, minor, patch] = number(IPVS_INFO_ATTR_VERSION)?.to_be_bytes();
    let connection_buckets = number(IPVS_INFO_ATTR_CONN_TAB_SIZE)?;
    Ok(Some(Info { version: (major, minor, patch), connection_buckets }))
}

/// The attributes inside the one that a message is about; `None` if it is another message.
fn content(body: &[u8], command: u8, kind: u16) -> Result<Option<&[u8]>, &'static str> {
    match genl::command(body) {
        None => Err("a message without a header"),
        Some((found, _)) if found != command => Ok(None),
        Some((_, attributes)) => find(attributes, kind).map(Some).ok_or("a message without content"),
    }
}

fn service_key_of(attributes: &[u8]) -> Option<ServiceKey> {
    let family = family_of(u16_of(find(attributes, IPVS_SVC_ATTR_AF)?)?)?;
    if let Some(mark) = find(attributes, IPVS_SVC_ATTR_FWMARK) {
        return Some(ServiceKey::Mark { family, mark: NonZeroU32::new(u32_of(mark)?)? });
    }
    let protocol = u8::try_from(u16_of(find(attributes, IPVS_SVC_ATTR_PROTOCOL)?)?).ok()?;
    Some(ServiceKey::Address {
        protocol: Protocol(protocol),
        address: address_of(find(attributes, IPVS_SVC_ATTR_ADDR)?, family)?,
        port: be16_of(find(attributes, IPVS_SVC_ATTR_PORT)?)?,
    })
}

fn family_of(number: u16) -> Option<Family> {
    match number {
        AF_INET => Some(Family::Ipv4),
        AF_INET6 => Some(Family::Ipv6),
        _ => None,
    }
}

fn address_of(value: &[u8], family: Family) -> Option<IpAddr> {
    Some(match family {
        Family::Ipv4 => Ipv4Addr::from(*value.first_chunk::<4>()?).into(),
        Family::Ipv6 => Ipv6Addr::from(*value.first_chunk::<16>()?).into(),
    })
}

fn netmask_of(value: &[u8], family: Family) -> Option<Netmask> {
    match family {
        Family::Ipv4 => Some(Netmask::of_mask(u32::from_be_bytes(*value.first_chunk()?))),
        Family::Ipv6 => Some(Netmask::Prefix(u8::try_from(u32_of(value)?).ok()?)),
    }
}

fn forward_of(attributes: &[u8]) -> Option<Forward> {
    let method = u32_of(find(attributes, IPVS_DEST_ATTR_FWD_METHOD)?)?;
    Some(match method & IP_VS_CONN_F_FWD_MASK {
        IP_VS_CONN_F_MASQ => Forward::Masquerade,
        IP_VS_CONN_F_LOCALNODE => Forward::Local,
        IP_VS_CONN_F_TUNNEL => Forward::Tunnel(tunnel_of(attributes)?),
        IP_VS_CONN_F_DROUTE => Forward::Route,
        IP_VS_CONN_F_BYPASS => Forward::Bypass,
        _ => return None,
    })
}

fn tunnel_of(attributes: &[u8]) -> Option<Tunnel> {
    let checksum = Checksum(find(attributes, IPVS_DEST_ATTR_TUN_FLAGS).and_then(u16_of).unwrap_or_default());
    // Linux before 5.3 knows only IP in IP and does not say so.
    match find(attributes, IPVS_DEST_ATTR_TUN_TYPE).map_or(Some(IP_VS_CONN_F_TUNNEL_TYPE_IPIP), u8_of)? {
        IP_VS_CONN_F_TUNNEL_TYPE_IPIP => Some(Tunnel::Ipip),
        IP_VS_CONN_F_TUNNEL_TYPE_GUE => {
            let port = be16_of(find(attributes, IPVS_DEST_ATTR_TUN_PORT)?)?;
            Some(Tunnel::Gue { port: NonZeroU16::new(port)?, checksum })
        }
        IP_VS_CONN_F_TUNNEL_TYPE_GRE => Some(Tunnel::Gre { checksum }),
        _ => None,
    }
}

/// What is missing is 0.
fn stats(attributes: Option<&[u8]>) -> Stats {
    let number = |kind| attributes.and_then(|inside| find(inside, kind)).and_then(u64_of).unwrap_or_default();
    Stats {
        connections: number(IPVS_STATS_ATTR_CONNS),
        in_packets: number(IPVS_STATS_ATTR_INPKTS),
        out_packets: number(IPVS_STATS_ATTR_OUTPKTS),
        in_bytes: number(IPVS_STATS_ATTR_INBYTES),
        out_bytes: number(IPVS_STATS_ATTR_OUTBYTES),
        connection_rate: number(IPVS_STATS_ATTR_CPS),
        in_packet_rate: number(IPVS_STATS_ATTR_INPPS),
        out_packet_rate: number(IPVS_STATS_ATTR_OUTPPS),
        in_byte_rate: number(IPVS_STATS_ATTR_INBPS),
        out_byte_rate: number(IPVS_STATS_ATTR_OUTBPS),
    }
}
