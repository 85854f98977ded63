//! The ports on which load balancers ask after this node: `healthCheckNodePort` of Services with
//! externalTrafficPolicy Local, and kube-proxy's `/healthz`.
//!
//! ```text
//!  loop's thread                         the process's runtime, one task a port
//!  set(checks) ──► open, close, ───────► bind, again every few seconds until it succeeds ─► http::serve
//!              └─► what is answered ───►   │ failure changes: wake the loop                 │ each request
//!  failures() ◄────────────────────────────┘                               what is answered, Health of the loop
//! ```
//!
//! A port belongs to whom `set` says at the moment of the request, so that a port that moves to another
//! Service answers for that one at once; kube-router goes on answering for the first.

mod answer;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use common_informer::object::{Family, ObjectKey};
use node_runtime::args::ListenAddr;
use node_runtime::http::{self, Asked, Page, Pages, Places, StatusCode};
use node_runtime::{Cause, Waker};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::plan::part::HealthCheck;

/// Between two tries to listen on a port.
const BIND_RETRY: Duration = Duration::from_secs(3);
/// Connections at a time to one port, from elsewhere and from this node. A load balancer has a few probers.
const PORT_CONNECTIONS: (usize, usize) = (16, 8);
/// To all of them, so that file descriptors are left for the rest of the process.
const ALL_CONNECTIONS: (usize, usize) = (256, 64);
/// Reason under which a healthz port that cannot be had is shown as degraded.
pub const LISTEN_FAILED: &str = "healthz_listen_failed";

/// Serves the ports. When it is dropped, all are closed.
#[derive(Debug)]
pub struct Health {
    runtime: Handle,
    proxy: node_runtime::Health,
    waker: Waker,
    places: Places,
    ports: BTreeMap<u16, Port>,
    eligible: Arc<AtomicBool>,
    /// That of [`Health::serve_healthz`].
    _healthz: Option<Task>,
}

impl Health {
    /// Serves no port yet. `proxy` says whether the proxy is healthy; `waker` is woken when the answer of
    /// [`Health::failures`] is another. All is served on `runtime`, which needs I/O and time.
    pub fn new(runtime: Handle, proxy: node_runtime::Health, waker: Waker) -> Self {
        Self {
            runtime,
            proxy,
            waker,
            places: Places::new(ALL_CONNECTIONS.0, ALL_CONNECTIONS.1),
            ports: BTreeMap::new(),
            eligible: Arc::new(AtomicBool::new(true)),
            _healthz: None,
        }
    }

    /// Serves `/healthz` and `/livez` of the proxy as a whole, in the words of kube-proxy: 200, or 503 when
    /// what Services ask for has not reached the kernel for a minute. `/healthz` is 503 as well when the node
    /// is not eligible (see [`Health::set_node_eligible`]). A port that cannot be had is tried again and again
    /// and shown as degraded; 0 is none. `families` are those that are served; both succeed or fail together.
    #[must_use]
    pub fn serve_healthz(mut self, port: u16, families: Vec<Family>) -> Self {
        if port == 0 {
            return self;
        }
        let (proxy, eligible) = (self.proxy.clone(), Arc::clone(&self.eligible));
        let pages = Arc::new(ProxyPages { proxy: self.proxy.clone(), families, eligible });
        let tell = move |failure: Option<&io::Error>| match failure {
            Some(error) => proxy.degrade(LISTEN_FAILED, format!("port {port}: {error}")),
            None => proxy.recover(LISTEN_FAILED),
        };
        self._healthz = Some(self.serve(port, pages, tell));
        self
    }

    /// Whether load balancers may keep this node. K8S: they may not once it is being deleted or has the taint
    /// `ToBeDeletedByClusterAutoscaler` (KEP-3836).
    pub fn set_node_eligible(&self, eligible: bool) {
        self.eligible.store(eligible, Ordering::Relaxed);
    }

    /// Answers for these ports from now on, and for no others: new ones are listened on as soon as they
    /// can be, those that are gone are closed with their connections.
    pub fn set(&mut self, checks: &BTreeMap<u16, (ObjectKey, HealthCheck)>) {
        // ORDER: what goes goes first, as its tasks are then ended before another is started.
        self.ports.retain(|port, _| checks.contains_key(port));
        for (port, (service, check)) in checks {
            match self.ports.get(port) {
                Some(open) => open.pages.set(service, check.local),
                None => {
                    let open = self.open(*port, service, check.local);
                    self.ports.insert(*port, open);
                }
            }
        }
    }

    fn open(&self, port: u16, service: &ObjectKey, local: usize) -> Port {
        let answer = Answer { service: service.clone(), local, failure: None };
        let pages = Arc::new(ServicePages { proxy: self.proxy.clone(), answer: Mutex::new(answer) });
        let (told, waker) = (Arc::clone(&pages), self.waker.clone());
        let tell = move |failure: Option<&io::Error>| {
            told.lock().failure = failure.map(ToString::to_string);
            waker.wake(Cause::Change);
        };
        Port { _task: self.serve(port, Arc::clone(&pages), tell), pages }
    }

    fn serve(
        &self,
        port: u16,
        pages: Arc<impl Pages>,
        tell: impl Fn(Option<&io::Error>) + Send + 'static,
    ) -> Task {
        let places = self.places.share(PORT_CONNECTIONS.0, PORT_CONNECTIONS.1);
        Task(self.runtime.spawn(listen(port, places, pages, tell)).abort_handle())
    }

    /// Ports that cannot be listened on now, with their Services and the reasons.
    pub fn failures(&self) -> Vec<(ObjectKey, String)> {
        let failed = self.ports.iter().filter_map(|(port, open)| {
            let answer = open.pages.lock();
            let why = answer.failure.as_ref()?;
            let text = format!("spec.healthCheckNodePort: cannot listen on port {port}: {why}; trying again");
            Some((answer.service.clone(), text))
        });
        failed.collect()
    }
}

/// Serves a port for ever. `tell` hears of each failure that is another than the one before, and of its end.
async fn listen<P: Pages>(port: u16, places: Places, pages: Arc<P>, tell: impl Fn(Option<&io::Error>)) {
    let mut told = None;
    let socket = loop {
        let error = match http::bind(ListenAddr::Any, port) {
            Ok(socket) => break socket,
            Err(error) => error,
        };
        if told != Some(error.kind()) {
            tracing::warn!(%error, port, retry_in = ?BIND_RETRY, "cannot listen on a health check port");
            told = Some(error.kind());
            tell(Some(&error));
        }
        sleep(BIND_RETRY).await;
    };
    if told.is_some() {
        tell(None);
    }
    tracing::debug!(port, "health check port open");
    http::serve(socket, places, pages).await;
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Port {
    pages: Arc<ServicePages>,
    _task: Task,
}

/// Every path of a health check port.
#[derive(Debug)]
struct ServicePages {
    proxy: node_runtime::Health,
    answer: Mutex<Answer>,
}

#[derive(Debug)]
struct Answer {
    service: ObjectKey,
    local: usize,
    /// Why the port is not open.
    failure: Option<String>,
}

impl ServicePages {
    fn set(&self, service: &ObjectKey, local: usize) {
        let mut answer = self.lock();
        if answer.service != *service {
            answer.service = service.clone();
        }
        answer.local = local;
    }

    fn lock(&self) -> MutexGuard<'_, Answer> {
        // Each update leaves it whole.
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages for ServicePages {
    async fn answer(&self, _asked: Asked<'_>) -> Page {
        let healthy = answer::is_healthy(&self.proxy.report(Instant::now()));
        let current = self.lock();
        answer::of_service(&current.service, current.local, healthy)
    }
}

/// The port of `/healthz`.
#[derive(Debug)]
struct ProxyPages {
    proxy: node_runtime::Health,
    families: Vec<Family>,
    eligible: Arc<AtomicBool>,
}

impl Pages for ProxyPages {
    async fn answer(&self, asked: Asked<'_>) -> Page {
        let eligible = match asked.path {
            "/healthz" => Some(self.eligible.load(Ordering::Relaxed)),
            "/livez" => None,
            _ => return answer::nosniff(Page::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        };
        let report = self.proxy.report(Instant::now());
        answer::of_proxy(&report, SystemTime::now(), &self.families, eligible)
    }
}
