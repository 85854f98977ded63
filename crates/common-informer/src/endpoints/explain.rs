//! Who serves a Service and who does not, with reasons, for people.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use super::policy::{Policies, Traffic, passed_over};
use super::select::{Place, PortKey, Selection, Topology, select};
use crate::object::{AddressType, EndpointSlice, FullService, FullServicePort, TrafficPolicy};

/// Says, as lines of text, what becomes of packets to `service` at `place`: whether the proxy called `proxy`
/// serves it, by which policy endpoints are chosen for which packets, and for each port and family every
/// endpoint with the reason why it serves or not. `slices` are those of the Service.
pub fn explain(service: &FullService, proxy: &str, place: &Place, slices: &[Arc<EndpointSlice>]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, service, proxy, place, slices);
    text
}

fn write(
    text: &mut String,
    service: &FullService,
    proxy: &str,
    place: &Place,
    slices: &[Arc<EndpointSlice>],
) -> fmt::Result {
    write!(text, "Service {}, seen from node {}", service.key, place.node)?;
    match &place.zone {
        Some(zone) => writeln!(text, " in zone {zone}")?,
        None => writeln!(text)?,
    }
    if let Some(reason) = passed_over(service, proxy) {
        return writeln!(text, "not served: {reason}");
    }
    let policies = Policies::of(service);
    for traffic in [Traffic::Internal, Traffic::External, Traffic::Inside] {
        if let Some(policy) = policies.to(traffic) {
            writeln!(text, "{traffic}: policy {policy}")?;
        }
    }
    for port in &service.ports {
        for family in service.settings.families.iter().copied() {
            let key = PortKey { name: &port.name, protocol: port.protocol, family };
            let name = if port.name.is_empty() { "without a name" } else { &port.name };
            writeln!(text, "port {name}, {} {}, {family}", port.protocol, port.port)?;
            write_selection(text, &select(key, place, slices), policies)?;
            write_slices(text, port, key, slices)?;
        }
    }
    Ok(())
}

fn write_selection(text: &mut String, selection: &Selection, policies: Policies) -> fmt::Result {
    let used =
        || [TrafficPolicy::Cluster, TrafficPolicy::Local].into_iter().filter(|policy| policies.uses(*policy));
    for policy in used() {
        let (serving, all) = (selection.serving(policy).count(), selection.endpoints.len());
        write!(text, "  policy {policy}: {serving} of {all} endpoints serve, {}", selection.fate(policy))?;
        match (policy, selection.topology) {
            (TrafficPolicy::Local, _) | (_, Topology::Anywhere) => writeln!(text)?,
            (_, Topology::SameNode) => writeln!(text, ", by hints for this node")?,
            (_, Topology::SameZone) => writeln!(text, ", by hints for this zone")?,
        }
    }
    for endpoint in &selection.endpoints {
        let place = if endpoint.local { "on this node" } else { "elsewhere" };
        writeln!(text, "  {}, {place}", SocketAddr::from((endpoint.address, endpoint.port)))?;
        for policy in used() {
            writeln!(text, "    {policy}: {}", endpoint.verdict(policy))?;
        }
    }
    Ok(())
}

/// The slices that could be thought to have endpoints for the port, and have not.
fn write_slices(
    text: &mut String,
    port: &FullServicePort,
    key: PortKey<'_>,
    slices: &[Arc<EndpointSlice>],
) -> fmt::Result {
    let mut useless: Vec<_> = slices
        .iter()
        .filter_map(|slice| match slice.address_type {
            AddressType::Fqdn => Some((&slice.key.name, "its endpoints are names")),
            AddressType::Ip(family) if family == key.family => {
                let mut ports = slice.ports.iter();
                match ports.find(|other| other.name == port.name && other.protocol == port.protocol) {
                    None => Some((&slice.key.name, "it does not have the port")),
                    Some(port) if port.port.is_none() => Some((&slice.key.name, "the port has no number")),
                    Some(_) => None,
                }
            }
            AddressType::Ip(_) => None,
        })
        .collect();
    useless.sort();
    useless.into_iter().try_for_each(|(name, reason)| writeln!(text, "  slice {name} not used: {reason}"))
}
