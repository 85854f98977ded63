//! Keeps the wanted state of all Services, and changes what a change of the world touched.

mod direct;
mod parts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{Family, FullService, ObjectKey, ObjectRef, Protocol};
use kernel_netlink::ipvs::ServiceKey;
use kernel_nft::{Op, Ruleset, TableFlags};

pub use direct::{DirectNeeds, DirectPod};

use direct::DirectPlan;
use parts::Parts;

use super::part::{HealthCheck, Part, part};
use super::rules::Rules;
use super::shared::{Difference, Shared};
use super::{Drain, Front, Index, Keyed, PlanConfig, Virtual};
use crate::model::addresses::Addresses;
use crate::model::problem::Problem;
use crate::model::world::{Touched, World};
/// The wanted state.
#[derive(Debug)]
pub struct Planner {
    config: PlanConfig,
    addresses: Addresses,
    parts: Parts,
    virtuals: Index<Arc<Virtual>>,
    /// Virtual addresses. Those are local by a route that nothing is served on by direct return.
    vips: Shared<IpAddr>,
    direct: DirectPlan,
    local: Shared<IpAddr>,
    rules: Rules,
    /// Services with problems, so that they are found without a walk through all.
    faulty: BTreeSet<ObjectKey>,
    /// Health check ports, with their Services.
    health: BTreeMap<u16, (ObjectKey, HealthCheck)>,
}

/// Virtual services before an update. Not in a tree: its nodes would leave holes between what stays.
type Before = HashMap<ServiceKey, Option<Arc<Virtual>>>;

/// What changed in the wanted state.
#[derive(Debug, Default)]
pub struct Update {
    /// Steps of the table from what was wanted before.
    pub table: Vec<Op>,
    /// Virtual services that are other than before, or no longer there.
    pub services: BTreeSet<ServiceKey>,
    /// Routes of virtual addresses that came and went.
    pub vips: Difference<IpAddr>,
}

impl Planner {
    /// Wants an empty table and nothing else.
    pub fn new(config: PlanConfig, flags: TableFlags) -> Self {
        Self {
            rules: Rules::new(&config, flags),
            config,
            addresses: Addresses::default(),
            parts: Parts::default(),
            virtuals: Index::default(),
            vips: Shared::default(),
            direct: DirectPlan::new(),
            local: Shared::default(),
            faulty: BTreeSet::new(),
            health: BTreeMap::new(),
        }
    }

    /// Takes what changed into the wanted state.
    pub fn update(&mut self, world: &World, addresses: &Addresses, touched: &Touched) -> Update {
        let everything;
        let keys = if self.addresses == *addresses {
            &touched.services
        } else {
            self.addresses = addresses.clone();
            let wanted = world.services().iter().map(|service| service.key.clone());
            let known = self.parts.iter().map(|(key, _)| key).chain(&touched.services).cloned();
            everything = known.chain(wanted).collect();
            &everything
        };
        // ORDER: all that goes goes first, since it may come back as part of another Service.
        let mut before = Before::new();
        for key in keys {
            if let Some(old) = self.parts.remove(key) {
                self.withdraw(key, &old, &mut before);
            }
        }
        for key in keys {
            if let Some(service) = world.services().get(key) {
                let new = part(service, world, &self.addresses, &self.config);
                self.install(service, new, &mut before);
            }
        }
        let is_other = |(key, before): (ServiceKey, Option<Arc<Virtual>>)| {
            (before.as_ref() != self.virtuals.get(&key)).then_some(key)
        };
        let services = before.into_iter().filter_map(is_other).collect();
        let vips = self.take_routes();
        let local = self.local.take_difference();
        vips.new.iter().for_each(|ip| self.rules.set_vip(*ip, true));
        vips.gone.iter().for_each(|ip| self.rules.set_vip(*ip, false));
        local.new.iter().for_each(|ip| self.rules.set_local(*ip, true));
        local.gone.iter().for_each(|ip| self.rules.set_local(*ip, false));
        self.rules.set_pod_cidrs(&world.pod_cidrs());
        if let Some(wanted) = self.direct.settle() {
            self.rules.set_direct(&wanted);
        }
        Update { table: self.rules.take_steps(), services, vips }
    }

    /// Routes of virtual addresses that came and went.
    fn take_routes(&mut self) -> Difference<IpAddr> {
        let (vips, direct) = (self.vips.take_difference(), self.direct.vips.take_difference());
        let touched = [&vips, &direct].into_iter().flat_map(|difference| [&difference.new, &difference.gone]);
        let touched: BTreeSet<IpAddr> = touched.flatten().copied().collect();
        let mut routes = Difference::default();
        for ip in touched {
            let (has_vip, is_direct) = (self.vips.contains(&ip), self.direct.vips.contains(&ip));
            let was_routed = vips.was(&ip, has_vip) && !direct.was(&ip, is_direct);
            match (was_routed, has_vip && !is_direct) {
                (false, true) => routes.new.push(ip),
                (true, false) => routes.gone.push(ip),
                _ => {}
            }
        }
        routes
    }

    /// Takes over the marks that the table in the kernel has. To be called before the first update.
    pub fn adopt_marks(&mut self, marks: impl IntoIterator<Item = (Front, u32)>) {
        self.direct.adopt(marks);
    }

    /// Says how large packets to endpoints on this node may be.
    pub fn set_mtu(&mut self, mtu: u16) -> Vec<Op> {
        self.direct.set_mtu(mtu);
        if let Some(wanted) = self.direct.settle() {
            self.rules.set_direct(&wanted);
        }
        self.rules.take_steps()
    }

    /// The front of a virtual service.
    pub fn front(&self, key: &ServiceKey) -> Option<Front> {
        match *key {
            ServiceKey::Mark { mark, .. } => self.direct.front(mark),
            ServiceKey::Address { protocol, address: ip, port } => {
                let mut known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
                let protocol = known.find(|known| known.number() == protocol.0)?;
                Some(Front { ip, protocol, port })
            }
        }
    }

    /// How destinations of a virtual service leave, where those of its kind leave by `drain`: UDP has no
    /// connections to wait for, and a mark does not say that it is UDP.
    pub fn drain(&self, key: &ServiceKey, drain: Drain) -> Drain {
        let datagrams = self.front(key).is_some_and(|front| front.protocol == Protocol::Udp);
        Drain { graceful: drain.graceful && !datagrams, ..drain }
    }

    /// Endpoints on this node that are served by direct return.
    pub fn direct_pods(&self) -> BTreeMap<IpAddr, DirectPod> {
        let mut pods: BTreeMap<IpAddr, DirectPod> = BTreeMap::new();
        for key in self.direct.services() {
            let Some(part) = self.parts.get(key) else { continue };
            for (pod, vips) in part.extras.direct.iter().flat_map(|direct| &direct.pods) {
                let pod = pods.entry(*pod).or_default();
                pod.vips.extend(vips);
                pod.services.insert(key.clone());
            }
        }
        pods
    }

    /// What direct return needs of the node.
    pub fn direct_needs(&self) -> DirectNeeds {
        let mut needs = DirectNeeds::default();
        for front in self.direct.fronts() {
            let v4 = front.family() == Family::V4;
            needs.families[usize::from(!v4)] = true;
            needs.datagrams |= v4 && front.protocol == Protocol::Udp;
        }
        needs.hashed = self.direct.services().filter_map(|key| self.parts.get(key)).any(|part| {
            let direct = part.virtuals().filter(|wanted| matches!(wanted.key(), ServiceKey::Mark { .. }));
            direct.into_iter().any(|wanted| wanted.service.scheduler.as_str() == "mh")
        });
        needs
    }

    fn withdraw(&mut self, key: &ObjectKey, old: &Part, before: &mut Before) {
        self.rules.remove(key, old);
        for wanted in old.virtuals() {
            let was = self.virtuals.remove(wanted.key());
            before.entry(*wanted.key()).or_insert(was);
        }
        old.vips().for_each(|ip| self.vips.release(&ip));
        old.extras.local.keys().for_each(|ip| self.local.release(ip));
        self.direct.withdraw(key, old);
        if let Some(check) = &old.extras.health {
            self.health.remove(&check.port);
        }
        self.faulty.remove(key);
    }

    fn install(&mut self, service: &Arc<FullService>, mut new: Part, before: &mut Before) {
        let key = &service.key;
        self.direct.install(key, &mut new);
        self.rules.insert(key, &new);
        for wanted in new.virtuals() {
            let was = self.virtuals.insert(wanted.clone());
            before.entry(*wanted.key()).or_insert(was);
        }
        new.vips().for_each(|ip| self.vips.acquire(ip));
        new.extras.local.keys().for_each(|ip| self.local.acquire(*ip));
        if let Some(check) = &new.extras.health {
            self.health.insert(check.port, (key.clone(), check.clone()));
        }
        if !new.extras.problems.is_empty() {
            self.faulty.insert(key.clone());
        }
        self.parts.insert(service.clone(), new);
    }

    /// The wanted virtual service of a key.
    pub fn virtual_service(&self, key: &ServiceKey) -> Option<&Arc<Virtual>> {
        self.virtuals.get(key)
    }

    /// The Services that have a virtual address. A walk through all: for the few that are in trouble.
    pub fn users_of(&self, ip: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        self.parts
            .iter()
            .filter(move |(_, part)| part.vips().any(|vip| vip == ip))
            .map(|(service, _)| service)
    }

    /// The Service that a wanted virtual service is of. A walk through all: for the few that are in trouble.
    pub fn owner(&self, key: &ServiceKey) -> Option<&ObjectKey> {
        let mut parts = self.parts.iter();
        parts.find(|(_, part)| part.virtuals().any(|wanted| wanted.key() == key)).map(|(service, _)| service)
    }

    /// The keys of all wanted virtual services, in no order.
    pub fn virtual_keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.virtuals.keys()
    }

    /// All wanted virtual services, in order: for people.
    pub fn virtuals(&self) -> BTreeMap<ServiceKey, Arc<Virtual>> {
        self.virtuals.iter().map(|wanted| (*wanted.key(), wanted.clone())).collect()
    }

    /// All virtual addresses that are to be local by a route.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().copied().filter(|ip| !self.direct.vips.contains(ip))
    }

    /// Whether a virtual address is to be local by a route.
    pub fn wants_vip(&self, ip: IpAddr) -> bool {
        self.vips.contains(&ip) && !self.direct.vips.contains(&ip)
    }

    /// The node's own addresses, as they were planned with.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The wanted table.
    pub fn ruleset(&self) -> &Ruleset {
        self.rules.ruleset()
    }

    /// Whether the next updates tell the steps of the table.
    pub fn record(&mut self, records: bool) {
        self.rules.record(records);
    }

    /// Wants other flags of the table.
    pub fn set_flags(&mut self, flags: TableFlags) {
        self.rules.set_flags(flags);
    }

    /// Health check ports, with the Service and its endpoints on this node.
    pub fn health(&self) -> &BTreeMap<u16, (ObjectKey, HealthCheck)> {
        &self.health
    }

    /// The parts of all Services, in no order.
    pub fn parts(&self) -> impl Iterator<Item = (&ObjectKey, &Part)> {
        self.parts.iter()
    }

    /// What is not in force, by Service.
    pub fn problems(&self) -> BTreeMap<ObjectRef, Vec<Problem>> {
        let of = |key: &ObjectKey| {
            let object = ObjectRef { kind: common_informer::object::Kind::Service, key: key.clone() };
            Some((object, self.parts.get(key)?.extras.problems.clone()))
        };
        self.faulty.iter().filter_map(of).collect()
    }
}
