//! Keeps the wanted table right while the world changes, at a cost that follows the change.
//!
//! The planner remembers what it put where: the chains of each local address, the sets of each address, the
//! sets of each chain. For what was touched it computes the new answer from the world and moves from the old
//! one to it. A fresh planner that is shown the same world ends in the same table; a property test says so.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{Kind, ObjectKey, ObjectRef, Pod, Service, Str};
use kernel_nft::{Chain, IpVersion, Key, Name, Op, Rule, Ruleset, TableFlags, Value, Verdict};

use super::PlanConfig;
use super::base::{self, EXEMPT_SETS};
use super::chain::{self, Compiled};
use super::sets::{self, AddressSets, Membership, SetId};
use crate::model::index::SelectorIndex;
use crate::model::policy::{Direction, Policy, PortMatch, Problem, Reason};
use crate::model::world::{Touched, World};
use kernel_nft::{Journal, Steps};

/// The wanted table and how it came about.
#[derive(Debug)]
pub struct Planner {
    config: PlanConfig,
    generation: u32,
    journal: Journal,
    sets: AddressSets,
    blocks: HashMap<Name, usize>,
    chains: HashMap<Name, ChainState>,
    chains_of_policy: HashMap<ObjectKey, BTreeSet<Name>>,
    policies: HashMap<ObjectKey, Arc<Policy>>,
    by_namespace: HashMap<Str, SelectorIndex<ObjectKey>>,
    memberships: HashMap<IpAddr, Box<[Membership]>>,
    local: BTreeMap<IpAddr, Chains>,
    /// How many Services have an address, protocol and port (address `None`: a node port).
    services: HashMap<(Option<IpAddr>, u8, u16), usize>,
    quarantine: BTreeMap<Name, String>,
}

/// The steps of one update.
#[derive(Debug, Default)]
pub struct Update {
    /// For one transaction.
    pub ops: Vec<Op>,
    /// Connections that were allowed may not be any more: the generation has to change.
    pub tightened: bool,
}

/// A chain in use.
#[derive(Debug)]
struct ChainState {
    direction: Direction,
    policies: Vec<ObjectKey>,
    members: BTreeSet<IpAddr>,
    sets: Vec<SetId>,
    blocks: Vec<Name>,
    named_ports: bool,
}

/// The chains of a local address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chains {
    ingress: Option<Name>,
    egress: Option<Name>,
}

impl Chains {
    fn get(&self, direction: Direction) -> Option<&Name> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

impl Planner {
    /// A planner that wants a table in which nobody is isolated.
    pub fn new(config: PlanConfig, flags: TableFlags) -> Self {
        let generation = 1;
        let mut journal = base::journal(&config, flags, generation);
        journal.take_steps(|_| true);
        Self {
            config,
            generation,
            journal,
            sets: AddressSets::default(),
            blocks: HashMap::new(),
            chains: HashMap::new(),
            chains_of_policy: HashMap::new(),
            policies: HashMap::new(),
            by_namespace: HashMap::new(),
            memberships: HashMap::new(),
            local: BTreeMap::new(),
            services: HashMap::new(),
            quarantine: BTreeMap::new(),
        }
    }

    /// The wanted table.
    pub fn ruleset(&self) -> &Ruleset {
        self.journal.ruleset()
    }

    /// The generation in force.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Moves to a generation. The steps belong into the transaction that tightened something.
    pub fn set_generation(&mut self, generation: u32) -> Vec<Op> {
        self.generation = generation;
        base::set_chains(&mut self.journal, &self.config, generation);
        self.journal.take_steps(|_| true).ops
    }

    /// Wants other flags of the table.
    pub fn set_flags(&mut self, flags: TableFlags) {
        self.journal.set_flags(flags);
    }

    /// The isolated addresses of this node, each with the policies that isolate it per direction.
    pub fn isolated(&self) -> impl Iterator<Item = (IpAddr, Option<&[ObjectKey]>, Option<&[ObjectKey]>)> {
        let policies = |name: &Option<Name>| {
            name.as_ref().and_then(|name| self.chains.get(name)).map(|state| state.policies.as_slice())
        };
        self.local
            .iter()
            .filter(|(_, chains)| **chains != Chains::default())
            .map(move |(address, chains)| (*address, policies(&chains.ingress), policies(&chains.egress)))
    }

    /// Brings the table in line with what was touched in the world.
    pub fn update(&mut self, world: &World, touched: &Touched) -> Update {
        let mut local: BTreeSet<IpAddr> = touched.addresses.clone();
        let mut dirty_chains = BTreeSet::new();
        for key in &touched.policies {
            self.policy(key, world, &mut local, &mut dirty_chains);
        }
        for address in local {
            self.local_address(address, world, &mut dirty_chains);
        }
        self.compile_chains(dirty_chains, world, &touched.addresses);
        for address in &touched.addresses {
            self.address(*address, world);
        }
        for (key, before) in &touched.services {
            self.service(before.as_deref(), false);
            self.service(world.service(key).map(AsRef::as_ref), true);
        }
        let Steps { ops, tightened } = self.journal.take_steps(|name| EXEMPT_SETS.contains(&name));
        Update { ops, tightened }
    }

    /// Replaces the index entry of a policy and finds whom and what it concerns.
    fn policy(
        &mut self,
        key: &ObjectKey,
        world: &World,
        local: &mut BTreeSet<IpAddr>,
        dirty_chains: &mut BTreeSet<Name>,
    ) {
        if let Some(old) = self.policies.remove(key)
            && let Some(index) = self.by_namespace.get_mut(&key.namespace)
        {
            index.remove(&old.selector, key);
            if index.is_empty() {
                self.by_namespace.remove(&key.namespace);
            }
        }
        for name in self.chains_of_policy.get(key).into_iter().flatten() {
            dirty_chains.insert(name.clone());
            if let Some(chain) = self.chains.get(name) {
                local.extend(&chain.members);
            }
        }
        if let Some(policy) = world.policy(key) {
            self.policies.insert(key.clone(), policy.clone());
            let index = self.by_namespace.entry(key.namespace.clone()).or_default();
            index.insert(policy.selector.clone(), key.clone());
            let selected = world
                .addresses_in(&key.namespace)
                .filter(|(_, pod)| world.is_local(pod) && policy.selector.matches(&pod.labels));
            local.extend(selected.map(|(address, _)| address));
        }
    }

    /// Sends a local address to the chains of the policies that select it.
    fn local_address(&mut self, address: IpAddr, world: &World, dirty_chains: &mut BTreeSet<Name>) {
        let pod = world.owner(&address).filter(|pod| world.is_local(pod));
        let mut chains = Chains::default();
        if let Some(pod) = pod {
            chains.ingress = self.chain_of(pod, Direction::Ingress, world, dirty_chains);
            chains.egress = self.chain_of(pod, Direction::Egress, world, dirty_chains);
        }
        let before = match pod {
            Some(_) => self.local.insert(address, chains.clone()),
            None => self.local.remove(&address),
        }
        .unwrap_or_default();
        let version = version_of(address);
        for direction in [Direction::Ingress, Direction::Egress] {
            let (old, new) = (before.get(direction), chains.get(direction));
            if old == new {
                continue;
            }
            if let Some(old) = old
                && let Some(chain) = self.chains.get_mut(old)
            {
                chain.members.remove(&address);
                if chain.members.is_empty() {
                    dirty_chains.insert(old.clone());
                }
            }
            if let Some(new) = new
                && let Some(chain) = self.chains.get_mut(new)
            {
                chain.members.insert(address);
            }
            let value = new.map(|name| match direction {
                Direction::Ingress => Value::Verdict(Verdict::Goto(name.clone())),
                Direction::Egress => Value::Verdict(Verdict::Jump(name.clone())),
            });
            self.journal.set_element(&base::verdict_map(direction, version), address.into(), value);
        }
        let isolated = chains != Chains::default();
        if isolated != (before != Chains::default()) {
            let own = Key::from(address);
            let pair = Key::concat(&[own.as_bytes(), own.as_bytes()]);
            self.journal.set_element(
                &base::versioned("self", version),
                pair,
                isolated.then_some(Value::Member),
            );
        }
    }

    /// The chain of a pod, made if need be; `None` if the pod is not isolated in the direction.
    fn chain_of(
        &mut self,
        pod: &Pod,
        direction: Direction,
        world: &World,
        dirty_chains: &mut BTreeSet<Name>,
    ) -> Option<Name> {
        let mut policies: Vec<ObjectKey> = match self.by_namespace.get(&pod.key.namespace) {
            Some(index) => index
                .matching(&pod.labels)
                .filter(|key| self.policies.get(*key).is_some_and(|policy| policy.rules(direction).is_some()))
                .cloned()
                .collect(),
            None => Vec::new(),
        };
        let by_namespace = direction == Direction::Ingress && world.denies_ingress(&pod.key.namespace);
        if policies.is_empty() && !by_namespace {
            return None;
        }
        policies.sort_unstable();
        policies.dedup();
        let name = chain::name(direction, &policies);
        if !self.chains.contains_key(&name) {
            dirty_chains.insert(name.clone());
            for key in &policies {
                self.chains_of_policy.entry(key.clone()).or_default().insert(name.clone());
            }
            let state = ChainState {
                direction,
                policies,
                members: BTreeSet::new(),
                sets: Vec::new(),
                blocks: Vec::new(),
                named_ports: false,
            };
            self.chains.insert(name.clone(), state);
        }
        Some(name)
    }

    /// Writes or removes chains, and with them the sets that they need or needed.
    fn compile_chains(&mut self, names: BTreeSet<Name>, world: &World, touched: &BTreeSet<IpAddr>) {
        let mut released = Vec::new();
        let mut released_blocks = Vec::new();
        let mut new_sets = Vec::new();
        for name in names {
            let Some(state) = self.chains.get(&name) else { continue };
            if state.members.is_empty() {
                if let Some(state) = self.chains.remove(&name) {
                    self.forget_chain(&name, &state.policies);
                    released.extend(state.sets);
                    released_blocks.extend(state.blocks);
                }
                continue;
            }
            let policies: Vec<_> =
                state.policies.iter().filter_map(|key| self.policies.get(key).cloned()).collect();
            let compiled = chain::compile(state.direction, &policies, &self.config);
            let named = policies
                .iter()
                .flat_map(|policy| policy.rules(state.direction).into_iter().flatten())
                .any(|rule| rule.ports.iter().flatten().any(|port| matches!(port, PortMatch::Named(..))));
            let (sets, blocks) = self.acquire(&compiled, &mut new_sets);
            let chain = self.quarantined(&name, compiled.chain);
            self.journal.set_chain(&name, Some(chain));
            if let Some(state) = self.chains.get_mut(&name) {
                state.named_ports = named;
                released.extend(std::mem::replace(&mut state.sets, sets));
                released_blocks.extend(std::mem::replace(&mut state.blocks, blocks));
            }
        }
        self.release(released, released_blocks);
        self.fill(new_sets, world, touched);
    }

    /// A chain that the kernel refused allows nothing.
    fn quarantined(&self, name: &Name, chain: Chain) -> Chain {
        if !self.quarantine.contains_key(name) {
            return chain;
        }
        let rules = chain.rules.last().cloned().into_iter().collect::<Vec<Rule>>();
        Chain { rules, ..chain }
    }

    fn forget_chain(&mut self, name: &Name, policies: &[ObjectKey]) {
        self.journal.set_chain(name, None);
        self.quarantine.remove(name);
        for key in policies {
            if let Some(chains) = self.chains_of_policy.get_mut(key) {
                chains.remove(name);
                if chains.is_empty() {
                    self.chains_of_policy.remove(key);
                }
            }
        }
    }

    fn acquire(&mut self, compiled: &Compiled, new_sets: &mut Vec<SetId>) -> (Vec<SetId>, Vec<Name>) {
        let mut ids = Vec::with_capacity(compiled.sets.len());
        for key in &compiled.sets {
            let (id, new) = self.sets.acquire(key, &self.config.versions, &mut self.journal);
            if new {
                new_sets.push(id);
            }
            ids.push(id);
        }
        let mut names = Vec::with_capacity(compiled.blocks.len());
        for (version, ranges) in &compiled.blocks {
            let name = sets::block_set_name(*version, ranges);
            sets::ensure_block_set(&name, *version, ranges, &mut self.journal);
            *self.blocks.entry(name.clone()).or_default() += 1;
            names.push(name);
        }
        (ids, names)
    }

    fn release(&mut self, ids: Vec<SetId>, blocks: Vec<Name>) {
        let unused: BTreeSet<SetId> = ids.into_iter().filter(|id| self.sets.release(*id)).collect();
        for id in unused {
            for address in self.sets.remove(id, &mut self.journal) {
                if let Some(memberships) = self.memberships.remove(&address) {
                    let kept: Box<[_]> = memberships.iter().copied().filter(|(set, _)| *set != id).collect();
                    if !kept.is_empty() {
                        self.memberships.insert(address, kept);
                    }
                }
            }
        }
        for name in blocks {
            if let Some(references) = self.blocks.get_mut(&name) {
                *references -= 1;
                if *references == 0 {
                    self.blocks.remove(&name);
                    self.journal.remove_set(&name);
                }
            }
        }
    }

    /// Fills new sets with the addresses that `update` does not visit anyway.
    fn fill(&mut self, new_sets: Vec<SetId>, world: &World, touched: &BTreeSet<IpAddr>) {
        let all_visited =
            || touched.iter().filter(|ip| world.owner(ip).is_some()).count() == world.address_count();
        if new_sets.is_empty() || all_visited() {
            return;
        }
        for id in new_sets.into_iter().filter(|id| self.sets.is_referenced(*id)).collect::<Vec<_>>() {
            let mut seen = HashSet::new();
            for (address, membership) in self.sets.members_of(id, world) {
                if touched.contains(&address) || !seen.insert((address, membership)) {
                    continue;
                }
                self.sets.set_member(membership, address, true, &mut self.journal);
                let mut memberships = self.memberships.remove(&address).unwrap_or_default().into_vec();
                memberships.push(membership);
                memberships.sort_unstable();
                self.memberships.insert(address, memberships.into());
            }
        }
    }

    /// Moves an address from the sets that it was in to those that it belongs to.
    fn address(&mut self, address: IpAddr, world: &World) {
        let after = match world.owner(&address) {
            Some(pod) => {
                let labels = world.namespace_labels(&pod.key.namespace);
                self.sets.memberships(pod, &labels, world.is_local(pod))
            }
            None => Vec::new(),
        };
        let before = self.memberships.remove(&address).unwrap_or_default();
        for &gone in before.iter().filter(|membership| after.binary_search(membership).is_err()) {
            self.sets.set_member(gone, address, false, &mut self.journal);
        }
        for &new in after.iter().filter(|membership| before.binary_search(membership).is_err()) {
            self.sets.set_member(new, address, true, &mut self.journal);
        }
        if !after.is_empty() {
            self.memberships.insert(address, after.into());
        }
    }

    /// Counts the addresses and ports of a Service in or out.
    fn service(&mut self, service: Option<&Service>, present: bool) {
        let Some(service) = service.filter(|_| self.config.judge_egress_to_node) else { return };
        let tcp = common_informer::object::Protocol::Tcp.number();
        let mut ends: Vec<(Option<IpAddr>, u8, u16)> =
            service.health_check_node_port.map(|port| (None, tcp, port)).into_iter().collect();
        for port in &service.ports {
            let protocol = port.protocol.number();
            ends.extend(service.ips.iter().map(|address| (Some(*address), protocol, port.port)));
            ends.extend(port.node_port.map(|node_port| (None, protocol, node_port)));
        }
        ends.sort_unstable();
        ends.dedup();
        for end in ends {
            let count = self.services.entry(end).or_default();
            let before = *count;
            *count = if present { before + 1 } else { before.saturating_sub(1) };
            let (was, is) = (before > 0, *count > 0);
            if !is {
                self.services.remove(&end);
            }
            if was != is {
                let (address, protocol, port) = end;
                let tail = [&[protocol][..], &port.to_be_bytes()[..]];
                let (name, key) = match address {
                    Some(address) => (
                        base::versioned("service", version_of(address)),
                        Key::concat(&[Key::from(address).as_bytes(), tail[0], tail[1]]),
                    ),
                    None => ("nodeport".into(), Key::concat(&tail)),
                };
                self.journal.set_element(&name, key, is.then_some(Value::Member));
            }
        }
    }

    /// Empties a chain that the kernel refuses, but for its refusal, so that one policy does not keep all
    /// the others from being enforced. Lasts until one of its policies changes. False if the chain is none of
    /// a policy, or was emptied before.
    pub fn quarantine(&mut self, chain: &str, why: &str, world: &World) -> bool {
        let Some((name, _)) = self.chains.get_key_value(chain) else { return false };
        let name = name.clone();
        if self.quarantine.insert(name.clone(), why.into()).is_some() {
            return false;
        }
        self.compile_chains(BTreeSet::from([name]), world, &BTreeSet::new());
        self.journal.take_steps(|_| true);
        true
    }

    /// Lifts the quarantine of the chains of some policies.
    pub fn pardon<'a>(&mut self, policies: impl Iterator<Item = &'a ObjectKey>) {
        for key in policies {
            for name in self.chains_of_policy.get(key).into_iter().flatten() {
                self.quarantine.remove(name);
            }
        }
    }

    /// What is wrong with the policies of this node that only shows when they meet pods and the kernel.
    pub fn problems(&self, world: &World) -> BTreeMap<ObjectRef, Vec<Problem>> {
        let mut problems: BTreeMap<ObjectRef, BTreeSet<Problem>> = BTreeMap::new();
        let mut resolved: HashSet<(ObjectKey, String)> = HashSet::new();
        for state in self.chains.values().filter(|state| state.named_ports) {
            self.named_port_problems(state, world, &mut problems, &mut resolved);
        }
        for (object, problems) in &mut problems {
            problems.retain(|problem| !resolved.contains(&(object.key.clone(), problem.message.clone())));
        }
        for (name, why) in &self.quarantine {
            for key in self.chains.get(name).into_iter().flat_map(|state| &state.policies) {
                let object = ObjectRef { kind: Kind::NetworkPolicy, key: key.clone() };
                let message =
                    format!("the kernel refused the chain {name}: {why}; the policy allows nothing");
                problems
                    .entry(object)
                    .or_default()
                    .insert(Problem { reason: Reason::KernelRefused, message });
            }
        }
        problems
            .into_iter()
            .filter(|(_, problems)| !problems.is_empty())
            .map(|(object, problems)| (object, problems.into_iter().collect()))
            .collect()
    }

    /// Named ports of a chain that no pod resolves. A policy may be in several chains; what one of them
    /// resolves is `resolved`.
    fn named_port_problems(
        &self,
        state: &ChainState,
        world: &World,
        problems: &mut BTreeMap<ObjectRef, BTreeSet<Problem>>,
        resolved: &mut HashSet<(ObjectKey, String)>,
    ) {
        for policy in state.policies.iter().filter_map(|key| self.policies.get(key)) {
            for rule in policy.rules(state.direction).into_iter().flatten() {
                for set in chain::named_ports(state.direction, rule) {
                    let Some((name, protocol)) = &set.port else { continue };
                    let open = match state.direction {
                        Direction::Ingress => {
                            state.members.iter().filter_map(|ip| world.owner(ip)).any(|pod| {
                                pod.ports.iter().any(|port| port.name == *name && port.protocol == *protocol)
                            })
                        }
                        Direction::Egress => {
                            !set.terms.is_empty() && !self.sets.is_empty(&set, &self.journal)
                        }
                    };
                    let word = if state.direction == Direction::Ingress { "ingress" } else { "egress" };
                    let message = format!(
                        "spec.{word}[{}].ports: no pod that the rule reaches has a {protocol} port named {name:?}",
                        rule.index
                    );
                    if open {
                        resolved.insert((policy.key.clone(), message));
                    } else {
                        let object = ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() };
                        let problem = Problem { reason: Reason::UnresolvedPort, message };
                        problems.entry(object).or_default().insert(problem);
                    }
                }
            }
        }
    }
}

fn version_of(address: IpAddr) -> IpVersion {
    if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
}
