//! Whose an address and port is, where several Services want it.
//!
//! Cluster IPs and node ports are given out by the API server, each once. External addresses are not: anybody
//! who may write a Service can name any (CVE-2020-8554), and Services may share an address as long as their
//! ports differ. Where they do not differ, one Service must have it, always the same one on every node:
//! whoever has it as a cluster IP or node port; then the oldest; then the first by name. So nobody can take an
//! address from a Service that has it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use smallvec::SmallVec;

use crate::object::{FullService, ObjectKey, Protocol};

/// What packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// An address and a port.
    Address(IpAddr, Protocol, u16),
    /// A port of the nodes' own addresses.
    NodePort(Protocol, u16),
}

/// The frontends that Services want. A change costs as much as its Service has frontends, and those that want
/// the same.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Best claim first; one is the rule.
    frontends: HashMap<Frontend, SmallVec<[Claim; 1]>>,
    services: HashMap<ObjectKey, Box<[(Frontend, Claim)]>>,
}

/// In order of preference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    /// Not given out by the API server.
    external: bool,
    /// When the Service was made.
    created: i64,
    service: ObjectKey,
}

impl Claims {
    /// No claims.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces what the Service `key` wants: all the frontends of `service` for which `wanted` holds, such as
    /// those that the operator's ranges allow; nothing for `None`. Adds to `touched` the other Services that
    /// may have gained or lost a frontend by it.
    pub fn set(
        &mut self,
        key: &ObjectKey,
        service: Option<&FullService>,
        wanted: impl Fn(&Frontend) -> bool,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        let mut claims = service.map(claims_of).unwrap_or_default();
        claims.retain(|(frontend, _)| wanted(frontend));
        // The better of two claims of one Service for the same frontend.
        claims.sort();
        claims.dedup_by_key(|(frontend, _)| *frontend);
        let claims = claims.into_boxed_slice();
        let earlier = if claims.is_empty() {
            self.services.remove(key)
        } else {
            self.services.insert(key.clone(), claims.clone())
        };
        let earlier = earlier.unwrap_or_default();
        for old in earlier.iter().filter(|old| claims.binary_search(old).is_err()) {
            self.remove(old, touched);
        }
        for new in claims.iter().filter(|new| earlier.binary_search(new).is_err()) {
            self.add(new, touched);
        }
    }

    /// The Service that has a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&ObjectKey> {
        self.frontends.get(frontend)?.first().map(|claim| &claim.service)
    }

    /// The frontends that a Service wants and another one has, in order, with that one.
    pub fn lost<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = (Frontend, &'a ObjectKey)> {
        let claims = self.services.get(service).map_or(&[][..], |claims| claims);
        claims.iter().filter_map(move |(frontend, _)| {
            let owner = self.owner(frontend)?;
            (owner != service).then_some((*frontend, owner))
        })
    }

    fn remove(&mut self, (frontend, claim): &(Frontend, Claim), touched: &mut BTreeSet<ObjectKey>) {
        let Some(claims) = self.frontends.get_mut(frontend) else { return };
        let had = claims.first() == Some(claim);
        claims.retain(|other| other != claim);
        match claims.first() {
            Some(next) if had => {
                touched.insert(next.service.clone());
            }
            Some(_) => {}
            None => {
                self.frontends.remove(frontend);
            }
        }
    }

    fn add(&mut self, (frontend, claim): &(Frontend, Claim), touched: &mut BTreeSet<ObjectKey>) {
        let claims = self.frontends.entry(*frontend).or_default();
        let place = claims.binary_search(claim).unwrap_or_else(|place| place);
        claims.insert(place, claim.clone());
        if let (0, Some(loser)) = (place, claims.get(1)) {
            touched.insert(loser.service.clone());
        }
    }
}

fn claims_of(service: &FullService) -> Vec<(Frontend, Claim)> {
    let mut claims = Vec::new();
    let mut claim = |frontend, external| {
        let claim = Claim { external, created: service.created, service: service.key.clone() };
        claims.push((frontend, claim));
    };
    let outside = service.load_balancer_ips.iter().filter(|ip| !ip.proxied).map(|ip| ip.ip);
    for port in &service.ports {
        let (protocol, number) = (port.protocol, port.port);
        for ip in &service.cluster_ips {
            claim(Frontend::Address(*ip, protocol, number), false);
        }
        for ip in service.external_ips.iter().copied().chain(outside.clone()) {
            claim(Frontend::Address(ip, protocol, number), true);
        }
        if let Some(number) = port.node_port {
            claim(Frontend::NodePort(protocol, number), false);
        }
    }
    claims
}
