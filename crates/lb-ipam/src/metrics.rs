//! The metrics of lb-ipam beside the common ones.

use node_runtime::metrics::{Error, Registry};
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Them all. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while this process leads.
    pub leader: IntGauge,
    /// Addresses that there are.
    pub pool_addresses: GaugeVec,
    /// Addresses that are taken.
    pub pool_used: IntGaugeVec,
    /// Services of ours.
    pub services: IntGaugeVec,
    /// Requests that write.
    pub writes: IntCounterVec,
    /// Addresses that two Services had.
    pub conflicts: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When called twice for one registry.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let leader = registry.opts("leader", "1 while this process leads, 0 while it waits.");
        let addresses = registry.opts("pool_addresses", "Addresses of a pool.");
        let used = registry.opts("pool_used_addresses", "Addresses of a pool that are not free.");
        let services = registry.opts(
            "services",
            "Services that are ours, by state: served, waiting (less than they ask for), unwritten (status is not as planned).",
        );
        let writes = registry.opts("writes_total", "Statuses and Events sent to the API server, by result.");
        let conflicts =
            registry.opts("address_conflicts_total", "Times that two Services were found with one address.");
        let metrics = Self {
            leader: registry.register(IntGauge::with_opts(leader)?)?,
            pool_addresses: registry.register(GaugeVec::new(addresses, &["pool", "family"])?)?,
            pool_used: registry.register(IntGaugeVec::new(used, &["pool", "family"])?)?,
            services: registry.register(IntGaugeVec::new(services, &["state"])?)?,
            writes: registry.register(IntCounterVec::new(writes, &["write", "result"])?)?,
            conflicts: registry.register(IntCounter::with_opts(conflicts)?)?,
        };
        Ok(metrics)
    }

    /// Counts a request, for [`crate::apply::service::Count`].
    pub fn count_write(&self, write: &'static str, result: &'static str) {
        self.writes.with_label_values(&[write, result]).inc();
    }
}
