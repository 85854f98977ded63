//! The admin port: `/healthz`, `/readyz`, metrics and `/state` over HTTP/1, for probes, Prometheus and people.
//!
//! It stands in the node's network, so it gives away little and holds little:
//!
//! | page | served to |
//! |---|---|
//! | `/`, `/healthz`, `/readyz` | everybody |
//! | metrics | everybody on the listener of `--metrics-port`; else clients on this node |
//! | `/state` | clients on this node (which `kubectl port-forward` is) |
//!
//! One request a connection, one deadline for all of it, a limit on connections, a part of which is kept for
//! clients on this node: the kubelet is one, and its probes must get through when others flood the port.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::args::{ListenAddr, Listener};
use crate::controller_loop::{InspectError, Inspector};
use crate::health::Health;
use crate::metrics::{self, Registry};
use crate::shutdown::CancellationToken;
use crate::{Program, error_chain};

/// Time for a whole connection, from accept to the last byte.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Time for the request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a request's head may have; hyper's least.
const HEAD_BYTES: usize = 8 * 1024;
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

/// The sockets of an address: for [`ListenAddr::Any`] one for both families where the kernel allows it, else
/// one for each family that there is.
///
/// # Errors
/// The kernel's, when there is nothing to listen on.
pub async fn bind(addr: ListenAddr, port: u16) -> io::Result<Vec<TcpListener>> {
    let ip = match addr {
        ListenAddr::Ip(ip) => return Ok(vec![TcpListener::bind((ip, port)).await?]),
        ListenAddr::Any => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let any_v4 = (Ipv4Addr::UNSPECIFIED, port);
    let dual = match TcpListener::bind((ip, port)).await {
        Ok(dual) => dual,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        // No IPv6 on this machine.
        Err(_) => return Ok(vec![TcpListener::bind(any_v4).await?]),
    };
    // KERNEL: with net.ipv6.bindv6only=1 the socket takes IPv6 only, and only then this succeeds.
    let v4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, dual.local_addr()?.port())).await;
    Ok(std::iter::once(dual).chain(v4).collect())
}

struct Pages {
    admin: Admin,
    metrics_path: String,
    listener: Listener,
}

impl Pages {
    async fn serve(self: Arc<Self>) {
        let sockets = self.bind_with_retry().await;
        let limits = Arc::new(Limits::default());
        let accepting = sockets.into_iter().map(|socket| accept(socket, Arc::clone(&self), limits.clone()));
        futures::future::join_all(accepting).await;
    }

    async fn bind_with_retry(&self) -> Vec<TcpListener> {
        let Listener { addr, port, .. } = self.listener;
        let mut delay = BIND_RETRY.0;
        loop {
            let error = match bind(addr, port).await {
                Ok(sockets) => {
                    tracing::info!(%addr, port, "admin port open");
                    self.admin.health.recover(LISTEN_FAILED);
                    return sockets;
                }
                Err(error) => error,
            };
            tracing::warn!(%error, %addr, port, retry_in = ?delay, "cannot listen for the admin port");
            self.admin.health.degrade(LISTEN_FAILED, format!("address {addr}, port {port}: {error}"));
            sleep(delay).await;
            delay = (delay * 2).min(BIND_RETRY.1);
        }
    }

    async fn answer(&self, method: &Method, path: &str, on_this_node: bool) -> Page {
        if method != Method::GET && method != Method::HEAD {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
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
            Ok(text) => {
                Page { status: StatusCode::OK, content_type: metrics::CONTENT_TYPE, body: text.into() }
            }
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error_chain(&error))),
        }
    }

    async fn state(&self) -> Page {
        let Some(inspector) = &self.admin.inspector else {
            return Page::text(StatusCode::NOT_FOUND, "this program has no state to show\n");
        };
        match inspector.state(STATE_PATIENCE).await {
            Ok(json) => Page { status: StatusCode::OK, content_type: "application/json", body: json.into() },
            Err(error @ InspectError::NoAnswer) => {
                Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
            }
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error_chain(&error))),
        }
    }
}

struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Page {
    fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// Free places for connections.
struct Limits {
    remote: Arc<Semaphore>,
    local: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            remote: Arc::new(Semaphore::new(REMOTE_CONNECTIONS)),
            local: Arc::new(Semaphore::new(LOCAL_CONNECTIONS)),
        }
    }
}

async fn accept(socket: TcpListener, pages: Arc<Pages>, limits: Arc<Limits>) {
    loop {
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly: no file descriptor left. It must not spin on that.
                tracing::warn!(%error, "accept on the admin port failed");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let on_this_node = stream.local_addr().is_ok_and(|local| is_on_this_node(local, peer));
        let limit = if on_this_node { &limits.local } else { &limits.remote };
        // One too many: closed at once, as to queue it would hold what the limit is there to free.
        let Ok(place) = Arc::clone(limit).try_acquire_owned() else { continue };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let _ = timeout(CONNECTION_LIMIT, converse(stream, &pages, on_this_node)).await;
            drop(place);
        });
    }
}

/// Whether a connection comes from the network namespace that it goes to. KERNEL: packets from outside with a
/// source address of this machine's own are dropped (martians), and a connection to one of its own addresses
/// has that address as its source too, unless the client chose another.
fn is_on_this_node(local: SocketAddr, peer: SocketAddr) -> bool {
    let (local, peer) = (local.ip().to_canonical(), peer.ip().to_canonical());
    peer.is_loopback() || peer == local
}

async fn converse(stream: TcpStream, pages: &Pages, on_this_node: bool) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| async move {
        let page = pages.answer(request.method(), request.uri().path(), on_this_node).await;
        Ok::<_, Infallible>(page.into_response())
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let status = async |pages: &Pages, path: &str| pages.answer(&Method::GET, path, false).await.status;
        for (metrics, expected) in [(false, StatusCode::FORBIDDEN), (true, StatusCode::OK)] {
            let pages = pages(metrics);
            assert_eq!(status(&pages, "/healthz").await, StatusCode::OK);
            assert_eq!(status(&pages, "/metrics").await, expected);
            assert_eq!(status(&pages, "/state").await, StatusCode::FORBIDDEN);
        }
    }

    #[test]
    fn clients_on_this_node_are_known_by_their_source_address() {
        let on_this_node = |local: &str, peer: &str| {
            is_on_this_node(
                (local.parse::<IpAddr>().unwrap(), 1).into(),
                (peer.parse::<IpAddr>().unwrap(), 2).into(),
            )
        };
        assert!(on_this_node("127.0.0.1", "127.0.0.1"));
        assert!(on_this_node("::1", "::1"));
        assert!(on_this_node("10.0.0.1", "10.0.0.1"), "the kubelet probes the node's address");
        assert!(on_this_node("::ffff:127.0.0.1", "::ffff:127.0.0.1"), "IPv4 on a socket for both families");
        assert!(on_this_node("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(!on_this_node("10.0.0.1", "10.0.0.2"));
        assert!(!on_this_node("fd00::1", "fd00::2"));
    }
}
