//! The `process_*` metrics that Prometheus' client libraries have in common, read from /proc/self.
//!
//! The prometheus crate's own collector is not used: it brings `procfs` and `libc` for these few lines.

use std::fs;

use prometheus::{Counter, Error, Gauge, IntGauge, Opts, Registry};

use crate::metrics::unix_now;

/// Ticks a second of the CPU times in /proc/PID/stat. KERNEL: `USER_HZ` (include/asm-generic/param.h), which
/// is 100 wherever Rust's Linux targets run, whatever `CONFIG_HZ` is.
const USER_HZ: f64 = 100.0;

/// The metrics of this process. A value that cannot be read keeps what it was.
pub(crate) struct ProcessMetrics {
    cpu: Counter,
    resident: IntGauge,
    virtual_size: IntGauge,
    open_fds: IntGauge,
    max_fds: Gauge,
    threads: IntGauge,
}

impl ProcessMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge, Error> {
            let gauge = IntGauge::with_opts(Opts::new(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let cpu = Counter::new("process_cpu_seconds_total", "Total user and system CPU time spent.")?;
        registry.register(Box::new(cpu.clone()))?;
        let max_fds = Gauge::new("process_max_fds", "Maximum number of open file descriptors.")?;
        registry.register(Box::new(max_fds.clone()))?;
        let start = Gauge::new("process_start_time_seconds", "Unix time at which the process started.")?;
        registry.register(Box::new(start.clone()))?;
        // Metrics are made in the first milliseconds of a process.
        start.set(unix_now());
        Ok(Self {
            cpu,
            max_fds,
            resident: gauge("process_resident_memory_bytes", "Resident memory size.")?,
            virtual_size: gauge("process_virtual_memory_bytes", "Virtual memory size.")?,
            open_fds: gauge("process_open_fds", "Number of open file descriptors.")?,
            threads: gauge("process_threads", "Number of threads of the process.")?,
        })
    }

    pub(crate) fn update(&self) {
        if let Some(seconds) = read("stat").as_deref().and_then(cpu_seconds) {
            // A counter can only grow; the kernel's figure does.
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        let status = read("status").unwrap_or_default();
        let field = |name| status_field(&status, name);
        let kib = |name| field(name).and_then(|value| value.checked_mul(1024));
        kib("VmRSS:").into_iter().for_each(|bytes| self.resident.set(bytes));
        kib("VmSize:").into_iter().for_each(|bytes| self.virtual_size.set(bytes));
        field("Threads:").into_iter().for_each(|count| self.threads.set(count));
        if let Some(limit) = read("limits").as_deref().and_then(max_open_files) {
            self.max_fds.set(limit);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // Reading the directory takes a descriptor too.
            let open = entries.count().saturating_sub(1);
            self.open_fds.set(i64::try_from(open).unwrap_or(i64::MAX));
        }
    }
}

fn read(file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/{file}")).ok()
}

/// User plus system time. The second field, the command's name in parentheses, may hold anything: fields are
/// counted from the last `)`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    // proc(5): utime and stime are fields 14 and 15; the first after the name is field 3.
    let user: u32 = fields.nth(11)?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / USER_HZ)
}

fn status_field(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The soft limit; infinite when there is none.
fn max_open_files(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_hostile_process_name() {
        let stat = "42 (a) 1 2) (b) S 1 42 42 0 -1 4194560 511 0 0 0 150 50 0 0 20 0 2 0 9 1 2";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("42 (x) S 1"), None);
    }

    #[test]
    fn limits_are_read_with_and_without_a_number() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  4096  files\n";
        assert_eq!(max_open_files(limits), Some(1024.0));
        assert_eq!(max_open_files("Max open files unlimited unlimited files"), Some(f64::INFINITY));
    }

    #[test]
    fn this_process_shows_plausible_figures() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::register(&registry).unwrap();
        metrics.update();
        assert!(metrics.resident.get() > 100 * 1024);
        assert!(metrics.virtual_size.get() >= metrics.resident.get());
        assert!(metrics.open_fds.get() >= 1);
        assert!(metrics.max_fds.get() >= 16.0);
        assert!(metrics.threads.get() >= 1);
    }
}
