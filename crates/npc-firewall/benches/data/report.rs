//! Medians, their confidence, and tables for docs/performance.md.

use std::collections::BTreeMap;

use super::lane::Layout;
use super::load::{Sample, Workload};

/// All samples: by workload, pods and layout (as indices in their lists), one for each round.
#[derive(Default)]
pub(crate) struct Samples {
    slots: BTreeMap<(usize, usize, usize), Vec<Sample>>,
}

/// A median with the interval that holds the true one with 95 % confidence, whatever the distribution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Median {
    /// The middle.
    pub(crate) value: f64,
    /// Lower end of the interval.
    pub(crate) low: f64,
    /// Upper end of the interval.
    pub(crate) high: f64,
}

impl Median {
    /// Of at least one value. With fewer than six the interval is all values, and its confidence is lower.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        // The order statistics that leave out at most 2.5 % on each side: P(at most k of n fair coins).
        let (mut skipped, mut tail, mut term) = (0, 0.0, 0.5_f64.powi(count as i32));
        while tail + term <= 0.025 {
            tail += term;
            skipped += 1;
            term *= (count + 1 - skipped) as f64 / skipped as f64;
        }
        let skipped = skipped.saturating_sub(1);
        let middle = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Self { value: middle, low: values[skipped], high: values[count - 1 - skipped] }
    }
}

impl std::fmt::Display for Median {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.value < 0.1 { 4 } else { 3 };
        write!(f, "{:.digits$} [{:.digits$}, {:.digits$}]", self.value, self.low, self.high)
    }
}

/// Bars of the issue.
const KEPT: f64 = 0.98;

impl Samples {
    /// Adds a slot's result; rounds come in order.
    pub(crate) fn add(&mut self, workload: usize, size: usize, layout: usize, sample: Sample) {
        self.slots.entry((workload, size, layout)).or_default().push(sample);
    }

    fn values(&self, key: (usize, usize, usize), of: fn(&Sample) -> f64) -> Option<Vec<f64>> {
        Some(self.slots.get(&key)?.iter().map(of).collect())
    }

    /// Median of the ratios of two lanes, each taken within one round.
    fn ratio(
        &self,
        above: (usize, usize, usize),
        below: (usize, usize, usize),
        of: fn(&Sample) -> f64,
    ) -> Option<Median> {
        let (above, below) = (self.values(above, of)?, self.values(below, of)?);
        Some(Median::of(above.iter().zip(&below).map(|(a, b)| a / b).collect()))
    }

    /// How far the same thing measured twice is from itself: the conntrack lanes of different sizes differ in
    /// nothing.
    fn noise(&self, workload: usize, sizes: usize) -> f64 {
        let pairs = (0..sizes).flat_map(|a| (0..a).map(move |b| (a, b)));
        pairs
            .filter_map(|(a, b)| self.ratio((workload, a, 0), (workload, b, 0), Sample::cost))
            .map(|ratio| (ratio.high - 1.0).abs().max((ratio.low - 1.0).abs()))
            .fold(0.0, f64::max)
    }

    /// Prints one table for each workload, and the bars. `layouts` starts with the conntrack lane.
    pub(crate) fn print(&self, sizes: &[usize], layouts: &[Layout]) {
        let mut bars = Vec::new();
        let ours = layouts.iter().position(|layout| *layout == Layout::Ours);
        for (number, workload) in Workload::ALL.into_iter().enumerate() {
            let noise = self.noise(number, sizes.len());
            println!("\n### {}\n", workload.name());
            println!(
                "| local pods | rules | CPU µs/{} | throughput kept per CPU [95 %] | {}s/s, median (best) | raw throughput kept |",
                workload.unit(),
                workload.unit()
            );
            println!("|---|---|---|---|---|---|");
            for (size, pods) in sizes.iter().enumerate() {
                for (layout, named) in layouts.iter().enumerate() {
                    if let Some(row) = self.row((number, size, layout)) {
                        println!("| {pods} | {} | {row} |", named.name());
                    }
                }
            }
            println!("\nNoise (conntrack only against itself): ± {:.1} %.", noise * 100.0);
            let Some(ours) = ours else { continue };
            let last = sizes.len() - 1;
            if let Some(kept) = self.ratio((number, last, 0), (number, last, ours), Sample::cost) {
                bars.push((
                    kept.value >= KEPT,
                    format!(
                        "{}: throughput kept per CPU with {} pods ≥ {KEPT}: {kept}, noise ± {noise:.3}",
                        workload.name(),
                        sizes[last]
                    ),
                ));
            }
            if let Some(flat) = self.ratio((number, 0, ours), (number, last, ours), Sample::cost) {
                bars.push((
                    (flat.value - 1.0).abs() <= noise,
                    format!(
                        "{}: flat from {} to {} pods within noise: {flat}, noise ± {noise:.3}",
                        workload.name(),
                        sizes[0],
                        sizes[last]
                    ),
                ));
            }
        }
        println!("\n### Bars\n");
        for (met, bar) in bars {
            println!("- {}: {bar}", if met { "met" } else { "MISSED" });
        }
        println!("\n{}", self.softirq());
    }

    fn row(&self, key: (usize, usize, usize)) -> Option<String> {
        let base = (key.0, key.1, 0);
        let cost = Median::of(self.values(key, Sample::cost)?);
        let kept = self.ratio(base, key, Sample::cost)?;
        let rates = self.values(key, Sample::rate)?;
        let best = rates.iter().copied().fold(0.0, f64::max);
        let rate = Median::of(rates);
        let raw = self.ratio(key, base, Sample::rate)?;
        let kept = if key.2 == 0 { "1".to_owned() } else { kept.to_string() };
        let raw = if key.2 == 0 { "1".to_owned() } else { format!("{:.3}", raw.value) };
        Some(format!("{:.2} | {kept} | {:.0} ({best:.0}) | {raw}", cost.value, rate.value))
    }

    /// How much work the kernel took away from the threads that are measured.
    fn softirq(&self) -> String {
        let all = || self.slots.values().flatten();
        let moved: f64 = all().map(|sample| sample.ksoftirqd.as_secs_f64()).sum();
        let counted: f64 = all().map(|sample| sample.cpu.as_secs_f64()).sum();
        format!(
            "ksoftirqd, for everybody on the machine, took {:.2} % of the CPU time that was counted.",
            100.0 * moved / counted
        )
    }
}
