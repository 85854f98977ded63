//! The loop on tokio's paused clock: time passes only when everything waits.

use std::sync::Mutex;

use futures::stream;
use tokio::time::{advance, sleep};

use super::*;
use crate::metrics::Registry;

const PROGRAM: crate::Program =
    crate::Program { name: "test-daemon", version: "1", health_port: 1, sync_period_aliases: &[] };
const PERIOD: Duration = Duration::from_secs(300);

/// What the controller under test was asked to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Receive(u32),
    Sync(Cause),
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

/// A controller whose kernel refuses when told so, and which is synced once it got a number from
/// `synced_from` on.
struct Recorder {
    calls: Arc<Mutex<Vec<(Duration, Call)>>>,
    refuses: Arc<Mutex<bool>>,
    synced_from: u32,
    received: u32,
    started: Instant,
}

impl Recorder {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push((clock() - self.started, call));
    }
}

impl Controller for Recorder {
    type Message = u32;

    fn receive(&mut self, message: u32) {
        self.note(Call::Receive(message));
        self.received = self.received.max(message);
    }

    fn is_synced(&self) -> bool {
        self.received >= self.synced_from
    }

    fn sync(&mut self, cause: Cause, _now: Instant) -> Result<SyncReport, SyncError> {
        self.note(Call::Sync(cause));
        if *self.refuses.lock().unwrap() {
            Err(Refused)?;
        }
        let odd = self.received % 2 == 1;
        let degraded = odd.then(|| Degradation { reason: "odd", message: self.received.to_string() });
        Ok(SyncReport {
            kernel_ops: vec![("add", 2)],
            wake_at: None,
            degraded: degraded.into_iter().collect(),
        })
    }

    fn state(&self) -> impl Serialize {
        [self.received]
    }
}

/// A running loop and all that a test can pull on.
struct Bench {
    calls: Arc<Mutex<Vec<(Duration, Call)>>>,
    refuses: Arc<Mutex<bool>>,
    messages: mpsc::Sender<u32>,
    waker: Waker,
    health: Health,
    registry: Registry,
    shutdown: CancellationToken,
    inspector: Inspector,
    task: tokio::task::JoinHandle<Result<(), LoopError>>,
    started: Instant,
}

impl Bench {
    fn start(synced_from: u32, once: bool) -> Self {
        Self::start_with(synced_from, once, &[])
    }

    fn start_with(synced_from: u32, once: bool, queued: &[u32]) -> Self {
        let started = clock();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let refuses = Arc::new(Mutex::new(false));
        let (messages, receiver) = mpsc::channel(1000);
        queued.iter().for_each(|number| messages.try_send(*number).unwrap());
        let (questions, inspections) = mpsc::channel(4);
        let (waker, wakeups) = waker();
        let registry = Registry::new(&PROGRAM).unwrap();
        let health = Health::new(started, crate::health::ITERATION_LIMIT);
        let shutdown = CancellationToken::new();
        let settings =
            LoopSettings { sync_period: PERIOD, cache_sync_timeout: Duration::from_secs(60), once };
        let surroundings = Surroundings {
            settings,
            wakeups,
            health: health.clone(),
            metrics: registry.common().clone(),
            shutdown: shutdown.clone(),
        };
        let controller =
            Recorder { calls: calls.clone(), refuses: refuses.clone(), synced_from, received: 0, started };
        let task = tokio::spawn(run(controller, from_channel(receiver), surroundings, inspections));
        let inspector = Inspector { questions };
        Self { calls, refuses, messages, waker, health, registry, shutdown, inspector, task, started }
    }

    fn refuse(&self, refuses: bool) {
        *self.refuses.lock().unwrap() = refuses;
    }

    /// Lets the loop do all that it can do without time passing (but for the millisecond that makes sure).
    async fn settle(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    fn take_calls(&self) -> Vec<Call> {
        self.take_timed().into_iter().map(|(_, call)| call).collect()
    }

    fn take_timed(&self) -> Vec<(Duration, Call)> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.registry.render().unwrap()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_kernel_is_not_touched_before_the_caches_are_in_sync() {
    let bench = Bench::start(2, false);
    bench.messages.send(1).await.unwrap();
    bench.waker.wake(Cause::Kernel);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.take_calls(), [Call::Receive(1)]);
    assert_eq!(bench.health.report(clock()).waiting_for, Some("the caches to be in sync"));
    bench.messages.send(2).await.unwrap();
    bench.settle().await;
    assert_eq!(bench.take_calls(), [Call::Receive(2), Call::Sync(Cause::Start)]);
    assert!(bench.health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn caches_that_take_too_long_end_the_process_with_an_error() {
    let bench = Bench::start(2, false);
    let outcome = bench.task.await.unwrap();
    assert!(matches!(outcome, Err(LoopError::CacheSyncTimeout(_))), "{outcome:?}");
    assert_eq!(clock() - bench.started, Duration::from_secs(60));
    assert_eq!(outcome.unwrap_err().to_string(), "the caches were not in sync after 1m");
}

#[tokio::test(start_paused = true)]
async fn all_queued_messages_are_received_before_one_sync() {
    let queued: Vec<u32> = (1..=900).collect();
    let bench = Bench::start_with(1, false, &queued);
    bench.settle().await;
    let mut expected: Vec<Call> = queued.into_iter().map(Call::Receive).collect();
    expected.push(Call::Sync(Cause::Start));
    assert_eq!(bench.take_calls(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_idle_loop_only_audits_once_a_period() {
    let bench = Bench::start(0, false);
    sleep(PERIOD * 3 + Duration::from_secs(1)).await;
    let periodic = |times: u32| (PERIOD * times, Call::Sync(Cause::Periodic));
    let expected = [(Duration::ZERO, Call::Sync(Cause::Start)), periodic(1), periodic(2), periodic(3)];
    // Tokio's clock counts milliseconds, rounded up.
    let calls = bench.take_timed().into_iter();
    let calls = calls.map(|(at, call)| (Duration::from_secs(at.as_secs()), call));
    assert_eq!(calls.collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn wake_ups_that_wait_for_the_same_sync_become_one_of_the_strongest_cause() {
    let bench = Bench::start(0, false);
    sleep(Duration::from_secs(1)).await;
    bench.take_calls();
    bench.waker.wake(Cause::Change);
    bench.waker.wake(Cause::Kernel);
    bench.waker.clone().wake(Cause::Timer);
    bench.settle().await;
    assert_eq!(bench.take_calls(), [Call::Sync(Cause::Kernel)]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_sync_is_retried_ever_more_slowly_and_never_blocks_messages() {
    let bench = Bench::start(0, false);
    bench.refuse(true);
    bench.settle().await;
    for number in 1..=1200 {
        bench.messages.send(number).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let calls = bench.take_timed();
    let received = calls.iter().filter(|(_, call)| matches!(call, Call::Receive(_))).count();
    assert_eq!(received, 1200);
    let syncs: Vec<Duration> =
        calls.iter().filter(|(_, call)| matches!(call, Call::Sync(_))).map(|(at, _)| *at).collect();
    // Changes without pause: about one try a second, and none closer than the first delay.
    assert!((60..=130).contains(&syncs.len()), "{}", syncs.len());
    assert!(syncs.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(100)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_degraded_until_a_sync_succeeds_and_does_not_undo_readiness() {
    let bench = Bench::start(0, false);
    bench.waker.wake(Cause::Change);
    bench.settle().await;
    assert!(bench.health.is_ready());
    bench.refuse(true);
    bench.waker.wake(Cause::Change);
    bench.settle().await;
    let report = bench.health.report(clock());
    assert_eq!(report.degraded, [(SYNC_FAILED, "refused".to_owned())]);
    assert_eq!(report.waiting_for, None);
    bench.refuse(false);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.take_calls().last(), Some(&Call::Sync(Cause::Retry)));
    assert_eq!(bench.health.report(clock()).degraded, []);
}

#[tokio::test(start_paused = true)]
async fn what_a_report_calls_degraded_holds_until_the_next_report_and_through_failures() {
    let bench = Bench::start_with(1, false, &[1]);
    bench.settle().await;
    let odd = ("odd", "1".to_owned());
    assert_eq!(bench.health.report(clock()).degraded, std::slice::from_ref(&odd));
    bench.refuse(true);
    bench.messages.send(2).await.unwrap();
    bench.settle().await;
    let failed = (SYNC_FAILED, "refused".to_owned());
    assert_eq!(bench.health.report(clock()).degraded, [odd, failed]);
    bench.refuse(false);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.health.report(clock()).degraded, []);
}

#[tokio::test(start_paused = true)]
async fn readiness_waits_for_the_first_success() {
    let bench = Bench::start(0, false);
    bench.refuse(true);
    bench.waker.wake(Cause::Change);
    bench.settle().await;
    assert_eq!(bench.health.report(clock()).waiting_for, Some("the first successful sync"));
    bench.refuse(false);
    sleep(Duration::from_secs(1)).await;
    assert!(bench.health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn an_idle_loop_stays_live_and_a_dead_one_does_not() {
    let bench = Bench::start(0, false);
    sleep(Duration::from_secs(10_000)).await;
    assert!(bench.health.report(clock()).live);
    bench.task.abort();
    advance(crate::health::ITERATION_LIMIT + HEARTBEAT).await;
    assert!(!bench.health.report(clock()).live);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_loop_without_another_sync() {
    let bench = Bench::start(0, false);
    bench.waker.wake(Cause::Change);
    bench.settle().await;
    bench.take_calls();
    bench.messages.send(1).await.unwrap();
    bench.shutdown.cancel();
    bench.task.await.unwrap().unwrap();
    assert_eq!(*bench.calls.lock().unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn once_ends_with_the_result_of_the_first_sync() {
    let good = Bench::start_with(1, true, &[1]);
    good.task.await.unwrap().unwrap();
    assert_eq!(good.calls.lock().unwrap().len(), 2);

    let bad = Bench::start_with(1, true, &[1]);
    bad.refuse(true);
    let error = bad.task.await.unwrap().unwrap_err();
    assert_eq!(crate::error_chain(&error), "sync failed: refused");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_is_an_error_of_a_daemon() {
    let bench = Bench::start(0, false);
    drop(bench.messages);
    assert!(matches!(bench.task.await.unwrap(), Err(LoopError::SourceEnded)));
}

#[tokio::test(start_paused = true)]
async fn state_is_answered_from_the_controller() {
    let bench = Bench::start_with(1, false, &[7]);
    bench.settle().await;
    let json = bench.inspector.state(Duration::from_secs(1)).await.unwrap();
    assert_eq!(json, b"[7]");
    bench.shutdown.cancel();
    bench.task.await.unwrap().unwrap();
    let gone = bench.inspector.state(Duration::from_secs(1)).await;
    assert!(matches!(gone, Err(InspectError::NoAnswer)), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn syncs_are_counted_by_result_and_cause() {
    let bench = Bench::start_with(1, false, &[1]);
    bench.settle().await;
    bench.refuse(true);
    bench.waker.wake(Cause::Kernel);
    bench.settle().await;
    let metrics = bench.metrics();
    for line in [
        "test_daemon_sync_total{cause=\"start\",result=\"success\"} 1",
        "test_daemon_sync_total{cause=\"kernel\",result=\"error\"} 1",
        "test_daemon_sync_duration_seconds_count 2",
        "test_daemon_kernel_ops_total{op=\"add\"} 2",
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line} in:\n{metrics}");
    }
}

/// A controller that panics: on its own thread, as in a daemon.
struct Panics;

impl Controller for Panics {
    type Message = ();

    fn receive(&mut self, (): ()) {}

    fn is_synced(&self) -> bool {
        true
    }

    fn sync(&mut self, _: Cause, _: Instant) -> Result<SyncReport, SyncError> {
        panic!("broken invariant")
    }

    fn state(&self) -> impl Serialize {}
}

#[tokio::test]
async fn a_panic_in_a_sync_reaches_whoever_waits_for_the_loop() {
    let (_waker, wakeups) = waker();
    let health = Health::new(clock(), PERIOD);
    let surroundings = Surroundings {
        settings: LoopSettings { sync_period: PERIOD, cache_sync_timeout: PERIOD, once: false },
        wakeups,
        health,
        metrics: Registry::new(&PROGRAM).unwrap().common().clone(),
        shutdown: CancellationToken::new(),
    };
    let make = || Ok::<_, Infallible>(Panics);
    let reconcile = LoopThread::spawn(make, stream::iter([()]), surroundings).unwrap();
    let join = tokio::spawn(reconcile.join());
    let panic = join.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"broken invariant"));
}
