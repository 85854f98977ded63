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

/// What is to be done about the status of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it is as planned.
    Nothing,
    /// Nothing yet: an address is still in the status of another Service, which may not have it.
    Wait {
        /// The address.
        ip: IpAddr,
        /// Who shows it.
        other: ObjectKey,
    },
    /// This.
    Write(Write),
}

/// What must be done so that the status of a Service is as planned.
pub fn next_for(world: &World, planner: &Planner, key: &ObjectKey) -> Next {
    let Some(service) = world.service(key) else { return Next::Nothing };
    let write = |change| Next::Write(Write { key: key.clone(), uid: service.uid, change });
    let Some(planned) = planner.addresses(key) else {
        return of_another(service, planner).map_or(Next::Nothing, write);
    };
    let shown: Addresses = shown(service).collect();
    // An address that another one still shows is left out until it no longer does.
    let mut wait = None;
    let mut wanted = Addresses::new();
    for ip in planned {
        match shown_by_another(world, planner, key, *ip).filter(|_| !shown.contains(ip)) {
            None => wanted.push(*ip),
            Some(other) => wait = Some(Next::Wait { ip: *ip, other: other.clone() }),
        }
    }
    let change = of_ours(service, &shown, &wanted, planner).map(write);
    change.or(wait).unwrap_or(Next::Nothing)
}

/// Who has `ip` in its status, but not by the plan.
fn shown_by_another<'a>(
    world: &World,
    planner: &'a Planner,
    key: &ObjectKey,
    ip: IpAddr,
) -> Option<&'a ObjectKey> {
    planner.book().shown_by(ip).iter().filter(|other| *other != key).find(|other| {
        let holds = planner.addresses(other).is_some_and(|theirs| theirs.contains(&ip));
        // External IPs are not ours to take away, and would keep it for ever.
        !holds && world.service(other).is_some_and(|service| shown(service).any(|shown| shown == ip))
    })
}

fn of_ours(
    service: &FullService,
    shown: &[IpAddr],
    wanted: &[IpAddr],
    planner: &Planner,
) -> Option<StatusChange> {
    // The order of addresses means nothing to anybody.
    if shown.len() == wanted.len() && wanted.iter().all(|ip| shown.contains(ip)) {
        return None;
    }
    let config = planner.config();
    let certain = ownership(service, config.default_class) == Some(Ownership::Certain);
    let in_pool = |ip: &IpAddr| config.pools.of(*ip).is_some();
    if wanted.is_empty() && !certain && !shown.iter().any(in_pool) {
        // Somebody else serves it while we have nothing for it.
        return None;
    }
    let force = certain || (!shown.is_empty() && shown.iter().all(in_pool));
    Some(StatusChange::Show { ips: wanted.into(), force })
}

/// Gives up what is shown of our pools by Services that are not ours.
fn of_another(service: &FullService, planner: &Planner) -> Option<StatusChange> {
    let config = planner.config();
    let in_pool = |ip: IpAddr| config.pools.of(ip).is_some();
    if ownership(service, config.default_class).is_some() || !shown(service).any(in_pool) {
        return None;
    }
    Some(match service.settings.service_type {
        // Its class is somebody else's, who may hand out the same addresses.
        ServiceType::LoadBalancer => StatusChange::Withdraw,
        _ => StatusChange::Show { ips: Addresses::new(), force: true },
    })
}
