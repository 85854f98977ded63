//! When to sync next, and why. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::controller_loop::Cause;

/// Delay after the first failure, before jitter (which adds up to as much again).
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest delay before jitter: with it, 30 s.
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

    /// The sync that was due failed. The next one is a [`Cause::Retry`], unless something stronger is asked
    /// for; like what failed, or more so, it starts from the kernel's state.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.pending = None;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(300);

    fn started(now: Instant) -> Schedule {
        let mut schedule = Schedule::new(PERIOD);
        schedule.succeeded(now, None);
        schedule
    }

    #[test]
    fn the_first_sync_is_due_at_once_whatever_changed_meanwhile() {
        let now = Instant::now();
        let mut schedule = Schedule::new(PERIOD);
        schedule.request(Cause::Change, now);
        assert_eq!(schedule.due(now), Some(Cause::Start));
    }

    #[test]
    fn the_strongest_of_several_causes_counts() {
        let now = Instant::now();
        let mut schedule = started(now);
        assert_eq!(schedule.due(now), None);
        schedule.request(Cause::Change, now);
        assert_eq!(schedule.due(now), Some(Cause::Change));
        schedule.request(Cause::Kernel, now);
        schedule.request(Cause::Change, now);
        assert_eq!(schedule.due(now), Some(Cause::Kernel));
        assert_eq!(schedule.due(now + PERIOD), Some(Cause::Kernel));
    }

    #[test]
    fn an_audit_is_due_one_period_after_the_last_success() {
        let now = Instant::now();
        let schedule = started(now);
        assert_eq!(schedule.deadline(), Some(now + PERIOD));
        assert_eq!(schedule.due(now + PERIOD - Duration::from_nanos(1)), None);
        assert_eq!(schedule.due(now + PERIOD), Some(Cause::Periodic));
    }

    #[test]
    fn a_period_of_zero_means_no_audit() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::ZERO);
        schedule.succeeded(now, None);
        assert_eq!((schedule.deadline(), schedule.due(now + PERIOD * 1000)), (None, None));
    }

    #[test]
    fn the_controllers_timer_is_kept_and_replaced_by_the_next_report() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut schedule = started(now);
        schedule.succeeded(now, Some(now + second));
        assert_eq!(schedule.deadline(), Some(now + second));
        assert_eq!(schedule.due(now + second), Some(Cause::Timer));
        schedule.succeeded(now + second, None);
        assert_eq!(schedule.due(now + second * 2), None);
    }

    #[test]
    fn nothing_but_the_retry_is_due_while_syncs_fail() {
        let now = Instant::now();
        let mut schedule = started(now);
        schedule.failed(now);
        assert_eq!(schedule.due(now), None);
        let retry_at = schedule.deadline().unwrap();
        assert_eq!(schedule.due(retry_at), Some(Cause::Retry));
    }

    #[test]
    fn success_starts_the_backoff_anew() {
        let now = Instant::now();
        let mut schedule = started(now);
        for _ in 0..20 {
            schedule.failed(now);
        }
        assert!(schedule.deadline().unwrap() - now >= RETRY_MAX);
        schedule.succeeded(now, None);
        schedule.failed(now);
        assert!(schedule.deadline().unwrap() - now < RETRY_MIN * 2);
    }

    #[test]
    fn something_new_brings_a_distant_retry_forward_to_one_second_after_the_failure() {
        let now = Instant::now();
        let mut schedule = started(now);
        for _ in 0..20 {
            schedule.failed(now);
        }
        schedule.request(Cause::Change, now + Duration::from_millis(10));
        assert_eq!(schedule.deadline(), Some(now + RETRY_AFTER_CHANGE));
        assert_eq!(schedule.due(now + RETRY_AFTER_CHANGE), Some(Cause::Retry));
    }

    proptest! {
        #[test]
        fn each_delay_is_the_doubled_one_with_jitter_and_at_most_thirty_seconds(failures in 1u32..40) {
            let now = Instant::now();
            let mut schedule = started(now);
            for _ in 0..failures {
                schedule.failed(now);
            }
            let delay = schedule.deadline().unwrap() - now;
            let plain = RETRY_MIN.saturating_mul(2u32.saturating_pow(failures - 1)).min(RETRY_MAX);
            prop_assert!(delay >= plain && delay <= plain * 2, "{delay:?} after {failures}");
            prop_assert!(delay <= Duration::from_secs(30));
        }

        /// Whatever is asked for, and however syncs end: what is asked for becomes due within the longest
        /// delay, and a failing sync is not tried more often than the backoff or once a second.
        #[test]
        fn no_request_is_lost_and_no_failure_makes_a_hot_loop(
            steps in prop::collection::vec((0u8..4, 0u64..40_000), 1..60),
        ) {
            let mut now = Instant::now();
            let mut schedule = started(now);
            let mut last_failure: Option<(Instant, u32)> = None;
            for (action, millis) in steps {
                match action {
                    0 => schedule.request(Cause::Change, now),
                    1 => schedule.request(Cause::Kernel, now),
                    _ => now += Duration::from_millis(millis),
                }
                let asked = action < 2;
                if asked {
                    let latest = now + Duration::from_secs(30);
                    prop_assert!(schedule.due(latest).is_some());
                    prop_assert!(schedule.due(now).is_some() || schedule.deadline().unwrap() <= latest);
                }
                if schedule.due(now).is_some() {
                    if let Some((at, failures)) = last_failure {
                        let backoff = RETRY_MIN * 2u32.pow((failures - 1).min(5));
                        prop_assert!(now - at >= backoff.min(RETRY_AFTER_CHANGE));
                    }
                    if millis % 2 == 0 {
                        schedule.failed(now);
                        last_failure = Some((now, last_failure.map_or(1, |(_, count)| count + 1)));
                    } else {
                        schedule.succeeded(now, None);
                        last_failure = None;
                    }
                }
            }
        }
    }
}
