//! Who leads: the rules of client-go's `leaderelection`, without its clock and its requests.
//!
//! A Lease names its holder and is written anew as long as the holder lives. Clocks of two machines are never
//! compared: a candidate measures, by its own clock, for how long it has seen no change of the Lease, and takes
//! it over after the time that stands in it. The holder counts from the moment *before* it asked for a renewal
//! that was accepted, and stops to write earlier than anybody else may begin:
//!
//! ```text
//!  asked for a renewal ──── renew_deadline: writes may begin ────┤─ write_timeout: the last ends ─┤
//!  └─ candidates see the renewal at this moment or later ── lease_duration: nobody takes over ──────────┤
//! ```
//!
//! LIMIT: the clock stands still while a machine is suspended (`CLOCK_MONOTONIC`), so that a machine that wakes
//! up may send one more write. The time between the two bars is for that no help; two Services would have one
//! address until the new leader sees it, and moves the younger of them.

use std::time::{Duration, Instant};

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For how long a holder is believed that does not renew.
    pub lease_duration: Duration,
    /// For how long the holder believes itself.
    pub renew_deadline: Duration,
    /// Between two attempts to take or to renew.
    pub retry_period: Duration,
}

/// client-go's defaults, which kube-router uses as well.
impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// For how long a single request may last, so that the last write of an old leader ends before a new one
    /// begins: most of the time between the two deadlines.
    pub fn write_timeout(&self) -> Duration {
        self.lease_duration.saturating_sub(self.renew_deadline).mul_f64(0.8)
    }

    /// Whether the times can work: `lease_duration > renew_deadline > 1.2 × retry_period`, as client-go wants
    /// it, in whole seconds where the Lease has them.
    pub fn is_sound(&self) -> bool {
        self.lease_duration > self.renew_deadline
            && self.renew_deadline > self.retry_period.mul_f64(1.2)
            && !self.retry_period.is_zero()
            && self.lease_duration.subsec_nanos() == 0
    }
}

/// A Lease as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `spec.holderIdentity`; empty if nobody holds it.
    pub holder: String,
    /// `spec.leaseDurationSeconds`
    pub duration: Duration,
    /// `spec.renewTime` as text: only whether it changes matters.
    pub renewed: String,
    /// `spec.leaseTransitions`
    pub transitions: i32,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// There is none: make it.
    Create,
    /// It is ours: write it anew.
    Renew,
    /// It is nobody's any more: take it.
    Take,
    /// Somebody has it.
    Wait,
}

/// One candidate's view of the election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    timing: Timing,
    /// What the Lease was, and since when it has not changed.
    observed: Option<(Record, Instant)>,
    /// When the last renewal was asked for that was accepted.
    renewed_at: Option<Instant>,
}

impl Election {
    /// A candidate. `identity` is of this process alone: two of one identity would both lead.
    pub fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, observed: None, renewed_at: None }
    }

    /// Its identity.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Its times.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Takes note of the Lease as it was at `now`, and says what to do.
    pub fn look(&mut self, found: Option<Record>, now: Instant) -> Attempt {
        let Some(found) = found else {
            self.observed = None;
            self.renewed_at = None;
            return Attempt::Create;
        };
        if found.holder == self.identity {
            self.observed = Some((found, now));
            return Attempt::Renew;
        }
        self.renewed_at = None;
        let since = match &self.observed {
            Some((known, since)) if *known == found => *since,
            _ => now,
        };
        let free = found.holder.is_empty() || now >= since + found.duration;
        self.observed = Some((found, since));
        if free { Attempt::Take } else { Attempt::Wait }
    }

    /// A write of the Lease, in our name, that was begun at `asked_at` has been accepted.
    pub fn renewed(&mut self, asked_at: Instant) {
        self.renewed_at = Some(asked_at);
    }

    /// The Lease has been given back.
    pub fn released(&mut self) {
        self.renewed_at = None;
    }

    /// Until when this process leads; `None` if it does not, or the moment is past.
    pub fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.renewed_at.map(|at| at + self.timing.renew_deadline).filter(|until| now < *until)
    }

    /// Who held the Lease when it was last seen; `None` if nobody or unknown.
    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref().map(|(record, _)| record.holder.as_str()).filter(|holder| !holder.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(holder: &str, renewed: u32) -> Record {
        Record {
            holder: holder.to_owned(),
            duration: Duration::from_secs(15),
            renewed: renewed.to_string(),
            transitions: 0,
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_is_taken_over_only_after_its_time_without_a_change_by_our_own_clock() {
        let start = Instant::now();
        let mut candidate = Election::new("b".into(), Timing::default());
        assert_eq!(candidate.look(Some(record("a", 1)), start), Attempt::Wait);
        assert_eq!(candidate.look(Some(record("a", 1)), start + s(14)), Attempt::Wait);
        assert_eq!(candidate.look(Some(record("a", 2)), start + s(14)), Attempt::Wait, "renewed");
        assert_eq!(candidate.look(Some(record("a", 2)), start + s(28)), Attempt::Wait);
        assert_eq!(candidate.look(Some(record("a", 2)), start + s(29)), Attempt::Take);
        assert_eq!(candidate.leads_until(start + s(29)), None, "not before the write is accepted");
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let mut candidate = Election::new("b".into(), Timing::default());
        assert_eq!(candidate.look(Some(record("", 1)), Instant::now()), Attempt::Take);
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_others_may_start() {
        let start = Instant::now();
        let timing = Timing::default();
        let mut leader = Election::new("a".into(), timing);
        assert_eq!(leader.look(None, start), Attempt::Create);
        leader.renewed(start);
        assert!(leader.leads_until(start + s(9)).is_some());
        assert_eq!(leader.leads_until(start + s(10)), None);
        assert!(timing.renew_deadline + timing.write_timeout() < timing.lease_duration);
        // It can lead again.
        assert_eq!(leader.look(Some(record("a", 1)), start + s(12)), Attempt::Renew);
        leader.renewed(start + s(12));
        assert!(leader.leads_until(start + s(13)).is_some());
    }

    #[test]
    fn a_leader_that_sees_another_name_in_the_lease_stops_at_once() {
        let start = Instant::now();
        let mut leader = Election::new("a".into(), Timing::default());
        leader.renewed(start);
        assert_eq!(leader.look(Some(record("b", 7)), start + s(1)), Attempt::Wait);
        assert_eq!(leader.leads_until(start + s(1)), None);
    }

    #[test]
    fn times_that_cannot_work_are_told() {
        let timing = |lease, renew, retry| Timing {
            lease_duration: s(lease),
            renew_deadline: s(renew),
            retry_period: s(retry),
        };
        assert!(Timing::default().is_sound());
        assert!(!timing(10, 10, 2).is_sound());
        assert!(!timing(15, 2, 2).is_sound());
        assert!(!timing(15, 10, 0).is_sound());
    }

    proptest! {
        /// Three candidates, each with requests that are delayed or lost: the model of the whole protocol.
        #[test]
        fn two_never_lead_at_the_same_time(steps in prop::collection::vec((0usize..3, 0u64..2500, any::<bool>()), 1..200)) {
            let timing = Timing::default();
            let start = Instant::now();
            let mut candidates: Vec<_> = ["a", "b", "c"].map(|name| Election::new(name.into(), timing)).into();
            let mut lease: Option<(Record, u32)> = None;
            // What each has read: version, when, and what it wants to do.
            let mut pending: Vec<Option<(Option<u32>, Instant, Attempt)>> = vec![None; 3];
            let mut now = start;
            let mut renewals = 0;
            for (who, wait, lost) in steps {
                now += Duration::from_millis(wait);
                match pending[who].take() {
                    None => {
                        let found = lease.clone();
                        let attempt = candidates[who].look(found.as_ref().map(|(record, _)| record.clone()), now);
                        pending[who] = Some((found.map(|(_, version)| version), now, attempt));
                    }
                    Some((_, _, Attempt::Wait)) => {}
                    Some((version, asked_at, _)) => {
                        // The server takes a write only of the version that was read.
                        if lease.as_ref().map(|(_, version)| *version) == version {
                            renewals += 1;
                            let name = candidates[who].identity().to_owned();
                            lease = Some((record(&name, renewals), version.unwrap_or(0) + 1));
                            if !lost {
                                candidates[who].renewed(asked_at);
                            }
                        }
                    }
                }
                let leaders = candidates.iter().filter(|one| one.leads_until(now).is_some()).count();
                prop_assert!(leaders <= 1, "{leaders} lead");
            }
        }
    }
}
