//! What a packet is: its headers, where it is, and what conntrack says of it.

use std::net::IpAddr;

use kernel_nft::ruleset::Hook;

/// Number of TCP.
pub const TCP: u8 = 6;
/// Number of UDP.
pub const UDP: u8 = 17;
/// Number of ICMP.
pub const ICMP: u8 = 1;
/// Number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Number of SCTP.
pub const SCTP: u8 = 132;

/// What conntrack says of a packet. `Invalid` and `Untracked` packets have no connection: `ct mark` and
/// `ct direction` do not match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtState {
    /// Makes no sense to conntrack.
    Invalid,
    /// The first of its connection.
    New,
    /// Of a connection that has seen both directions.
    Established,
    /// Belongs to a connection, such as an ICMP error.
    Related,
    /// Not tracked.
    Untracked,
}

/// A packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it is.
    pub hook: Hook,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// The number of its protocol.
    pub protocol: u8,
    /// First bytes of the transport header.
    pub transport: Vec<u8>,
    /// What conntrack says of it.
    pub state: CtState,
    /// It goes against the direction of its connection.
    pub reply: bool,
    /// `ct status`
    pub ct_status: u32,
    /// `ct mark`
    pub ct_mark: u32,
    /// `meta mark`
    pub mark: u32,
    /// The source is an address of this host.
    pub source_is_local: bool,
    /// The destination is an address of this host.
    pub destination_is_local: bool,
    /// Device that it came by.
    pub iif: &'static str,
    /// Device that it leaves by.
    pub oif: &'static str,
    /// Address of that device, for `masquerade`.
    pub oif_address: Option<IpAddr>,
    /// Whether `limit` expressions are over their rate.
    pub over_limit: bool,
    /// What the first packet of its connection looked like when it came in; `None` if as this one looks.
    pub original: Option<Tuple>,
    /// The translation of destinations was decided, maybe to do nothing.
    pub destination_decided: bool,
    /// The translation of sources was decided, maybe to do nothing.
    pub source_decided: bool,
}

/// Addresses and ports of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source and destination port.
    pub ports: [u16; 2],
}

impl Packet {
    /// The first packet of a connection between two ports, in the forward hook.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        Self {
            hook: Hook::Forward,
            source,
            destination,
            protocol,
            transport: [vec![0xc0, 0x01, high, low], vec![0; 16]].concat(),
            state: CtState::New,
            reply: false,
            ct_status: 0,
            ct_mark: 0,
            mark: 0,
            source_is_local: false,
            destination_is_local: false,
            iif: "eth0",
            oif: "veth0",
            oif_address: None,
            over_limit: false,
            original: None,
            destination_decided: false,
            source_decided: false,
        }
    }

    /// Its destination port.
    ///
    /// # Panics
    /// If it has none.
    pub fn port(&self) -> u16 {
        self.tuple().ports[1]
    }

    /// Sends it elsewhere, as IPVS and translation do. What its connection looked like at first is kept.
    pub fn redirect(&mut self, destination: IpAddr, port: Option<u16>) {
        self.remember();
        self.destination = destination;
        if let Some(port) = port {
            self.transport[2..4].copy_from_slice(&port.to_be_bytes());
        }
    }

    /// Gives it another source, as translation does.
    pub fn disguise(&mut self, source: IpAddr) {
        self.remember();
        self.source = source;
    }

    fn remember(&mut self) {
        self.original = Some(self.original.unwrap_or_else(|| self.tuple()));
    }

    pub(super) fn tuple(&self) -> Tuple {
        let port = |at: usize| u16::from_be_bytes([self.transport[at], self.transport[at + 1]]);
        Tuple { source: self.source, destination: self.destination, ports: [port(0), port(2)] }
    }

    /// An ICMP or ICMPv6 message, after the family of the addresses.
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8) -> Self {
        let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
        Self { transport: vec![kind, 0, 0, 0, 0, 1, 0, 1], ..Self::new(source, destination, protocol, 0) }
    }

    /// The answer of the other side once the connection has the given mark.
    pub fn answer(&self, ct_mark: u32) -> Self {
        let mut transport = self.transport.clone();
        if matches!(self.protocol, TCP | UDP | SCTP) {
            transport.rotate_left(2);
            transport[2..4].copy_from_slice(&self.transport[0..2]);
            transport[4..].fill(0);
        }
        Self {
            source: self.destination,
            destination: self.source,
            transport,
            state: CtState::Established,
            reply: true,
            ct_mark,
            source_is_local: self.destination_is_local,
            destination_is_local: self.source_is_local,
            ..self.clone()
        }
    }

    /// A later packet of the same side once the connection has the given mark.
    pub fn later(&self, ct_mark: u32) -> Self {
        Self { state: CtState::Established, ct_mark, ..self.clone() }
    }

    pub(super) fn network_header(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, self.protocol, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 20, self.protocol, 64];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (source, destination) => panic!("no packet goes from {source} to {destination}"),
        }
    }
}
