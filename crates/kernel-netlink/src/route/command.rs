//! What can be asked of the kernel.

use std::fmt;

use super::entry::{Address, Route, Rule};
use super::link::{Forwarding, LinkChange, LinkIndex, NewLink, NewLinkKind, PortChange, PortVlans};

/// One change. It is carried out whole or refused whole, but for [`Command::SetLink`], of which a part may have
/// been done when it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes a device. `EEXIST` if there is one of the name, `EOPNOTSUPP` if the kernel has none of the kind.
    AddLink(NewLink),
    /// Changes a device. `ENODEV` if there is none with the number.
    SetLink(LinkIndex, LinkChange),
    /// Changes a device as a port of its bridge. `EOPNOTSUPP` if it is none, `ENODEV` if there is none with the
    /// number.
    SetPort(LinkIndex, PortChange),
    /// Has a bridge tell VLANs apart, or not any more. `EOPNOTSUPP` if it is none, or the kernel cannot.
    FilterVlans(LinkIndex, bool),
    /// Adds VLANs to a port. `EOPNOTSUPP` if the kernel cannot tell VLANs apart.
    AddVlans(PortVlans),
    /// Removes VLANs from a port. `ENOENT` if it has none of them.
    DeleteVlans(PortVlans),
    /// Leads frames to an address to a port of a bridge. `EEXIST` if there is an entry for it.
    AddForwarding(Forwarding),
    /// Removes a device, with its addresses, routes, and the peer of a veth.
    DeleteLink(LinkIndex),
    /// Adds an address. `EEXIST` if the device has it.
    AddAddress(Address),
    /// Removes an address. `EADDRNOTAVAIL` if the device does not have it.
    DeleteAddress(Address),
    /// Adds a route. `EEXIST` if there is one with its key.
    AddRoute(Route),
    /// Adds a route, in place of that with its key if there is one.
    ReplaceRoute(Route),
    /// Removes a route. `ESRCH` if there is none with its destination, table, metric, protocol and next hops.
    DeleteRoute(Route),
    /// Adds a rule. `EEXIST` if there is an equal one.
    AddRule(Rule),
    /// Removes a rule. `ENOENT` if there is none.
    DeleteRule(Rule),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(link) => {
                write!(f, "add link {} type {}", link.name, link.kind.name())?;
                if let NewLinkKind::Veth(peer) = &link.kind {
                    write!(f, " peer {}", peer.name)?;
                }
                Ok(())
            }
            Self::SetLink(link, change) => write!(f, "set link {link}{}", Changes(change)),
            Self::SetPort(link, PortChange { hairpin, isolated, locked }) => {
                write!(f, "set port {link}")?;
                for (name, value) in [("hairpin", hairpin), ("isolated", isolated), ("locked", locked)] {
                    if let Some(value) = value {
                        write!(f, " {name} {}", if *value { "on" } else { "off" })?;
                    }
                }
                Ok(())
            }
            Self::FilterVlans(link, on) => {
                write!(f, "set bridge {link} vlan_filtering {}", if *on { "on" } else { "off" })
            }
            Self::AddVlans(PortVlans { port, first, last, .. }) => {
                write!(f, "add vlan {first}-{last} to {port}")
            }
            Self::DeleteVlans(PortVlans { port, first, last, .. }) => {
                write!(f, "delete vlan {first}-{last} of {port}")
            }
            Self::AddForwarding(Forwarding { port, mac }) => write!(f, "forward {mac} to {port}"),
            Self::DeleteLink(link) => write!(f, "delete link {link}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::ReplaceRoute(route) => write!(f, "replace route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {} {rule}", rule.family),
            Self::DeleteRule(rule) => write!(f, "delete rule {} {rule}", rule.family),
        }
    }
}

struct Changes<'a>(&'a LinkChange);

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LinkChange { up, mtu, name, mac, master, promiscuous, alias, namespace } = self.0;
        if let Some(up) = up {
            f.write_str(if *up { " up" } else { " down" })?;
        }
        if let Some(mtu) = mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(name) = name {
            write!(f, " name {name}")?;
        }
        if let Some(mac) = mac {
            write!(f, " address {mac}")?;
        }
        match master {
            Some(Some(master)) => write!(f, " master {master}")?,
            Some(None) => f.write_str(" nomaster")?,
            None => {}
        }
        if let Some(promiscuous) = promiscuous {
            f.write_str(if *promiscuous { " promisc on" } else { " promisc off" })?;
        }
        if let Some(alias) = alias {
            write!(f, " alias {alias:?}")?;
        }
        if let Some(namespace) = namespace {
            write!(f, " netns {namespace}")?;
        }
        Ok(())
    }
}
