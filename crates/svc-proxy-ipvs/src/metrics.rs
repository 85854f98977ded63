//! The metrics of svc-proxy-ipvs beside the common ones.

use std::collections::HashMap;

use kernel_netlink::ipvs::{ServiceKey, ServiceState};
use kernel_nft::Name;
use node_runtime::metrics::{Error, Registry};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::plan::{Keyed, Planner};

/// Virtual services whose statistics are shown at most; the busiest are.
const SHOWN: usize = 2000;
const LABELS: [&str; 5] = ["svc_namespace", "service_name", "service_vip", "protocol", "port"];

/// Them all.
#[derive(Debug)]
pub struct Metrics {
    /// Virtual services in the kernel.
    pub virtual_services: IntGauge,
    /// Their destinations, by state.
    pub destinations: IntGaugeVec,
    /// Virtual addresses in the kernel.
    pub addresses: IntGauge,
    /// Changes of the table by others that were undone.
    pub repairs: IntCounter,
    refused: IntCounterVec,
    hidden: IntGauge,
    connections: IntCounterVec,
    packets: IntCounterVec,
    bytes: IntCounterVec,
    seen: HashMap<Name, u64>,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When called twice for one registry.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let with = |more: &'static str| [&LABELS[..], &[more]].concat();
        let gauge = |name, help| registry.opts(name, help);
        let virtual_services = gauge("virtual_services", "Virtual services in IPVS: addresses and ports.");
        let destinations = gauge("destinations", "Destinations of all virtual services, by state.");
        let addresses = gauge("virtual_addresses", "Virtual addresses of this node.");
        let repairs = gauge("table_repairs_total", "Times that a change of the table by others was undone.");
        let refused =
            gauge("refused_packets_total", "Packets to virtual addresses that were not let through.");
        let hidden = gauge("services_not_shown", "Virtual services left out of the statistics: the idlest.");
        let connections = gauge("service_connections_total", "Connections to a virtual service.");
        let packets = gauge("service_packets_total", "Packets of a virtual service, from and to clients.");
        let bytes = gauge("service_bytes_total", "Bytes of a virtual service, from and to clients.");
        let metrics = Self {
            virtual_services: registry.register(IntGauge::with_opts(virtual_services)?)?,
            destinations: registry.register(IntGaugeVec::new(destinations, &["state"])?)?,
            addresses: registry.register(IntGauge::with_opts(addresses)?)?,
            repairs: registry.register(IntCounter::with_opts(repairs)?)?,
            refused: registry.register(IntCounterVec::new(refused, &["reason"])?)?,
            hidden: registry.register(IntGauge::with_opts(hidden)?)?,
            connections: registry.register(IntCounterVec::new(connections, &LABELS)?)?,
            packets: registry.register(IntCounterVec::new(packets, &with("direction"))?)?,
            bytes: registry.register(IntCounterVec::new(bytes, &with("direction"))?)?,
            seen: HashMap::new(),
        };
        for (name, _) in crate::plan::rules::COUNTERS {
            metrics.refused.with_label_values(&[reason(name)]);
        }
        Ok(metrics)
    }

    /// Adds what a counter of the table has counted since last time. A counter that is lower than before was
    /// made anew.
    pub fn count_refused(&mut self, counter: &Name, packets: u64) {
        if !crate::plan::rules::COUNTERS.iter().any(|(name, _)| **name == **counter) {
            return;
        }
        let before = self.seen.insert(counter.clone(), packets).unwrap_or(0);
        let new = if packets >= before { packets - before } else { packets };
        self.refused.with_label_values(&[reason(counter)]).inc_by(new);
    }

    /// Shows what has passed the virtual services of the cluster.
    pub fn show_services(&mut self, planner: &Planner, found: &[ServiceState]) {
        self.connections.reset();
        self.packets.reset();
        self.bytes.reset();
        let mut ours: HashMap<ServiceKey, &ServiceState> = found
            .iter()
            .map(|state| (state.service.key, state))
            .filter(|(key, _)| planner.virtual_service(key).is_some())
            .collect();
        if ours.len() > SHOWN {
            let mut counts: Vec<u64> = ours.values().map(|state| state.stats.in_packets).collect();
            let (_, least, _) = counts.select_nth_unstable_by(SHOWN, |a, b| b.cmp(a));
            let least = *least;
            ours.retain(|_, state| state.stats.in_packets > least);
        }
        self.hidden.set(i64::try_from(planner.virtual_keys().count() - ours.len()).unwrap_or(i64::MAX));
        for (service, part) in planner.parts() {
            for key in part.virtuals().map(Keyed::key) {
                let Some(state) = ours.get(key) else { continue };
                let Some(front) = planner.front(key) else { continue };
                let (vip, port) = (front.ip.to_string(), front.port.to_string());
                let protocol = front.protocol.to_string();
                let labels = [&*service.namespace, &*service.name, &vip, &protocol, &port];
                let with = |more| [&labels[..], &[more]].concat();
                self.connections.with_label_values(&labels).inc_by(state.stats.connections);
                self.packets.with_label_values(&with("in")).inc_by(state.stats.in_packets);
                self.packets.with_label_values(&with("out")).inc_by(state.stats.out_packets);
                self.bytes.with_label_values(&with("in")).inc_by(state.stats.in_bytes);
                self.bytes.with_label_values(&with("out")).inc_by(state.stats.out_bytes);
            }
        }
    }
}

fn reason(counter: &str) -> &'static str {
    match counter {
        "refused" => "no_endpoints_or_port",
        "dropped" => "no_local_endpoints_or_address",
        _ => "source_not_allowed",
    }
}
