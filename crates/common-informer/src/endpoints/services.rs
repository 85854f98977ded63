//! The Services that there are, and whose each address and port is where several want it.
//!
//! Cluster IPs and node ports are given out by the API server, each once. External addresses are not: anybody
//! who may write a Service can name any (CVE-2020-8554), and Services may share an address as long as their
//! ports differ. Where they do not differ, one Service must have it, always the same one on every node:
//! whoever has it as a cluster IP or node port; then the oldest; then the first by name. So nobody can take an
//! address from a Service that has it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::policy::Traffic;
use crate::object::{ByKey, FullService, ObjectKey, Protocol};

/// What packets are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// An address and a port.
    Address(IpAddr, Protocol, u16),
    /// A port of the nodes' own addresses.
    NodePort(Protocol, u16),
}

/// Where a Service has a frontend from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// `spec.clusterIPs`
    ClusterIp,
    /// `spec.ports[].nodePort`
    NodePort,
    /// `spec.externalIPs`
    ExternalIp,
    /// `status.loadBalancer.ingress[]` with `ipMode: VIP`
    LoadBalancer,
}

/// The Services of a cluster, and their frontends. A change costs as much as its Service has frontends, and
/// those that want the same.
#[derive(Clone, Debug, Default)]
pub struct Services {
    services: HashSet<ByKey<Arc<FullService>>>,
    /// Whose a frontend is.
    owners: HashMap<Frontend, Arc<FullService>>,
    /// Those that want it too, in the order in which they would have it; few do.
    others: HashMap<Frontend, Vec<Arc<FullService>>>,
}

impl Services {
    /// No Services.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the Service `key`; `None` if it is gone. It gets those of its frontends for which `wanted`
    /// holds, such as those that are in the operator's ranges. Adds to `touched` the other Services that have
    /// gained or lost a frontend by it, or still want one that another has now.
    pub fn set(
        &mut self,
        key: &ObjectKey,
        service: Option<Arc<FullService>>,
        wanted: impl Fn(Frontend, Origin) -> bool,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        let earlier = match &service {
            Some(service) => self.services.replace(ByKey(service.clone())),
            None => self.services.take(key),
        };
        let earlier: BTreeSet<_> = earlier
            .iter()
            .flat_map(|ByKey(earlier)| frontends(earlier))
            .map(|(frontend, _)| frontend)
            .collect();
        let now: BTreeSet<_> = service
            .iter()
            .flat_map(|service| frontends(service))
            .filter(|(frontend, origin)| wanted(*frontend, *origin))
            .map(|(frontend, _)| frontend)
            .collect();
        for frontend in earlier.union(&now) {
            let claimant = service.as_ref().filter(|_| now.contains(frontend));
            self.claim(*frontend, key, claimant, touched);
        }
    }

    /// A Service.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<FullService>> {
        self.services.get(key).map(|ByKey(service)| service)
    }

    /// Every Service, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<FullService>> {
        self.services.iter().map(|ByKey(service)| service)
    }

    /// How many Services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The Service that has a frontend.
    pub fn owner(&self, frontend: Frontend) -> Option<&Arc<FullService>> {
        self.owners.get(&frontend)
    }

    /// The frontends that a Service wants and another one has, in order, with that one.
    pub fn lost(&self, key: &ObjectKey) -> impl Iterator<Item = (Frontend, &Arc<FullService>)> {
        let wanted: BTreeSet<_> = self
            .get(key)
            .into_iter()
            .flat_map(|service| frontends(service))
            .map(|(frontend, _)| frontend)
            .collect();
        wanted.into_iter().filter_map(move |frontend| {
            let mut others = self.others.get(&frontend)?.iter();
            others.any(|claim| claim.key == *key).then_some((frontend, self.owners.get(&frontend)?))
        })
    }

    /// Replaces the claim of the Service `key` for a frontend.
    fn claim(
        &mut self,
        frontend: Frontend,
        key: &ObjectKey,
        claimant: Option<&Arc<FullService>>,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        let owner = self.owners.remove(&frontend);
        let others = self.others.remove(&frontend).unwrap_or_default();
        let before = owner.as_ref().map(|owner| owner.key.clone());
        let claims = owner.into_iter().chain(others).filter(|claim| claim.key != *key);
        let mut claims: SmallVec<[_; 2]> = claims.chain(claimant.cloned()).collect();
        claims.sort_by(|one, other| rank(one, frontend).cmp(&rank(other, frontend)));
        if before.as_ref() != claims.first().map(|owner| &owner.key) {
            let wanting = claims.iter().map(|claim| claim.key.clone());
            touched.extend(wanting.chain(before).filter(|other| other != key));
        }
        let mut claims = claims.into_iter();
        if let Some(owner) = claims.next() {
            self.owners.insert(frontend, owner);
        }
        if claims.len() > 0 {
            self.others.insert(frontend, claims.collect());
        }
    }
}

/// Who has a frontend: the least.
fn rank(service: &FullService, frontend: Frontend) -> (bool, i64, &ObjectKey) {
    let given = match frontend {
        Frontend::NodePort(..) => true,
        Frontend::Address(ip, ..) => service.cluster_ips.contains(&ip),
    };
    (!given, service.created, &service.key)
}

/// The frontends of a Service. One may come twice, of different origin.
pub fn frontends(service: &FullService) -> impl Iterator<Item = (Frontend, Origin)> {
    let settings = &service.settings;
    let cluster = service.cluster_ips.iter().map(|ip| (*ip, Origin::ClusterIp));
    let external = settings.external_ips.iter().map(|ip| (*ip, Origin::ExternalIp));
    let balancer = settings.load_balancer_ips.iter().filter(|ip| !ip.proxied);
    let balancer = balancer.map(|ip| (ip.ip, Origin::LoadBalancer));
    let addresses = cluster.chain(external).chain(balancer);
    service.ports.iter().flat_map(move |port| {
        let addresses = addresses
            .clone()
            .map(move |(ip, origin)| (Frontend::Address(ip, port.protocol, port.port), origin));
        let node_port = port.node_port.map(|number| Frontend::NodePort(port.protocol, number));
        addresses.chain(node_port.map(|frontend| (frontend, Origin::NodePort)))
    })
}

impl Origin {
    /// How packets that come from outside the cluster to such a frontend are treated. Those to others than a
    /// cluster IP that come from pods or this node are [`Traffic::Inside`].
    pub fn traffic(self) -> Traffic {
        match self {
            Self::ClusterIp => Traffic::Internal,
            Self::NodePort | Self::ExternalIp | Self::LoadBalancer => Traffic::External,
        }
    }
}
