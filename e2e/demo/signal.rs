//! Ctrl-C and SIGTERM: nothing may stay behind.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM].into_iter().collect()
}

/// From now on a signal removes `folder` and ends the process: with 0 if that is the `wanted` end. The
/// kernel takes the namespaces and the firewalls with it. Call it before any other thread starts.
pub(crate) fn end_process(folder: &Path, wanted: bool) -> Result<()> {
    // Threads inherit the mask, so that only the one below gets the signal.
    signals().thread_block().context("block signals")?;
    let folder = folder.to_owned();
    let wait = move || {
        let caught = signals().wait();
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            eprintln!("demo: {} is left behind: {error}", folder.display());
        }
        std::process::exit(if wanted && caught.is_ok() { 0 } else { 130 });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("start a thread")?;
    Ok(())
}

/// Runs `work` with the calling thread's signals unblocked: children inherit the mask, and a firewall must
/// hear SIGTERM.
pub(crate) fn unblocked<T>(work: impl FnOnce() -> T) -> Result<T> {
    signals().thread_unblock().context("unblock signals")?;
    let result = work();
    signals().thread_block().context("block signals")?;
    Ok(result)
}
