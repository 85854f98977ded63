//! Addresses, routes and rules as rtnetlink knows them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::link::{LinkIndex, LinkName};
use crate::family::Family;

/// How far an address or an IPv4 route reaches (`RT_SCOPE_*`): the larger, the nearer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(pub u8);

impl Scope {
    /// Everywhere.
    pub const UNIVERSE: Self = Self(0);
    /// As far as the wire.
    pub const LINK: Self = Self(253);
    /// This machine.
    pub const HOST: Self = Self(254);
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UNIVERSE => f.write_str("global"),
            Self::LINK => f.write_str("link"),
            Self::HOST => f.write_str("host"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of a routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub u32);

impl Table {
    /// What is used last of all.
    pub const DEFAULT: Self = Self(253);
    /// What is used unless rules say otherwise.
    pub const MAIN: Self = Self(254);
    /// What is asked first: which addresses are this machine's.
    pub const LOCAL: Self = Self(255);
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DEFAULT => f.write_str("default"),
            Self::MAIN => f.write_str("main"),
            Self::LOCAL => f.write_str("local"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// Who made a route or rule (`RTPROT_*`); only a note, by which one finds one's own again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// Not told.
    pub const UNSPEC: Self = Self(0);
    /// The kernel itself.
    pub const KERNEL: Self = Self(2);
    /// `ip route add` says this unless told otherwise.
    pub const BOOT: Self = Self(3);
    /// An administrator.
    pub const STATIC: Self = Self(4);
    /// A BGP speaker.
    pub const BGP: Self = Self(186);
}

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The device that it is on.
    pub link: LinkIndex,
    /// The address (host bits and all), with the length of the network that is reached through the device.
    pub address: IpNet,
    /// The one neighbour, on a device that has only one.
    pub peer: Option<IpAddr>,
    /// Where packets to all neighbours go to. The kernel chooses none.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it reaches. KERNEL: of an IPv6 address the kernel decides.
    pub scope: Scope,
    /// Properties.
    pub flags: AddressFlags,
}

impl Address {
    /// An address that reaches everywhere and lasts.
    pub const fn new(link: LinkIndex, address: IpNet) -> Self {
        let flags = AddressFlags::PERMANENT;
        Self { link, address, peer: None, broadcast: None, scope: Scope::UNIVERSE, flags }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.address, self.link)
    }
}

/// Properties of an address (`IFA_F_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Another address of the same network is before it on the device (IPv4); a privacy address (IPv6).
    pub const SECONDARY: Self = Self(0x01);
    /// To be used without looking for duplicates.
    pub const NO_DAD: Self = Self(0x02);
    /// To be used while duplicates are looked for.
    pub const OPTIMISTIC: Self = Self(0x04);
    /// A duplicate was found: not in use.
    pub const DAD_FAILED: Self = Self(0x08);
    /// Only for connections that have it already.
    pub const DEPRECATED: Self = Self(0x20);
    /// Duplicates are being looked for: not in use yet.
    pub const TENTATIVE: Self = Self(0x40);
    /// It does not expire.
    pub const PERMANENT: Self = Self(0x80);
    /// No route to its network was made with it.
    pub const NO_PREFIX_ROUTE: Self = Self(0x200);

    /// Whether all of `flags` are there.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any of `flags` is there.
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Those of both.
    #[must_use]
    pub const fn union(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

impl fmt::Debug for AddressFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What becomes of packets that a route is for (`RTN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteType {
    /// They are sent on.
    Unicast,
    /// They are for this machine.
    Local,
    /// They are for all on the wire, this machine too.
    Broadcast,
    /// They are for the nearest of several machines, this one (IPv6).
    Anycast,
    /// They are for a group.
    Multicast,
    /// They are dropped without a word.
    Blackhole,
    /// They are dropped; the sender is told that there is no way.
    Unreachable,
    /// They are dropped; the sender is told that it may not.
    Prohibit,
    /// The next rule decides.
    Throw,
    /// Of another type, by its number.
    Other(u8),
}

impl RouteType {
    const NAMED: [Self; 9] = [
        Self::Unicast,
        Self::Local,
        Self::Broadcast,
        Self::Anycast,
        Self::Multicast,
        Self::Blackhole,
        Self::Unreachable,
        Self::Prohibit,
        Self::Throw,
    ];

    /// The type with a number.
    pub fn from_number(number: u8) -> Self {
        Self::NAMED.into_iter().find(|kind| kind.number() == number).unwrap_or(Self::Other(number))
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Broadcast => 3,
            Self::Anycast => 4,
            Self::Multicast => 5,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibit => 8,
            Self::Throw => 9,
            Self::Other(number) => number,
        }
    }

    /// Whether such a route leads nowhere, so that it has no next hop.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::Blackhole | Self::Unreachable | Self::Prohibit | Self::Throw)
    }
}

impl fmt::Display for RouteType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unicast => "unicast",
            Self::Local => "local",
            Self::Broadcast => "broadcast",
            Self::Anycast => "anycast",
            Self::Multicast => "multicast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
            Self::Throw => "throw",
            Self::Other(number) => return write!(f, "type {number}"),
        })
    }
}

/// One way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The device. The kernel finds it if there is a gateway.
    pub link: Option<LinkIndex>,
    /// The neighbour; absent: the destination itself is one. Of another family than the route only if the route
    /// is IPv4 (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// Share of the packets among several next hops; 1 to 256.
    pub weight: u16,
    /// Whether the gateway is taken for a neighbour although no address says so.
    pub on_link: bool,
}

impl NextHop {
    /// Neighbours on a device.
    pub const fn link(link: LinkIndex) -> Self {
        Self { link: Some(link), gateway: None, weight: 1, on_link: false }
    }

    /// A gateway, on the device that leads to it.
    pub const fn gateway(gateway: IpAddr) -> Self {
        Self { link: None, gateway: Some(gateway), weight: 1, on_link: false }
    }
}

/// A route.
///
/// KERNEL: no two routes have the same [`RouteKey`], but for those that were *appended*, which nothing here does:
/// an observation may hold routes of others with the same key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Packets to these addresses; no bits behind the length of the prefix.
    pub destination: IpNet,
    /// Where it is.
    pub table: Table,
    /// Who made it.
    pub protocol: RouteProtocol,
    /// How far the destination is. IPv6 does not have it: [`Scope::UNIVERSE`].
    pub scope: Scope,
    /// What becomes of the packets.
    pub kind: RouteType,
    /// The ways; none if [`RouteType::is_refusal`].
    pub next_hops: Vec<NextHop>,
    /// Source of the packets of this machine that don't have one. It must be one of the machine's addresses.
    pub preferred_source: Option<IpAddr>,
    /// Of several routes to a destination that with the least is used. IPv6: 0 is written as 1024
    /// (`IP6_RT_PRIO_USER`).
    pub metric: u32,
    /// Packets with this type of service only, unless 0; IPv4.
    pub tos: u8,
    /// Bytes of the largest packet; what the device has if absent.
    pub mtu: Option<u32>,
    /// Bytes of the largest TCP segment to ask the other side for; follows from the largest packet if absent.
    pub advmss: Option<u32>,
}

impl Route {
    /// A unicast route in the main table.
    pub fn new(destination: IpNet, next_hop: NextHop) -> Self {
        let near = next_hop.gateway.is_none() && matches!(destination, IpNet::V4(_));
        Self {
            destination,
            table: Table::MAIN,
            protocol: RouteProtocol::STATIC,
            scope: if near { Scope::LINK } else { Scope::UNIVERSE },
            kind: RouteType::Unicast,
            next_hops: vec![next_hop],
            preferred_source: None,
            metric: 0,
            tos: 0,
            mtu: None,
            advmss: None,
        }
    }

    /// A route by which addresses are this machine's though no device has them ("AnyIP"), in the local table.
    /// They are never chosen as source.
    pub fn local(destination: IpNet, link: LinkIndex) -> Self {
        let scope = match destination {
            IpNet::V4(_) => Scope::HOST,
            IpNet::V6(_) => Scope::UNIVERSE,
        };
        Self {
            table: Table::LOCAL,
            scope,
            kind: RouteType::Local,
            ..Self::new(destination, NextHop::link(link))
        }
    }

    /// A route by which packets are dropped, in the main table.
    pub fn refusal(destination: IpNet, kind: RouteType) -> Self {
        let next_hops = Vec::new();
        let hop = NextHop::link(LinkIndex(0));
        Self { kind, scope: Scope::UNIVERSE, next_hops, ..Self::new(destination, hop) }
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        match self.destination {
            IpNet::V4(_) => Family::Ipv4,
            IpNet::V6(_) => Family::Ipv6,
        }
    }

    /// What makes it another route than others.
    pub fn key(&self) -> RouteKey {
        let stored = self.metric_stored();
        RouteKey { table: self.table, destination: self.destination, metric: stored, tos: self.tos }
    }

    /// The route as it will be read back.
    #[must_use]
    pub fn as_stored(mut self) -> Self {
        self.metric = self.metric_stored();
        self.destination = self.destination.trunc();
        if self.family() == Family::Ipv6 {
            self.scope = Scope::UNIVERSE;
            self.tos = 0;
        }
        self
    }

    const fn metric_stored(&self) -> u32 {
        match (self.destination, self.metric) {
            (IpNet::V6(_), 0) => 1024,
            (_, metric) => metric,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.destination)?;
        for hop in &self.next_hops {
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            if let Some(link) = hop.link {
                write!(f, " dev {link}")?;
            }
        }
        write!(f, " table {} proto {}", self.table, self.protocol.0)?;
        if let Some(source) = self.preferred_source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// What tells routes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Where it is.
    pub table: Table,
    /// Packets to these addresses.
    pub destination: IpNet,
    /// As it is stored.
    pub metric: u32,
    /// IPv4 only.
    pub tos: u8,
}

/// Which routes are to be read; all of them by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this family.
    pub family: Option<Family>,
    /// In this table. A table that there is not has no routes.
    pub table: Option<Table>,
    /// Made by this protocol.
    pub protocol: Option<RouteProtocol>,
}

impl RouteFilter {
    /// Whether a route is asked for.
    pub fn admits(&self, route: &Route) -> bool {
        self.family.is_none_or(|family| family == route.family())
            && self.table.is_none_or(|table| table == route.table)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
    }
}

/// Marks of packets: those for which `mark & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// What the bits are. KERNEL: bits that are not in the mask never match.
    pub value: u32,
    /// Which bits are looked at.
    pub mask: u32,
}

/// A rule that says which table decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Of the packets.
    pub family: Family,
    /// Rules are asked in this order.
    pub preference: u32,
    /// Packets with these marks.
    pub mark: Option<Mark>,
    /// Packets from these addresses.
    pub from: Option<IpNet>,
    /// Packets to these addresses.
    pub to: Option<IpNet>,
    /// Packets that came in by the device of this name; it need not exist.
    pub input: Option<LinkName>,
    /// Whether it is for all *other* packets.
    pub inverted: bool,
    /// What it does.
    pub action: RuleAction,
    /// A route found is not used if its prefix has this length or less.
    pub suppress_prefix_length: Option<u32>,
    /// Who made it.
    pub protocol: RouteProtocol,
    /// True if it looks at more than is told here (ports, users, output device, …). Nothing that is written has
    /// this.
    pub has_more: bool,
}

impl Rule {
    /// A rule for all packets.
    pub const fn new(family: Family, preference: u32, action: RuleAction) -> Self {
        Self {
            family,
            preference,
            mark: None,
            from: None,
            to: None,
            input: None,
            inverted: false,
            action,
            suppress_prefix_length: None,
            protocol: RouteProtocol::STATIC,
            has_more: false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.preference)?;
        if self.inverted {
            f.write_str(" not")?;
        }
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        if let Some(input) = &self.input {
            write!(f, " iif {input}")?;
        }
        match self.action {
            RuleAction::Lookup(table) => write!(f, " lookup {table}")?,
            RuleAction::Blackhole => f.write_str(" blackhole")?,
            RuleAction::Unreachable => f.write_str(" unreachable")?,
            RuleAction::Prohibit => f.write_str(" prohibit")?,
            RuleAction::Other(number) => write!(f, " action {number}")?,
        }
        if let Some(length) = self.suppress_prefix_length {
            write!(f, " suppress_prefixlength {length}")?;
        }
        Ok(())
    }
}

/// What a rule does with the packets that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleAction {
    /// A table decides; if it has no route, the next rule.
    Lookup(Table),
    /// They are dropped without a word.
    Blackhole,
    /// They are dropped; the sender is told that there is no way.
    Unreachable,
    /// They are dropped; the sender is told that it may not.
    Prohibit,
    /// Another action, by its number.
    Other(u8),
}
