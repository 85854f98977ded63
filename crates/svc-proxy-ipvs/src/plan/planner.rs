//! Keeps the wanted state of all Services, and changes what a change of the world touched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{ObjectKey, ObjectRef};
use kernel_netlink::ipvs::ServiceKey;
use kernel_nft::{Op, Ruleset, TableFlags};

use super::part::{HealthCheck, Part, part};
use super::rules::Rules;
use super::shared::{Difference, Shared};
use super::{PlanConfig, Virtual};
use crate::model::addresses::Addresses;
use crate::model::problem::Problem;
use crate::model::world::{Touched, World};

/// The wanted state.
#[derive(Debug)]
pub struct Planner {
    config: PlanConfig,
    addresses: Addresses,
    parts: HashMap<ObjectKey, Part>,
    virtuals: BTreeMap<ServiceKey, Arc<Virtual>>,
    vips: Shared<IpAddr>,
    local: Shared<IpAddr>,
    rules: Rules,
    /// Services with problems, so that they are found without a walk through all.
    faulty: BTreeSet<ObjectKey>,
    /// Health check ports, with their Services.
    health: BTreeMap<u16, (ObjectKey, HealthCheck)>,
}

/// Virtual services before an update.
type Before = BTreeMap<ServiceKey, Option<Arc<Virtual>>>;

/// What changed in the wanted state.
#[derive(Debug, Default)]
pub struct Update {
    /// Steps of the table from what was wanted before.
    pub table: Vec<Op>,
    /// Virtual services that are other than before, or no longer there.
    pub services: BTreeSet<ServiceKey>,
    /// Virtual addresses that came and went.
    pub vips: Difference<IpAddr>,
}

impl Planner {
    /// Wants an empty table and nothing else.
    pub fn new(config: PlanConfig, flags: TableFlags) -> Self {
        Self {
            rules: Rules::new(&config, flags),
            config,
            addresses: Addresses::default(),
            parts: HashMap::new(),
            virtuals: BTreeMap::new(),
            vips: Shared::default(),
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
            let known = self.parts.keys().chain(&touched.services).cloned();
            everything = known.chain(wanted).collect();
            &everything
        };
        // ORDER: all that goes goes first, since it may come back as part of another Service.
        let mut before = BTreeMap::new();
        for key in keys {
            if let Some(old) = self.parts.remove(key) {
                self.withdraw(key, &old, &mut before);
            }
        }
        for key in keys {
            if let Some(new) = part(key, world, &self.addresses, &self.config) {
                self.install(key, new, &mut before);
            }
        }
        let is_other = |(key, before): (ServiceKey, Option<Arc<Virtual>>)| {
            (before.as_ref() != self.virtuals.get(&key)).then_some(key)
        };
        let services = before.into_iter().filter_map(is_other).collect();
        let vips = self.vips.take_difference();
        let local = self.local.take_difference();
        vips.new.iter().for_each(|ip| self.rules.set_vip(*ip, true));
        vips.gone.iter().for_each(|ip| self.rules.set_vip(*ip, false));
        local.new.iter().for_each(|ip| self.rules.set_local(*ip, true));
        local.gone.iter().for_each(|ip| self.rules.set_local(*ip, false));
        self.rules.set_pod_cidrs(&world.pod_cidrs());
        Update { table: self.rules.take_steps(), services, vips }
    }

    fn withdraw(&mut self, key: &ObjectKey, old: &Part, before: &mut Before) {
        self.rules.remove(key, old);
        for virtual_key in old.virtuals.keys() {
            let was = self.virtuals.remove(virtual_key);
            before.entry(*virtual_key).or_insert(was);
        }
        old.vips.iter().for_each(|ip| self.vips.release(ip));
        old.local.iter().for_each(|ip| self.local.release(ip));
        if let Some(check) = &old.health {
            self.health.remove(&check.port);
        }
        self.faulty.remove(key);
    }

    fn install(&mut self, key: &ObjectKey, new: Part, before: &mut Before) {
        self.rules.insert(key, &new);
        for (virtual_key, wanted) in &new.virtuals {
            let was = self.virtuals.insert(*virtual_key, wanted.clone());
            before.entry(*virtual_key).or_insert(was);
        }
        new.vips.iter().for_each(|ip| self.vips.acquire(*ip));
        new.local.iter().for_each(|ip| self.local.acquire(*ip));
        if let Some(check) = &new.health {
            self.health.insert(check.port, (key.clone(), check.clone()));
        }
        if !new.problems.is_empty() {
            self.faulty.insert(key.clone());
        }
        self.parts.insert(key.clone(), new);
    }

    /// The wanted virtual service of a key.
    pub fn virtual_service(&self, key: &ServiceKey) -> Option<&Arc<Virtual>> {
        self.virtuals.get(key)
    }

    /// The Service that a wanted virtual service is of. A walk through all: for the few that are in trouble.
    pub fn owner(&self, key: &ServiceKey) -> Option<&ObjectKey> {
        let mut parts = self.parts.iter();
        parts.find(|(_, part)| part.virtuals.contains_key(key)).map(|(service, _)| service)
    }

    /// All wanted virtual services.
    pub fn virtuals(&self) -> &BTreeMap<ServiceKey, Arc<Virtual>> {
        &self.virtuals
    }

    /// All wanted virtual addresses.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().copied()
    }

    /// Whether a virtual address is wanted.
    pub fn wants_vip(&self, ip: IpAddr) -> bool {
        self.vips.contains(&ip)
    }

    /// The node's own addresses, as they were planned with.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The wanted table.
    pub fn ruleset(&self) -> &Ruleset {
        self.rules.ruleset()
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
            Some((object, self.parts.get(key)?.problems.clone()))
        };
        self.faulty.iter().filter_map(of).collect()
    }
}
