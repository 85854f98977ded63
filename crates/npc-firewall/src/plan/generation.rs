//! When the generation of the rules changes, and to which.
//!
//! Each change makes every live connection be judged once more, so at most one is made a second. There are
//! only as many generations as the mark has room for; before one is used again, no connection may carry it
//! from last time, so the marks of all but the current one are cleared (`sweep`) once per round.

use std::time::{Duration, Instant};

/// Time between two changes of the generation.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// What to do about the generation now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Change it, but not before.
    Wait(Instant),
    /// Change it to this one, after clearing the marks of all but the current one if `sweep`.
    Change {
        /// The new generation.
        to: u32,
        /// Whether the new generation may be on some connection's mark.
        sweep: bool,
    },
}

/// Keeps count of generations.
#[derive(Debug)]
pub struct Generations {
    last: u32,
    /// How many of the next generations are on no connection's mark.
    clean: u32,
    due: bool,
    changed: Option<Instant>,
}

impl Generations {
    /// Generations 1 to `last`. Nothing is known of the marks that connections carry.
    pub fn new(last: u32) -> Self {
        Self { last, clean: 0, due: false, changed: None }
    }

    /// Rules got tighter.
    pub fn demand(&mut self) {
        self.due = self.last > 1;
    }

    /// What to do now.
    pub fn step(&self, current: u32, now: Instant) -> Step {
        if !self.due {
            return Step::Stay;
        }
        match self.changed {
            Some(changed) if now < changed + INTERVAL => Step::Wait(changed + INTERVAL),
            _ => Step::Change { to: current % self.last + 1, sweep: self.clean == 0 },
        }
    }

    /// The marks of all generations but the current one have been cleared.
    pub fn swept(&mut self) {
        self.clean = self.last - 1;
    }

    /// The generation has been changed.
    pub fn changed(&mut self, now: Instant) {
        self.due = false;
        self.clean = self.clean.saturating_sub(1);
        self.changed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_never_reused_while_a_mark_may_carry_it() {
        let start = Instant::now();
        let mut generations = Generations::new(5);
        // Which generations may be on some connection's mark.
        let mut dirty = [true; 6];
        let mut current = 1;
        for round in 0..40 {
            generations.demand();
            let now = start + INTERVAL * round;
            let Step::Change { to, sweep } = generations.step(current, now) else { panic!("no change") };
            if sweep {
                dirty = [false; 6];
                dirty[current as usize] = true;
                generations.swept();
            }
            assert!(!dirty[to as usize], "round {round}: generation {to} may still be on a mark");
            dirty[to as usize] = true;
            generations.changed(now);
            current = to;
        }
    }

    #[test]
    fn changes_keep_their_distance_and_are_not_forgotten() {
        let start = Instant::now();
        let mut generations = Generations::new(255);
        assert_eq!(generations.step(1, start), Step::Stay);
        generations.demand();
        assert_eq!(generations.step(255, start), Step::Change { to: 1, sweep: true });
        generations.swept();
        generations.changed(start);
        generations.demand();
        assert_eq!(generations.step(1, start + INTERVAL / 2), Step::Wait(start + INTERVAL));
        assert_eq!(generations.step(1, start + INTERVAL), Step::Change { to: 2, sweep: false });
    }
}
