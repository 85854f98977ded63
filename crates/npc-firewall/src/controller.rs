//! The loop's body: takes changes, plans, commits, and looks after what it committed.
//!
//! ```text
//!  receive: changes ──► World ──► touched
//!  sync:    touched ──► Planner ──► ops ──► one transaction      (what the kernel holds is known)
//!           observe ──► diff ─────► ops ──► one transaction      (at start, after a failure, each period,
//!                                                                 when somebody touched the table)
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use common_informer::object::{Batch, Kind, ObjectKey, ObjectRef};
use common_informer::problem::{Complaint, Problems};
use kernel_nft::{CommitError, Family, Found, Keeper, Nftables, Op, Ownership, TableFlags};
use node_runtime::{Cause, Controller, Degradation, SyncError, SyncReport, Waker};
use serde::Serialize;

use crate::apply::Marks;
use crate::apply::sysctl::{State as SysctlState, Sysctls};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::model::policy::Problem;
use crate::model::world::{Touched, World};
use crate::owned;
use crate::plan::generation::{Generations, INTERVAL, Step};
use crate::plan::{PlanConfig, Planner, base};

/// How often the table is read and mended in one sync before it is given up until the next.
const ATTEMPTS: usize = 5;
/// How many chains may be emptied in one sync because the kernel refuses them.
const QUARANTINES: usize = 64;

/// Watches the table for changes by others, when it cannot be owned. Called at most once.
pub type WatchTable = Box<dyn FnOnce(Waker) + Send>;

/// What the firewall needs of its surroundings.
pub struct Surroundings<N> {
    /// The kernel's tables.
    pub nft: N,
    /// The kernel's connection marks.
    pub marks: Box<dyn Marks + Send>,
    /// The bridge sysctls; `None` leaves them alone.
    pub sysctls: Option<Sysctls>,
    /// Starts a watch of the table.
    pub watch: Option<(WatchTable, Waker)>,
    /// Metrics to keep, with the gauges that every daemon has.
    pub metrics: Option<(Metrics, node_runtime::metrics::CommonMetrics)>,
    /// Where objects come from, for `/state`.
    pub informer: Option<common_informer::Status>,
}

/// The firewall of one node.
pub struct Firewall<N> {
    config: PlanConfig,
    /// Flags of a table that this process makes or adopts.
    flags: TableFlags,
    world: World,
    touched: Touched,
    planner: Planner,
    generations: Generations,
    kernel: Keeper<N>,
    surroundings: Rest,
    synced: bool,
    /// The kernel holds what the planner wants, as far as is known.
    in_step: bool,
    /// The table has been found or made by this process.
    adopted: bool,
    repairs: u64,
    /// Why marks of old generations may still be on connections.
    sweep_failure: Option<String>,
    /// Connections may have marks of a table before this process's first.
    unswept: bool,
    problems: Problems<Problem>,
    sysctls: Vec<(&'static str, SysctlState)>,
}

struct Rest {
    marks: Box<dyn Marks + Send>,
    sysctls: Option<Sysctls>,
    watch: Option<(WatchTable, Waker)>,
    metrics: Option<(Metrics, node_runtime::metrics::CommonMetrics)>,
    informer: Option<common_informer::Status>,
}

impl<N: Nftables> Firewall<N> {
    /// A firewall that has touched nothing yet. `flags` are those of a table that it makes; one that exists
    /// keeps its own, since the kernel does not let them change.
    pub fn new(node: &str, config: PlanConfig, flags: TableFlags, surroundings: Surroundings<N>) -> Self {
        let Surroundings { nft, marks, sysctls, watch, metrics, informer } = surroundings;
        Self {
            world: World::new(node.into()),
            touched: Touched::default(),
            planner: Planner::new(config.clone(), flags),
            generations: Generations::new(if config.marks() { config.last_generation() } else { 0 }),
            config,
            flags,
            kernel: Keeper::new(nft, Family::Inet, owned::TABLE),
            surroundings: Rest { marks, sysctls, watch, metrics, informer },
            synced: false,
            in_step: false,
            adopted: false,
            repairs: 0,
            sweep_failure: None,
            unswept: false,
            problems: Problems::default(),
            sysctls: Vec::new(),
        }
    }

    /// The planner, for those who only want to look.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Takes the changes received so far into the wanted table, without any look at the kernel.
    pub fn plan(&mut self) -> Vec<Op> {
        let touched = std::mem::take(&mut self.touched);
        self.planner.pardon(touched.policies.iter());
        let update = self.planner.update(&self.world, &touched);
        // Out of step, the planner's last state says nothing of what the kernel allowed; the audit decides.
        if update.tightened && self.in_step {
            self.generations.demand();
        }
        update.ops
    }

    /// What would change in the kernel now.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn difference(&mut self) -> Result<Vec<Op>, Error> {
        self.plan();
        self.problems.update(problems(&self.world, &self.planner));
        let found = self.kernel.read()?;
        self.take_over(&found);
        Ok(found.steps_to(self.planner.ruleset()))
    }

    fn reconcile(&mut self, cause: Cause, now: Instant, report: &mut SyncReport) -> Result<(), Error> {
        let mut ops = self.plan();
        if self.in_step {
            ops.extend(self.change_generation(now));
            match self.kernel.commit(&ops, None) {
                Ok(()) => count(&ops, report),
                Err(error) => {
                    tracing::warn!(error = %error, "transaction refused; reading the table to mend it");
                    self.in_step = false;
                }
            }
        }
        if !self.in_step || cause.must_observe() {
            self.audit(now, report)?;
        }
        report.wake_at = match self.generations.step(self.planner.generation(), now) {
            Step::Stay => None,
            Step::Wait(until) => Some(until),
            Step::Change { .. } => Some(now + INTERVAL),
        };
        Ok(())
    }

    /// Reads the table and makes it what it should be.
    fn audit(&mut self, now: Instant, report: &mut SyncReport) -> Result<(), Error> {
        let was_in_step = std::mem::replace(&mut self.in_step, false);
        // Policies may have got tighter in a sync that failed.
        let behind = self.adopted && !was_in_step;
        if self.unswept {
            self.unswept = !self.sweep(0);
        }
        let mut quarantines = 0;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            attempts += 1;
            let found = self.kernel.observe()?;
            if !self.adopted {
                self.adopt(&found);
            }
            let mut ops = found.steps_to(self.planner.ruleset());
            if ops.is_empty() {
                self.in_step = true;
                return Ok(());
            }
            if was_in_step && attempts == 1 {
                self.note_repair(&found, ops.len());
            }
            // What was allowed under the rules found is not known to be allowed under ours.
            let unknown = behind || found.observed.is_some();
            if unknown && ops.iter().any(|op| !matches!(op, Op::AddTable(_))) {
                self.generations.demand();
                if !self.change_generation(now).is_empty() {
                    ops = found.steps_to(self.planner.ruleset());
                }
            }
            let generation = found.observed.map(|observed| observed.generation);
            match self.kernel.commit(&ops, generation) {
                Ok(()) => {
                    count(&ops, report);
                    self.in_step = true;
                    return Ok(());
                }
                Err(error) => {
                    if self.quarantine(&error, &ops) && quarantines < QUARANTINES {
                        quarantines += 1;
                        attempts -= 1;
                    } else if !error.is_retryable() || attempts == ATTEMPTS {
                        return Err(Error::Commit(error));
                    }
                }
            }
        }
        Err(Error::Unstable)
    }

    /// First look at the table: goes on from what an earlier process left.
    fn adopt(&mut self, found: &Found) {
        self.take_over(found);
        if found.observed.is_none() && self.config.marks() {
            // Marks of an earlier table must not count under a new one.
            self.unswept = !self.sweep(0);
        }
        if !self.planner.ruleset().table.flags.owner
            && let Some((watch, waker)) = self.surroundings.watch.take()
        {
            watch(waker);
        }
        self.adopted = true;
    }

    /// Wants what the kernel will not let change: the flags of the table and, if nothing else differs, its
    /// generation.
    fn take_over(&mut self, found: &Found) {
        let Some(observed) = &found.observed else { return };
        // KERNEL: nf_tables_updtable() lets an orphan be owned again and refuses every other change of these
        // flags; the end of the owner takes the flag `owner` away (nft_rcv_nl_event()).
        if observed.ownership != Ownership::Orphaned || !self.flags.owner {
            self.planner.set_flags(observed.ruleset.table.flags);
        }
        if let Some(generation) = base::generation_of(&observed.ruleset, &self.config) {
            self.planner.set_generation(generation);
        }
    }

    fn note_repair(&mut self, found: &Found, steps: usize) {
        self.repairs += 1;
        if let Some((metrics, _)) = &self.surroundings.metrics {
            metrics.repairs.inc();
        }
        let what = if found.observed.is_some() { "changed" } else { "removed" };
        tracing::warn!(what, steps, "the nftables table was touched by somebody else; mending it");
    }

    /// The steps to the next generation, if it is due now.
    fn change_generation(&mut self, now: Instant) -> Vec<Op> {
        let current = self.planner.generation();
        let Step::Change { to, sweep } = self.generations.step(current, now) else { return Vec::new() };
        if sweep && !self.sweep(current << self.config.mark_mask.trailing_zeros()) {
            return Vec::new();
        }
        self.generations.changed(now);
        self.planner.set_generation(to)
    }

    /// Clears all marks but those that are `keep`. New connections are judged rightly even when that fails,
    /// so a failure is reported and does not keep rules from being committed.
    fn sweep(&mut self, keep: u32) -> bool {
        match self.surroundings.marks.clear(self.config.mark_mask, keep) {
            Ok(()) => {
                self.generations.swept();
                self.sweep_failure = None;
                true
            }
            Err(error) => {
                let message = format!(
                    "clearing old connection marks failed: {error}; connections that are no longer allowed may live on"
                );
                tracing::warn!(message);
                self.sweep_failure = Some(message);
                false
            }
        }
    }

    /// Empties the chain that a transaction failed for. False if it did not fail for a chain of ours.
    fn quarantine(&mut self, error: &CommitError, ops: &[Op]) -> bool {
        let (CommitError::Refused { op, .. } | CommitError::Invalid { op, .. }) = error else { return false };
        if error.is_retryable() {
            return false;
        }
        let chain = match ops.get(*op) {
            Some(Op::AddRule(chain, _) | Op::AddChain(chain, ..) | Op::FlushChain(chain)) => chain,
            _ => return false,
        };
        let done = self.planner.quarantine(chain, &error.to_string(), &self.world);
        if done {
            tracing::error!(chain = %chain, error = %error, "the kernel refuses the rules of a chain; it allows nothing now");
        }
        done
    }

    fn ensure_sysctls(&mut self) {
        let Some(sysctls) = &self.surroundings.sysctls else { return };
        self.sysctls = sysctls.ensure();
    }

    fn degradations(&self) -> Vec<Degradation> {
        let mut degraded: Vec<_> = self
            .sweep_failure
            .iter()
            .map(|message| Degradation { reason: "marks_not_cleared", message: message.clone() })
            .collect();
        for (name, state) in &self.sysctls {
            let message = match state {
                SysctlState::On => continue,
                SysctlState::Stuck(why) => why.clone(),
                SysctlState::Missing => {
                    if !self.surroundings.sysctls.as_ref().is_some_and(Sysctls::has_bridge) {
                        continue;
                    }
                    format!("{name} does not exist; load the kernel module br_netfilter")
                }
            };
            degraded.push(Degradation {
                reason: "bridge_not_filtered",
                message: format!("packets between pods on one Linux bridge are not filtered: {message}"),
            });
            break;
        }
        degraded.extend(self.problems.complaint().map(told));
        if let Some(informer) = &self.surroundings.informer {
            degraded.extend(informer.snapshot().complaints().into_iter().map(told));
        }
        degraded
    }
}

impl<N: Nftables> Controller for Firewall<N> {
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
        if cause.must_observe() {
            self.ensure_sysctls();
        }
        let result = self.reconcile(cause, now, &mut report);
        self.problems.update(problems(&self.world, &self.planner));
        report.degraded = self.degradations();
        report.conclude(result)
    }

    fn measure(&mut self) {
        let Some((metrics, common)) = &mut self.surroundings.metrics else { return };
        match self.kernel.counters() {
            Ok(counters) => {
                counters.for_each(|(name, counter)| metrics.count_denied(&name, counter.packets));
            }
            Err(error) => tracing::debug!(error = %error, "counters are not in this scrape"),
        }
        let ruleset = self.planner.ruleset();
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.generation.set(i64::from(self.planner.generation()));
        metrics.chains.set(gauge(ruleset.chains.len()));
        metrics.elements.set(gauge(ruleset.sets.values().map(|set| set.elements.len()).sum()));
        for (name, state) in &self.sysctls {
            let family = if name.ends_with("ip6tables") { "ipv6" } else { "ipv4" };
            let value = match state {
                SysctlState::On => 1,
                SysctlState::Stuck(_) => 0,
                SysctlState::Missing => -1,
            };
            metrics.bridge_nf_call.with_label_values(&[family]).set(value);
        }
        for kind in [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Service] {
            common.objects.with_label_values(&[kind.to_string().as_str()]).set(gauge(self.world.count(kind)));
        }
        common.show_excluded(self.problems.reasons());
    }

    fn state(&self) -> impl Serialize {
        State {
            in_force: self.in_step,
            source: self.surroundings.informer.as_ref().map(common_informer::Status::snapshot),
            generation: self.planner.generation(),
            repairs: self.repairs,
            objects: [Kind::Pod, Kind::Namespace, Kind::NetworkPolicy, Kind::Service]
                .map(|kind| (kind.to_string(), self.world.count(kind)))
                .into(),
            excluded: self
                .problems
                .iter()
                .map(|(object, problems)| Excluded {
                    object: object.to_string(),
                    problems: problems.iter().map(|p| (p.reason.as_str(), p.message.clone())).collect(),
                })
                .collect(),
            isolated: self
                .planner
                .isolated()
                .map(|(address, ingress, egress)| Isolated {
                    address: address.to_string(),
                    pod: self.world.owner(&address).map(|pod| pod.key.to_string()),
                    ingress: ingress.map(names),
                    egress: egress.map(names),
                })
                .collect(),
            sysctls: self.sysctls.iter().map(|(name, state)| (*name, format!("{state:?}"))).collect(),
        }
    }
}

/// What is wrong with objects: as they are, and as the plan needs them.
pub fn problems(world: &World, planner: &Planner) -> BTreeMap<ObjectRef, Vec<Problem>> {
    let mut problems = world.problems();
    for (object, more) in planner.problems(world) {
        problems.entry(object).or_default().extend(more);
    }
    problems
}

fn told(complaint: Complaint) -> Degradation {
    let Complaint { reason, message } = complaint;
    Degradation { reason, message }
}

fn names(keys: &[ObjectKey]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

/// The page `/state`.
#[derive(Serialize)]
struct State {
    /// The kernel holds the wanted table, as far as is known.
    in_force: bool,
    /// What was read, and what could not be.
    source: Option<common_informer::Snapshot>,
    generation: u32,
    repairs: u64,
    objects: BTreeMap<String, usize>,
    excluded: Vec<Excluded>,
    isolated: Vec<Isolated>,
    sysctls: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Excluded {
    object: String,
    problems: Vec<(&'static str, String)>,
}

/// An isolated address of this node, with the policies that isolate it.
#[derive(Serialize)]
struct Isolated {
    address: String,
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Vec<String>>,
}

fn count(ops: &[Op], report: &mut SyncReport) {
    for op in ops {
        let (word, count) = op.word();
        report.count(word, count);
    }
}
