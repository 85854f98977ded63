//! The loop's body: takes changes, plans, commits, and looks after what it committed.
//!
//! ```text
//!  receive: changes ──► World ──► touched
//!  sync:    touched ──► Planner ──► 1 table ─► 2 virtual services ─► 3 addresses ─► 4 what is removed
//!           observe ──► the same, from what is really there (at start, after a failure, each period, when
//!                       somebody touched the table or an address)
//! ```
//!
//! ORDER: the table first, or ports of the node would be open on a new address and sources unchanged; addresses
//! after the services behind them, or connection tracking would keep flows that went elsewhere.

mod direct;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common_informer::object::{Batch, Kind, ObjectRef};
use common_informer::problem::Problems;
use kernel_netlink::conntrack::{Conntrack, Stale};
use kernel_netlink::ipvs::{Command, Ipvs, ServiceKey};
use kernel_netlink::route::{self, Rtnetlink};
use kernel_netlink::sysctl::{State as SysctlState, Sysctls};
use kernel_nft::{Family, Keeper, Nftables, Op, Ownership, TableFlags};
use node_runtime::{Cause, Controller, Degradation, SyncError, SyncReport, Waker};
use serde::Serialize;

use crate::apply::address::VirtualAddresses;
use crate::apply::health::Health;
use crate::apply::{dsr, sysctl};
use crate::args::Config;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::model::addresses::{Addresses, LocalAddress};
use crate::model::problem::{Problem, Reason};
use crate::model::world::{Touched, World};
use crate::owned;
use crate::plan::rules;
use crate::plan::steps::{Held, steps};
use crate::plan::{Index, Planner, Update};
use crate::report::{self, Excluded, Failures, State, describe, told};

/// How often something is tried in one sync before it is given up until the next.
const ATTEMPTS: usize = 3;

/// What the kernel refuses is tried again after this time, or with the next change.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

/// Watches the kernel for changes by others. Called at most once, when the table is not owned by this process.
pub type Watch = Box<dyn FnOnce(Waker) + Send>;

/// What the proxy needs of its surroundings.
pub struct Surroundings<V, R, N> {
    /// IPVS.
    pub ipvs: V,
    /// Addresses and routes.
    pub netlink: R,
    /// The kernel's tables.
    pub nft: N,
    /// Connection tracking.
    pub connections: Box<dyn Conntrack + Send>,
    /// Health check ports; `None` opens none.
    pub health: Option<Health>,
    /// Sysctls; `None` leaves them alone.
    pub sysctls: Option<Sysctls>,
    /// Starts a watch of the table.
    pub watch: Option<(Watch, Waker)>,
    /// Metrics to keep, with the gauges that every daemon has.
    pub metrics: Option<(Metrics, node_runtime::metrics::CommonMetrics)>,
    /// Where objects come from, for `/state`.
    pub informer: Option<common_informer::Status>,
}

/// The service proxy of one node.
pub struct Proxy<V, R, N> {
    config: Config,
    flags: TableFlags,
    world: World,
    touched: Touched,
    planner: Planner,
    ipvs: V,
    vips: VirtualAddresses<R>,
    direct: direct::Direct,
    table: Keeper<N>,
    rest: Rest,
    synced: bool,
    /// The last sync left nothing undone.
    in_step: bool,
    table_in_step: bool,
    adopted: bool,
    local: Vec<LocalAddress>,
    held: Index<Held>,
    /// Virtual services that may not be as they are wanted.
    pending: BTreeSet<ServiceKey>,
    draining: BTreeSet<ServiceKey>,
    next_drain_check: Option<Instant>,
    /// UDP fronts that are served since connections to them were last looked at.
    new_udp: Vec<Stale>,
    /// What the kernel refused, and why.
    refused: BTreeMap<ServiceKey, String>,
    repairs: u64,
    problems: Problems<Problem>,
    sysctls: sysctl::Found,
}

struct Rest {
    connections: Box<dyn Conntrack + Send>,
    health: Option<Health>,
    sysctls: Option<Sysctls>,
    watch: Option<(Watch, Waker)>,
    metrics: Option<(Metrics, node_runtime::metrics::CommonMetrics)>,
    informer: Option<common_informer::Status>,
}

impl<V: Ipvs, R: Rtnetlink, N: Nftables> Proxy<V, R, N> {
    /// A proxy that has touched nothing yet. `flags` are those of a table that it makes; one that exists keeps
    /// its own, since the kernel does not let them change.
    pub fn new(node: &str, config: Config, flags: TableFlags, surroundings: Surroundings<V, R, N>) -> Self {
        let Surroundings { ipvs, netlink, nft, connections, health, sysctls, watch, metrics, informer } =
            surroundings;
        Self {
            world: World::new(
                node.into(),
                config.proxy_name.clone(),
                config.admission.clone(),
                config.pod_cidrs.clone(),
            ),
            touched: Touched::default(),
            planner: Planner::new(config.plan.clone(), flags),
            direct: direct::Direct::new(&config),
            config,
            flags,
            ipvs,
            vips: VirtualAddresses::new(netlink),
            table: Keeper::new(nft, Family::Inet, owned::TABLE),
            rest: Rest { connections, health, sysctls, watch, metrics, informer },
            synced: false,
            in_step: false,
            table_in_step: false,
            adopted: false,
            local: Vec::new(),
            held: Index::default(),
            pending: BTreeSet::new(),
            draining: BTreeSet::new(),
            next_drain_check: None,
            new_udp: Vec::new(),
            refused: BTreeMap::new(),
            repairs: 0,
            problems: Problems::default(),
            sysctls: Vec::new(),
        }
    }

    /// The planner, for those who only want to look.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    fn plan(&mut self) -> Update {
        let node = self.world.node_addresses();
        let addresses = Addresses::of(&self.config.plan.node_ports, &self.local, node);
        self.planner.record(self.table_in_step);
        let update = self.planner.update(&self.world, &addresses, &std::mem::take(&mut self.touched));
        self.pending.extend(&update.services);
        update
    }

    /// What would change in the kernel now.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn difference(&mut self, now: Instant) -> Result<Difference, Error> {
        self.local = self.vips.local()?;
        self.adopt_marks()?;
        self.plan();
        self.look_at_paths(true, &mut Vec::new())?;
        let found = self.table.read()?;
        if let Some(observed) = &found.observed {
            self.planner.set_flags(observed.ruleset.table.flags);
        }
        let record = found.observed.iter().flat_map(|observed| rules::fronts(&observed.ruleset));
        let record = record.map(|front| front.service_key()).collect();
        self.vips.observe()?;
        self.observe_services(&record)?;
        let mut commands = Vec::new();
        for key in &self.pending {
            let drain = self.planner.drain(key, self.config.drain);
            let steps = steps(self.planner.virtual_service(key), self.held.get(key), drain, now);
            commands.extend(steps.commands);
            commands.extend(steps.removals);
        }
        let wanted: BTreeSet<_> = self.planner.vips().collect();
        let held: BTreeSet<_> = self.vips.held().collect();
        let leading = dsr::leading(self.vips.netlink(), &self.planner.direct_needs())?;
        Ok(Difference {
            direct: [leading.additions, leading.removals].concat(),
            table: found.steps_to(self.planner.ruleset()),
            commands,
            new_addresses: wanted.difference(&held).copied().collect(),
            gone_addresses: held.difference(&wanted).copied().collect(),
        })
    }

    fn reconcile(&mut self, cause: Cause, now: Instant, report: &mut SyncReport) -> Result<(), Error> {
        let observe = cause.must_observe() || !self.in_step;
        let was_in_step = std::mem::replace(&mut self.in_step, false);
        if observe {
            self.ensure_sysctls();
            self.local = self.vips.local()?;
        }
        self.adopt_marks()?;
        let mut update = self.plan();
        if let Some(health) = &mut self.rest.health {
            health.set(self.planner.health());
            health.set_node_eligible(!self.world.node_is_leaving());
        }
        let mut failures = Failures::default();
        if let Err(error) = self.look_at_paths(observe, &mut update.table) {
            failures.note(error);
        }
        let kept = self.keep_table(std::mem::take(&mut update.table), observe, report);
        let is_guarded = kept.is_ok();
        let record = kept.unwrap_or_else(|error| {
            failures.note(error);
            BTreeSet::new()
        });
        let (new, gone) = if observe {
            self.vips.observe()?;
            // Nobody tells of changes of IPVS, so it is not what woke us.
            if !was_in_step || cause != Cause::Kernel {
                self.observe_services(&record)?;
                self.ensure_timeouts(report)?;
            }
            let wanted: BTreeSet<IpAddr> = self.planner.vips().collect();
            let gone = self.vips.held().filter(|ip| !wanted.contains(ip)).collect();
            (wanted.into_iter().collect(), gone)
        } else {
            (update.vips.new, update.vips.gone)
        };
        self.set_up_pods(cause, now, report);
        let removals = self.commit_services(now, report, &mut failures);
        let refused: Vec<_> = self.vips.refused().keys().copied().collect();
        // Endpoints of what is served already are kept right, but no port of the node is opened on a new address.
        let new = new.into_iter().chain(refused).filter(|ip| is_guarded && self.planner.wants_vip(*ip));
        match self.vips.add(new.collect::<BTreeSet<_>>(), self.planner.addresses()) {
            Ok(count) => report.count("add_route", count),
            Err(error) => failures.note(error),
        }
        self.forget_stale(&mut failures);
        self.lead_marked(observe, report, &mut failures);
        match self.vips.remove(gone) {
            Ok(count) => report.count("delete_route", count),
            Err(error) => failures.note(error),
        }
        self.remove_services(&removals, report, &mut failures);
        self.look_after_drains(now, report, &mut failures);
        let is_refused = !self.refused.is_empty() || !self.vips.refused().is_empty();
        let again = is_refused.then(|| now + REFUSED_RETRY);
        report.wake_at = [self.next_drain_check, self.direct.wake_at, again].into_iter().flatten().min();
        failures.outcome()?;
        self.in_step = true;
        Ok(())
    }

    /// Makes the table what it should be. Gives the virtual services that it had a record of when it was read.
    fn keep_table(
        &mut self,
        ops: Vec<Op>,
        observe: bool,
        report: &mut SyncReport,
    ) -> Result<BTreeSet<ServiceKey>, Error> {
        if self.table_in_step {
            match self.table.commit(&ops, None) {
                Ok(()) => report::count(&ops, report),
                Err(error) => {
                    tracing::warn!(error = %error, "transaction refused; reading the table to mend it");
                    self.table_in_step = false;
                }
            }
        }
        if self.table_in_step && !observe {
            return Ok(BTreeSet::new());
        }
        // At the start it is as large as the table.
        drop(ops);
        let was_in_step = std::mem::replace(&mut self.table_in_step, false);
        for attempt in 1.. {
            let found = self.table.observe()?;
            let record = found.observed.iter().flat_map(|observed| rules::fronts(&observed.ruleset));
            let record = record.map(|front| front.service_key()).collect();
            self.adopt_table(found.observed.as_ref());
            let ops = found.steps_to(self.planner.ruleset());
            if was_in_step && attempt == 1 && !ops.is_empty() {
                self.note_repair(ops.len());
            }
            match self.table.commit(&ops, found.observed.map(|observed| observed.generation)) {
                Ok(()) => {
                    report::count(&ops, report);
                    self.table_in_step = true;
                    return Ok(record);
                }
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {}
                Err(error) => return Err(Error::Commit(error)),
            }
        }
        Err(Error::Unstable)
    }

    fn note_repair(&mut self, steps: usize) {
        self.repairs += 1;
        if let Some((metrics, _)) = &self.rest.metrics {
            metrics.repairs.inc();
        }
        tracing::warn!(steps, "the nftables table was touched by somebody else; mending it");
    }

    fn adopt_table(&mut self, observed: Option<&kernel_nft::Observed>) {
        if let Some(observed) = observed
            && (observed.ownership != Ownership::Orphaned || !self.flags.owner)
        {
            // The kernel does not let the flags of a table change.
            self.planner.set_flags(observed.ruleset.table.flags);
        }
        if !std::mem::replace(&mut self.adopted, true)
            && let Some((watch, waker)) = self.rest.watch.take()
        {
            watch(waker);
        }
    }

    fn ensure_sysctls(&mut self) {
        let Some(sysctls) = &self.rest.sysctls else { return };
        self.sysctls = sysctl::ensure(sysctls, &self.config.plan.families);
    }

    fn update_problems(&mut self) {
        let mut problems = self.world.problems();
        for (object, more) in self.planner.problems() {
            problems.entry(object).or_default().extend(more);
        }
        for (key, why) in &self.refused {
            if let Some(service) = self.planner.owner(key) {
                let object = ObjectRef { kind: Kind::Service, key: service.clone() };
                problems.entry(object).or_default().push(Problem::new(Reason::KernelRefused, why.clone()));
            }
        }
        for (ip, why) in self.vips.refused() {
            for service in self.planner.users_of(*ip) {
                let object = ObjectRef { kind: Kind::Service, key: service.clone() };
                problems.entry(object).or_default().push(Problem::new(Reason::KernelRefused, why.clone()));
            }
        }
        if let Some(health) = &self.rest.health {
            for (service, why) in health.failures() {
                let object = ObjectRef { kind: Kind::Service, key: service };
                problems.entry(object).or_default().push(Problem::new(Reason::PortInUse, why));
            }
        }
        for (object, problem) in self.direct_problems() {
            problems.entry(object).or_default().push(problem);
        }
        self.problems.update(problems);
    }

    fn degradations(&self) -> Vec<Degradation> {
        let mut degraded: Vec<_> = self.problems.complaint().map(told).into_iter().collect();
        for (name, state) in self.sysctls.iter().chain(&self.direct.sysctls) {
            let is_bridge = owned::BRIDGE_SYSCTLS.iter().any(|(bridge, _)| bridge == name);
            // Without the module br_netfilter, and so without bridges that need it, there is nothing to set.
            if state.is_on() || (is_bridge && *state == SysctlState::Missing) {
                continue;
            }
            degraded.push(Degradation { reason: "sysctl", message: format!("{name} {}", describe(state)) });
            break;
        }
        if let Some(informer) = &self.rest.informer {
            degraded.extend(informer.snapshot().complaints().into_iter().map(told));
        }
        degraded
    }
}

/// What `diff` shows.
#[derive(Debug)]
pub struct Difference {
    /// Of the table.
    pub table: Vec<Op>,
    /// Of IPVS.
    pub commands: Vec<Command>,
    /// Virtual addresses that would be added.
    pub new_addresses: Vec<IpAddr>,
    /// Virtual addresses that would be removed.
    pub gone_addresses: Vec<IpAddr>,
    /// Rules and routes of marked packets.
    pub direct: Vec<route::Command>,
}

impl<V: Ipvs, R: Rtnetlink, N: Nftables> Controller for Proxy<V, R, N> {
    type Message = Batch;

    fn receive(&mut self, batch: Batch) {
        for change in batch.changes {
            self.world.apply(change, &mut self.touched);
        }
        self.synced |= batch.synced;
    }

    fn is_synced(&self) -> bool {
        self.synced
    }

    fn sync(&mut self, cause: Cause, now: Instant) -> Result<SyncReport, SyncError> {
        let mut report = SyncReport::default();
        let result = self.reconcile(cause, now, &mut report);
        self.update_problems();
        report.degraded = self.degradations();
        report.conclude(result)
    }

    fn measure(&mut self) {
        let Some((metrics, common)) = &mut self.rest.metrics else { return };
        match self.table.counters() {
            Ok(counters) => {
                counters.for_each(|(name, counter)| metrics.count_refused(&name, counter.packets));
            }
            Err(error) => tracing::debug!(error = %error, "counters are not in this scrape"),
        }
        match self.ipvs.observe_services() {
            Ok(services) => metrics.show_services(&self.planner, &services),
            Err(error) => tracing::debug!(error = %error, "statistics are not in this scrape"),
        }
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.virtual_services.set(gauge(self.held.len()));
        let destinations = self.held.iter().map(|held| held.written.destinations.len()).sum();
        let draining = self.held.iter().map(|held| held.draining.len()).sum();
        metrics.destinations.with_label_values(&["serving"]).set(gauge(destinations));
        metrics.destinations.with_label_values(&["draining"]).set(gauge(draining));
        metrics.addresses.set(gauge(self.vips.count()));
        common.objects.with_label_values(&["Service"]).set(gauge(self.world.services().len()));
        common.objects.with_label_values(&["EndpointSlice"]).set(gauge(self.world.slice_count()));
        common.show_excluded(self.problems.reasons());
    }

    fn state(&self) -> impl Serialize {
        State {
            in_force: self.in_step,
            source: self.rest.informer.as_ref().map(common_informer::Status::snapshot),
            services: self.world.services().len(),
            endpoint_slices: self.world.slice_count(),
            virtual_services: self.held.len(),
            virtual_addresses: self.vips.count(),
            draining: self
                .held
                .iter()
                .flat_map(|held| {
                    held.draining.iter().map(move |draining| (held.written.service.key, draining))
                })
                .map(|(key, draining)| format!("{} of {key}", draining.destination.key))
                .collect(),
            repairs: self.repairs,
            node_port_addresses: self
                .planner
                .addresses()
                .node_ports
                .iter()
                .map(ToString::to_string)
                .collect(),
            pod_cidrs: self.world.pod_cidrs().iter().map(ToString::to_string).collect(),
            excluded: self
                .problems
                .iter()
                .map(|(object, problems)| Excluded {
                    object: object.to_string(),
                    problems: problems.iter().map(|p| (p.reason.as_str(), p.message.clone())).collect(),
                })
                .collect(),
            sysctls: self
                .sysctls
                .iter()
                .chain(&self.direct.sysctls)
                .map(|(name, state)| (*name, describe(state)))
                .collect(),
        }
    }
}
