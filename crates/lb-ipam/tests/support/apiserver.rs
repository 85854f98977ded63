//! An API server for Services, Leases and Events, as far as an allocator can tell.
//!
//! It keeps versions and refuses writes of old ones, applies statuses as server-side apply does (owner of the
//! field, force, uid as a precondition), and looks after each write whether two Services show one address. Each
//! process has a door of its own to it, which can be shut for some requests: so a process is cut off from the
//! API server, or only from its Lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Body = BoxBody<Bytes, io::Error>;
type Key = (String, String);

/// What a door does with requests for a plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shut {
    /// Nothing is answered.
    Silent,
    /// This status.
    Status(u16),
}

#[derive(Default)]
pub(crate) struct State {
    version: u64,
    services: BTreeMap<Key, Value>,
    /// Who wrote the addresses of a Service.
    owners: BTreeMap<Key, String>,
    pub(crate) leases: BTreeMap<Key, Value>,
    pub(crate) events: Vec<Value>,
    log: Vec<(u64, Value)>,
    /// Statuses with which the next patches are answered.
    pub(crate) refusals: VecDeque<u16>,
    /// Every status that was written: when, through which door, for whom, which addresses.
    pub(crate) written: Vec<(Instant, usize, Key, Vec<String>)>,
    /// Statuses that are written at most: patches after those wait until it is raised.
    limit: Option<usize>,
    /// Names of the Services whose patches have had to wait.
    pub(crate) waited: BTreeSet<String>,
    /// Patches that were meant for an earlier Service of the name.
    pub(crate) uid_mismatches: usize,
    /// Two Services that showed one address, as soon as they did.
    pub(crate) doubles: Vec<String>,
    shut: BTreeMap<(usize, &'static str), Shut>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct ApiServer {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    /// How long a patch takes.
    latency: Duration,
}

impl ApiServer {
    pub(crate) fn new(latency: Duration) -> Self {
        Self { state: Arc::default(), changed: Arc::new(watch::Sender::new(0)), latency }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Opens a door; gives its URL.
    pub(crate) async fn door(&self, number: usize) -> String {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                tokio::spawn(async move {
                    let serve = service_fn(move |request| {
                        let server = server.clone();
                        async move { server.serve(number, request).await }
                    });
                    // An error is what a broken connection looks like from here.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
        format!("http://{address}")
    }

    /// Shuts a door for requests for `plural`, or opens it again.
    pub(crate) fn shut(&self, door: usize, plural: &'static str, how: Option<Shut>) {
        let mut state = self.state();
        match how {
            Some(how) => state.shut.insert((door, plural), how),
            None => state.shut.remove(&(door, plural)),
        };
    }

    /// Lets that many more statuses be written, and lets the patches after those wait; all with `None`.
    pub(crate) fn let_through(&self, more: Option<usize>) {
        let mut state = self.state();
        state.limit = more.map(|more| state.written.len() + more);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Creates or replaces a Service in namespace `x`; its status and uid stay, unless its type forbids one.
    pub(crate) fn put(&self, name: &str, spec: Value) {
        self.annotated(name, spec, json!({}));
    }

    pub(crate) fn annotated(&self, name: &str, spec: Value, annotations: Value) {
        let mut state = self.state();
        let key = ("x".to_owned(), name.to_owned());
        let before = state.services.get(&key).cloned();
        let version = state.version + 1;
        let uid = format!("00000000-0000-0000-0000-{version:012x}");
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "x", "name": name, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations},
            "spec": spec, "status": {"loadBalancer": {}},
        });
        if let Some(before) = before {
            object["metadata"]["uid"] = before["metadata"]["uid"].clone();
            if object["spec"]["type"] == "LoadBalancer" {
                object["status"] = before["status"].clone();
            }
        }
        state.store(key, object);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Changes the spec of a Service and leaves its status, as servers did before they cleared it with the type.
    pub(crate) fn respec(&self, name: &str, spec: Value) {
        let mut state = self.state();
        let key = ("x".to_owned(), name.to_owned());
        let mut object = state.services[&key].clone();
        object["spec"] = spec;
        state.store(key, object);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.state();
        let key = ("x".to_owned(), name.to_owned());
        state.owners.remove(&key);
        let mut object = state.services.remove(&key).unwrap();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.log.push((version, json!({"type": "DELETED", "object": object})));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Somebody else writes the status of a Service.
    pub(crate) fn show(&self, name: &str, manager: &str, ips: &[&str]) {
        let mut state = self.state();
        let key = ("x".to_owned(), name.to_owned());
        let mut object = state.services[&key].clone();
        object["status"]["loadBalancer"]["ingress"] = ips.iter().map(|ip| json!({"ip": ip})).collect();
        state.owners.insert(key.clone(), manager.to_owned());
        state.store(key, object);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Addresses in the status of each Service.
    pub(crate) fn addresses(&self) -> BTreeMap<String, Vec<String>> {
        self.state().services.iter().map(|((_, name), object)| (name.clone(), ips(object))).collect()
    }

    pub(crate) fn address(&self, name: &str) -> String {
        self.addresses()[name].join(",")
    }

    async fn serve(&self, door: usize, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let path = request.uri().path().to_owned();
        let parts: Vec<_> = path.trim_start_matches('/').split('/').map(str::to_owned).collect();
        let plural = ["services", "leases", "events"]
            .into_iter()
            .find(|plural| parts.iter().any(|part| part == plural));
        let Some(plural) = plural else { return Ok(refusal(404, "no such path")) };
        let shut = self.state().shut.get(&(door, plural)).copied();
        match shut {
            Some(Shut::Silent) => std::future::pending().await,
            Some(Shut::Status(code)) => return Ok(refusal(code, "shut")),
            None => {}
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let method = request.method().clone();
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        let object: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
        let after =
            parts.iter().position(|part| part == plural).map(|at| &parts[at + 1..]).unwrap_or_default();
        match (plural, &method, after) {
            ("services", &Method::GET, []) if query.contains("watch=true") => Ok(self.watch(&query)),
            ("services", &Method::GET, []) => Ok(self.list()),
            ("services", &Method::PATCH, [name, status]) if status == "status" => {
                tokio::time::sleep(self.latency).await;
                let mut changed = self.changed.subscribe();
                loop {
                    if let Some(answer) = self.patch(door, name, &query, &object) {
                        return Ok(answer);
                    }
                    changed.changed().await.map_err(io::Error::other)?;
                }
            }
            ("leases", _, rest) => Ok(self.lease(&method, rest.first(), object)),
            ("events", &Method::POST, []) => {
                self.state().events.push(object.clone());
                Ok(answer(201, &object))
            }
            _ => Ok(refusal(405, "no such request")),
        }
    }

    fn list(&self) -> Response<Body> {
        let state = self.state();
        let items: Vec<_> = state.services.values().collect();
        answer(
            200,
            &json!({"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
        )
    }

    fn watch(&self, query: &str) -> Response<Body> {
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
        let body = StreamBody::new(self.events_after(version.parse().unwrap()));
        Response::builder().header("content-type", "application/json").body(BodyExt::boxed(body)).unwrap()
    }

    fn events_after(
        &self,
        version: u64,
    ) -> impl Stream<Item = Result<Frame<Bytes>, io::Error>> + Send + Sync + use<> {
        let start = (self.clone(), self.changed.subscribe(), version);
        futures::stream::unfold(start, |(server, mut changed, version)| async move {
            loop {
                let (lines, now) = {
                    let state = server.state();
                    let new = state.log.iter().filter(|(at, _)| *at > version);
                    (new.map(|(_, event)| format!("{event}\n")).collect::<String>(), state.version)
                };
                if !lines.is_empty() {
                    return Some((Ok(Frame::data(Bytes::from(lines))), (server, changed, now)));
                }
                changed.changed().await.ok()?;
            }
        })
    }

    /// The answer; `None` if it has to wait.
    fn patch(&self, door: usize, name: &str, query: &str, applied: &Value) -> Option<Response<Body>> {
        let mut state = self.state();
        if state.limit.is_some_and(|limit| state.written.len() >= limit) {
            state.waited.insert(name.to_owned());
            return None;
        }
        if let Some(code) = state.refusals.pop_front() {
            return Some(refusal(code, "refused on demand"));
        }
        let key = ("x".to_owned(), name.to_owned());
        let Some(mut object) = state.services.get(&key).cloned() else {
            return Some(refusal(404, "not found"));
        };
        if applied["metadata"]["uid"] != object["metadata"]["uid"] {
            state.uid_mismatches += 1;
            return Some(refusal(409, "Precondition failed: UID in precondition"));
        }
        let manager = query.split('&').find_map(|pair| pair.strip_prefix("fieldManager=")).unwrap();
        let owner = state.owners.get(&key).cloned();
        match applied["status"]["loadBalancer"].get("ingress") {
            Some(wanted) => {
                let foreign =
                    owner.as_ref().is_some_and(|owner| owner != manager) && !ips(&object).is_empty();
                if foreign && !query.contains("force=true") && ips(&object) != ips(applied) {
                    return Some(refusal(409, "Apply failed with 1 conflict: .status.loadBalancer.ingress"));
                }
                object["status"]["loadBalancer"]["ingress"] = wanted.clone();
                state.owners.insert(key.clone(), manager.to_owned());
            }
            None if owner.as_deref() == Some(manager) => object["status"] = json!({"loadBalancer": {}}),
            None => {}
        }
        let shown = ips(&object);
        state.written.push((Instant::now(), door, key.clone(), shown));
        state.store(key, object.clone());
        state.look_for_doubles(name);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        Some(answer(200, &object))
    }

    fn lease(&self, method: &Method, name: Option<&String>, mut object: Value) -> Response<Body> {
        let mut state = self.state();
        let name = name.cloned().or_else(|| object["metadata"]["name"].as_str().map(str::to_owned)).unwrap();
        let key = ("default".to_owned(), name);
        let current = state.leases.get(&key).cloned();
        match (method, current) {
            (&Method::GET, Some(lease)) => return answer(200, &lease),
            (&Method::GET | &Method::PUT, None) => return refusal(404, "not found"),
            (&Method::POST, Some(_)) => return refusal(409, "exists"),
            (&Method::PUT, Some(lease))
                if lease["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] =>
            {
                return refusal(409, "the object has been modified");
            }
            _ => {}
        }
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.leases.insert(key, object.clone());
        answer(200, &object)
    }
}

impl State {
    fn store(&mut self, key: Key, mut object: Value) {
        let before = self.services.get(&key).cloned();
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            // K8S: a write that changes nothing makes no version.
            if *before == object {
                return;
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.services.insert(key, object.clone());
        let word = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.log.push((self.version, json!({"type": word, "object": object})));
    }

    fn look_for_doubles(&mut self, name: &str) {
        let key = ("x".to_owned(), name.to_owned());
        let mine: BTreeSet<String> = ips(&self.services[&key]).into_iter().collect();
        let others = self.services.iter().filter(|(other, _)| **other != key);
        let doubles: Vec<_> = others
            .flat_map(|((_, other), object)| ips(object).into_iter().map(move |ip| (other.clone(), ip)))
            .filter(|(_, ip)| mine.contains(ip))
            .map(|(other, ip)| format!("{ip}: {name} and {other}"))
            .collect();
        self.doubles.extend(doubles);
    }

    /// Who holds the one Lease.
    pub(crate) fn holder(&self) -> String {
        let lease = self.leases.values().next();
        lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str()).unwrap_or_default().to_owned()
    }
}

fn ips(object: &Value) -> Vec<String> {
    let ingress = object["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress.iter().map(|entry| entry["ip"].as_str().unwrap().to_owned()).collect()
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code});
    answer(code, &status)
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never: Infallible| match never {});
    Response::builder().status(code).header("content-type", "application/json").body(body.boxed()).unwrap()
}
