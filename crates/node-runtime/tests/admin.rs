//! The admin port over loopback connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use node_runtime::admin::{self, Admin};
use node_runtime::args::{ListenAddr, Listener};
use node_runtime::http;
use node_runtime::shutdown::CancellationToken;
use node_runtime::{Health, Program, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

static PROGRAM: Program =
    Program { name: "test-daemon", version: "1.2.3", health_port: 1, sync_period_aliases: &[] };
const LIMIT: Duration = Duration::from_secs(60);

struct Server {
    addr: SocketAddr,
    health: Health,
    shutdown: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A server on a port that was free a moment ago; bound again until it holds, as daemons do.
async fn serve(ip: &str, health: Health) -> Server {
    let ip: IpAddr = ip.parse().unwrap();
    let port = TcpListener::bind((ip, 0)).await.unwrap().local_addr().unwrap().port();
    let registry = Registry::new(&PROGRAM).unwrap();
    registry.show_health(health.clone()).unwrap();
    let admin = Admin { program: &PROGRAM, registry, health: health.clone(), inspector: None };
    let listener = Listener { addr: ListenAddr::Ip(ip), port, metrics: false };
    let shutdown = CancellationToken::new();
    admin::spawn(admin, &[listener], "/metrics", &shutdown);
    Server { addr: (ip, port).into(), health, shutdown }
}

fn live() -> Health {
    Health::new(Instant::now(), LIMIT)
}

async fn connect(addr: SocketAddr) -> TcpStream {
    loop {
        match TcpStream::connect(addr).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn exchange(addr: SocketAddr, request: &str) -> String {
    let mut stream = connect(addr).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(addr: SocketAddr, path: &str) -> String {
    exchange(addr, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn pages_answer_on_ipv4_and_on_ipv6_literals() {
    for ip in ["127.0.0.1", "::1"] {
        let server = serve(ip, live()).await;
        assert_eq!(status(&get(server.addr, "/healthz").await), 200);
        assert!(get(server.addr, "/").await.contains("test-daemon 1.2.3"));
        assert_eq!(status(&get(server.addr, "/no-such-page").await), 404);
        assert_eq!(status(&get(server.addr, "/healthz?verbose").await), 200);
    }
}

#[tokio::test]
async fn readiness_and_degradation_are_told_apart() {
    let server = serve("127.0.0.1", live()).await;
    server.health.waiting_for("the caches to be in sync");
    let answer = get(server.addr, "/readyz").await;
    assert_eq!(status(&answer), 503);
    assert!(answer.ends_with("waiting for the caches to be in sync\n"), "{answer}");
    server.health.set_ready();
    server.health.degrade("sysctl", "read-only");
    let answer = get(server.addr, "/readyz").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("OK\ndegraded: sysctl: read-only\n"), "{answer}");
}

#[tokio::test]
async fn a_loop_that_hangs_is_not_live() {
    let long_ago = Instant::now().checked_sub(LIMIT * 2).unwrap();
    let server = serve("127.0.0.1", Health::new(long_ago, LIMIT)).await;
    assert_eq!(status(&get(server.addr, "/healthz").await), 503);
    server.health.iteration_finished(Instant::now());
    assert_eq!(status(&get(server.addr, "/healthz").await), 200);
}

#[tokio::test]
async fn metrics_show_build_process_and_degradation() {
    let server = serve("127.0.0.1", live()).await;
    server.health.degrade("sysctl", "read-only");
    server.health.degrade("device", "gone");
    server.health.recover("device");
    let answer = get(server.addr, "/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    for line in [
        "test_daemon_build_info{version=\"1.2.3\"} 1",
        "test_daemon_degraded{reason=\"sysctl\"} 1",
        "test_daemon_degraded{reason=\"device\"} 0",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE test_daemon_sync_duration_seconds histogram",
    ] {
        assert!(answer.lines().any(|have| have == line), "{line} in:\n{answer}");
    }
}

#[tokio::test]
async fn head_gives_no_body_and_other_methods_are_refused() {
    let server = serve("127.0.0.1", live()).await;
    let head = exchange(server.addr, "HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status(&head), 200);
    assert!(head.ends_with("\r\n\r\n") && head.contains("content-length: 3"), "{head}");
    let post = exchange(server.addr, "POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(status(&post), 405);
    assert!(post.contains("allow: GET, HEAD"), "{post}");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let server = serve("127.0.0.1", live()).await;
    let mut stream = connect(server.addr).await;
    let request = format!("GET / HTTP/1.1\r\nhost: x\r\nfill: {}\r\n\r\n", "x".repeat(9000));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64];
    let length = stream.read(&mut answer).await.unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.is_empty() || status(&answer) == 431, "{answer}");
}

#[tokio::test]
async fn clients_that_say_nothing_hold_no_more_than_their_share() {
    let server = serve("127.0.0.1", live()).await;
    // On loopback all are clients of this node, which have 16 places.
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(connect(server.addr).await);
    }
    let mut refused = connect(server.addr).await;
    let mut byte = [0];
    let end = refused.read(&mut byte).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    drop(silent);
    // Their places are free again as soon as the server has seen them go.
    loop {
        let mut stream = connect(server.addr).await;
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = String::new();
        if stream.read_to_string(&mut answer).await.is_ok() && !answer.is_empty() {
            assert_eq!(status(&answer), 200);
            break;
        }
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_degraded_until_it_is_free() {
    let blocker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = blocker.local_addr().unwrap();
    let health = live();
    let admin = Admin {
        program: &PROGRAM,
        registry: Registry::new(&PROGRAM).unwrap(),
        health: health.clone(),
        inspector: None,
    };
    let shutdown = CancellationToken::new();
    let listener = Listener { addr: ListenAddr::Ip(addr.ip()), port: addr.port(), metrics: false };
    admin::spawn(admin, &[listener], "/metrics", &shutdown);
    while health.report(Instant::now()).degraded.is_empty() {
        tokio::task::yield_now().await;
    }
    let (reason, message) = health.report(Instant::now()).degraded.remove(0);
    assert_eq!(reason, admin::LISTEN_FAILED);
    assert!(message.contains(&addr.port().to_string()), "{message}");
    drop(blocker);
    assert_eq!(status(&get(addr, "/healthz").await), 200);
    assert!(health.report(Instant::now()).degraded.is_empty());
    shutdown.cancel();
}

#[tokio::test]
async fn no_address_means_both_families() {
    let socket = http::bind(ListenAddr::Any, 0).unwrap();
    let port = socket.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    TcpStream::connect(("::1", port)).await.unwrap();
}
