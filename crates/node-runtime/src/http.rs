//! A small HTTP/1 server for pages that stand in the node's network: the admin port, and the ports on which load
//! balancers ask after a node.
//!
//! One request a connection, one deadline for all of it, a limit on connections, a part of which is kept for
//! clients on this node: the kubelet is one, and its probes must get through when others flood the port.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
pub use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
pub use hyper::{Method, StatusCode};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::args::ListenAddr;

/// Time for a whole connection, from accept to the last byte.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Time for the request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a request's head may have; hyper's least.
const HEAD_BYTES: usize = 8 * 1024;
/// Connections that wait to be accepted; what tokio takes too.
const BACKLOG: i32 = 1024;

/// A request, as far as pages depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `GET`, …
    pub method: &'a Method,
    /// Without the query.
    pub path: &'a str,
    /// The client is in this network namespace.
    pub on_this_node: bool,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Page {
    /// Of the response.
    pub status: StatusCode,
    /// Header `Content-Type`.
    pub content_type: &'static str,
    /// Headers beside those that every response has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Left out when only the head was asked for.
    pub body: Bytes,
}

impl Page {
    /// Of a type, without more headers.
    #[must_use]
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, headers: Vec::new(), body: body.into() }
    }

    /// Plain text.
    #[must_use]
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        response.headers_mut().extend(self.headers);
        response
    }
}

/// What is served on a port.
pub trait Pages: Send + Sync + 'static {
    /// The answer to a request. Cancelled when the connection's time is over.
    fn answer(&self, asked: Asked<'_>) -> impl Future<Output = Page> + Send;
}

/// Places for connections; a connection has one until its end. Clones share them.
#[derive(Clone, Debug)]
pub struct Places {
    /// A connection needs a place in each.
    remote: Vec<Arc<Semaphore>>,
    local: Vec<Arc<Semaphore>>,
}

impl Places {
    /// So many for clients elsewhere, and so many for clients on this node.
    #[must_use]
    pub fn new(remote: usize, local: usize) -> Self {
        Self { remote: vec![Arc::new(Semaphore::new(remote))], local: vec![Arc::new(Semaphore::new(local))] }
    }

    /// A share of these: no more than so many, all of which these have fewer as long as they are taken. So one
    /// port that is flooded does not take the places of all ports, and all ports no more than the process has.
    #[must_use]
    pub fn share(&self, remote: usize, local: usize) -> Self {
        let Self { remote: mut all_remote, local: mut all_local } = Self::new(remote, local);
        all_remote.extend(self.remote.iter().cloned());
        all_local.extend(self.local.iter().cloned());
        Self { remote: all_remote, local: all_local }
    }

    fn take(&self, on_this_node: bool) -> Option<Vec<OwnedSemaphorePermit>> {
        let pools = if on_this_node { &self.local } else { &self.remote };
        pools.iter().map(|pool| Arc::clone(pool).try_acquire_owned().ok()).collect()
    }
}

/// Listens on an address, for [`ListenAddr::Any`] with one socket for both families, or for IPv4 alone on a
/// machine without IPv6. Port 0 is any that is free. Needs a tokio runtime with I/O around it.
///
/// # Errors
/// The kernel's.
pub fn bind(addr: ListenAddr, port: u16) -> io::Result<TcpListener> {
    let any = match addr {
        ListenAddr::Ip(ip) => return listen(SocketAddr::new(ip, port)),
        ListenAddr::Any => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    };
    match listen(any) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        result => result,
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // As every server does: else connections that have just ended would keep the port from the next process.
    socket.set_reuse_address(true)?;
    if addr.ip() == Ipv6Addr::UNSPECIFIED {
        // KERNEL: net.ipv6.bindv6only only says what is the default.
        socket.set_only_v6(false)?;
    }
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `pages` on a socket, for ever. When it is dropped, the socket and all connections are closed.
pub async fn serve<P: Pages>(socket: TcpListener, places: Places, pages: Arc<P>) {
    let mut conversations = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            Some(_) = conversations.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly: no file descriptor left. It must not spin on that.
                tracing::warn!(%error, "accept failed");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let on_this_node = stream.local_addr().is_ok_and(|local| is_on_this_node(local, peer));
        // One too many: closed at once, as to queue it would hold what the limit is there to free.
        let Some(place) = places.take(on_this_node) else { continue };
        let pages = Arc::clone(&pages);
        conversations.spawn(async move {
            let _ = timeout(CONNECTION_LIMIT, converse(stream, &*pages, on_this_node)).await;
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

async fn converse(stream: TcpStream, pages: &impl Pages, on_this_node: bool) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| async move {
        let asked = Asked { method: request.method(), path: request.uri().path(), on_this_node };
        Ok::<_, Infallible>(pages.answer(asked).await.into_response())
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
    use std::net::IpAddr;

    use super::*;

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

    #[test]
    fn a_share_has_its_own_limit_within_that_of_all() {
        let all = Places::new(3, 1);
        let (one, other) = (all.share(2, 1), all.share(2, 1));
        let held: Vec<_> = std::iter::repeat_with(|| one.take(false)).take(2).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(one.take(false).is_none(), "its own limit");
        let last = other.take(false);
        assert!(last.is_some());
        assert!(other.take(false).is_none(), "the limit of all");
        assert!(other.take(true).is_some(), "clients on this node have places of their own");
        drop(held);
        assert!(other.take(false).is_some());
    }
}
