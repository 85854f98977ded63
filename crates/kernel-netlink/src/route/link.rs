//! Network devices ("links" to rtnetlink).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Number of a device in its network namespace (`ifindex`). It is not given again while the namespace lives,
/// save that a device may ask for a number when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Name of a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

impl LinkName {
    /// LIMIT: `IFNAMSIZ` is 16 with the NUL.
    const LIMIT: usize = 15;

    /// A name that a device can have (`dev_valid_name`, net/core/dev.c): 1 to 15 bytes without `/`, `:` and white
    /// space, and neither `.` nor `..`. `None` for any other. `%` is taken for itself, though the kernel makes
    /// `%d` in a new name a number: `None` too.
    pub fn new(name: &str) -> Option<Self> {
        let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        let fits = !name.is_empty() && name.len() <= Self::LIMIT;
        (fits && name != "." && name != ".." && !name.contains(bad)).then(|| Self(name.to_owned()))
    }

    /// A name that the kernel told, whatever it is; bytes that are not UTF-8 are replaced.
    pub(super) fn told(bytes: &[u8]) -> Self {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Self(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Address of a device on an Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A device as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: LinkIndex,
    /// Its name.
    pub name: LinkName,
    /// What made it.
    pub kind: LinkKind,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// On an Ethernet.
    pub mac: Option<MacAddress>,
    /// Whether it is meant to be up (`IFF_UP`).
    pub up: bool,
    /// Whether it is in operation (`IFF_RUNNING`). KERNEL: follows [`Link::carrier`] a moment later; a port of a
    /// bridge forwards from then on.
    pub running: bool,
    /// Whether it takes packets that are not for it because somebody asked for it (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Free text for people.
    pub alias: Option<String>,
    /// Whether it can carry packets (`IFF_LOWER_UP`): for a veth, whether its peer is up too.
    pub carrier: bool,
    /// The bridge (bond, VRF) whose port it is.
    pub master: Option<LinkIndex>,
    /// How it is a port of its master, if that is a bridge.
    pub port: Option<Port>,
    /// Whether it tells VLANs apart, if it is a bridge. KERNEL: false too where the kernel cannot.
    pub vlan_filtering: Option<bool>,
    /// The device on the other side of a veth, or below a VLAN or tunnel. In which namespace the number counts is
    /// told by [`Link::peer_namespace`].
    pub peer: Option<LinkIndex>,
    /// The namespace of the peer, if it is another one, by the number that this namespace has for it.
    pub peer_namespace: Option<i32>,
}

/// Properties of a port of a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Whether a frame may leave by the port that it came in by.
    pub hairpin: bool,
    /// Whether frames from other isolated ports are kept from it.
    pub isolated: bool,
    /// Whether it takes no frames but from addresses that [`Forwarding`] leads to it (Linux ≥ 5.18).
    pub locked: bool,
}

/// What is to be changed on a port of a bridge; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortChange {
    /// See [`Port::hairpin`].
    pub hairpin: Option<bool>,
    /// See [`Port::isolated`].
    pub isolated: Option<bool>,
    /// See [`Port::locked`]. KERNEL: before Linux 5.18 it is passed over without a word: read it back.
    pub locked: Option<bool>,
}

/// That frames to an address leave by a port of a bridge; it does not expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// The port.
    pub port: LinkIndex,
    /// The address.
    pub mac: MacAddress,
}

/// VLANs of a port of a bridge that tells VLANs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlans {
    /// The port.
    pub port: LinkIndex,
    /// The first of them; 1 to 4094.
    pub first: u16,
    /// The last of them; not less than the first.
    pub last: u16,
    /// Whether it is *the* VLAN of the port: frames without a tag come into it, and its frames leave without one.
    /// KERNEL: not of more than one.
    pub access: bool,
}

/// What kind of device it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Made by a driver: hardware, loopback.
    Device,
    /// Swallows what is sent to it.
    Dummy,
    /// An Ethernet bridge.
    Bridge,
    /// One end of a pair.
    Veth,
    /// IPv4 in IPv4.
    Ipip(IpipTunnel),
    /// IPv6 (or IPv4) in IPv6.
    Ip6tnl(Ip6Tunnel),
    /// Of another kind, by the kernel's name for it.
    Other(String),
}

/// An `ipip` tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpipTunnel {
    /// Where packets come from; any of the node's addresses if absent.
    pub local: Option<Ipv4Addr>,
    /// Where packets go to; absent: this end only receives, or routes say.
    pub remote: Option<Ipv4Addr>,
    /// Time to live of the outer packet; 0 takes that of the inner.
    pub ttl: u8,
    /// Whether the outer packet must not be fragmented. KERNEL: a fixed [`IpipTunnel::ttl`] needs it.
    pub path_mtu_discovery: bool,
}

impl IpipTunnel {
    /// A tunnel as `ip link add … type ipip` makes it.
    pub const fn new(local: Option<Ipv4Addr>, remote: Option<Ipv4Addr>) -> Self {
        Self { local, remote, ttl: 0, path_mtu_discovery: true }
    }
}

/// An `ip6tnl` tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip6Tunnel {
    /// Where packets come from; any of the node's addresses if absent.
    pub local: Option<Ipv6Addr>,
    /// Where packets go to; absent: this end only receives, or routes say.
    pub remote: Option<Ipv6Addr>,
    /// Hop limit of the outer packet; 0 takes that of the inner.
    pub hop_limit: u8,
    /// What is inside.
    pub mode: Ip6TunnelMode,
}

impl Ip6Tunnel {
    /// A tunnel for IPv4 and IPv6, without an encapsulation limit.
    pub const fn new(local: Option<Ipv6Addr>, remote: Option<Ipv6Addr>) -> Self {
        Self { local, remote, hop_limit: 64, mode: Ip6TunnelMode::Any }
    }
}

/// What an `ip6tnl` tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip6TunnelMode {
    /// Both.
    Any,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLink {
    /// Its name.
    pub name: LinkName,
    /// What it is.
    pub kind: NewLinkKind,
    /// Whether it is up from the start.
    pub up: bool,
    /// Bytes of the largest packet; the kernel's choice if absent.
    pub mtu: Option<u32>,
    /// A random one if absent.
    pub mac: Option<MacAddress>,
    /// The bridge whose port it is from the start.
    pub master: Option<LinkIndex>,
}

impl NewLink {
    /// A device that is down, with the kernel's choice of all that can be chosen.
    pub const fn new(name: LinkName, kind: NewLinkKind) -> Self {
        Self { name, kind, up: false, mtu: None, mac: None, master: None }
    }
}

/// The kinds of devices that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewLinkKind {
    /// See [`LinkKind::Dummy`].
    Dummy,
    /// See [`LinkKind::Bridge`].
    Bridge(Bridge),
    /// A pair; the other end is the peer.
    Veth(Peer),
    /// See [`LinkKind::Ipip`].
    Ipip(IpipTunnel),
    /// See [`LinkKind::Ip6tnl`].
    Ip6tnl(Ip6Tunnel),
}

impl NewLinkKind {
    /// The kernel's name for the kind.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Dummy => "dummy",
            Self::Bridge(_) => "bridge",
            Self::Veth(_) => "veth",
            Self::Ipip(_) => "ipip",
            Self::Ip6tnl(_) => "ip6tnl",
        }
    }
}

/// Settings of a new bridge; the kernel's choice where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Whether VLANs are told apart.
    pub vlan_filtering: Option<bool>,
    /// Whether it watches who listens to multicasts. KERNEL: with it, neighbour discovery between pods can fail
    /// until a querier is elected.
    pub multicast_snooping: Option<bool>,
}

/// The other end of a new veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: LinkName,
    /// A random one if absent.
    pub mac: Option<MacAddress>,
    /// Bytes of the largest packet; the kernel's choice if absent.
    pub mtu: Option<u32>,
    /// Where it is made; beside the first end if absent.
    pub namespace: Option<crate::namespace::Namespace>,
}

impl Peer {
    /// An end in the same namespace, with the kernel's choice of the rest.
    pub const fn new(name: LinkName) -> Self {
        Self { name, mac: None, mtu: None, namespace: None }
    }
}

/// What is to be changed on a device; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// Bytes of the largest packet.
    pub mtu: Option<u32>,
    /// Another name. LIMIT: before Linux 6.4, refused (`EBUSY`) while it is up.
    pub name: Option<LinkName>,
    /// Another address.
    pub mac: Option<MacAddress>,
    /// The bridge whose port it becomes; `Some(None)` takes it out of its bridge.
    pub master: Option<Option<LinkIndex>>,
    /// Whether it takes packets that are not for it.
    pub promiscuous: Option<bool>,
    /// Free text for people; at most 255 bytes. The empty text removes it.
    pub alias: Option<String>,
    /// The namespace that it moves to, where it is down and without addresses.
    pub namespace: Option<crate::namespace::Namespace>,
}
