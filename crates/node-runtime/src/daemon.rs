//! The parts of a daemon put together.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use futures::Stream;

use crate::admin::{self, Admin};
use crate::args::CommonArgs;
use crate::controller_loop::{
    self, Controller, LoopError, LoopSettings, LoopThread, Surroundings, Waker, Wakeups,
};
use crate::health::{Health, ITERATION_LIMIT};
use crate::metrics::{self, Registry};
use crate::shutdown::{self, CancellationToken};
use crate::{Program, log, memory};

/// What a controller needs of its process; made first thing in `run`, on a tokio runtime with I/O and time.
#[derive(Debug)]
pub struct Daemon {
    /// For the controller's own metrics.
    pub registry: Registry,
    /// For what is wrong outside the loop (a watch that fails, …).
    pub health: Health,
    /// Cancelled by SIGTERM or SIGINT; for the tasks that feed the loop.
    pub shutdown: CancellationToken,
    /// Asks the loop for a sync, e.g. when the kernel tells of a change.
    pub waker: Waker,
    wakeups: Wakeups,
    program: &'static Program,
}

/// Why a daemon cannot run, or stopped other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The process has a log already.
    #[error("the log cannot be set up")]
    Log(#[source] Box<dyn Error + Send + Sync>),
    /// Signal handlers cannot be installed.
    #[error("signal handlers cannot be installed")]
    Signals(#[source] io::Error),
    /// A metric is registered twice or has a malformed name.
    #[error("metrics cannot be registered")]
    Metrics(#[from] metrics::Error),
    /// The loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The caches were not in sync in time: what they lack.
    #[error(transparent)]
    Late(Box<dyn Error + Send + Sync>),
}

impl DaemonError {
    /// Where the caches were not in sync in time, says instead what is `missing` after that time. The loop does
    /// not know; who feeds it does. `None` if nothing is missing any more.
    #[must_use]
    pub fn explained<E>(self, missing: impl FnOnce(Duration) -> Option<E>) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self::Loop(LoopError::CacheSyncTimeout(waited)) = &self else { return self };
        missing(*waited).map_or(self, |missing| Self::Late(missing.into()))
    }
}

impl Daemon {
    /// Sets up log, signals, metrics and health.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn start(program: &'static Program, args: &CommonArgs) -> Result<Self, DaemonError> {
        memory::prepare();
        log::init(args.log_format, args.verbosity).map_err(|error| DaemonError::Log(error.into()))?;
        let health = Health::new(Instant::now(), ITERATION_LIMIT);
        let registry = Registry::new(program)?;
        registry.show_health(health.clone())?;
        let (waker, wakeups) = controller_loop::waker();
        let shutdown = shutdown::on_signals().map_err(DaemonError::Signals)?;
        tracing::info!(program = program.name, version = program.version, "starting");
        Ok(Self { registry, health, shutdown, waker, wakeups, program })
    }

    /// Runs the controller that `make` gives (on the loop's own thread) on the messages of `source`, with the
    /// admin port beside it, until a signal (`Ok`) or an error. With `once`, until one sync has been made.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub async fn run<C, E, S>(
        self,
        args: &CommonArgs,
        once: bool,
        make: impl FnOnce() -> Result<C, E> + Send + 'static,
        source: S,
    ) -> Result<(), DaemonError>
    where
        C: Controller,
        E: Into<Box<dyn Error + Send + Sync>>,
        S: Stream<Item = C::Message> + Send + Unpin + 'static,
    {
        let Self { registry, health, shutdown, waker: _, wakeups, program } = self;
        let surroundings = Surroundings {
            settings: LoopSettings {
                sync_period: args.sync_period,
                cache_sync_timeout: args.cache_sync_timeout,
                once,
            },
            wakeups,
            health: health.clone(),
            metrics: registry.common().clone(),
            shutdown: shutdown.clone(),
        };
        let reconcile = LoopThread::spawn(make, source, surroundings)?;
        if !once {
            let pages = Admin { program, registry, health, inspector: Some(reconcile.inspector()) };
            admin::spawn(pages, &args.listeners(), &args.metrics_path, &shutdown);
        }
        let outcome = reconcile.join().await;
        // Whoever feeds the loop has nothing more to feed.
        shutdown.cancel();
        Ok(outcome?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_that_were_late_are_explained_by_what_they_lack() {
        let late = || DaemonError::from(LoopError::CacheSyncTimeout(Duration::from_secs(60)));
        let why = late().explained(|waited| Some(format!("after {waited:?} there were no pods")));
        assert_eq!(why.to_string(), "after 60s there were no pods");
        assert_eq!(late().explained(|_| None::<String>).to_string(), late().to_string());
        let ended = DaemonError::from(LoopError::SourceEnded).explained(|_| Some("pods"));
        assert_eq!(ended.to_string(), LoopError::SourceEnded.to_string());
    }
}
