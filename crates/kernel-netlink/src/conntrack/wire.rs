//! Connections as ctnetlink messages. Numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use super::{Connection, Family, Protocol, Tuple};
use crate::attribute::{Attribute, Message, Value, be16_of, find, u8_of};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = (NFNL_SUBSYS_CTNETLINK << 8) | 1;
const IPCTNL_MSG_CT_DELETE: u16 = (NFNL_SUBSYS_CTNETLINK << 8) | 2;

const NFGENMSG: usize = 4;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// net/netfilter/nf_internals.h: `CTA_FILTER_F_CTA_PROTO_NUM`.
const FILTER_PROTOCOL: u32 = 1 << 3;

/// Asks for all connections of a family and protocol. KERNEL: before Linux 5.8 the filter is not looked at; since,
/// it needs a family.
pub(super) fn get(family: Family, protocol: Protocol) -> Message {
    let number = Attribute::new(CTA_PROTO_NUM, Value::U8(protocol.0));
    let tuple = vec![Attribute::new(CTA_TUPLE_PROTO, Value::Nested(vec![number]))];
    let flags = Attribute::new(CTA_FILTER_ORIG_FLAGS, Value::U32(FILTER_PROTOCOL));
    let attributes = vec![
        Attribute::new(CTA_TUPLE_ORIG, Value::Nested(tuple)),
        Attribute::new(CTA_FILTER, Value::Nested(vec![flags])),
    ];
    Message { kind: IPCTNL_MSG_CT_GET, header: nfgenmsg(family), attributes }
}

/// `struct nfgenmsg`.
fn nfgenmsg(family: Family) -> Vec<u8> {
    let family = match family {
        Family::Ipv4 => libc::AF_INET,
        Family::Ipv6 => libc::AF_INET6,
    };
    // Version and resource id are 0.
    vec![family as u8, 0, 0, 0]
}

/// Ends a connection.
///
/// KERNEL: such a message without a tuple ends *all* connections; this one always has one.
pub(super) fn delete(connection: &Connection) -> Message {
    let Tuple { source, destination, source_port, destination_port } = connection.original;
    let family = Family::of(source);
    let kinds = match family {
        Family::Ipv4 => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
        Family::Ipv6 => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
    };
    let ip = |kind, address| Attribute::new(kind, Value::Bytes(bytes_of(address)));
    let port = |kind, port: u16| Attribute::new(kind, Value::Bytes(port.to_be_bytes().to_vec()));
    let addresses = vec![ip(kinds.0, source), ip(kinds.1, destination)];
    let ports = vec![
        Attribute::new(CTA_PROTO_NUM, Value::U8(connection.protocol.0)),
        port(CTA_PROTO_SRC_PORT, source_port),
        port(CTA_PROTO_DST_PORT, destination_port),
    ];
    let tuple = vec![
        Attribute::new(CTA_TUPLE_IP, Value::Nested(addresses)),
        Attribute::new(CTA_TUPLE_PROTO, Value::Nested(ports)),
    ];
    let mut attributes = vec![Attribute::new(CTA_TUPLE_ORIG, Value::Nested(tuple))];
    if connection.zone != 0 {
        attributes.push(Attribute::new(CTA_ZONE, Value::Bytes(connection.zone.to_be_bytes().to_vec())));
    }
    attributes
        .extend(connection.id.map(|id| Attribute::new(CTA_ID, Value::Bytes(id.to_be_bytes().to_vec()))));
    Message { kind: IPCTNL_MSG_CT_DELETE, header: nfgenmsg(family), attributes }
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Reads the body of a message of a dump; `None` is a connection of a protocol without ports.
pub(super) fn connection(body: &[u8]) -> Result<Option<Connection>, &'static str> {
    let attributes = body.get(NFGENMSG..).ok_or("a message that ends within its header")?;
    let original = find(attributes, CTA_TUPLE_ORIG).ok_or("a connection without its tuple")?;
    let reply = find(attributes, CTA_TUPLE_REPLY).ok_or("a connection without its reply")?;
    let (Some((protocol, original)), Some((_, reply))) = (tuple(original), tuple(reply)) else {
        return Ok(None);
    };
    Ok(Some(Connection {
        protocol,
        original,
        reply,
        zone: find(attributes, CTA_ZONE).and_then(be16_of).unwrap_or_default(),
        id: find(attributes, CTA_ID).and_then(|id| id.first_chunk().copied().map(u32::from_be_bytes)),
    }))
}

fn tuple(bytes: &[u8]) -> Option<(Protocol, Tuple)> {
    let (addresses, ports) = (find(bytes, CTA_TUPLE_IP)?, find(bytes, CTA_TUPLE_PROTO)?);
    let v4 =
        |kind| find(addresses, kind)?.first_chunk::<4>().map(|bytes| IpAddr::from(Ipv4Addr::from(*bytes)));
    let v6 =
        |kind| find(addresses, kind)?.first_chunk::<16>().map(|bytes| IpAddr::from(Ipv6Addr::from(*bytes)));
    let (source, destination) = match v4(CTA_IP_V4_SRC) {
        Some(source) => (source, v4(CTA_IP_V4_DST)?),
        None => (v6(CTA_IP_V6_SRC)?, v6(CTA_IP_V6_DST)?),
    };
    let tuple = Tuple {
        source,
        destination,
        source_port: find(ports, CTA_PROTO_SRC_PORT).and_then(be16_of)?,
        destination_port: find(ports, CTA_PROTO_DST_PORT).and_then(be16_of)?,
    };
    Some((Protocol(find(ports, CTA_PROTO_NUM).and_then(u8_of)?), tuple))
}
