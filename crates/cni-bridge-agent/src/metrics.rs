//! The metrics of cni-bridge-agent beside the common ones.

use node_runtime::metrics::{Error, Registry};
use prometheus::{IntGauge, IntGaugeVec};

/// Them all.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Whether plugin and configuration are in place.
    pub in_place: IntGauge,
    /// The MTU in the configuration.
    pub mtu: IntGauge,
    /// Networks of pods.
    pub pod_cidrs: IntGaugeVec,
    /// State of the bridge sysctls.
    pub bridge_nf_call: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When called twice for one registry.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let in_place = registry.opts(
            "in_place",
            "1 if plugin and configuration are in place and no other file is taken instead.",
        );
        let mtu = registry.opts("mtu_bytes", "MTU of new pods; 0 if the configuration does not say it.");
        let cidrs = registry.opts("pod_cidrs", "Networks that pods of this node get addresses of.");
        let bridge = registry.opts(
            "bridge_nf_call",
            "1 if packets on Linux bridges are filtered, 0 if they are not, -1 if br_netfilter is not loaded.",
        );
        Ok(Self {
            in_place: registry.register(IntGauge::with_opts(in_place)?)?,
            mtu: registry.register(IntGauge::with_opts(mtu)?)?,
            pod_cidrs: registry.register(IntGaugeVec::new(cidrs, &["family"])?)?,
            bridge_nf_call: registry.register(IntGaugeVec::new(bridge, &["family"])?)?,
        })
    }
}
