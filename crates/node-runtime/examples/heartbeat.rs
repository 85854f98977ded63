//! The smallest daemon: it counts seconds and keeps a file at the count. For trying out the admin port, the
//! flags and the signals, and for measuring what a daemon costs before it does anything.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use node_runtime::controller_loop::from_channel;
use node_runtime::{Cause, CommonArgs, Controller, Daemon, Program, SyncError, SyncReport, args};
use serde::Serialize;

const PROGRAM: Program = Program {
    name: "heartbeat",
    version: env!("CARGO_PKG_VERSION"),
    health_port: 20299,
    sync_period_aliases: &["routes-sync-period"],
};

/// Keeps a file at the number of seconds since start
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    /// Write once and end
    #[arg(long)]
    once: bool,
    /// File to keep
    #[arg(long, default_value = "/dev/null")]
    file: String,
    /// Never come back from a sync, to see what becomes of liveness and of signals
    #[arg(long)]
    hang: bool,
}

struct Heartbeat {
    file: String,
    hang: bool,
    wanted: Option<u64>,
}

impl Controller for Heartbeat {
    type Message = u64;

    fn receive(&mut self, seconds: u64) {
        self.wanted = Some(seconds);
    }

    fn is_synced(&self) -> bool {
        self.wanted.is_some()
    }

    fn sync(&mut self, _cause: Cause, _now: Instant) -> Result<SyncReport, SyncError> {
        if self.hang {
            eprintln!("hanging");
            loop {
                std::thread::park();
            }
        }
        let text = self.wanted.unwrap_or_default().to_string();
        let have = fs::read_to_string(&self.file).unwrap_or_default();
        if have == text {
            return Ok(SyncReport::default());
        }
        fs::write(&self.file, text)?;
        Ok(SyncReport { kernel_ops: vec![("write", 1)], ..SyncReport::default() })
    }

    fn state(&self) -> impl Serialize {
        serde_json::json!({ "file": self.file, "wanted": self.wanted })
    }
}

async fn run(cli: Cli, ignored: args::Ignored) -> anyhow::Result<()> {
    let daemon = Daemon::start(&PROGRAM, &cli.common)?;
    ignored.warn();
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let shutdown = daemon.shutdown.clone();
    let count = tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        for second in 0.. {
            if sender.send(second).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }));
    let Cli { common, once, file, hang } = cli;
    let make = move || Ok::<_, std::convert::Infallible>(Heartbeat { file, hang, wanted: None });
    daemon.run(&common, once, make, from_channel(receiver)).await?;
    count.abort();
    Ok(())
}

fn main() -> ExitCode {
    let args::Parsed { cli, ignored } = args::parse::<Cli>(&PROGRAM);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(cli, ignored)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heartbeat: {error:#}");
            ExitCode::FAILURE
        }
    }
}
