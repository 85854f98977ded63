//! Batches of `ip` lines, and waiting until what they made can be used.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;

/// Adds a line to a batch.
pub(crate) fn put(lines: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _ = lines.write_fmt(line);
    lines.push('\n');
}

/// What must be so before a namespace can be used.
#[derive(Default)]
pub(crate) struct Settled {
    /// Lines of `ip` that show it.
    lines: String,
    /// How many of them will show it.
    wanted: usize,
}

impl Settled {
    /// The link transmits.
    ///
    /// KERNEL: when the second end of a veth pair comes up, the first drops what it should send until the
    /// link watch work has run (net/core/link_watch.c, `dev_activate`). A link's state reads UP only after
    /// that; since 6.8 asking for one link runs the work at once.
    pub(crate) fn link(mut self, link: &str) -> Self {
        put(&mut self.lines, format_args!("link show dev {link}"));
        self.wanted += 1;
        self
    }

    /// The addresses receive.
    ///
    /// KERNEL: also without duplicate address detection an IPv6 address becomes local in a work item
    /// (net/ipv6/addrconf.c, `addrconf_dad_work`), and only once its link is ready.
    pub(crate) fn addresses(mut self, addresses: &[IpAddr]) -> Self {
        for address in addresses.iter().filter(|address| address.is_ipv6()) {
            put(&mut self.lines, format_args!("route get {address}"));
            self.wanted += 1;
        }
        self
    }

    fn is_shown(&self, output: &str) -> bool {
        let up = output.matches(" state UP ").count();
        up + output.lines().filter(|line| line.starts_with("local ")).count() == self.wanted
    }

    /// Waits, after running `lines` first.
    pub(crate) fn after(&self, lines: &str, namespace: &Namespace) -> Result<()> {
        if lines.is_empty() && self.wanted == 0 {
            return Ok(());
        }
        // Asked in the same breath: mostly it is so by then, and a second process is saved.
        let first = format!("{lines}{}", self.lines);
        let mut shown = namespace
            .output("ip", &["-batch", "-"], &first)
            .with_context(|| format!("lines were:\n{first}"))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_shown(&shown) {
            ensure!(Instant::now() < deadline, "{} does not settle:\n{shown}", namespace.label());
            std::thread::sleep(Duration::from_millis(2));
            shown = namespace.output("ip", &["-batch", "-"], &self.lines)?;
        }
        Ok(())
    }
}

/// One namespace, what to do in it, and what to wait for then.
pub(crate) type Batch = (Namespace, String, Settled);

/// Runs batches of `ip` lines, a few at a time.
pub(crate) fn in_parallel(batches: &[Batch]) -> Result<()> {
    let width = std::thread::available_parallelism().map_or(2, usize::from);
    for chunk in batches.chunks(width.max(2)) {
        std::thread::scope(|scope| -> Result<()> {
            let running: Vec<_> = chunk
                .iter()
                .map(|(namespace, lines, settled)| scope.spawn(|| settled.after(lines, namespace)))
                .collect();
            for thread in running {
                match thread.join() {
                    Ok(done) => done?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
