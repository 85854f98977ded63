//! The loop's body: takes changes, plans, writes statuses, and tells of what could not be had.
//!
//! ```text
//!  Lead     ──► an empty world: what is known of before this term may be out of date
//!  Objects  ──► World ──► touched ──► Planner ──► unwritten
//!  sync:    unwritten ──► next_for ──► writes ──► World, as the API server has it now ──► Planner ──► …
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common_informer::object::{Batch, Kind, ObjectKey, ObjectRef};
use common_informer::problem::Problems;
use node_runtime::metrics::CommonMetrics;
use node_runtime::{Cause, Controller, Degradation, SyncError, SyncReport};
use serde::Serialize;

use crate::apply::WriteError;
use crate::apply::service::{Note, ServiceStatus};
use crate::metrics::Metrics;
use crate::model::claim::{Problem, Reason};
use crate::model::world::{Touched, World, shown};
use crate::plan::writes::{Next, StatusChange, Write, next_for};
use crate::plan::{PlanConfig, Planner, Update};
use crate::repeats::Repeats;
use crate::state::{PoolState, Role, ServiceState, State, family_word, sizes};

/// Writes that are handed over at once. Each may take some seconds where something behind the API server hangs;
/// all of them must end within [`node_runtime::health::ITERATION_LIMIT`].
const WRITES: usize = 100;
/// A sync that has lasted so long leaves the rest to the next one, so that changes are heard and the loop is
/// seen to live.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the controller is told.
pub enum Message {
    /// This process leads from now on; all objects follow. The status is of their source.
    Lead(Option<common_informer::Status>),
    /// This process does not lead.
    Stand,
    /// Objects.
    Objects(Batch),
}

/// Gives addresses, for as long as it leads.
pub struct Allocator<A> {
    config: PlanConfig,
    /// The first sync is the only one.
    once: bool,
    api: A,
    metrics: Option<(Metrics, CommonMetrics)>,
    role: Role,
    source: Option<common_informer::Status>,
    world: World,
    touched: Touched,
    planner: Planner,
    /// The caches of this term are in sync.
    synced: bool,
    /// A term's caches were in sync, or it was found that somebody else leads.
    started: bool,
    /// Services whose status may not be as planned.
    unwritten: BTreeSet<ObjectKey>,
    /// Writes that the API server will not take, and why. Tried again when they change, and at each audit.
    refused: HashMap<ObjectKey, (StatusChange, String)>,
    /// The last refusal of each that people were told of.
    refusals_told: HashMap<ObjectKey, String>,
    /// Withdrawals, which are not seen in the status if others have written the same.
    withdrawn: HashMap<ObjectKey, Vec<IpAddr>>,
    repeats: Repeats,
    /// Services whose status waits for the status of another.
    blocked: BTreeMap<ObjectKey, Problem>,
    problems: Problems<Problem>,
    told: BTreeMap<ObjectKey, Vec<Problem>>,
    conflicts: u64,
}

impl<A: ServiceStatus> Allocator<A> {
    /// An allocator that knows nothing yet.
    pub fn new(config: PlanConfig, once: bool, api: A, metrics: Option<(Metrics, CommonMetrics)>) -> Self {
        Self {
            once,
            planner: Planner::new(config.clone()),
            config,
            api,
            metrics,
            role: Role::Undecided,
            source: None,
            world: World::default(),
            touched: Touched::new(),
            synced: false,
            started: false,
            unwritten: BTreeSet::new(),
            refused: HashMap::new(),
            refusals_told: HashMap::new(),
            withdrawn: HashMap::new(),
            repeats: Repeats::default(),
            blocked: BTreeMap::new(),
            problems: Problems::default(),
            told: BTreeMap::new(),
            conflicts: 0,
        }
    }

    /// The plan, for those who only want to look.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    fn forget(&mut self) {
        self.world = World::default();
        self.planner = Planner::new(self.config.clone());
        self.touched.clear();
        self.unwritten.clear();
        self.refused.clear();
        self.withdrawn.clear();
        self.repeats = Repeats::default();
        self.blocked.clear();
        self.source = None;
        self.synced = false;
    }

    /// Takes what has changed into the plan.
    fn plan(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let touched = std::mem::take(&mut self.touched);
        let Update { changed, evictions } = self.planner.update(&self.world, &touched);
        for eviction in evictions {
            self.conflicts += 1;
            if let Some((metrics, _)) = &self.metrics {
                metrics.conflicts.inc();
            }
            let message =
                format!("{} is also that of Service {}, which keeps it", eviction.ip, eviction.keeper);
            tracing::warn!(service = %eviction.key, message, "an address was given twice");
            self.tell(&eviction.key, Problem::new(Reason::AddressConflict, message));
        }
        for key in &changed {
            let problems = self.planner.problems(key).to_vec();
            let known = self.told.get(key).cloned().unwrap_or_default();
            for problem in problems.iter().filter(|problem| !known.contains(problem)) {
                self.tell(key, problem.clone());
            }
            if problems.is_empty() {
                self.told.remove(key);
            } else {
                self.told.insert(key.clone(), problems);
            }
        }
        self.unwritten.extend(changed);
    }

    fn tell(&mut self, key: &ObjectKey, problem: Problem) {
        // A Service that is gone has nobody who reads its Events.
        let Some(service) = self.world.service(key) else { return };
        self.api.tell(Note { key: key.clone(), uid: service.uid, problem });
    }

    /// Writes until all statuses are as planned, or only those are left that cannot be written now.
    fn write(&mut self, now: Instant, report: &mut Report) {
        let mut failed = BTreeSet::new();
        while !report.not_leading {
            let writes = self.due(now, &failed, report);
            if writes.is_empty() {
                return;
            }
            if !self.once && report.began.elapsed() > PATIENCE {
                report.wake(now);
                return;
            }
            let results = self.api.commit(&writes);
            for (write, result) in writes.into_iter().zip(results) {
                if result.is_ok() {
                    self.repeats.count(&write, now);
                }
                self.take_result(write, result, &mut failed, report);
            }
            self.plan();
        }
    }

    /// The next writes. Forgets Services that need none.
    fn due(&mut self, now: Instant, failed: &BTreeSet<ObjectKey>, report: &mut Report) -> Vec<Write> {
        self.blocked.clear();
        let mut writes = Vec::new();
        let mut done = Vec::new();
        for key in self.unwritten.iter().filter(|key| !failed.contains(*key)) {
            match next_for(&self.world, &self.planner, key) {
                Next::Nothing => done.push(key.clone()),
                Next::Wait { ip, other } => {
                    let message = format!("{ip} is its own, but still in the status of Service {other}");
                    self.blocked.insert(key.clone(), Problem::new(Reason::AddressInUse, message));
                }
                Next::Write(write) if self.is_pointless(&write) => done.push(key.clone()),
                Next::Write(write) => match self.repeats.pause(&write, now) {
                    Some(until) => report.wake(until),
                    None => writes.push(write),
                },
            }
            if writes.len() == WRITES {
                break;
            }
        }
        for key in done {
            self.unwritten.remove(&key);
        }
        writes
    }

    /// It was tried, and nothing has changed that would make it succeed.
    fn is_pointless(&self, write: &Write) -> bool {
        let refused = self.refused.get(&write.key).is_some_and(|(change, _)| *change == write.change);
        let withdrawn = write.change == StatusChange::Withdraw
            && self.withdrawn.get(&write.key).is_some_and(|ips| *ips == self.shown(&write.key));
        refused || withdrawn
    }

    fn shown(&self, key: &ObjectKey) -> Vec<IpAddr> {
        self.world.service(key).map(|service| shown(service).collect()).unwrap_or_default()
    }

    fn take_result(
        &mut self,
        write: Write,
        result: Result<(), WriteError>,
        failed: &mut BTreeSet<ObjectKey>,
        report: &mut Report,
    ) {
        let Write { key, uid, change } = write;
        match result {
            Ok(()) => {
                self.refused.remove(&key);
                self.refusals_told.remove(&key);
                *report.ops.entry(change.word()).or_default() += 1;
                tracing::info!(service = %key, change = change.word(), addresses = ?ips_of(&change), "status written");
                match change {
                    StatusChange::Show { ips, .. } => {
                        self.world.note_status(&key, uid, &ips, &mut self.touched);
                    }
                    StatusChange::Withdraw => {
                        self.withdrawn.insert(key.clone(), self.shown(&key));
                    }
                }
            }
            Err(error @ WriteError::NotLeading) => {
                report.not_leading = true;
                report.failure.get_or_insert(Failure { key, error });
            }
            // The watch will tell.
            Err(WriteError::Gone) => {
                failed.insert(key);
            }
            Err(WriteError::Refused(message)) => {
                if self.refusals_told.insert(key.clone(), message.clone()).as_ref() != Some(&message) {
                    self.tell(&key, Problem::new(Reason::StatusRefused, message.clone()));
                }
                self.refused.insert(key, (change, message));
            }
            Err(error) => {
                tracing::warn!(service = %key, %error, "a status could not be written");
                report.failure.get_or_insert_with(|| Failure { key: key.clone(), error });
                report.failures += 1;
                failed.insert(key);
            }
        }
    }

    /// Looks at everything again: the periodic audit.
    fn look_again(&mut self) {
        self.refused.clear();
        self.withdrawn.clear();
        self.unwritten.extend(self.world.services().map(|service| service.key.clone()));
    }

    fn note_problems(&mut self) {
        let mut problems: BTreeMap<ObjectRef, Vec<Problem>> = BTreeMap::new();
        let object = |key: &ObjectKey| ObjectRef { kind: Kind::Service, key: key.clone() };
        for (key, _, list) in self.planner.iter().filter(|(.., list)| !list.is_empty()) {
            problems.entry(object(key)).or_default().extend(list.iter().cloned());
        }
        for (key, (_, message)) in &self.refused {
            let problem = Problem::new(Reason::StatusRefused, message.clone());
            problems.entry(object(key)).or_default().push(problem);
        }
        for (key, problem) in &self.blocked {
            problems.entry(object(key)).or_default().push(problem.clone());
        }
        for key in self.repeats.contested() {
            let problem = Problem::new(Reason::StatusContested, "somebody else keeps changing its status");
            problems.entry(object(key)).or_default().push(problem);
        }
        self.problems.update(problems);
    }

    /// Services whose status is not as planned although all was tried.
    fn problems_of_writes(&self) -> Vec<String> {
        self.unwritten.iter().chain(self.refused.keys()).map(ToString::to_string).collect()
    }

    fn degradations(&self) -> Vec<Degradation> {
        let source = self.source.iter().flat_map(|source| source.snapshot().complaints());
        let complaints = self.problems.complaint().into_iter().chain(source);
        complaints
            .map(|complaint| Degradation { reason: complaint.reason, message: complaint.message })
            .collect()
    }
}

fn ips_of(change: &StatusChange) -> &[IpAddr] {
    match change {
        StatusChange::Show { ips, .. } => ips,
        StatusChange::Withdraw => &[],
    }
}

struct Report {
    began: Instant,
    ops: BTreeMap<&'static str, u64>,
    failure: Option<Failure>,
    failures: usize,
    not_leading: bool,
    wake_at: Option<Instant>,
}

impl Report {
    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// The first of the writes that failed.
#[derive(Debug, thiserror::Error)]
#[error("the status of Service {key} could not be written: {error}")]
struct Failure {
    key: ObjectKey,
    error: WriteError,
}

impl<A: ServiceStatus> Controller for Allocator<A> {
    type Message = Message;

    fn receive(&mut self, message: Message) {
        match message {
            Message::Lead(source) => {
                self.forget();
                self.role = Role::Leader;
                self.source = source;
            }
            Message::Stand => {
                self.forget();
                self.role = Role::Standby;
                self.started = true;
            }
            Message::Objects(batch) => {
                for change in batch.changes {
                    self.world.apply(change, &mut self.touched);
                }
                self.synced |= batch.synced;
                self.started |= self.synced;
            }
        }
    }

    fn is_synced(&self) -> bool {
        // Later terms have a limit of their own (run.rs): the loop's counts from the start of the process.
        self.started
    }

    fn sync(&mut self, cause: Cause, now: Instant) -> Result<SyncReport, SyncError> {
        let mut report = Report {
            began: Instant::now(),
            ops: BTreeMap::new(),
            failure: None,
            failures: 0,
            not_leading: false,
            wake_at: None,
        };
        if self.role == Role::Leader && self.synced {
            if matches!(cause, Cause::Periodic | Cause::Start) {
                self.look_again();
            }
            self.plan();
            self.repeats.forget_old(now);
            self.write(now, &mut report);
        }
        self.note_problems();
        let done = SyncReport {
            // The name is the loop's; these are operations that changed the API server's state.
            kernel_ops: report.ops.into_iter().collect(),
            wake_at: report.wake_at,
            degraded: self.degradations(),
        };
        if self.once && report.failure.is_none() && !self.problems_of_writes().is_empty() {
            let keys = self.problems_of_writes().join(", ");
            return Err(SyncError {
                error: format!("not all statuses are as planned: {keys}").into(),
                partial: done,
            });
        }
        match report.failure {
            Some(failure) => {
                tracing::warn!(
                    failures = report.failures,
                    "some statuses could not be written; they are tried again"
                );
                Err(SyncError { error: Box::new(failure), partial: done })
            }
            None => Ok(done),
        }
    }

    fn measure(&mut self) {
        let Some((metrics, common)) = &self.metrics else { return };
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.leader.set(i64::from(self.role == Role::Leader));
        let used = self.planner.book().used();
        for (pool, family, size) in sizes(&self.config) {
            let labels = [&*pool.1, family_word(family)];
            #[expect(
                clippy::cast_precision_loss,
                reason = "a gauge; nobody counts an IPv6 pool to the last address"
            )]
            metrics.pool_addresses.with_label_values(&labels).set(size as f64);
            let used = used.get(&(pool.0, family)).copied().unwrap_or(0);
            metrics.pool_used.with_label_values(&labels).set(gauge(used));
        }
        let (served, waiting) = self.planner.counts();
        for (state, count) in [("served", served), ("waiting", waiting), ("unwritten", self.unwritten.len())]
        {
            metrics.services.with_label_values(&[state]).set(gauge(count));
        }
        for kind in [Kind::Service, Kind::Namespace] {
            common.objects.with_label_values(&[kind.to_string().as_str()]).set(gauge(self.world.count(kind)));
        }
        common.show_excluded(self.problems.reasons());
    }

    fn state(&self) -> impl Serialize {
        let used = self.planner.book().used();
        State {
            role: self.role,
            source: self.source.as_ref().map(common_informer::Status::snapshot),
            conflicts: self.conflicts,
            unwritten: self.unwritten.iter().map(ToString::to_string).collect(),
            pools: sizes(&self.config)
                .map(|((index, name), family, size)| PoolState {
                    name: name.to_string(),
                    family: family.to_string(),
                    addresses: size.to_string(),
                    used: used.get(&(index, family)).copied().unwrap_or(0),
                })
                .collect(),
            services: self
                .planner
                .iter()
                .map(|(key, ips, problems)| ServiceState {
                    service: key.to_string(),
                    addresses: ips.to_vec(),
                    shown: self.shown(key),
                    problems: problems.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            refused: self.refused.iter().map(|(key, (_, why))| (key.to_string(), why.clone())).collect(),
        }
    }
}
