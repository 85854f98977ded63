//! Percentiles, ratios with their spread, and tables for docs/performance.md.

use std::collections::BTreeMap;
use std::time::Duration;

/// How often rounds are drawn anew to see how far a ratio may be off.
const DRAWS: usize = 2_000;

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// ADD, nothing else going on.
    Add,
    /// DEL, nothing else going on.
    Del,
    /// ADD, one of many at once.
    BurstAdd,
    /// DEL, one of many at once.
    BurstDel,
    /// ADD of many at once, until all are done.
    AllAdds,
    /// DEL of many at once, until all are done.
    AllDels,
}

impl What {
    const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::BurstAdd, Self::BurstDel, Self::AllAdds, Self::AllDels];

    const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD alone",
            Self::Del => "DEL alone",
            Self::BurstAdd => "ADD, 50 at once, each",
            Self::BurstDel => "DEL, 50 at once, each",
            Self::AllAdds => "ADD, 50 at once, all",
            Self::AllDels => "DEL, 50 at once, all",
        }
    }

    /// Bars of the issue: of which percentile, and how many times the reference's at most.
    const fn bar(self) -> Option<(f64, f64)> {
        match self {
            Self::Add => Some((0.5, 0.2)),
            Self::BurstAdd => Some((0.99, 1.0 / 3.0)),
            _ => None,
        }
    }
}

/// Seconds, by what was timed, side, and round.
#[derive(Default)]
pub(crate) struct Samples {
    taken: BTreeMap<(What, usize), BTreeMap<usize, Vec<f64>>>,
}

/// The value below which `share` of all are.
fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share).ceil() as usize;
    values.get(place.clamp(1, values.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// Numbers that look random and are the same each time (Marsaglia's xorshift).
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

impl Samples {
    /// Adds what a side took in a round.
    pub(crate) fn add(&mut self, round: usize, side: usize, taken: Vec<(What, Duration)>) {
        for (what, took) in taken {
            let rounds = self.taken.entry((what, side)).or_default();
            rounds.entry(round).or_default().push(took.as_secs_f64());
        }
    }

    fn of_rounds(&self, what: What, side: usize, rounds: &[usize]) -> Vec<f64> {
        let Some(taken) = self.taken.get(&(what, side)) else { return Vec::new() };
        rounds.iter().filter_map(|round| taken.get(round)).flatten().copied().collect()
    }

    fn ratio(&self, what: What, share: f64, rounds: &[usize]) -> f64 {
        let [ours, theirs] = [0, 1].map(|side| percentile(self.of_rounds(what, side, rounds), share));
        ours / theirs
    }

    /// The ratio of ours to the reference's, and the middle 95 % of what it would have been with rounds drawn anew
    /// out of those that there were (bootstrap).
    fn spread(&self, what: What, share: f64) -> (f64, f64, f64) {
        let rounds: Vec<usize> =
            self.taken.get(&(what, 0)).into_iter().flat_map(|taken| taken.keys().copied()).collect();
        let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
        let drawn: Vec<f64> = (0..DRAWS)
            .map(|_| {
                let chosen: Vec<usize> = rounds.iter().map(|_| rounds[draws.below(rounds.len())]).collect();
                self.ratio(what, share, &chosen)
            })
            .collect();
        (self.ratio(what, share, &rounds), percentile(drawn.clone(), 0.025), percentile(drawn, 0.975))
    }

    /// Prints a table, and the bars.
    pub(crate) fn print(&self) {
        println!(
            "| | cni-bridge p50 | p99 | reference p50 | p99 | ratio of p50 [95 %] | ratio of p99 [95 %] |"
        );
        println!("|---|---|---|---|---|---|---|");
        let mut bars = Vec::new();
        for what in What::ALL {
            let all: Vec<usize> = (0..=self.last_round()).collect();
            let time = |side, share| {
                let seconds = percentile(self.of_rounds(what, side, &all), share);
                format!("{:.1} ms", seconds * 1e3)
            };
            let ratio = |share| {
                let (ratio, low, high) = self.spread(what, share);
                format!("{ratio:.2} [{low:.2}, {high:.2}]")
            };
            println!(
                "| {} | {} | {} | {} | {} | {} | {} |",
                what.name(),
                time(0, 0.5),
                time(0, 0.99),
                time(1, 0.5),
                time(1, 0.99),
                ratio(0.5),
                ratio(0.99)
            );
            if let Some((share, most)) = what.bar() {
                let (found, low, high) = self.spread(what, share);
                let word = if found <= most { "met" } else { "MISSED" };
                let percent = share * 100.0;
                bars.push(format!(
                    "- {word}: {}: p{percent:.0} ≤ {most:.2} of the reference's: {found:.2} [{low:.2}, {high:.2}]",
                    what.name()
                ));
            }
        }
        println!();
        bars.iter().for_each(|bar| println!("{bar}"));
    }

    fn last_round(&self) -> usize {
        self.taken.values().filter_map(|taken| taken.keys().last()).copied().max().unwrap_or_default()
    }
}
