//! A stand-in for the API server, for benchmarks: lists in pages, then watches that stay open and tell changes
//! when they are asked to. And what a program weighs that is fed by it.
//!
//! It keeps to what a reflector sees: `limit`, `continue`, `watch`; selectors are passed over.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// How often something is looked at that is waited for.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a program is left alone before it is weighed.
const REST: Duration = Duration::from_secs(3);

/// The objects of one kind.
pub struct Collection {
    /// Last part of the path: `pods`.
    pub resource: &'static str,
    /// `v1`
    pub api_version: &'static str,
    /// `Pod`
    pub kind: &'static str,
    /// How many there are.
    pub count: usize,
    /// One of them.
    pub object: Box<dyn Fn(usize) -> Value + Send + Sync>,
    /// How many changes each watch tells.
    pub changes: usize,
    /// One of them: `ADDED`, `MODIFIED` or `DELETED`, and the object. Its resource version is set here.
    pub change: Box<dyn Fn(usize) -> (&'static str, Value) + Send + Sync>,
}

/// A server of some collections on loopback, for as long as the process lives.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    collections: Vec<Collection>,
    watching: AtomicUsize,
    changing: AtomicBool,
    told: AtomicUsize,
}

/// Resident memory of a program, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Once it is ready.
    pub ready: u64,
    /// After the changes.
    pub later: u64,
    /// The most at any time.
    pub peak: u64,
}

impl Collection {
    /// One that does not change.
    pub fn new(
        resource: &'static str,
        api_version: &'static str,
        kind: &'static str,
        count: usize,
        object: impl Fn(usize) -> Value + Send + Sync + 'static,
    ) -> Self {
        let change = Box::new(|_| ("BOOKMARK", Value::Null));
        Self { resource, api_version, kind, count, object: Box::new(object), changes: 0, change }
    }

    /// With changes.
    #[must_use]
    pub fn changing(
        self,
        changes: usize,
        change: impl Fn(usize) -> (&'static str, Value) + Send + Sync + 'static,
    ) -> Self {
        Self { changes, change: Box::new(change), ..self }
    }
}

impl ApiServer {
    /// Starts to serve.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub fn start(collections: Vec<Collection>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            collections,
            watching: AtomicUsize::new(0),
            changing: AtomicBool::new(false),
            told: AtomicUsize::new(0),
        });
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // A client that goes ends its conversation.
                std::thread::spawn(move || served.talk(&stream));
            }
        });
        Ok(Self { address, shared })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Weighs a program that watches all the collections: at rest once it is ready, and after all changes have
    /// been told. `limit` is for each of the two. The arguments for the API server and the health port are added
    /// to `command`; the program is killed in the end.
    ///
    /// # Errors
    /// When it does not become ready in time, or ends.
    pub fn weigh(&self, command: &mut Command, limit: Duration) -> Result<Memory> {
        let health = free_port()?;
        let health_port = health.port().to_string();
        command.args(["--master", &self.url(), "--health-addr", "127.0.0.1", "--health-port", &health_port]);
        let mut child = command.stdout(Stdio::null()).spawn().context("start the program")?;
        let weighed = self.weigh_child(child.id(), health, limit);
        child.kill().context("kill the program")?;
        child.wait()?;
        weighed
    }

    fn weigh_child(&self, pid: u32, health: SocketAddr, limit: Duration) -> Result<Memory> {
        await_that("the program becomes ready", limit, || is_ready(health))?;
        std::thread::sleep(REST);
        let ready = resident(pid, "VmRSS:")?;
        let changes: usize = self.shared.collections.iter().map(|collection| collection.changes).sum();
        self.shared.changing.store(true, Ordering::Relaxed);
        await_that("the program reads the watches", limit, || {
            self.shared.told.load(Ordering::Relaxed) >= changes
        })?;
        std::thread::sleep(REST);
        let watching = self.shared.watching.load(Ordering::Relaxed);
        let collections = self.shared.collections.len();
        ensure!(watching == collections, "{watching} watches of {collections} collections");
        Ok(Memory { ready, later: resident(pid, "VmRSS:")?, peak: resident(pid, "VmHWM:")? })
    }
}

fn await_that(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// An address on loopback that nobody listens on.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").context("bind")?.local_addr()?)
}

fn is_ready(health: SocketAddr) -> bool {
    let ask = || -> Result<bool> {
        let mut stream = TcpStream::connect_timeout(&health, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status)?;
        Ok(status.contains(" 200 "))
    };
    ask().unwrap_or(false)
}

fn resident(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the program has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes =
        line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {field}"))?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

impl Shared {
    /// Answers requests until the client goes.
    fn talk(&self, stream: &TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream).lines();
        while let Some(request) = lines.next() {
            let request = request?;
            for header in lines.by_ref() {
                if header?.is_empty() {
                    break;
                }
            }
            let target = request.split(' ').nth(1).context("no target")?;
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let resource = path.rsplit('/').next().unwrap_or_default();
            let collection = self.collections.iter().find(|collection| collection.resource == resource);
            let Some(collection) = collection else {
                respond(stream, "404 Not Found", &json!({"kind": "Status", "code": 404, "message": path}))?;
                continue;
            };
            if matches!(parameter(query, "watch"), Some("true" | "1")) {
                return self.watch(stream, collection);
            }
            let number = |name| parameter(query, name).and_then(|text| text.parse().ok());
            let page =
                collection.page(number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
            respond(stream, "200 OK", &page)?;
        }
        Ok(())
    }

    fn watch(&self, mut stream: &TcpStream, collection: &Collection) -> Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        self.watching.fetch_add(1, Ordering::Relaxed);
        while !self.changing.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
        }
        for number in 0..collection.changes {
            let (what, mut object) = (collection.change)(number);
            object["metadata"]["resourceVersion"] = json!((number + 2).to_string());
            let line = json!({"type": what, "object": object}).to_string() + "\n";
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        loop {
            // A watch stays open.
            std::thread::park();
        }
    }
}

impl Collection {
    fn page(&self, from: usize, limit: usize) -> Value {
        let until = from.saturating_add(limit).min(self.count);
        let items: Vec<_> = (from..until).map(|number| (self.object)(number)).collect();
        let mut metadata = json!({"resourceVersion": "1"});
        if until < self.count {
            metadata["continue"] = json!(until.to_string());
        }
        json!({"apiVersion": self.api_version, "kind": format!("{}List", self.kind), "metadata": metadata,
            "items": items})
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn respond(mut stream: &TcpStream, status: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}
