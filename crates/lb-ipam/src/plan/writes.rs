//! From the plan and what is there to the writes that are needed.

use std::net::IpAddr;

use common_informer::object::{FullService, ObjectKey, ServiceType, Uid};

use super::{Addresses, Planner};
use crate::model::claim::{Ownership, ownership};
use crate::model::world::{World, shown};

/// A write of the status of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which Service.
    pub key: ObjectKey,
    /// And no other of that name.
    pub uid: Option<Uid>,
    /// What is written.
    pub change: StatusChange,
}

/// What is written to `status.loadBalancer.ingress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// These addresses and nothing else. With `force` also when another field manager has written it last.
    Show {
        /// The addresses; there may be none.
        ips: Addresses,
        /// It is known to be ours.
        force: bool,
    },
    /// What lb-ipam itself has written goes; what others have written stays.
    Withdraw,
}

impl StatusChange {
    /// The word in metrics and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Show { ips, .. } if ips.is_empty() => "clear",
            Self::Show { .. } => "show",
            Self::Withdraw => "withdraw",
        }
    }
}

/// What must be written so that the status of a Service is as planned.
pub fn write_for(world: &World, planner: &Planner, key: &ObjectKey) -> Option<Write> {
    let service = world.service(key)?;
    let change = match planner.addresses(key) {
        Some(wanted) => of_ours(service, wanted, planner)?,
        None => of_another(service, planner)?,
    };
    Some(Write { key: key.clone(), uid: service.uid, change })
}

fn of_ours(service: &FullService, wanted: &[IpAddr], planner: &Planner) -> Option<StatusChange> {
    let shown: Addresses = shown(service).collect();
    // The order of addresses means nothing to anybody.
    if shown.len() == wanted.len() && wanted.iter().all(|ip| shown.contains(ip)) {
        return None;
    }
    let config = planner.config();
    let certain = ownership(service, config.default_class) == Some(Ownership::Certain);
    let all_of_pools = !shown.is_empty() && shown.iter().all(|ip| config.pools.of(*ip).is_some());
    Some(StatusChange::Show { ips: wanted.into(), force: certain || all_of_pools })
}

/// Gives up what is shown of our pools by Services that are not ours.
fn of_another(service: &FullService, planner: &Planner) -> Option<StatusChange> {
    let config = planner.config();
    if ownership(service, config.default_class).is_some()
        || shown(service).all(|ip| config.pools.of(ip).is_none())
    {
        return None;
    }
    Some(match service.settings.service_type {
        // Its class is somebody else's, who may hand out the same addresses.
        ServiceType::LoadBalancer => StatusChange::Withdraw,
        _ => StatusChange::Show { ips: Addresses::new(), force: true },
    })
}
