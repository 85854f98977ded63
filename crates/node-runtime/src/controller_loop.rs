//! The loop that brings the kernel to the wanted state: one thread, one owner of the state.
//!
//! ```text
//!           ┌──────────────── wait for the first of ────────────────┐
//!           │ messages · wake-up · deadline · inspection · shutdown  │
//!           └──────────────────────────┬─────────────────────────────┘
//!    receive() every queued message    │       never blocked by a sync that fails
//!                                      ▼
//!              caches in sync and a cause is due?  ── no ──┐
//!                                      │ yes               │
//!                         sync(cause, now)                 │
//!                  ok: report      failed: backoff         │
//!                                      ▼                   ▼
//!                       metrics, health: iteration finished
//! ```
//!
//! It runs on a thread of its own because conversations with the kernel block; the main thread stays free
//! for signals, probes and watches. A panic in a controller is not caught: its state can no longer be trusted.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::unconstrained;

use crate::health::Health;
use crate::memory;
use crate::metrics::CommonMetrics;
use crate::schedule::Schedule;
use crate::shutdown::CancellationToken;

/// An idle loop finishes an iteration at least so often, for liveness.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Most messages that are received before a due sync gets its turn.
const MESSAGES_PER_ITERATION: usize = 4096;
/// Reason under which a failing sync is shown as degraded.
pub const SYNC_FAILED: &str = "sync_failed";

/// Why a sync runs. Of several causes for one sync the strongest, i.e. the greatest in this order, counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The controller asked to be called at this time ([`SyncReport::wake_at`]).
    Timer,
    /// Messages were received.
    Change,
    /// The last sync failed.
    Retry,
    /// The period has passed: a full audit.
    Periodic,
    /// Somebody else may have touched our state in the kernel.
    Kernel,
    /// The first sync of this process.
    Start,
}

impl Cause {
    /// All, weakest first.
    pub const ALL: [Self; 6] =
        [Self::Timer, Self::Change, Self::Retry, Self::Periodic, Self::Kernel, Self::Start];

    /// The word in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Change => "change",
            Self::Retry => "retry",
            Self::Periodic => "periodic",
            Self::Kernel => "kernel",
            Self::Start => "start",
        }
    }

    /// Whether the sync must read the kernel's state anew, since what the controller remembers of it may be
    /// wrong. For the others a controller may trust its memory.
    #[must_use]
    pub const fn must_observe(self) -> bool {
        !matches!(self, Self::Timer | Self::Change)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What each daemon is, seen by the loop. All calls come from one thread, one at a time.
pub trait Controller {
    /// E.g. a batch of changed objects.
    type Message: Send + 'static;

    /// Takes a message into the model of the world. Pure and cheap: no kernel, no file, no clock.
    fn receive(&mut self, message: Self::Message);

    /// Whether all that the wanted state depends on has been received once. Until then the kernel must not
    /// be touched, so [`Controller::sync`] is not called.
    fn is_synced(&self) -> bool;

    /// Brings the kernel to the wanted state. May block for as long as that takes, within
    /// [`crate::health::ITERATION_LIMIT`]. `now` is the time that rules with a time in them go by.
    ///
    /// # Errors
    /// When the wanted state is not fully in force. It is then called again, as [`Cause::Retry`], after a
    /// delay that grows from 100 ms to 30 s, or earlier (but not within a second) when something changes.
    fn sync(&mut self, cause: Cause, now: Instant) -> Result<SyncReport, SyncError>;

    /// Brings the gauges that are read from the state itself up to date. Called before each scrape.
    fn measure(&mut self) {}

    /// What the controller knows, wants and saw, for `/state`. Called only when somebody asks.
    fn state(&self) -> impl Serialize;
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Operations that changed the kernel, by a fixed word each, in the order of the words.
    pub kernel_ops: Vec<(&'static str, u64)>,
    /// When the controller wants to be called at the latest, e.g. at the end of a drain.
    pub wake_at: Option<Instant>,
    /// What is wrong although the sync succeeded. Replaces all that earlier reports said.
    pub degraded: Vec<Degradation>,
}

impl SyncReport {
    /// Counts operations that changed the kernel. `word` is a fixed one: a label of a metric.
    pub fn count(&mut self, word: &'static str, operations: usize) {
        let operations = u64::try_from(operations).unwrap_or(u64::MAX);
        match self.kernel_ops.binary_search_by_key(&word, |(known, _)| known) {
            _ if operations == 0 => {}
            Ok(at) => self.kernel_ops[at].1 += operations,
            Err(at) => self.kernel_ops.insert(at, (word, operations)),
        }
    }

    /// What a sync gives that did this and came to such an end.
    ///
    /// # Errors
    /// That of the sync.
    pub fn conclude<E: Error + Send + Sync + 'static>(self, end: Result<(), E>) -> Result<Self, SyncError> {
        match end {
            Ok(()) => Ok(self),
            Err(error) => Err(SyncError { error: Box::new(error), partial: self }),
        }
    }

    /// How many operations changed the kernel.
    #[must_use]
    pub fn kernel_op_count(&self) -> u64 {
        self.kernel_ops.iter().map(|(_, count)| count).sum()
    }
}

/// Something that is wrong and that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degradation {
    /// A fixed word: label of `<prefix>_degraded`.
    pub reason: &'static str,
    /// For people: what, and what can be done.
    pub message: String,
}

/// A sync that left the kernel short of the wanted state. Made from any error by `?`.
#[derive(Debug)]
pub struct SyncError {
    /// What was tried, on what, and how it failed.
    pub error: Box<dyn Error + Send + Sync>,
    /// What was done before or in spite of that. Its `degraded` replaces earlier reports unless it is empty:
    /// a sync that failed early has not looked. Its `wake_at` is not used.
    pub partial: SyncReport,
}

impl<E: Error + Send + Sync + 'static> From<E> for SyncError {
    fn from(error: E) -> Self {
        Self { error: Box::new(error), partial: SyncReport::default() }
    }
}

/// Why the loop ended other than by shutdown or after its one sync.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// `--cache-sync-timeout` has passed.
    #[error("the caches were not in sync after {}", humantime::format_duration(*.0))]
    CacheSyncTimeout(Duration),
    /// The stream of messages ended, which it does only when its sender is gone.
    #[error("the source of changes ended")]
    SourceEnded,
    /// The one sync that was asked for failed.
    #[error("sync failed")]
    Once(#[source] Box<dyn Error + Send + Sync>),
    /// The controller could not be made.
    #[error("start of the controller failed")]
    Start(#[source] Box<dyn Error + Send + Sync>),
    /// No thread or no runtime for it.
    #[error("start of the reconcile thread failed")]
    Thread(#[source] std::io::Error),
}

/// How the loop runs.
#[derive(Debug, Clone, Copy)]
pub struct LoopSettings {
    /// Time between full audits; 0 for none.
    pub sync_period: Duration,
    /// How long the caches may take; 0 for no limit.
    pub cache_sync_timeout: Duration,
    /// End after the first sync, with its result.
    pub once: bool,
}

/// Asks the loop for a sync, from any thread.
#[derive(Debug, Clone)]
pub struct Waker {
    shared: Arc<WakeState>,
}

/// The loop's end of a [`Waker`].
#[derive(Debug)]
pub struct Wakeups {
    shared: Arc<WakeState>,
}

#[derive(Debug, Default)]
struct WakeState {
    /// One bit per [`Cause`].
    asked: AtomicU8,
    notify: Notify,
}

/// A waker and the end that the loop listens on.
#[must_use]
pub fn waker() -> (Waker, Wakeups) {
    let shared = Arc::new(WakeState::default());
    (Waker { shared: Arc::clone(&shared) }, Wakeups { shared })
}

impl Waker {
    /// Asks for a sync. Never blocks; wake-ups that wait for the same sync become one.
    ///
    /// [`Cause::Kernel`] is for what others did: who listens to the kernel leaves out the echo of the
    /// controller's own commits, else each of them is followed by an audit.
    pub fn wake(&self, cause: Cause) {
        self.shared.asked.fetch_or(1 << cause as u8, Ordering::Release);
        self.shared.notify.notify_one();
    }
}

impl Wakeups {
    /// Waits for a wake-up; gives the strongest cause since the last. Safe to cancel.
    async fn next(&self) -> Cause {
        loop {
            self.shared.notify.notified().await;
            let asked = self.shared.asked.swap(0, Ordering::Acquire);
            let strongest = Cause::ALL.into_iter().rev().find(|cause| asked & (1 << *cause as u8) != 0);
            if let Some(cause) = strongest {
                return cause;
            }
        }
    }
}

/// A question to the controller, answered between two syncs.
#[derive(Debug)]
pub(crate) enum Inspection {
    State(oneshot::Sender<serde_json::Result<Vec<u8>>>),
    Measure(oneshot::Sender<()>),
}

/// Looks into the controller from outside its thread.
#[derive(Debug, Clone)]
pub struct Inspector {
    questions: mpsc::Sender<Inspection>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The loop is in a sync that takes longer than the caller wants to wait, or it has ended.
    #[error("the reconcile loop does not answer")]
    NoAnswer,
    /// The state cannot be written as JSON.
    #[error("the state cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Inspector {
    /// The controller's state as JSON text.
    ///
    /// # Errors
    /// When the loop has no time within `patience`, or the state is not JSON.
    pub async fn state(&self, patience: Duration) -> Result<Vec<u8>, InspectError> {
        Ok(self.ask(Inspection::State, patience).await??)
    }

    /// Has the controller bring its gauges up to date.
    ///
    /// # Errors
    /// When the loop has no time within `patience`.
    pub async fn measure(&self, patience: Duration) -> Result<(), InspectError> {
        self.ask(Inspection::Measure, patience).await
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Inspection,
        patience: Duration,
    ) -> Result<T, InspectError> {
        let (sender, answer) = oneshot::channel();
        let asked = async {
            self.questions.send(question(sender)).await.map_err(|_| InspectError::NoAnswer)?;
            answer.await.map_err(|_| InspectError::NoAnswer)
        };
        tokio::time::timeout(patience, asked).await.unwrap_or(Err(InspectError::NoAnswer))
    }
}

/// A bounded channel's receiver as a stream of messages.
pub fn from_channel<T>(mut receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Unpin {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// All that the loop talks to beside the controller.
#[derive(Debug)]
pub struct Surroundings {
    /// How the loop runs.
    pub settings: LoopSettings,
    /// Wake-ups from outside.
    pub wakeups: Wakeups,
    /// Where iterations and results are reported.
    pub health: Health,
    /// Where syncs are counted.
    pub metrics: CommonMetrics,
    /// Ends the loop between two syncs.
    pub shutdown: CancellationToken,
}

/// A loop on its own thread.
#[derive(Debug)]
pub struct LoopThread {
    inspector: Inspector,
    /// Never sent to: it ends when the thread does, by return or by panic.
    ended: oneshot::Receiver<Infallible>,
    thread: std::thread::JoinHandle<Result<(), LoopError>>,
}

impl LoopThread {
    /// Starts a thread, makes the controller on it (so that it may own what cannot be sent), and runs the
    /// loop there until shutdown.
    ///
    /// # Errors
    /// When there is no thread to be had. What fails on the thread, comes from [`LoopThread::join`].
    pub fn spawn<C, E, S>(
        make: impl FnOnce() -> Result<C, E> + Send + 'static,
        source: S,
        surroundings: Surroundings,
    ) -> Result<Self, LoopError>
    where
        C: Controller,
        E: Into<Box<dyn Error + Send + Sync>>,
        S: Stream<Item = C::Message> + Send + Unpin + 'static,
    {
        let (questions, inspections) = mpsc::channel(4);
        let (guard, ended) = oneshot::channel();
        let body = move || {
            let _guard = guard;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(LoopError::Thread)?;
            let controller = make().map_err(|error| LoopError::Start(error.into()))?;
            runtime.block_on(run(controller, source, surroundings, inspections))
        };
        let thread = std::thread::Builder::new().name("reconcile".to_owned()).spawn(body);
        let thread = thread.map_err(LoopError::Thread)?;
        Ok(Self { inspector: Inspector { questions }, ended, thread })
    }

    /// A look into the controller.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }

    /// Waits for the loop to end. A panic of the controller goes on in the caller.
    ///
    /// # Errors
    /// See [`LoopError`].
    pub async fn join(self) -> Result<(), LoopError> {
        // `Err` is all it can be; the thread is at its end then, so that `join` does not block.
        let _ = self.ended.await;
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The loop itself; ends by shutdown, after the one sync that was asked for, or with an error.
pub(crate) async fn run<C, S>(
    controller: C,
    source: S,
    surroundings: Surroundings,
    mut inspections: mpsc::Receiver<Inspection>,
) -> Result<(), LoopError>
where
    C: Controller,
    S: Stream<Item = C::Message> + Unpin,
{
    let mut source = source.ready_chunks(MESSAGES_PER_ITERATION);
    let mut source_open = true;
    let mut iteration = Iteration::new(controller, &surroundings, clock());
    loop {
        tokio::select! {
            biased;
            () = surroundings.shutdown.cancelled() => return Ok(()),
            Some(question) = inspections.recv() => iteration.answer(question),
            cause = surroundings.wakeups.next() => iteration.schedule.request(cause, clock()),
            // Unconstrained: tokio's budget would cut a backlog into pieces of 128, each with its sync.
            messages = unconstrained(source.next()), if source_open => match messages {
                Some(messages) => iteration.receive(messages, clock()),
                None if surroundings.settings.once => source_open = false,
                None => return Err(LoopError::SourceEnded),
            },
            () = tokio::time::sleep_until(iteration.deadline(clock()).into()) => {}
        }
        if iteration.advance()?.is_break() {
            return Ok(());
        }
    }
}

/// The time that the loop goes by: tokio's, which tests can stop and move.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What one turn of the loop works on.
struct Iteration<'a, C> {
    controller: C,
    schedule: Schedule,
    started: Instant,
    surroundings: &'a Surroundings,
}

impl<'a, C: Controller> Iteration<'a, C> {
    fn new(controller: C, surroundings: &'a Surroundings, now: Instant) -> Self {
        surroundings.health.waiting_for("the caches to be in sync");
        let schedule = Schedule::new(surroundings.settings.sync_period);
        Self { controller, schedule, started: now, surroundings }
    }

    fn receive(&mut self, messages: Vec<C::Message>, now: Instant) {
        for message in messages {
            self.controller.receive(message);
        }
        self.schedule.request(Cause::Change, now);
    }

    fn answer(&mut self, question: Inspection) {
        // A caller that has given up is no concern of ours.
        match question {
            Inspection::State(reply) => drop(reply.send(serde_json::to_vec(&self.controller.state()))),
            Inspection::Measure(reply) => {
                self.controller.measure();
                let _ = reply.send(());
            }
        }
    }

    /// When the loop must turn again although nothing happened.
    fn deadline(&self, now: Instant) -> Instant {
        let heartbeat = now + HEARTBEAT;
        let next = match self.controller.is_synced() {
            true if self.schedule.due(now).is_some() => Some(now),
            true => self.schedule.deadline(),
            false => self.cache_deadline(),
        };
        next.map_or(heartbeat, |next| next.min(heartbeat))
    }

    fn cache_deadline(&self) -> Option<Instant> {
        let timeout = self.surroundings.settings.cache_sync_timeout;
        (!timeout.is_zero()).then(|| self.started + timeout)
    }

    /// Syncs if that is due, and ends the iteration. `Break` after the one sync that was asked for.
    fn advance(&mut self) -> Result<ControlFlow<()>, LoopError> {
        let now = clock();
        let health = &self.surroundings.health;
        if !self.controller.is_synced() {
            if self.cache_deadline().is_some_and(|deadline| deadline <= now) {
                return Err(LoopError::CacheSyncTimeout(self.surroundings.settings.cache_sync_timeout));
            }
        } else if let Some(cause) = self.schedule.due(now) {
            health.waiting_for("the first successful sync");
            let outcome = self.sync(cause, now);
            if self.surroundings.settings.once {
                return outcome.map(ControlFlow::Break).map_err(LoopError::Once);
            }
        }
        health.iteration_finished(clock());
        Ok(ControlFlow::Continue(()))
    }

    /// One sync and the account of it.
    fn sync(&mut self, cause: Cause, now: Instant) -> Result<(), Box<dyn Error + Send + Sync>> {
        let outcome = self.controller.sync(cause, now);
        let end = clock();
        if cause.must_observe() {
            memory::give_back();
        }
        let took = end.saturating_duration_since(now);
        let Surroundings { health, metrics, .. } = self.surroundings;
        let (report, error) = match outcome {
            Ok(report) => (report, None),
            Err(failed) => (failed.partial, Some(failed.error)),
        };
        let kernel_ops = report.kernel_op_count();
        metrics.synced(cause, error.is_none(), took, &report.kernel_ops);
        if error.is_none() || !report.degraded.is_empty() {
            health.replace_reported(report.degraded.into_iter().map(|what| (what.reason, what.message)));
        }
        let Some(error) = error else {
            self.schedule.succeeded(end, report.wake_at);
            health.sync_succeeded(end);
            log_success(cause, took, kernel_ops);
            return Ok(());
        };
        self.schedule.failed(end);
        let text = crate::error_chain(error.as_ref());
        let retry_in = self.schedule.deadline().map(|at| at.saturating_duration_since(end));
        tracing::warn!(%cause, ?took, kernel_ops, error = text, ?retry_in, "sync failed");
        health.sync_failed(end, text);
        Err(error)
    }
}

/// Changes are worth a line; so is a state in the kernel that somebody else had changed.
fn log_success(cause: Cause, took: Duration, kernel_ops: u64) {
    match (kernel_ops, cause) {
        (0, _) => tracing::debug!(%cause, ?took, kernel_ops, "in sync"),
        (_, Cause::Kernel | Cause::Periodic) => {
            tracing::warn!(%cause, ?took, kernel_ops, "the kernel's state had drifted and was mended");
        }
        _ => tracing::info!(%cause, ?took, kernel_ops, "synced"),
    }
}

#[cfg(test)]
mod tests;
