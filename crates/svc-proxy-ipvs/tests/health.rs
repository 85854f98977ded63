//! Health check ports over loopback connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use common_informer::object::{Family, ObjectKey};
use node_runtime::controller_loop::waker;
use svc_proxy_ipvs::apply::health::{Health, LISTEN_FAILED};
use svc_proxy_ipvs::plan::part::HealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// Longer than anything here may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Checks = BTreeMap<u16, (ObjectKey, HealthCheck)>;

fn checks(wanted: &[(u16, &str, usize)]) -> Checks {
    let check = |&(port, name, local): &(u16, &str, usize)| {
        let key = ObjectKey { namespace: "shop".into(), name: name.into() };
        (port, (key, HealthCheck { port, local }))
    };
    wanted.iter().map(check).collect()
}

/// A port that is taken, with what takes it.
async fn taken() -> (TcpListener, u16) {
    let blocker = TcpListener::bind((V4, 0)).await.unwrap();
    let port = blocker.local_addr().unwrap().port();
    (blocker, port)
}

/// A port that was free a moment ago.
async fn free() -> u16 {
    taken().await.1
}

fn live() -> node_runtime::Health {
    node_runtime::Health::new(Instant::now(), Duration::from_secs(300))
}

fn health(proxy: &node_runtime::Health) -> Health {
    Health::new(Handle::current(), proxy.clone(), waker().0)
}

/// The whole answer, once the port is open.
async fn get(ip: IpAddr, port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let answered = async {
        loop {
            if let Ok(mut stream) = TcpStream::connect((ip, port)).await {
                let mut answer = String::new();
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, answered).await.unwrap()
}

async fn until(what: impl Fn() -> bool) {
    let reached = async {
        while !what() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap();
}

async fn until_closed(port: u16) {
    let refused = ErrorKind::ConnectionRefused;
    let closed = async {
        while TcpStream::connect((V4, port)).await.err().map(|error| error.kind()) != Some(refused) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
}

#[tokio::test]
async fn every_path_is_answered_on_both_families_with_the_headers_of_kube_proxy() {
    let port = free().await;
    let mut health = health(&live());
    health.set(&checks(&[(port, "web", 3)]));
    for (ip, path) in [(V4, "/"), (V6, "/healthz"), (V4, "/any/other?thing")] {
        let answer = get(ip, port, path).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 3",
        ] {
            assert!(head.lines().any(|line| line == header), "{header} in:\n{head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = serde_json::json!({
            "service": { "namespace": "shop", "name": "web" },
            "localEndpoints": 3,
            "serviceProxyHealthy": true,
        });
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn the_answer_follows_the_endpoints_and_the_health_of_the_proxy() {
    let port = free().await;
    let long_ago = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    let proxy = live();
    let mut health = health(&proxy);
    health.set(&checks(&[(port, "web", 0)]));
    let answer = get(V4, port, "/").await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("x-load-balancing-endpoint-weight: 0\r\n"), "{answer}");
    health.set(&checks(&[(port, "web", 200)]));
    assert!(get(V4, port, "/").await.starts_with("HTTP/1.1 200 OK\r\n"));
    proxy.sync_failed(long_ago, "EPERM");
    let answer = get(V4, port, "/").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with("\"serviceProxyHealthy\": false\n}"), "{answer}");
    proxy.sync_succeeded(Instant::now());
    assert!(get(V4, port, "/").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_port_that_moves_to_another_service_answers_for_that_one_without_being_closed() {
    let port = free().await;
    let mut health = health(&live());
    health.set(&checks(&[(port, "old", 1)]));
    assert!(get(V4, port, "/").await.contains("\"name\": \"old\""));
    // Made before the move, asked after it: it would be reset if the port were bound anew.
    let mut stream = TcpStream::connect((V4, port)).await.unwrap();
    health.set(&checks(&[(port, "new", 0)]));
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"name\": \"new\""), "{answer}");
}

#[tokio::test]
async fn a_port_that_is_no_longer_wanted_is_closed_with_its_connections_and_the_others_stay() {
    let (kept, gone) = (free().await, free().await);
    let mut health = health(&live());
    health.set(&checks(&[(kept, "kept", 1), (gone, "gone", 1)]));
    get(V4, gone, "/").await;
    let mut silent = TcpStream::connect((V4, gone)).await.unwrap();
    health.set(&checks(&[(kept, "kept", 1)]));
    until_closed(gone).await;
    let mut byte = [0];
    let end = timeout(Duration::from_secs(4), silent.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(get(V6, kept, "/").await.contains("\"name\": \"kept\""));
    // And the port can be had again.
    health.set(&checks(&[(gone, "back", 1)]));
    assert!(get(V4, gone, "/").await.contains("\"name\": \"back\""));
    drop(health);
    until_closed(gone).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_until_it_is_free_and_costs_no_other_port() {
    let (blocker, port) = taken().await;
    let other = free().await;
    let mut health = health(&live());
    health.set(&checks(&[(port, "unlucky", 1), (other, "lucky", 1)]));
    until(|| health.failures().iter().any(|(service, _)| &*service.name == "unlucky")).await;
    assert!(get(V4, other, "/").await.contains("\"name\": \"lucky\""));
    let failures = health.failures();
    assert_eq!(failures.len(), 1);
    assert!(
        failures[0].1.contains(&format!("cannot listen on port {port}: Address already in use")),
        "{failures:?}"
    );
    // The report follows the port.
    health.set(&checks(&[(port, "heir", 1), (other, "lucky", 1)]));
    assert_eq!(&*health.failures()[0].0.name, "heir");
    drop(blocker);
    assert!(get(V6, port, "/").await.contains("\"name\": \"heir\""));
    assert!(health.failures().is_empty());
}

#[tokio::test]
async fn a_port_of_which_one_family_is_taken_is_reported() {
    let blocker = std::net::TcpListener::bind((V6, 0)).unwrap();
    let port = blocker.local_addr().unwrap().port();
    let mut health = health(&live());
    health.set(&checks(&[(port, "web", 1)]));
    until(|| !health.failures().is_empty()).await;
}

#[tokio::test]
async fn healthz_and_livez_are_served_and_other_paths_are_not() {
    let port = free().await;
    let proxy = live();
    let health = health(&proxy).serve_healthz(port, vec![Family::V4]);
    proxy.sync_succeeded(Instant::now());
    let answer = get(V6, port, "/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&true.into(), &true.into()));
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    assert!(get(V4, port, "/metrics").await.starts_with("HTTP/1.1 404 Not Found\r\n"));
    health.set_node_eligible(false);
    assert!(get(V4, port, "/healthz").await.starts_with("HTTP/1.1 503 "));
    let livez = get(V4, port, "/livez").await;
    assert!(livez.starts_with("HTTP/1.1 200 ") && !livez.contains("nodeEligible"), "{livez}");
    drop(health);
    until_closed(port).await;
}

#[tokio::test]
async fn a_healthz_port_that_is_taken_is_degraded_until_it_is_free() {
    let (blocker, port) = taken().await;
    let proxy = live();
    let _health = health(&proxy).serve_healthz(port, vec![Family::V4]);
    let degraded = || proxy.report(Instant::now()).degraded;
    until(|| !degraded().is_empty()).await;
    assert_eq!(degraded()[0].0, LISTEN_FAILED);
    assert!(degraded()[0].1.contains(&port.to_string()));
    drop(blocker);
    get(V4, port, "/livez").await;
    assert!(degraded().is_empty());
}

#[tokio::test]
async fn clients_that_say_nothing_hold_only_places_of_their_own_port() {
    let (flooded, other) = (free().await, free().await);
    let mut health = health(&live());
    health.set(&checks(&[(flooded, "flooded", 1), (other, "other", 1)]));
    get(V4, flooded, "/").await;
    // On loopback all are clients of this node, which have 8 places.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect((V4, flooded)).await.unwrap());
    }
    let mut refused = TcpStream::connect((V4, flooded)).await.unwrap();
    let mut byte = [0];
    let end = timeout(Duration::from_secs(4), refused.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(get(V4, other, "/").await.contains("\"name\": \"other\""));
}
