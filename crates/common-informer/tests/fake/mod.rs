//! An API server that fails on demand.
//!
//! It keeps objects with versions, lists in pages, watches with bookmarks and refuses versions that it has
//! forgotten, over HTTP/1.1 on 127.0.0.1. It can be stopped and started again on the same port with what it
//! had. Failures are queued and used up one by one.

#![allow(dead_code, reason = "each test target uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

type Body = BoxBody<Bytes, io::Error>;

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This HTTP status, with a Status object.
    Status(u16),
    /// The connection is closed without an answer.
    Close,
    /// None, so that the next one waits for the next request.
    Nothing,
    /// The answer comes when this is told.
    Held(Arc<Notify>),
    /// A list: a body that ends in the middle. A watch: half an event, then the connection breaks.
    Truncate,
    /// A watch: a line that is no JSON, with an event lost in it.
    Garbage,
    /// A watch: an ERROR event with this code.
    ErrorEvent(u16),
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    List,
    Watch,
    Create,
}

#[derive(Default)]
struct Store {
    version: u64,
    /// Versions up to this one are forgotten.
    forgotten: u64,
    /// By plural, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// Version, plural, event.
    events: Vec<(u64, String, Value)>,
    faults: VecDeque<(String, Verb, Fault)>,
    /// The version of the last event that a watch was told, by plural.
    sent: BTreeMap<String, u64>,
    /// The query of each request, by plural and verb.
    requests: Vec<(String, Verb, String)>,
    /// What was created by requests.
    created: Vec<Value>,
}

/// See the module.
pub(crate) struct Server {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    /// Counts changes of the store.
    changed: Arc<watch::Sender<u64>>,
    /// Counts interruptions of all watches.
    interrupted: Arc<watch::Sender<u64>>,
    listener: Option<JoinHandle<()>>,
    /// Pages are never larger.
    pub(crate) page_limit: usize,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
            interrupted: Arc::new(watch::Sender::new(0)),
            listener: None,
            page_limit: usize::MAX,
        };
        server.store.lock().unwrap().version = 1;
        server.listen().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Listens (again), on the same port as before.
    pub(crate) async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let handler = Handler {
            store: self.store.clone(),
            changed: self.changed.clone(),
            interrupted: self.interrupted.clone(),
            page_limit: self.page_limit,
        };
        let accept = async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let handler = handler.clone();
                connections.spawn(async move {
                    let serve = service_fn(move |request| {
                        let handler = handler.clone();
                        async move { handler.serve(request).await }
                    });
                    // An error is what a broken connection looks like from here.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        };
        self.listener = Some(tokio::spawn(accept));
    }

    /// Stops listening and closes every connection.
    pub(crate) async fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            assert!(listener.await.unwrap_err().is_cancelled());
        }
    }

    /// Breaks every watch in the middle of an event.
    pub(crate) fn interrupt(&self) {
        self.interrupted.send_modify(|count| *count += 1);
    }

    /// Forgets old versions: who watches from one must list again.
    pub(crate) fn forget(&self) {
        let mut store = self.store.lock().unwrap();
        store.version += 1;
        store.forgotten = store.version;
        store.events.clear();
    }

    pub(crate) fn fail(&self, plural: &str, verb: Verb, fault: Fault) {
        self.store.lock().unwrap().faults.push_back((plural.to_owned(), verb, fault));
    }

    /// Sends a bookmark and, when it is on its way, forgets all versions before it.
    pub(crate) async fn forget_up_to_next_bookmark(&self, plural: &str) {
        self.bookmark(plural);
        loop {
            {
                let mut store = self.store.lock().unwrap();
                if store.sent.get(plural) == Some(&store.version) {
                    store.forgotten = store.version;
                    store.events.clear();
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, plural: &str, namespace: &str, name: &str, mut object: Value) {
        let mut store = self.store.lock().unwrap();
        store.version += 1;
        let version = store.version;
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
        }
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let earlier = store.objects.insert(key, object.clone());
        let word = if earlier.is_some() { "MODIFIED" } else { "ADDED" };
        store.events.push((version, plural.to_owned(), json!({"type": word, "object": object})));
        drop(store);
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut store = self.store.lock().unwrap();
        store.version += 1;
        let version = store.version;
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = store.objects.remove(&key).expect("an object");
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
        }
        store.events.push((version, plural.to_owned(), json!({"type": "DELETED", "object": object})));
        drop(store);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sends an event that is in no list.
    pub(crate) fn event(&self, plural: &str, event: Value) {
        let mut store = self.store.lock().unwrap();
        store.version += 1;
        let version = store.version;
        store.events.push((version, plural.to_owned(), event));
        drop(store);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Tells watchers the current version.
    pub(crate) fn bookmark(&self, plural: &str) {
        let version = self.store.lock().unwrap().version + 1;
        let object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": version.to_string()}});
        self.event(plural, json!({"type": "BOOKMARK", "object": object}));
    }

    /// What was created by requests.
    pub(crate) fn created(&self) -> Vec<Value> {
        self.store.lock().unwrap().created.clone()
    }

    /// How often a plural was listed (first pages) or watched, and with which queries.
    pub(crate) fn requests(&self, plural: &str, verb: Verb) -> Vec<String> {
        let store = self.store.lock().unwrap();
        let of = |(request, what, _): &&(String, Verb, String)| request == plural && *what == verb;
        store.requests.iter().filter(of).map(|(_, _, query)| query.clone()).collect()
    }
}

#[derive(Clone)]
struct Handler {
    store: Arc<Mutex<Store>>,
    changed: Arc<watch::Sender<u64>>,
    interrupted: Arc<watch::Sender<u64>>,
    page_limit: usize,
}

impl Handler {
    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let verb = match request.method() {
            &Method::POST => Verb::Create,
            _ if query.contains_key("watch") => Verb::Watch,
            _ => Verb::List,
        };
        let fault = {
            let mut store = self.store.lock().unwrap();
            let text = request.uri().query().unwrap_or_default().to_owned();
            store.requests.push((plural.clone(), verb, text));
            let position = store.faults.iter().position(|(of, what, _)| *of == plural && *what == verb);
            position.and_then(|position| store.faults.remove(position)).map(|(_, _, fault)| fault)
        };
        match &fault {
            Some(Fault::Status(code)) => return Ok(refusal(*code)),
            Some(Fault::Close) => return Err(io::Error::other("closed")),
            Some(Fault::Held(release)) => release.notified().await,
            _ => {}
        }
        match verb {
            Verb::List => self.list(&plural, &query, fault.as_ref()),
            Verb::Watch => Ok(self.watch(plural, &query, fault)),
            Verb::Create => {
                let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
                self.store.lock().unwrap().created.push(serde_json::from_slice(&body)?);
                Ok(answer(201, String::from_utf8_lossy(&body).into_owned()))
            }
        }
    }

    fn list(
        &self,
        plural: &str,
        query: &BTreeMap<String, String>,
        fault: Option<&Fault>,
    ) -> Result<Response<Body>, io::Error> {
        let store = self.store.lock().unwrap();
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let skip: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        let limit = limit.min(self.page_limit);
        let all: Vec<&Value> =
            store.objects.iter().filter(|((of, _, _), _)| of == plural).map(|(_, object)| object).collect();
        let items: Vec<&Value> = all.iter().skip(skip).take(limit).copied().collect();
        let more =
            if skip + items.len() < all.len() { (skip + items.len()).to_string() } else { String::new() };
        let list = json!({
            "apiVersion": "v1",
            "kind": "List",
            "metadata": {"resourceVersion": store.version.to_string(), "continue": more},
            "items": items,
        });
        let mut text = list.to_string();
        if matches!(fault, Some(Fault::Truncate)) {
            text.truncate(text.len() / 2);
        }
        Ok(answer(200, text))
    }

    fn watch(
        &self,
        plural: String,
        query: &BTreeMap<String, String>,
        fault: Option<Fault>,
    ) -> Response<Body> {
        let version: u64 = query["resourceVersion"].parse().unwrap();
        let events = Events {
            handler: self.clone(),
            plural,
            version,
            fault,
            changed: self.changed.subscribe(),
            interrupted: self.interrupted.subscribe(),
        };
        let body = StreamBody::new(events.stream());
        Response::builder().header("content-type", "application/json").body(BodyExt::boxed(body)).unwrap()
    }
}

/// A watch in progress.
struct Events {
    handler: Handler,
    plural: String,
    version: u64,
    fault: Option<Fault>,
    changed: watch::Receiver<u64>,
    interrupted: watch::Receiver<u64>,
}

enum Step {
    Line(String),
    /// Half a line was sent; now the connection breaks.
    Break,
    End,
}

impl Events {
    fn stream(self) -> impl Stream<Item = Result<Frame<Bytes>, io::Error>> + Send + Sync {
        futures::stream::unfold((self, Some(false)), |(mut events, state)| async move {
            let broken = state?;
            if broken {
                return Some((Err(io::Error::other("broken")), (events, None)));
            }
            match events.next().await {
                Step::Line(line) => Some((Ok(Frame::data(Bytes::from(line))), (events, Some(false)))),
                Step::Break => {
                    let half = Bytes::from_static(br#"{"type":"ADDED","object":{"metadata":{"na"#);
                    Some((Ok(Frame::data(half)), (events, Some(true))))
                }
                Step::End => None,
            }
        })
    }

    async fn next(&mut self) -> Step {
        match self.fault.take() {
            Some(Fault::Truncate) => return Step::Break,
            Some(Fault::ErrorEvent(code)) => return self.error(code),
            Some(Fault::Garbage) => {
                // The next event is lost in it.
                let line = self.wait().await;
                return match line {
                    Step::Line(_) => Step::Line("{\"type\": garbage\n".to_owned()),
                    other => other,
                };
            }
            _ => {}
        }
        self.wait().await
    }

    fn error(&mut self, code: u16) -> Step {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": "Expired", "message": "too old resource version"});
        Step::Line(format!("{}\n", json!({"type": "ERROR", "object": status})))
    }

    async fn wait(&mut self) -> Step {
        loop {
            {
                let mut store = self.handler.store.lock().unwrap();
                if self.version < store.forgotten {
                    if self.version == 0 {
                        return Step::End;
                    }
                    self.version = 0;
                    drop(store);
                    return self.error(410);
                }
                let next =
                    |(version, of, _): &&(u64, String, Value)| *version > self.version && *of == self.plural;
                if let Some((version, _, event)) = store.events.iter().find(next) {
                    self.version = *version;
                    let line = format!("{event}\n");
                    store.sent.insert(self.plural.clone(), self.version);
                    return Step::Line(line);
                }
            }
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return Step::End },
                _ = self.interrupted.changed() => return Step::Break,
            }
        }
    }
}

fn refusal(code: u16) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("refused with {code}"), "reason": "Test", "code": code});
    answer(code, status.to_string())
}

fn answer(code: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {});
    Response::builder().status(code).header("content-type", "application/json").body(body.boxed()).unwrap()
}
