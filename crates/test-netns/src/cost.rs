//! What a piece of work costs, for benchmarks: CPU time, not only time.
//!
//! CPU in conversations with the kernel is told apart from the program's own: whoever talks to the kernel does it
//! inside [`in_kernel`]. All is counted for the calling thread.

use std::cell::Cell;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

thread_local! {
    /// CPU time of this thread in conversations with the kernel.
    static KERNEL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Cost of a piece of work, or medians of several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// How long it took.
    pub wall: Duration,
    /// CPU outside of [`in_kernel`].
    pub own: Duration,
    /// CPU inside of [`in_kernel`].
    pub kernel: Duration,
}

/// CPU time of the calling thread since it began; zero where the kernel does not count it.
#[must_use]
pub fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Does what is a conversation with the kernel.
pub fn in_kernel<T>(talk: impl FnOnce() -> T) -> T {
    let before = thread_cpu();
    let result = talk();
    KERNEL.set(KERNEL.get() + (thread_cpu() - before));
    result
}

/// What `work` costs.
pub fn measure(work: impl FnOnce()) -> Cost {
    let (cpu, kernel, start) = (thread_cpu(), KERNEL.get(), Instant::now());
    work();
    let (cpu, kernel) = (thread_cpu() - cpu, KERNEL.get() - kernel);
    Cost { wall: start.elapsed(), own: cpu.saturating_sub(kernel), kernel }
}

/// The median of each figure by itself; nothing of nothing.
pub fn median(costs: &mut [Cost]) -> Cost {
    let mut pick = |field: fn(&Cost) -> Duration| {
        costs.sort_by_key(field);
        costs.get(costs.len() / 2).map(field).unwrap_or_default()
    };
    Cost { wall: pick(|c| c.wall), own: pick(|c| c.own), kernel: pick(|c| c.kernel) }
}

/// Where figures come from: processors, kernel, load.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn machine() -> io::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let models: Vec<_> = text.lines().filter(|line| line.starts_with("model name")).collect();
    let model = models.first().and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown CPU");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "{} CPUs ({model}), Linux {}, load average of the machine {}",
        models.len(),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
    ))
}
