//! Log lines to stderr: `tracing` events with a constant message and fields, as text or as JSON.

use std::io;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

/// Value of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line a record, for people.
    Text,
    /// One JSON object a record, fields at top level.
    Json,
}

/// Installs the process-wide subscriber.
///
/// `verbosity` is klog's number. `RUST_LOG` (`level` or `target=level`, separated by commas), when it is set
/// and can be read, replaces what follows from `verbosity`.
///
/// # Errors
/// When a subscriber is installed already.
pub fn init(format: Format, verbosity: u8) -> Result<(), TryInitError> {
    let from_env = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let parsed = from_env.as_deref().map(str::parse::<Targets>);
    let filter = match &parsed {
        Some(Ok(targets)) => targets.clone(),
        _ => targets(verbosity),
    };
    let base = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let layer = match format {
        Format::Text => base.boxed(),
        Format::Json => base.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    if let Some(Err(error)) = parsed {
        tracing::warn!(%error, "RUST_LOG cannot be read and is ignored");
    }
    Ok(())
}

/// What a verbosity shows: 0 the usual, 1 to 3 (Kubernetes components are commonly run with `-v=2`) our debug
/// records too, from 4 our traces.
///
/// HTTP and TLS libraries stay a level behind: their records are of use only to those who debug them.
fn targets(verbosity: u8) -> Targets {
    let (ours, theirs) = match verbosity {
        0 => (LevelFilter::INFO, LevelFilter::WARN),
        1..=3 => (LevelFilter::DEBUG, LevelFilter::WARN),
        4..=5 => (LevelFilter::TRACE, LevelFilter::INFO),
        6..=9 => (LevelFilter::TRACE, LevelFilter::DEBUG),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    const LIBRARIES: [&str; 5] = ["h2", "hyper", "hyper_util", "rustls", "tower"];
    // kube logs each failed request and whole bodies; common-informer logs one line for each change of error.
    const REPEATED: [&str; 2] = ["kube_client", "kube_runtime"];
    let repeated = if verbosity < 4 { LevelFilter::OFF } else { theirs };
    Targets::new()
        .with_default(ours)
        .with_targets(LIBRARIES.map(|name| (name, theirs)))
        .with_targets(REPEATED.map(|name| (name, repeated)))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn verbosity_zero_shows_info_of_ours_and_only_warnings_of_libraries() {
        let shown = targets(0);
        assert!(shown.would_enable("npc_firewall", &Level::INFO));
        assert!(!shown.would_enable("npc_firewall", &Level::DEBUG));
        assert!(shown.would_enable("hyper::proto", &Level::WARN));
        assert!(!shown.would_enable("hyper::proto", &Level::INFO));
    }

    #[test]
    fn more_verbosity_never_hides_a_record() {
        for target in ["npc_firewall", "hyper", "kube_client::client"] {
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                let shown: Vec<bool> = (0..=12).map(|v| targets(v).would_enable(target, &level)).collect();
                assert!(shown.is_sorted(), "{target} {level}: {shown:?}");
            }
        }
    }
}
