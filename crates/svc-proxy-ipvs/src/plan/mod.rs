//! What should be in the kernel, and the steps to it. Pure.
//!
//! ```text
//!   World, Addresses ──touched──► Planner ──┬─ part     one Service: virtual services, gates, addresses
//!                                           ├─ dsr      Services whose endpoints answer directly
//!                                           ├─ rules    the nftables table
//!                                           └─ shared   addresses that several Services have
//!   wanted, held, now ──► steps: commands for IPVS; drains of what is no longer wanted
//! ```

pub mod destinations;
pub mod dsr;
pub mod few;
pub mod index;
pub mod options;
pub mod part;
pub mod planner;
pub mod rules;
pub mod shared;
pub mod steps;
pub mod text;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use common_informer::object::{Family, Protocol};
use kernel_netlink::ipvs::{DestinationKey, Scheduler, Service, ServiceKey};

pub use destinations::Destinations;
pub use index::{Index, Keyed};
pub use planner::{Planner, Update};

use crate::model::addresses::NodePortAddresses;

/// What the operator chose, as far as the wanted state depends on it.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// Families that are served.
    pub families: Vec<Family>,
    /// Scheduler of Services that name none.
    pub scheduler: Scheduler,
    /// On which addresses of the node node ports are served.
    pub node_ports: NodePortAddresses,
    /// Give everything that goes through a Service an address of this node as its source.
    pub masquerade_all: bool,
    /// Refuse what goes to a virtual address and is for none of its Services.
    pub guard_addresses: bool,
    /// Drop what goes to an address in the cluster IPs' ranges that no Service has.
    pub cluster_ranges: Vec<ipnet::IpNet>,
    /// Ports that the API server gives out as node ports.
    pub node_port_range: std::ops::RangeInclusive<u16>,
    /// Leave what goes to these ranges to somebody else.
    pub excluded: Vec<ipnet::IpNet>,
}

/// What packets go to: the address, protocol and port of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// Address.
    pub ip: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl Front {
    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.ip)
    }

    /// The key of its virtual service.
    pub fn service_key(&self) -> ServiceKey {
        ServiceKey::Address {
            protocol: kernel_netlink::ipvs::Protocol(self.protocol.number()),
            address: self.ip,
            port: self.port,
        }
    }
}

/// What becomes of a new connection to a front.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// It goes to IPVS.
    Serve,
    /// It goes to IPVS if it comes from this node or one of these ranges of the Service, else it is dropped.
    Sources,
    /// It is dropped: endpoints serve only elsewhere.
    Drop,
    /// It is refused: no endpoint serves anywhere.
    Refuse,
}

/// A wanted virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virtual {
    /// How it is scheduled.
    pub service: Service,
    /// Where its connections go, in the order of their keys.
    pub destinations: Destinations,
    /// Endpoints that do not serve now and are still there, by key: what they have, they keep.
    pub lingering: Box<[DestinationKey]>,
}

impl Keyed for Arc<Virtual> {
    fn key(&self) -> &ServiceKey {
        &self.service.key
    }
}

/// How destinations leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Whether connections are let end at all.
    pub graceful: bool,
    /// How long, once the endpoint is gone from the slices.
    pub period: Duration,
}

#[cfg(test)]
mod tests {
    use super::part::{Entrance, Part};
    use super::steps::Held;
    use super::*;

    /// Of each there is one for each of twenty thousand Services: 16 bytes more are 0.3 MB.
    #[test]
    fn what_every_service_has_is_small() {
        let sizes =
            [size_of::<Part>(), size_of::<(Front, Entrance)>(), size_of::<Virtual>(), size_of::<Held>()];
        assert!(sizes.iter().zip([24, 40, 96, 16]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
