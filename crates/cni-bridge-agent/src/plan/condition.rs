//! When the node's condition NetworkUnavailable is written: whenever it is anything but False, but ever more rarely if
//! somebody keeps setting it.
//!
//! Cloud providers' route controllers (kube-controller-manager `--configure-cloud-routes`) set it to True every ten
//! seconds while a node has no route of theirs, and the scheduler keeps pods from it (taint
//! `node.kubernetes.io/network-unavailable`). Who is right is not known here: both are told.

use std::time::{Duration, Instant};

/// The first wait after a write.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// After so long without a write it begins anew.
const CALM: Duration = Duration::from_secs(3600);
/// As often as this somebody may undo it before people are told.
const TOLERATED: u32 = 3;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is as it should be.
    Stay,
    /// Write.
    Write,
    /// Look again then.
    Wait(Instant),
}

/// The writes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    last: Option<Instant>,
    undone: u32,
}

impl Attempts {
    /// What is to be done; `unavailable` as [`crate::model::node::Facts::network_unavailable`].
    pub fn step(&self, unavailable: Option<bool>, now: Instant) -> Step {
        if unavailable == Some(false) {
            return Step::Stay;
        }
        match self.last.map(|last| last + self.pause()) {
            Some(due) if now < due => Step::Wait(due),
            _ => Step::Write,
        }
    }

    /// A write was taken.
    pub fn written(&mut self, now: Instant) {
        let recently = self.last.is_some_and(|last| now.saturating_duration_since(last) < CALM);
        self.undone = if recently { self.undone.saturating_add(1) } else { 0 };
        self.last = Some(now);
    }

    /// Whether somebody keeps undoing it.
    pub const fn is_contested(&self) -> bool {
        self.undone >= TOLERATED
    }

    fn pause(&self) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << self.undone.min(10)).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_unknown_or_true_is_written_and_false_is_left() {
        let now = Instant::now();
        let attempts = Attempts::default();
        assert_eq!(attempts.step(None, now), Step::Write);
        assert_eq!(attempts.step(Some(true), now), Step::Write);
        assert_eq!(attempts.step(Some(false), now), Step::Stay);
    }

    #[test]
    fn who_keeps_undoing_it_is_answered_ever_more_rarely() {
        let start = Instant::now();
        let mut now = start;
        let mut attempts = Attempts::default();
        let mut writes = 0;
        // Somebody undoes it each second for a day.
        while now < start + Duration::from_secs(24 * 3600) {
            match attempts.step(Some(true), now) {
                Step::Write => {
                    attempts.written(now);
                    writes += 1;
                }
                Step::Wait(due) => assert!(due > now),
                Step::Stay => panic!("it is undone"),
            }
            now += Duration::from_secs(1);
        }
        assert!(attempts.is_contested());
        assert!((140..160).contains(&writes), "{writes}");
    }

    #[test]
    fn after_a_calm_hour_it_begins_anew() {
        let now = Instant::now();
        let mut attempts = Attempts::default();
        for _ in 0..9 {
            attempts.written(now);
        }
        assert!(attempts.is_contested());
        attempts.written(now + CALM);
        assert!(!attempts.is_contested());
        assert_eq!(attempts.step(Some(true), now + CALM + FIRST_PAUSE), Step::Write);
    }
}
