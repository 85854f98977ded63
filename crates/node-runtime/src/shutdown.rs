//! From signals to one token that everything waits on.
//!
//! The first SIGTERM or SIGINT cancels the token: the loop ends after the sync it is in, and the data plane is
//! left as it is. A second one means that the operator does not want to wait: the process exits at once. That
//! too is safe, as a controller must survive `kill -9` anyway.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
/// Told to stop or not; cheap to clone, and usable from any runtime.
pub use tokio_util::sync::CancellationToken;

/// Exit status after a second signal: what a shell reports for a process that SIGINT ended, and unlike 0 it
/// says that the stop was not orderly.
const EXIT_IMPATIENT: i32 = 130;

/// Starts to listen for SIGTERM and SIGINT on the current tokio runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, "stopping; the data plane stays as it is");
        cancelled.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "second signal, exiting at once");
        std::process::exit(EXIT_IMPATIENT);
    });
    Ok(token)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
