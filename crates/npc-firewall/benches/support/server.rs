//! A stand-in for the API server: pages of a list, then a watch that stays open and tells some changes.

use std::convert::Infallible;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common_informer::object::Kind;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::cluster::{Cluster, pod};

const CHANGES: usize = 2_000;

/// Resident memory in bytes of the binary at rest with so many pods in its cache: after it has become ready,
/// and after some more changes.
pub(crate) fn memory_of_binary(binary: &str, pods: usize) -> (u64, u64) {
    let mut cluster = Cluster::new(pods, 100);
    cluster.spread = (pods / 110).max(1);
    let served = Arc::new(Served { cluster, watching: AtomicUsize::new(0), told: AtomicUsize::new(0) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        tokio::spawn(serve(listener, served.clone()));
        let mut child = Command::new(binary)
            .args(["--master", &url, "--node-name", "n1", "--health-port", "0", "--table-ownership", "never"])
            .stderr(Stdio::null())
            .spawn()
            .expect("npc-firewall");
        let limit = Instant::now() + Duration::from_secs(120);
        while served.watching.load(Ordering::Relaxed) < 4 {
            assert!(Instant::now() < limit, "the binary does not list and watch");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let start = resident(child.id());
        while served.told.load(Ordering::Relaxed) < CHANGES {
            assert!(Instant::now() < limit, "the binary does not read the watch");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let later = resident(child.id());
        child.kill().expect("kill");
        let _ = child.wait();
        (start, later)
    })
}

struct Served {
    cluster: Cluster,
    watching: AtomicUsize,
    told: AtomicUsize,
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the binary has ended");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("kB");
    kilobytes * 1024
}

async fn serve(listener: tokio::net::TcpListener, served: Arc<Served>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let served = served.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, served.clone()));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    served: Arc<Served>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path();
    let kind = [
        ("/pods", Kind::Pod),
        ("/namespaces", Kind::Namespace),
        ("/networkpolicies", Kind::NetworkPolicy),
        ("/services", Kind::Service),
    ]
    .into_iter()
    .find_map(|(suffix, kind)| path.ends_with(suffix).then_some(kind))
    .unwrap_or_else(|| panic!("unexpected request for {path}"));
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let body = if parameter("watch").is_some_and(|value| value == "true" || value == "1") {
        watch(kind, served)
    } else {
        let from: usize = parameter("continue").and_then(|text| text.parse().ok()).unwrap_or(0);
        let limit: usize = parameter("limit").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        Full::new(list(kind, &served.cluster, from, limit).to_string().into()).boxed()
    };
    Ok(Response::builder().header("content-type", "application/json").body(body).expect("response"))
}

fn list(kind: Kind, cluster: &Cluster, from: usize, limit: usize) -> Value {
    let until = from.saturating_add(limit).min(cluster.count(kind));
    let items: Vec<_> = (from..until).map(|number| cluster.json(kind, number)).collect();
    let rest = until < cluster.count(kind);
    let metadata = if rest {
        json!({"resourceVersion": "1", "continue": until.to_string()})
    } else {
        json!({"resourceVersion": "1"})
    };
    let version = if kind == Kind::NetworkPolicy { "networking.k8s.io/v1" } else { "v1" };
    json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": metadata, "items": items})
}

fn watch(kind: Kind, served: Arc<Served>) -> BoxBody<Bytes, Infallible> {
    served.watching.fetch_add(1, Ordering::Relaxed);
    if kind != Kind::Pod {
        return BodyExt::boxed(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>()));
    }
    // Pods of one namespace come and go; what was measured before them is over by then.
    let changes = stream::unfold(0, move |number| {
        let served = served.clone();
        async move {
            if number == 0 {
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
            if number >= CHANGES {
                std::future::pending::<()>().await;
            }
            let what = if number % 2 == 0 { "ADDED" } else { "DELETED" };
            let mut object = pod(0, 200_000 + number / 2, "n2");
            object["metadata"]["resourceVersion"] = json!((number + 2).to_string());
            served.told.fetch_add(1, Ordering::Relaxed);
            let line = json!({"type": what, "object": object}).to_string() + "\n";
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), number + 1))
        }
    });
    BodyExt::boxed(StreamBody::new(changes))
}
