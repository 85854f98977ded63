//! The edge to the operator, the same in every daemon: flags, log, admin port, health, metrics, shutdown, and
//! the loop that reconciles.
//!
//! ```text
//!            main thread: async, never blocks             thread "reconcile": owns the state
//!  flags ──► args ──┐                                     ┌──────────────────────────────────┐
//!  signals ► shutdown ──── token ───────────────────────► │ controller_loop                  │
//!  objects ► (informer) ── stream of messages ──────────► │   receive* → due? → sync → report│
//!  kernel  ► (notifications) ── Waker::wake(Kernel) ────► │                                  │
//!  HTTP    ► admin ─── Inspector: /state, scrape ───────► └───────┬──────────────────────────┘
//!              └─ reads health, metrics ◄─── iterations, results ─┘
//! ```
//!
//! A controller implements [`Controller`], declares its [`Program`] and its flags (with [`CommonArgs`]
//! flattened into them), and calls [`Daemon::run`]. Nothing here knows about Kubernetes objects or about the
//! kernel's state.

pub mod admin;
pub mod args;
pub mod controller_loop;
mod daemon;
pub mod health;
pub mod http;
pub mod kube_router_flag;
pub mod log;
mod memory;
pub mod metrics;
mod output;
mod process;
mod schedule;
pub mod shutdown;

pub use args::{CommonArgs, NodeArgs};
pub use controller_loop::{
    Cause, Controller, Degradation, Inspector, LoopError, SyncError, SyncReport, Waker, Wakeups,
};
pub use daemon::{Daemon, DaemonError};
pub use health::Health;
pub use metrics::Registry;
pub use output::{print, tell};

/// What a binary is; declared once, as a constant, by each of them.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Name of crate, binary, image and DaemonSet, e.g. `npc-firewall`. With `_` for `-` it is the prefix of
    /// the metrics and, in capitals, of the environment variables.
    pub name: &'static str,
    /// `env!("CARGO_PKG_VERSION")` of the binary's crate.
    pub version: &'static str,
    /// Default of `--health-port`. All daemons run in the node's network namespace, so each needs its own;
    /// 20244 is kube-router's.
    pub health_port: u16,
    /// kube-router's names for `--sync-period` as far as they mean this controller, e.g.
    /// `iptables-sync-period`.
    pub sync_period_aliases: &'static [&'static str],
}

impl Program {
    /// The name as a Prometheus prefix: `npc_firewall`.
    #[must_use]
    pub fn metric_prefix(&self) -> String {
        self.name.replace('-', "_")
    }

    /// The environment variable of a flag: `NPC_FIREWALL_SYNC_PERIOD` for `sync-period`.
    #[must_use]
    pub fn env_name(&self, flag: &str) -> String {
        format!("{}_{flag}", self.name).replace('-', "_").to_uppercase()
    }
}

/// An error and its causes on one line, without those whose text is already there.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
