//! When to sync next, and why. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::controller_loop::Cause;

/// Delay after the first failure, before jitter.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest delay before jitter, which at most doubles it: 30 s.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// While syncs fail, something new (which may be what mends it) brings the retry forward, but not closer than
/// this to the last failure: a busy cluster must not turn a failing sync into a hot loop.
pub(crate) const RETRY_AFTER_CHANGE: Duration = Duration::from_secs(1);

/// The record of what is asked for and of how the last sync went.
#[derive(Debug)]
pub(crate) struct Schedule {
    period: Duration,
    pending: Option<Cause>,
    /// `None` when the period is 0.
    periodic_at: Option<Instant>,
    timer_at: Option<Instant>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    retry_at: Instant,
    backoff: ExponentialBackoff,
}

impl Schedule {
    /// A first sync ([`Cause::Start`]) is due at once; `period` 0 means no periodic one.
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, pending: Some(Cause::Start), periodic_at: None, timer_at: None, failure: None }
    }

    /// Asks for a sync. Requests that wait for the same sync become one, of the strongest cause.
    pub(crate) fn request(&mut self, cause: Cause, now: Instant) {
        self.pending = self.pending.max(Some(cause));
        if let Some(failure) = &mut self.failure {
            let earliest = (failure.at + RETRY_AFTER_CHANGE).max(now);
            failure.retry_at = failure.retry_at.min(earliest);
        }
    }

    /// The cause of the sync that should run now, if one should.
    pub(crate) fn due(&self, now: Instant) -> Option<Cause> {
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(failure) = &self.failure {
            return (failure.retry_at <= now).then_some(self.pending.max(Some(Cause::Retry))).flatten();
        }
        let periodic = passed(self.periodic_at).then_some(Cause::Periodic);
        let timer = passed(self.timer_at).then_some(Cause::Timer);
        self.pending.max(periodic).max(timer)
    }

    /// When [`Schedule::due`] will next turn from nothing to something, if time alone can do that.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.failure {
            Some(failure) => Some(failure.retry_at),
            None => self.periodic_at.into_iter().chain(self.timer_at).min(),
        }
    }

    /// The sync that was due succeeded; the controller wants to be called at `wake_at`.
    pub(crate) fn succeeded(&mut self, now: Instant, wake_at: Option<Instant>) {
        self.pending = None;
        self.failure = None;
        self.timer_at = wake_at;
        self.periodic_at = (!self.period.is_zero()).then(|| now + self.period);
    }

    /// The sync that was due failed. What was asked for stays asked for.
    pub(crate) fn failed(&mut self, now: Instant) {
        let mut backoff = self.failure.take().map_or_else(new_backoff, |failure| failure.backoff);
        // LIMIT: `new_backoff` has no number of tries after which `next` would give nothing.
        let delay = backoff.next().unwrap_or(RETRY_MAX);
        self.failure = Some(Failure { at: now, retry_at: now + delay, backoff });
    }
}

fn new_backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(RETRY_MIN)
        .with_max_delay(RETRY_MAX)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}
