//! Live, ready, degraded: three different questions, answered from facts that the loop reports.
//!
//! - **Live**: did an iteration of the loop *finish* lately? A start says nothing: kube-router beats its
//!   heart before the work, so a controller that hangs in it looks healthy. The limit allows for the longest
//!   legal iteration, so that slow work is not killed again and again.
//! - **Ready**: has the wanted state been in the kernel once since the caches were in sync? It stays so: a
//!   later failure is *degraded*, since taking a node's data plane out of rotation helps nobody.
//! - **Degraded**: what is wrong now, by fixed reasons, for `/readyz`, metrics and `/state`.
//!
//! Time comes in as an argument.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::controller_loop::SYNC_FAILED;

/// How long an iteration of the loop may take before the process counts as hung.
///
/// A cold sync of a large cluster on a slow machine is tens of seconds; a hung kernel conversation is for
/// ever. Killing early makes the first case never end, killing late costs only time in the second.
pub const ITERATION_LIMIT: Duration = Duration::from_secs(300);

/// The shared record. Clones are the same record.
#[derive(Debug, Clone)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    iteration_limit: Duration,
    last_finished: Instant,
    last_success: Option<Instant>,
    /// When the first of the syncs ended that failed since the last that did not.
    failing_since: Option<Instant>,
    waiting_for: Option<&'static str>,
    /// What is wrong now: reason and message.
    degraded: BTreeMap<&'static str, String>,
    /// Reasons that the controller's last report gave, to be replaced by its next.
    reported: Vec<&'static str>,
    /// Every reason that ever was, so that a metric can go back to 0 and not vanish.
    seen: BTreeMap<&'static str, bool>,
}

/// What [`Health::report`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    /// A loop iteration finished within the limit.
    pub live: bool,
    /// How long ago the last iteration finished.
    pub since_iteration: Duration,
    /// How long ago the last sync ended that succeeded; `None` if there was none.
    pub since_success: Option<Duration>,
    /// For how long no sync has succeeded although some were tried; `None` if the last one succeeded.
    pub failing_for: Option<Duration>,
    /// `None` when ready, else what it waits for.
    pub waiting_for: Option<&'static str>,
    /// Reason and message of what is wrong now, sorted by reason.
    pub degraded: Vec<(&'static str, String)>,
}

impl Health {
    /// Live from `now` on, not ready, not degraded. `iteration_limit` as in [`ITERATION_LIMIT`].
    #[must_use]
    pub fn new(now: Instant, iteration_limit: Duration) -> Self {
        let inner = Inner {
            iteration_limit,
            last_finished: now,
            last_success: None,
            failing_since: None,
            waiting_for: Some("the loop to start"),
            degraded: BTreeMap::new(),
            reported: Vec::new(),
            seen: BTreeMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// An iteration of the loop came to its end, whether or not its work succeeded.
    pub fn iteration_finished(&self, now: Instant) {
        let mut inner = self.lock();
        inner.last_finished = inner.last_finished.max(now);
    }

    /// Says what readiness waits for. Without effect once ready.
    pub fn waiting_for(&self, what: &'static str) {
        let mut inner = self.lock();
        if inner.waiting_for.is_some() {
            inner.waiting_for = Some(what);
        }
    }

    /// The wanted state is in force. For good.
    pub fn set_ready(&self) {
        self.lock().waiting_for = None;
    }

    /// A sync that ended at `now` brought the wanted state into force: ready for good, and no longer degraded by
    /// [`SYNC_FAILED`].
    pub fn sync_succeeded(&self, now: Instant) {
        let mut inner = self.lock();
        inner.waiting_for = None;
        inner.last_success = Some(now);
        inner.failing_since = None;
        inner.recover(SYNC_FAILED);
    }

    /// A sync that ended at `now` did not; degraded by [`SYNC_FAILED`].
    pub fn sync_failed(&self, now: Instant, why: impl Into<String>) {
        let mut inner = self.lock();
        inner.failing_since.get_or_insert(now);
        inner.degrade(SYNC_FAILED, why.into());
    }

    /// Whether [`Health::set_ready`] was called.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().waiting_for.is_none()
    }

    /// Something is wrong. `reason` is a fixed word (a metric label), `message` is for people. A second call
    /// with the same reason replaces the message.
    pub fn degrade(&self, reason: &'static str, message: impl Into<String>) {
        self.lock().degrade(reason, message.into());
    }

    /// What [`Health::degrade`] said of `reason` is over. Without effect when there is nothing.
    pub fn recover(&self, reason: &'static str) {
        self.lock().recover(reason);
    }

    /// Replaces all that the previous call of this function gave; reasons given by [`Health::degrade`] stay.
    pub fn replace_reported(&self, current: impl IntoIterator<Item = (&'static str, String)>) {
        let mut inner = self.lock();
        for reason in std::mem::take(&mut inner.reported) {
            inner.recover(reason);
        }
        for (reason, message) in current {
            inner.reported.push(reason);
            inner.degrade(reason, message);
        }
    }

    /// The answers at `now`.
    #[must_use]
    pub fn report(&self, now: Instant) -> HealthReport {
        let inner = self.lock();
        let since_iteration = now.saturating_duration_since(inner.last_finished);
        HealthReport {
            live: since_iteration <= inner.iteration_limit,
            since_iteration,
            since_success: inner.last_success.map(|at| now.saturating_duration_since(at)),
            failing_for: inner.failing_since.map(|at| now.saturating_duration_since(at)),
            waiting_for: inner.waiting_for,
            degraded: inner.degraded.iter().map(|(reason, message)| (*reason, message.clone())).collect(),
        }
    }

    /// Every reason that ever was, and whether it holds now.
    #[must_use]
    pub fn reasons(&self) -> Vec<(&'static str, bool)> {
        self.lock().seen.iter().map(|(reason, active)| (*reason, *active)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each update leaves the record whole, so what a panicking thread left behind is still true.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn degrade(&mut self, reason: &'static str, message: String) {
        self.degraded.insert(reason, message);
        self.seen.insert(reason, true);
    }

    fn recover(&mut self, reason: &'static str) {
        if self.degraded.remove(reason).is_some() {
            self.seen.insert(reason, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_loop_that_never_finishes_an_iteration_is_not_live() {
        let start = Instant::now();
        let health = Health::new(start, LIMIT);
        assert!(health.report(start + LIMIT).live);
        assert!(!health.report(start + LIMIT + Duration::from_nanos(1)).live);
        health.iteration_finished(start + LIMIT);
        assert!(health.report(start + LIMIT * 2).live);
    }

    #[test]
    fn readiness_once_gained_stays_through_degradation() {
        let start = Instant::now();
        let health = Health::new(start, LIMIT);
        health.waiting_for("caches");
        assert_eq!(health.report(start).waiting_for, Some("caches"));
        health.set_ready();
        health.degrade("sync", "EPERM");
        health.waiting_for("caches");
        let report = health.report(start);
        assert_eq!(report.waiting_for, None);
        assert_eq!(report.degraded, [("sync", "EPERM".to_owned())]);
    }

    #[test]
    fn a_report_replaces_the_last_report_and_nothing_else() {
        let start = Instant::now();
        let health = Health::new(start, LIMIT);
        health.degrade("listener", "port taken");
        health.replace_reported([("sysctl", "read-only".to_owned()), ("device", "gone".to_owned())]);
        health.replace_reported([("device", "still gone".to_owned())]);
        let degraded = health.report(start).degraded;
        assert_eq!(degraded, [("device", "still gone".to_owned()), ("listener", "port taken".to_owned())]);
        assert_eq!(health.reasons(), [("device", true), ("listener", true), ("sysctl", false)]);
    }

    #[test]
    fn failing_lasts_from_the_first_failure_to_the_next_success() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let health = Health::new(start, LIMIT);
        let seen = |seconds| {
            let report = health.report(at(seconds));
            (report.since_success, report.failing_for)
        };
        assert_eq!(seen(1), (None, None));
        health.sync_succeeded(at(2));
        assert!(health.is_ready());
        health.sync_failed(at(5), "EPERM");
        health.sync_failed(at(9), "EBUSY");
        assert_eq!(seen(10), (Some(Duration::from_secs(8)), Some(Duration::from_secs(5))));
        assert_eq!(health.report(at(10)).degraded, [(SYNC_FAILED, "EBUSY".to_owned())]);
        health.sync_succeeded(at(11));
        assert_eq!(seen(12), (Some(Duration::from_secs(1)), None));
        assert_eq!(health.report(at(12)).degraded, []);
    }
}
