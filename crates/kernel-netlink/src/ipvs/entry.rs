//! Services, destinations and settings as IPVS knows them.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

pub use crate::family::{Family, Protocol};

/// What a virtual service answers to. No two services have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Packets to an address and port.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// 0 is every port for which there is no other service.
        port: u16,
    },
    /// Packets with a mark. KERNEL: compared with all 32 bits of the packet's mark.
    Mark {
        /// Of the packets.
        family: Family,
        /// KERNEL: 0 is no mark but "look at the address".
        mark: NonZeroU32,
    },
}

impl ServiceKey {
    /// The family of the packets.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address { protocol, address, port } => write!(f, "{protocol} {}", Endpoint(address, port)),
            Self::Mark { family: Family::Ipv4, mark } => write!(f, "mark {mark}"),
            Self::Mark { family: Family::Ipv6, mark } => write!(f, "mark {mark} -6"),
        }
    }
}

/// Address and port as `ipvsadm` writes them.
struct Endpoint(IpAddr, u16);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.1),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.1),
        }
    }
}

/// The name of a scheduler: `rr`, `wlc`, `mh`, … The kernel loads its module (`ip_vs_<name>`) when a service
/// asks for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheduler {
    name: [u8; Self::LIMIT],
    len: u8,
}

impl Scheduler {
    /// LIMIT: `IP_VS_SCHEDNAME_MAXLEN` is 16 with the NUL.
    const LIMIT: usize = 15;

    /// A name of 1 to 15 visible ASCII characters. `None` for any other, which no scheduler can have.
    pub const fn new(name: &str) -> Option<Self> {
        Self::from_bytes(name.as_bytes())
    }

    pub(super) const fn from_bytes(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > Self::LIMIT {
            return None;
        }
        let mut copy = [0; Self::LIMIT];
        let mut at = 0;
        while at < name.len() {
            if !name[at].is_ascii_graphic() {
                return None;
            }
            copy[at] = name[at];
            at += 1;
        }
        Some(Self { name: copy, len: name.len() as u8 })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // Always ASCII: see from_bytes.
        str::from_utf8(&self.name[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Flags of a service (`IP_VS_SVC_F_*`) beside persistence, which is [`Service::persistence`], and `HASHED`,
/// which is the kernel's own and never seen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(u32);

impl Flags {
    /// `ipvsadm --ops`. KERNEL: with [`Forward::Masquerade`] replies never come back.
    pub const ONE_PACKET: Self = Self(0x0004);
    /// `sched-flags` `sh-fallback`, `mh-fallback`: `IP_VS_SVC_F_SCHED1`.
    pub const SCHEDULER_1: Self = Self(0x0008);
    /// `sched-flags` `sh-port`, `mh-port`: `IP_VS_SVC_F_SCHED2`.
    pub const SCHEDULER_2: Self = Self(0x0010);
    /// `IP_VS_SVC_F_SCHED3`: no scheduler has a use for it.
    pub const SCHEDULER_3: Self = Self(0x0020);

    /// All flags that are in `bits`, without those that are not of this type.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & !(super::uapi::IP_VS_SVC_F_PERSISTENT | super::uapi::IP_VS_SVC_F_HASHED))
    }

    /// The flags as the kernel's number.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// True if all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Which clients count as one when a client keeps its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netmask {
    /// Those whose addresses have this many first bits in common. More than an address has counts as all of
    /// them; KERNEL: 0 is refused for IPv6.
    Prefix(u8),
    /// IPv4 only: a mask that is no prefix, as others may have set it. On IPv6 services it counts as a whole
    /// address.
    Mask(u32),
}

impl Netmask {
    /// The mask of an IPv4 address: a prefix if it is one.
    pub const fn of_mask(mask: u32) -> Self {
        let bits = mask.leading_ones();
        if bits + mask.trailing_zeros() >= u32::BITS { Self::Prefix(bits as u8) } else { Self::Mask(mask) }
    }
}

/// A client keeps its destination (session affinity).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Persistence {
    /// How long after its last connection, in seconds. KERNEL: at least as long as that is in `TIME_WAIT`.
    pub timeout: u32,
    /// Read back with its length in bits, so write that ([`Persistence::per_client`] does).
    pub netmask: Netmask,
}

impl Persistence {
    /// For each client of a family by itself.
    pub const fn per_client(timeout: u32, family: Family) -> Self {
        Self { timeout, netmask: Netmask::Prefix(family.bits()) }
    }
}

/// A virtual service without its destinations.
///
/// LIMIT: persistence engines (`IPVS_SVC_ATTR_PE_NAME`, only for SIP) are neither read nor written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// What it answers to.
    pub key: ServiceKey,
    /// How a destination is chosen. `none` if there is no scheduler (no new connections are taken).
    pub scheduler: Scheduler,
    /// Beside persistence.
    pub flags: Flags,
    /// `None` when each connection is scheduled by itself.
    pub persistence: Option<Persistence>,
}

impl Service {
    /// Without flags and persistence.
    pub const fn new(key: ServiceKey, scheduler: Scheduler) -> Self {
        Self { key, scheduler, flags: Flags(0), persistence: None }
    }
}

/// What a tunnel to a destination is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation.
    Gue {
        /// UDP port at the destination.
        port: NonZeroU16,
        /// Of the outer header.
        checksum: Checksum,
    },
    /// Generic routing encapsulation.
    Gre {
        /// Of the outer header.
        checksum: Checksum,
    },
}

/// Checksum of a tunnel's outer header (`IP_VS_TUNNEL_ENCAP_FLAG_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u16);

impl Checksum {
    /// No checksum.
    pub const NONE: Self = Self(0);
    /// A checksum.
    pub const FULL: Self = Self(1);
    /// Remote checksum offload.
    pub const REMOTE: Self = Self(2);
}

/// How packets get to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forward {
    /// The destination address is rewritten; replies come back through this node.
    Masquerade,
    /// To this node, as it is.
    Local,
    /// In a tunnel; replies go straight to the client.
    Tunnel(Tunnel),
    /// By the destination's link-layer address; replies go straight to the client.
    Route,
    /// Past IPVS, to the packet's own destination address.
    Bypass,
}

/// What a destination is known by within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// KERNEL: of the family of the service, or the way there is a tunnel.
    pub address: IpAddr,
    /// KERNEL: by tunnels and direct routing packets keep their own port; this is only part of the key then.
    pub port: u16,
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Endpoint(self.address, self.port), f)
    }
}

/// A real server of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Address and port.
    pub key: DestinationKey,
    /// How packets get there.
    pub forward: Forward,
    /// Share of new connections; at 0 none are sent and those that are there go on. KERNEL: at most `i32::MAX`.
    pub weight: u32,
    /// Connections above which no more are sent; 0 is no limit.
    pub upper_threshold: u32,
    /// Connections below which they are sent again; 0 is 3/4 of the upper one.
    pub lower_threshold: u32,
}

impl Destination {
    /// With masquerading, weight 1 and no limits.
    pub const fn new(address: IpAddr, port: u16) -> Self {
        let key = DestinationKey { address, port };
        Self { key, forward: Forward::Masquerade, weight: 1, upper_threshold: 0, lower_threshold: 0 }
    }
}

/// What has passed a service or destination since it was made or set to zero, and how much does now.
///
/// KERNEL: counted up every two seconds (`ip_vs_est.c`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients, as far as they come through this node.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
    /// Connections per second, lately. Rates are 0 if the sysctl `net.ipv4.vs.run_estimation` is.
    pub connection_rate: u64,
    /// Packets per second from clients.
    pub in_packet_rate: u64,
    /// Packets per second to clients.
    pub out_packet_rate: u64,
    /// Bytes per second from clients.
    pub in_byte_rate: u64,
    /// Bytes per second to clients.
    pub out_byte_rate: u64,
}

/// A service as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceState {
    /// The service.
    pub service: Service,
    /// What has passed it.
    pub stats: Stats,
}

/// A destination as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationState {
    /// The destination.
    pub destination: Destination,
    /// Connections that are established.
    pub active_connections: u32,
    /// Connections in any other state, and all of protocols without connections.
    pub inactive_connections: u32,
    /// Clients that keep it.
    pub persistent_connections: u32,
    /// What has passed it.
    pub stats: Stats,
}

/// How long connections are kept after their last packet, in seconds, in one network namespace.
///
/// When set, 0 leaves a timeout as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// What IPVS says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Version: 1.2.1 since Linux 2.6.
    pub version: (u8, u8, u8),
    /// Buckets of the table of connections.
    pub connection_buckets: u32,
}

/// A change. There is none that removes everything: services may be somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Refused with `EEXIST` if there is one with the key, `ENOENT` if the scheduler is unknown.
    AddService(Service),
    /// Changes all but the key; connections stay. `ESRCH` if there is none, `ENOENT` as above.
    SetService(Service),
    /// With its destinations. `ESRCH` if there is none.
    DeleteService(ServiceKey),
    /// `ESRCH` without the service, `EEXIST` if it is there. `EINVAL` if the address is not that of one host;
    /// KERNEL: in a network namespace without any IPv4 address, loopback included, no IPv4 address is.
    AddDestination(ServiceKey, Destination),
    /// Changes all but the key; connections stay. `ESRCH` without the service, `ENOENT` without the destination.
    SetDestination(ServiceKey, Destination),
    /// What becomes of its connections is up to the sysctl `net.ipv4.vs.expire_nodest_conn`. `ESRCH` without
    /// the service, `ENOENT` without the destination.
    DeleteDestination(ServiceKey, DestinationKey),
    /// Sets the statistics of a service and its destinations to zero. `ESRCH` if there is none.
    Zero(ServiceKey),
    /// Sets all statistics to zero.
    ZeroAll,
    /// `EINVAL` if one is too long (`i32::MAX` jiffies).
    SetTimeouts(Timeouts),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "add service {} {}", service.key, service.scheduler),
            Self::SetService(service) => write!(f, "set service {} {}", service.key, service.scheduler),
            Self::DeleteService(key) => write!(f, "delete service {key}"),
            Self::AddDestination(service, to) => write!(f, "add destination {} to service {service}", to.key),
            Self::SetDestination(service, to) => write!(f, "set destination {} of service {service}", to.key),
            Self::DeleteDestination(service, key) => {
                write!(f, "delete destination {key} of service {service}")
            }
            Self::Zero(key) => write!(f, "set statistics of service {key} to zero"),
            Self::ZeroAll => f.write_str("set all statistics to zero"),
            Self::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => {
                write!(f, "set timeouts to {tcp} s, {tcp_fin} s, {udp} s")
            }
        }
    }
}
