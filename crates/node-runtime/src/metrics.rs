//! What a daemon tells Prometheus: the metrics that all have in common, by the same names, and a registry for
//! its own.
//!
//! Names are `<binary with _>_<noun>_<unit>`; labels have fixed words as values.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{Encoder, Gauge, Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, TextEncoder};

use crate::Program;
use crate::controller_loop::Cause;
use crate::health::Health;
use crate::process::ProcessMetrics;

/// A duplicate or malformed metric: an error in the program.
pub use prometheus::Error;

/// Content type of [`Registry::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From a sync that finds nothing to do (0.5 ms) to a cold one of a large cluster (30 s).
const SYNC_BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

type BeforeScrape = Box<dyn FnMut() + Send>;

/// All metrics of a process. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    prefix: Arc<str>,
    inner: prometheus::Registry,
    common: CommonMetrics,
    before_scrape: Arc<Mutex<Vec<BeforeScrape>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Registry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The metrics that every daemon has. Clones are the same metrics.
#[derive(Debug, Clone)]
pub struct CommonMetrics {
    sync_duration: Histogram,
    sync_total: IntCounterVec,
    last_success: Gauge,
    kernel_ops: IntCounterVec,
    /// Size of the caches; label `kind`. Set by the controller, best in `measure`.
    pub objects: IntGaugeVec,
    excluded_objects: IntGaugeVec,
}

impl Registry {
    /// A registry with the common metrics, those of the process, and `<prefix>_build_info`.
    ///
    /// # Errors
    /// When the program's name is no metric name.
    pub fn new(program: &Program) -> Result<Self, Error> {
        let prefix = program.metric_prefix();
        let inner = prometheus::Registry::new();
        let registry = Self {
            common: CommonMetrics::new(&prefix)?,
            prefix: prefix.into(),
            inner,
            before_scrape: Arc::default(),
        };
        registry.common.register(&registry.inner)?;
        let build = Opts::new("build_info", "Always 1; the labels say which build this is.");
        let build = registry.register(IntGaugeVec::new(build.namespace(&*registry.prefix), &["version"])?)?;
        build.with_label_values(&[program.version]).set(1);
        let process = ProcessMetrics::register(&registry.inner)?;
        registry.before_scrape(move || process.update());
        Ok(registry)
    }

    /// Name (after the prefix) and help of a metric to be.
    #[must_use]
    pub fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).namespace(&*self.prefix)
    }

    /// Adds a metric, usually made from [`Registry::opts`], and gives it back.
    ///
    /// # Errors
    /// When there is one of this name.
    pub fn register<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.inner.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    /// The common metrics.
    #[must_use]
    pub fn common(&self) -> &CommonMetrics {
        &self.common
    }

    /// Has `update` called before each scrape, on the thread of the admin port: it must not block.
    pub fn before_scrape(&self, update: impl FnMut() + Send + 'static) {
        self.before_scrape.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(update));
    }

    /// Shows the reasons of `health` as `<prefix>_degraded{reason}`: 1 while it holds, 0 when it is over.
    ///
    /// # Errors
    /// When called twice.
    pub fn show_health(&self, health: Health) -> Result<(), Error> {
        let opts = self.opts("degraded", "1 while this is wrong, 0 when it was before; see /readyz.");
        let gauge = self.register(IntGaugeVec::new(opts, &["reason"])?)?;
        self.before_scrape(move || {
            for (reason, active) in health.reasons() {
                gauge.with_label_values(&[reason]).set(i64::from(active));
            }
        });
        Ok(())
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When a registered collector gives malformed metrics.
    pub fn render(&self) -> Result<Vec<u8>, Error> {
        // Held to the end: two scrapes at once would count twice what is counted by difference.
        let mut updates = self.before_scrape.lock().unwrap_or_else(PoisonError::into_inner);
        for update in updates.iter_mut() {
            update();
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.inner.gather(), &mut text)?;
        Ok(text)
    }
}

impl CommonMetrics {
    fn new(prefix: &str) -> Result<Self, Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).namespace(prefix);
        let duration = opts("sync_duration_seconds", "Time that a sync took, failed ones included.");
        let duration = HistogramOpts::from(duration).buckets(SYNC_BUCKETS.to_vec());
        let total = opts("sync_total", "Syncs by result (success, error) and by what caused them.");
        let success = opts("last_success_timestamp_seconds", "Unix time at which a sync last succeeded.");
        let ops = opts("kernel_ops_total", "Operations that changed the kernel's state.");
        let objects = opts("objects", "Objects in the cache.");
        let excluded = opts("excluded_objects", "Objects, or parts of them, that are not acted upon.");
        Ok(Self {
            sync_duration: Histogram::with_opts(duration)?,
            sync_total: IntCounterVec::new(total, &["result", "cause"])?,
            last_success: Gauge::with_opts(success)?,
            kernel_ops: IntCounterVec::new(ops, &["op"])?,
            objects: IntGaugeVec::new(objects, &["kind"])?,
            excluded_objects: IntGaugeVec::new(excluded, &["kind", "reason"])?,
        })
    }

    fn register(&self, registry: &prometheus::Registry) -> Result<(), Error> {
        let Self { sync_duration, sync_total, last_success, kernel_ops, objects, excluded_objects } = self;
        registry.register(Box::new(sync_duration.clone()))?;
        registry.register(Box::new(sync_total.clone()))?;
        registry.register(Box::new(last_success.clone()))?;
        registry.register(Box::new(kernel_ops.clone()))?;
        registry.register(Box::new(objects.clone()))?;
        registry.register(Box::new(excluded_objects.clone()))
    }

    /// Shows which objects are not acted upon: the kind of each with each reason.
    pub fn show_excluded(&self, objects: impl IntoIterator<Item = (String, &'static str)>) {
        self.excluded_objects.reset();
        for (kind, reason) in objects {
            self.excluded_objects.with_label_values(&[kind.as_str(), reason]).inc();
        }
    }

    /// The account of one sync.
    pub(crate) fn synced(&self, cause: Cause, ok: bool, took: Duration, kernel_ops: &[(&'static str, u64)]) {
        self.sync_duration.observe(took.as_secs_f64());
        let result = if ok { "success" } else { "error" };
        self.sync_total.with_label_values(&[result, cause.as_str()]).inc();
        for (op, count) in kernel_ops {
            self.kernel_ops.with_label_values(&[op]).inc_by(*count);
        }
        if ok {
            self.last_success.set(unix_now());
        }
    }
}

/// Seconds since 1970; 0 on a machine whose clock is before that.
pub(crate) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
