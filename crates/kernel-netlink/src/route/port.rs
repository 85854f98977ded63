//! Ports of bridges as rtnetlink messages.

use nix::libc;

use super::link::*;
use super::uapi::*;
use super::wire::{ifinfomsg, message};
use crate::attribute::{Attribute, Message, Value, find, u8_of};

/// KERNEL: what a master knows of its ports is changed by `RTM_NEWLINK` only.
pub(super) fn set_port(index: LinkIndex, change: PortChange) -> Message {
    let PortChange { hairpin, isolated, locked } = change;
    let flags = [(IFLA_BRPORT_MODE, hairpin), (IFLA_BRPORT_ISOLATED, isolated), (IFLA_BRPORT_LOCKED, locked)];
    let data = flags
        .into_iter()
        .filter_map(|(kind, value)| value.map(|value| Attribute::new(kind, Value::U8(value.into()))));
    let info = vec![
        Attribute::new(IFLA_INFO_SLAVE_KIND, Value::Text("bridge".to_owned())),
        Attribute::new(IFLA_INFO_SLAVE_DATA, Value::Nested(data.collect())),
    ];
    let info = Attribute::new(IFLA_LINKINFO, Value::Nested(info));
    message(RTM_NEWLINK, ifinfomsg(index, 0, 0), vec![info])
}

pub(super) fn filter_vlans(bridge: LinkIndex, on: bool) -> Message {
    let data = vec![Attribute::new(IFLA_BR_VLAN_FILTERING, Value::U8(on.into()))];
    let info = vec![
        Attribute::new(IFLA_INFO_KIND, Value::Text("bridge".to_owned())),
        Attribute::new(IFLA_INFO_DATA, Value::Nested(data)),
    ];
    let info = Attribute::new(IFLA_LINKINFO, Value::Nested(info));
    message(RTM_NEWLINK, ifinfomsg(bridge, 0, 0), vec![info])
}

/// Whether the bridge that `IFLA_LINKINFO` tells of filters VLANs.
pub(super) fn read_filtering(info: &[u8]) -> Option<bool> {
    find(info, IFLA_INFO_KIND).filter(|kind| kind.starts_with(b"bridge\0"))?;
    let data = find(info, IFLA_INFO_DATA)?;
    find(data, IFLA_BR_VLAN_FILTERING).and_then(u8_of).map(|on| on != 0)
}

/// `struct bridge_vlan_info`, once for one VLAN, twice for a range.
pub(super) fn port_vlans(kind: u16, vlans: PortVlans) -> Message {
    let PortVlans { port, first, last, access } = vlans;
    let flags = if access { BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED } else { 0 };
    let info = |flags: u16, vlan: u16| {
        let bytes = [flags.to_ne_bytes(), vlan.to_ne_bytes()].concat();
        Attribute::new(IFLA_BRIDGE_VLAN_INFO, Value::Bytes(bytes))
    };
    let infos = if first == last {
        vec![info(flags, first)]
    } else {
        vec![
            info(flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, first),
            info(flags | BRIDGE_VLAN_INFO_RANGE_END, last),
        ]
    };
    let mut header = ifinfomsg(port, 0, 0);
    header[0] = libc::AF_BRIDGE as u8;
    message(kind, header, vec![Attribute::new(IFLA_AF_SPEC, Value::Nested(infos))])
}

/// `struct ndmsg`: an entry of the table of the port's bridge (`NTF_MASTER`) that was not learnt (`NUD_NOARP`).
pub(super) fn forwarding(entry: Forwarding) -> Message {
    let mut header = vec![libc::AF_BRIDGE as u8, 0, 0, 0];
    header.extend_from_slice(&entry.port.0.to_ne_bytes());
    header.extend_from_slice(&NUD_NOARP.to_ne_bytes());
    header.extend_from_slice(&[NTF_MASTER, 0]);
    message(RTM_NEWNEIGH, header, vec![Attribute::new(NDA_LLADDR, Value::Bytes(entry.mac.0.to_vec()))])
}
