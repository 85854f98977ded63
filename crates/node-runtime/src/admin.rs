//! The admin port: `/healthz`, `/readyz`, metrics and `/state` over HTTP/1, for probes, Prometheus and people.
//!
//! It stands in the node's network, so it gives away little and holds little:
//!
//! | page | served to |
//! |---|---|
//! | `/`, `/healthz`, `/readyz` | everybody |
//! | metrics | everybody on the listener of `--metrics-port`; else clients on this node |
//! | `/state` | clients on this node (which `kubectl port-forward` is) |

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::args::Listener;
use crate::controller_loop::{InspectError, Inspector};
use crate::health::Health;
use crate::http::{self, Asked, HeaderValue, Method, Page, Places, StatusCode};
use crate::metrics::{self, Registry};
use crate::shutdown::CancellationToken;
use crate::{Program, error_chain};

/// Connections at a time, from elsewhere and from this node.
const REMOTE_CONNECTIONS: usize = 48;
const LOCAL_CONNECTIONS: usize = 16;
/// How long a page waits for the reconcile loop.
const STATE_PATIENCE: Duration = Duration::from_secs(5);
const MEASURE_PATIENCE: Duration = Duration::from_millis(500);
/// Delay between two tries to listen: from, to.
const BIND_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Reason under which a port that cannot be had is shown as degraded.
pub const LISTEN_FAILED: &str = "admin_listen_failed";

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Name and version on the index page.
    pub program: &'static Program,
    /// `/metrics`.
    pub registry: Registry,
    /// `/healthz` and `/readyz`.
    pub health: Health,
    /// `/state`, and gauges before a scrape; without it there is no state.
    pub inspector: Option<Inspector>,
}

/// Serves on `listeners` until shutdown, on the current runtime.
///
/// A port that is taken is tried again and again, and shown as degraded meanwhile: at an upgrade the process
/// before may hold it for a moment, and enforcing comes before telling about it.
pub fn spawn(admin: Admin, listeners: &[Listener], metrics_path: &str, shutdown: &CancellationToken) {
    for listener in listeners.iter().copied() {
        let pages = Arc::new(Pages { admin: admin.clone(), metrics_path: metrics_path.to_owned(), listener });
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            shutdown.run_until_cancelled(pages.serve()).await;
        });
    }
}

struct Pages {
    admin: Admin,
    metrics_path: String,
    listener: Listener,
}

impl Pages {
    async fn serve(self: Arc<Self>) {
        let socket = self.bind_with_retry().await;
        http::serve(socket, Places::new(REMOTE_CONNECTIONS, LOCAL_CONNECTIONS), self).await;
    }

    async fn bind_with_retry(&self) -> TcpListener {
        let Listener { addr, port, .. } = self.listener;
        let mut delay = BIND_RETRY.0;
        loop {
            let error = match http::bind(addr, port) {
                Ok(socket) => {
                    tracing::info!(%addr, port, "admin port open");
                    self.admin.health.recover(LISTEN_FAILED);
                    return socket;
                }
                Err(error) => error,
            };
            tracing::warn!(%error, %addr, port, retry_in = ?delay, "cannot listen for the admin port");
            self.admin.health.degrade(LISTEN_FAILED, format!("address {addr}, port {port}: {error}"));
            sleep(delay).await;
            delay = (delay * 2).min(BIND_RETRY.1);
        }
    }

    fn index(&self) -> Page {
        let Program { name, version, .. } = self.admin.program;
        let metrics = &self.metrics_path;
        let text = format!("{name} {version}\n\n/healthz\n/readyz\n{metrics}\n/state\n");
        Page::text(StatusCode::OK, text)
    }

    fn healthz(&self) -> Page {
        let report = self.admin.health.report(Instant::now());
        if report.live {
            return Page::text(StatusCode::OK, "OK\n");
        }
        let age = report.since_iteration.as_secs();
        let text = format!("the last iteration of the reconcile loop finished {age} s ago\n");
        Page::text(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    /// Degraded is still 200: see [`crate::health`].
    fn readyz(&self) -> Page {
        let report = self.admin.health.report(Instant::now());
        let (status, mut text) = match report.waiting_for {
            None => (StatusCode::OK, "OK\n".to_owned()),
            Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}\n")),
        };
        for (reason, message) in report.degraded {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "degraded: {reason}: {message}");
        }
        Page::text(status, text)
    }

    async fn metrics(&self) -> Page {
        if let Some(inspector) = &self.admin.inspector {
            // While a sync is at work, the gauges stay at what they were: a scrape must not wait for it.
            let _ = inspector.measure(MEASURE_PATIENCE).await;
        }
        match self.admin.registry.render() {
            Ok(text) => Page::new(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error_chain(&error))),
        }
    }

    async fn state(&self) -> Page {
        let Some(inspector) = &self.admin.inspector else {
            return Page::text(StatusCode::NOT_FOUND, "this program has no state to show\n");
        };
        match inspector.state(STATE_PATIENCE).await {
            Ok(json) => Page::new(StatusCode::OK, "application/json", json),
            Err(error @ InspectError::NoAnswer) => {
                Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
            }
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error_chain(&error))),
        }
    }
}

impl http::Pages for Pages {
    async fn answer(&self, asked: Asked<'_>) -> Page {
        let Asked { method, path, on_this_node } = asked;
        if method != Method::GET && method != Method::HEAD {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
                .with_header(http::header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        match path {
            "/" => self.index(),
            "/healthz" => self.healthz(),
            "/readyz" => self.readyz(),
            "/state" if on_this_node => self.state().await,
            path if path == self.metrics_path && (on_this_node || self.listener.metrics) => {
                self.metrics().await
            }
            path if path == "/state" || path == self.metrics_path => {
                Page::text(StatusCode::FORBIDDEN, "only for clients on this node\n")
            }
            _ => Page::text(StatusCode::NOT_FOUND, "no such page; see /\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ListenAddr;
    use crate::http::Pages as _;

    static PROGRAM: Program =
        Program { name: "test-daemon", version: "1", health_port: 1, sync_period_aliases: &[] };

    fn pages(metrics: bool) -> Pages {
        let admin = Admin {
            program: &PROGRAM,
            registry: Registry::new(&PROGRAM).unwrap(),
            health: Health::new(Instant::now(), Duration::from_secs(60)),
            inspector: None,
        };
        let listener = Listener { addr: ListenAddr::Any, port: 1, metrics };
        Pages { admin, metrics_path: "/metrics".to_owned(), listener }
    }

    #[tokio::test]
    async fn clients_elsewhere_see_health_but_metrics_only_on_their_listener_and_never_the_state() {
        let status = async |pages: &Pages, path: &str| {
            pages.answer(Asked { method: &Method::GET, path, on_this_node: false }).await.status
        };
        for (metrics, expected) in [(false, StatusCode::FORBIDDEN), (true, StatusCode::OK)] {
            let pages = pages(metrics);
            assert_eq!(status(&pages, "/healthz").await, StatusCode::OK);
            assert_eq!(status(&pages, "/metrics").await, expected);
            assert_eq!(status(&pages, "/state").await, StatusCode::FORBIDDEN);
        }
    }
}
