//! What a node that holds the wanted state makes of the first packet of a connection: its table, by the
//! interpreter, and its virtual services, in the order in which a kernel was seen to ask them.
//!
//! ```text
//!  from elsewhere, from a pod: prerouting ─ local? ─ input ─ IPVS ─ output ─ postrouting
//!                                              └ no ─ forward ─ postrouting
//!  from the node:    output ─ IPVS ─ output again, to the endpoint ─ postrouting
//!                         └ none ─ local? ─ prerouting ─ input
//! ```
//!
//! An endpoint on the host network of this node is reached without output and postrouting.

use std::collections::BTreeSet;
use std::net::IpAddr;

use common_informer::object::{Family, Protocol};
use kernel_nft::{Hook, Reject};
use svc_proxy_ipvs::plan::{Front, Virtual};
use test_netns::interpreter::{self, Packet, run};

use super::Pure;

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a pod of this node.
    Pod,
    /// On this node itself.
    Node,
    /// Anywhere else: outside of the cluster, in a pod of another node, on another node.
    Elsewhere,
}

/// A connection that somebody opens through this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    pub place: Place,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// As whom an endpoint sees a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// As itself.
    Client,
    /// As this node.
    Node,
    /// As the address that it opened the connection to.
    Front,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// One of these endpoints has it.
    Served(BTreeSet<(IpAddr, u16, Seen)>),
    /// Its client is told that there is nobody.
    Refused,
    /// Nobody is told anything.
    Dropped,
    /// It is not for the proxy: it goes to the node's own ports, or on.
    Passed,
}

impl Connection {
    pub fn front(&self) -> Front {
        Front { ip: self.destination, protocol: self.protocol, port: self.port }
    }
}

/// What the node makes of a connection.
pub fn fate(node: &Pure, connection: &Connection) -> Fate {
    let first = first_packet(node, connection);
    if connection.place == Place::Node { of_the_node(node, first) } else { of_others(node, first) }
}

fn first_packet(node: &Pure, connection: &Connection) -> Packet {
    let Connection { place, source, destination, protocol, port } = *connection;
    Packet {
        source_is_local: place == Place::Node || is_local(node, source),
        destination_is_local: is_local(node, destination),
        oif_address: Some(leaves_as(Family::of(destination))),
        ..Packet::new(source, destination, protocol.number(), port)
    }
}

/// The address of the device that a packet leaves by: no other address, so that it is recognised. One is enough,
/// since nobody asks which device it is.
pub fn leaves_as(family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 0, 0, 8].into(),
        Family::V6 => [0x100, 0, 0, 0, 0, 0, 0, 8].into(),
    }
}

fn is_local(node: &Pure, ip: IpAddr) -> bool {
    node.addresses().own.contains(&ip) || node.planner.wants_vip(ip)
}

/// One hook; `Err` is what becomes of a packet that does not pass it.
fn pass(node: &Pure, hook: Hook, packet: Packet) -> Result<Packet, Fate> {
    let outcome = run(node.ruleset(), &Packet { hook, ..packet });
    let mut packet = outcome.packet;
    packet.destination_is_local = is_local(node, packet.destination);
    match outcome.fate {
        interpreter::Fate::Accepted => Ok(packet),
        interpreter::Fate::Dropped => Err(Fate::Dropped),
        interpreter::Fate::Rejected(answer) => {
            let wanted =
                if packet.protocol == interpreter::TCP { Reject::TcpReset } else { Reject::PortUnreachable };
            assert_eq!(answer, wanted);
            Err(Fate::Refused)
        }
    }
}

fn of_others(node: &Pure, packet: Packet) -> Fate {
    let attempt = || {
        let packet = pass(node, Hook::Prerouting, packet)?;
        if packet.destination_is_local {
            let packet = pass(node, Hook::Input, packet)?;
            return Ok(balanced(node, &packet).unwrap_or(Fate::Passed));
        }
        let packet = pass(node, Hook::Forward, packet)?;
        pass(node, Hook::Postrouting, packet)?;
        Ok(Fate::Passed)
    };
    attempt().unwrap_or_else(|fate| fate)
}

fn of_the_node(node: &Pure, packet: Packet) -> Fate {
    let attempt = || {
        let packet = pass(node, Hook::Output, packet)?;
        if let Some(fate) = balanced(node, &packet) {
            return Ok(fate);
        }
        let packet = pass(node, Hook::Postrouting, packet)?;
        if packet.destination_is_local {
            let packet = pass(node, Hook::Prerouting, packet)?;
            pass(node, Hook::Input, packet)?;
        }
        Ok(Fate::Passed)
    };
    attempt().unwrap_or_else(|fate| fate)
}

/// What IPVS makes of it; `None` if it has no such virtual service.
fn balanced(node: &Pure, packet: &Packet) -> Option<Fate> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == packet.protocol)
        .unwrap();
    let front = Front { ip: packet.destination, protocol, port: packet.port() };
    let Virtual { destinations, .. } = &**node.planner.virtual_service(&front.service_key())?;
    // KERNEL: ip_vs_leave() answers that the port is unreachable.
    let takes: Vec<_> = destinations.iter().filter(|to| to.weight > 0).collect();
    if takes.is_empty() {
        return Some(Fate::Refused);
    }
    let mut served = BTreeSet::new();
    for to in takes {
        match sent(node, packet, to.key.address, to.key.port) {
            Ok(seen) => served.insert((to.key.address, to.key.port, seen)),
            // Part of the connections would fail: that is never what is wanted.
            Err(fate) => panic!("{packet:?} is for {}, but {fate:?} on the way there", to.key),
        };
    }
    Some(Fate::Served(served))
}

/// On from IPVS to an endpoint.
fn sent(node: &Pure, packet: &Packet, address: IpAddr, port: u16) -> Result<Seen, Fate> {
    let client = packet.source;
    let mut packet = packet.clone();
    let of_node = packet.source_is_local;
    let front = packet.original.map_or(packet.destination, |original| original.destination);
    packet.redirect(address, Some(port));
    if !node.addresses().own.contains(&address) {
        packet = pass(node, Hook::Output, packet)?;
        assert_eq!((packet.destination, packet.port()), (address, port), "translated again after IPVS");
        packet = pass(node, Hook::Postrouting, packet)?;
    }
    Ok(match packet.source {
        _ if of_node => Seen::Node,
        source if source == client => Seen::Client,
        source if source == front => Seen::Front,
        source => {
            assert_eq!(source, leaves_as(Family::of(source)));
            Seen::Node
        }
    })
}
