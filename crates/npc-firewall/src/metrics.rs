//! The metrics of npc-firewall beside the common ones.

use std::collections::HashMap;

use kernel_nft::Name;
use node_runtime::metrics::{Error, Registry};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Them all.
#[derive(Debug)]
pub struct Metrics {
    /// Packets refused.
    pub denied: IntCounterVec,
    /// Somebody else changed the table and it was mended.
    pub repairs: IntCounter,
    /// Generation of the rules in force.
    pub generation: IntGauge,
    /// Chains in the table.
    pub chains: IntGauge,
    /// Elements of all sets and maps of the table.
    pub elements: IntGauge,
    /// State of the bridge sysctls.
    pub bridge_nf_call: IntGaugeVec,
    seen: HashMap<Name, u64>,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When called twice for one registry.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let denied = registry.opts("denied_packets_total", "Packets refused by isolation of a pod.");
        let repairs =
            registry.opts("table_repairs_total", "Times that a change of the table by others was undone.");
        let generation =
            registry.opts("policy_generation", "Generation of the rules, as in the connection mark.");
        let chains = registry.opts("chains", "Chains in the nftables table.");
        let elements = registry.opts("set_elements", "Elements of all sets and maps of the nftables table.");
        let bridge = registry.opts(
            "bridge_nf_call",
            "1 if packets on Linux bridges are filtered, 0 if they are not, -1 if br_netfilter is not loaded.",
        );
        let metrics = Self {
            denied: registry.register(IntCounterVec::new(denied, &["direction"])?)?,
            repairs: registry.register(IntCounter::with_opts(repairs)?)?,
            generation: registry.register(IntGauge::with_opts(generation)?)?,
            chains: registry.register(IntGauge::with_opts(chains)?)?,
            elements: registry.register(IntGauge::with_opts(elements)?)?,
            bridge_nf_call: registry.register(IntGaugeVec::new(bridge, &["family"])?)?,
            seen: HashMap::new(),
        };
        for direction in ["ingress", "egress"] {
            metrics.denied.with_label_values(&[direction]);
        }
        Ok(metrics)
    }

    /// Adds what a kernel counter has counted since last time. A counter that is lower than before was made
    /// anew.
    pub fn count_denied(&mut self, counter: &Name, packets: u64) {
        let direction = match &**counter {
            "deny-in" => "ingress",
            "deny-eg" => "egress",
            _ => return,
        };
        let before = self.seen.insert(counter.clone(), packets).unwrap_or(0);
        let new = if packets >= before { packets - before } else { packets };
        self.denied.with_label_values(&[direction]).inc_by(new);
    }
}
