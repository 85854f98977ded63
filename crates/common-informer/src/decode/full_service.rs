//! core/v1 Service: all that a service proxy reads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::json::{self, Fault, as_object, element};
use super::node::network;
use super::pod::{created, protocol, remote_address};
use super::service::{cluster_ips, ingress, is_headless};
use super::{Notes, annotations, metadata};
use crate::intern::Interner;
use crate::object::{
    Family, FullService, FullServicePort, Kind, LoadBalancerIp, ServiceSettings, ServiceType, Str,
    TrafficPolicy, Uid,
};

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// K8S: `DefaultClientIPServiceAffinitySeconds` and `MaxClientIPServiceAffinitySeconds`.
const AFFINITY_SECONDS: u32 = 10_800;
const MAX_AFFINITY_SECONDS: u32 = 86_400;

pub(super) fn decode(
    value: &Value,
    keep_labels: bool,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Result<FullService, Fault> {
    let root = as_object(value)?;
    let metadata = metadata(Kind::Service, root, interner)?;
    let spec = json::object(root, "spec")?.ok_or_else(|| Fault::new("spec", "is missing"))?;
    let in_spec = |fault: Fault| fault.below("spec");
    let mut cluster = SmallVec::new();
    let headless = is_headless(spec).map_err(in_spec)?;
    if !headless {
        cluster_ips(spec, &mut cluster, notes);
    }
    let mut optional_text = |name, notes: &mut Notes| -> Option<Str> {
        let text = notes.or_default(json::text(spec, name).map_err(in_spec));
        text.filter(|text| !text.is_empty()).map(|text| interner.string(text))
    };
    let distribution = optional_text("trafficDistribution", notes);
    let class = optional_text("loadBalancerClass", notes);
    let publish_not_ready = json::boolean(spec, "publishNotReadyAddresses").map_err(in_spec);
    let health_check = json::port(spec, "healthCheckNodePort", true).map_err(in_spec);
    let allocate = json::optional_boolean(spec, "allocateLoadBalancerNodePorts").map_err(in_spec);
    let settings = ServiceSettings {
        service_type: service_type(spec).map_err(in_spec)?,
        headless,
        families: families(spec, &cluster, notes),
        requires_dual_stack: notes.or_default(requires_dual_stack(spec).map_err(in_spec)),
        external_ips: external_ips(spec, notes).into(),
        load_balancer_ips: load_balancer_ips(root, notes).into(),
        affinity_seconds: notes.or_default(affinity(spec).map_err(in_spec)),
        internal_policy: notes.or_default(policy(spec, "internalTrafficPolicy").map_err(in_spec)),
        external_policy: notes.or_default(policy(spec, "externalTrafficPolicy").map_err(in_spec)),
        distribution,
        publish_not_ready: notes.or_default(publish_not_ready),
        source_ranges: source_ranges(spec, notes),
        class,
        wanted_ip: notes.or_default(wanted_ip(spec).map_err(in_spec)),
        allocate_node_ports: notes.or_default(allocate).unwrap_or(true),
        annotations: annotations(metadata.fields, interner, notes),
        proxy_name: metadata.labels.get(PROXY_NAME_LABEL).cloned(),
        headless_label: metadata.labels.contains_key(HEADLESS_LABEL),
    };
    Ok(FullService {
        uid: notes.or_default(uid(metadata.fields).map_err(|fault| fault.below("metadata"))),
        created: notes.or_default(created(metadata.fields)),
        cluster_ips: cluster,
        ports: ports(spec, interner, notes).into(),
        health_check_node_port: notes.or_default(health_check),
        settings: interner.settings(settings),
        labels: interner.labels(if keep_labels { metadata.labels } else { BTreeMap::new() }),
        key: metadata.key,
    })
}

fn uid(metadata: &Map<String, Value>) -> Result<Option<Uid>, Fault> {
    match json::text(metadata, "uid")? {
        None | Some("") => Ok(None),
        Some(text) => Uid::parse(text)
            .map(Some)
            .ok_or_else(|| Fault::new("uid", format!("{text:?} is not a UUID in small letters"))),
    }
}

fn service_type(spec: &Map<String, Value>) -> Result<ServiceType, Fault> {
    match json::text(spec, "type")? {
        None | Some("" | "ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => Err(Fault::new("type", format!("{other:?} is no type of a Service"))),
    }
}

/// `ipFamilies`; the API server always sets them, in files the cluster IPs tell.
fn families(spec: &Map<String, Value>, cluster_ips: &[IpAddr], notes: &mut Notes) -> SmallVec<[Family; 2]> {
    let mut families = SmallVec::<[Family; 2]>::new();
    let list = notes.or_default(json::list(spec, "ipFamilies").map_err(|fault| fault.below("spec")));
    for (index, value) in list.iter().enumerate() {
        let family = json::as_text(value).and_then(|text| {
            Family::parse(text).ok_or_else(|| Fault::new("", format!("{text:?} is neither IPv4 nor IPv6")))
        });
        match family {
            Ok(family) if !families.contains(&family) => families.push(family),
            Ok(_) => {}
            Err(fault) => notes.add(&fault.below(&format!("spec.ipFamilies{}", element(index)))),
        }
    }
    if families.is_empty() {
        for family in cluster_ips.iter().copied().map(Family::of) {
            if !families.contains(&family) {
                families.push(family);
            }
        }
    }
    families
}

fn requires_dual_stack(spec: &Map<String, Value>) -> Result<bool, Fault> {
    match json::text(spec, "ipFamilyPolicy")? {
        None | Some("" | "SingleStack" | "PreferDualStack") => Ok(false),
        Some("RequireDualStack") => Ok(true),
        Some(other) => Err(Fault::new("ipFamilyPolicy", format!("{other:?} is no policy of IP families"))),
    }
}

fn external_ips(spec: &Map<String, Value>, notes: &mut Notes) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    let list = notes.or_default(json::list(spec, "externalIPs").map_err(|fault| fault.below("spec")));
    for (index, value) in list.iter().enumerate() {
        match json::as_text(value).and_then(remote_address) {
            Ok(ip) if !ips.contains(&ip) => ips.push(ip),
            Ok(_) => {}
            Err(fault) => notes.add(&fault.below(&format!("spec.externalIPs{}", element(index)))),
        }
    }
    ips
}

fn load_balancer_ips(root: &Map<String, Value>, notes: &mut Notes) -> Vec<LoadBalancerIp> {
    let mut ips = Vec::<LoadBalancerIp>::new();
    for (index, value) in notes.or_default(ingress(root)).iter().enumerate() {
        let ip = as_object(value).and_then(|fields| {
            let proxied = json::text(fields, "ipMode")? == Some("Proxy");
            match json::text(fields, "ip")? {
                None | Some("") => Ok(None),
                Some(text) => remote_address(text)
                    .map(|ip| Some(LoadBalancerIp { ip, proxied }))
                    .map_err(|fault| fault.below("ip")),
            }
        });
        match ip {
            Ok(Some(ip)) if ips.iter().all(|other| other.ip != ip.ip) => ips.push(ip),
            Ok(_) => {}
            Err(fault) => {
                notes.add(&fault.below(&format!("status.loadBalancer.ingress{}", element(index))));
            }
        }
    }
    ips
}

fn ports(spec: &Map<String, Value>, interner: &mut Interner, notes: &mut Notes) -> Vec<FullServicePort> {
    let mut ports = Vec::new();
    let list = notes.or_default(json::list(spec, "ports").map_err(|fault| fault.below("spec")));
    for (index, value) in list.iter().enumerate() {
        let port = as_object(value).and_then(|fields| {
            Ok(FullServicePort {
                name: interner.string(json::text(fields, "name")?.unwrap_or_default()),
                protocol: protocol(fields)?,
                port: json::port(fields, "port", false)?.ok_or_else(|| Fault::new("port", "is missing"))?,
                node_port: json::port(fields, "nodePort", true)?,
            })
        });
        match port {
            Ok(port) => ports.push(port),
            Err(fault) => notes.add(&fault.below(&format!("spec.ports{}", element(index)))),
        }
    }
    ports
}

fn affinity(spec: &Map<String, Value>) -> Result<Option<u32>, Fault> {
    match json::text(spec, "sessionAffinity")? {
        None | Some("" | "None") => Ok(None),
        Some("ClientIP") => {
            let below = |fault: Fault| fault.below("sessionAffinityConfig");
            let config = json::object(spec, "sessionAffinityConfig")?;
            let client = config.map(|config| json::object(config, "clientIP")).transpose().map_err(below)?;
            let seconds = client.flatten().map(|client| json::integer(client, "timeoutSeconds"));
            let path = "sessionAffinityConfig.clientIP";
            match seconds.transpose().map_err(|fault| fault.below(path))?.flatten() {
                None => Ok(Some(AFFINITY_SECONDS)),
                Some(seconds) => match u32::try_from(seconds) {
                    Ok(seconds @ 1..=MAX_AFFINITY_SECONDS) => Ok(Some(seconds)),
                    _ => Err(Fault::new(
                        format!("{path}.timeoutSeconds"),
                        format!("{seconds} is not from 1 to {MAX_AFFINITY_SECONDS}"),
                    )),
                },
            }
        }
        Some(other) => Err(Fault::new("sessionAffinity", format!("{other:?} is neither ClientIP nor None"))),
    }
}

fn policy(spec: &Map<String, Value>, name: &str) -> Result<TrafficPolicy, Fault> {
    match json::text(spec, name)? {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Fault::new(name, format!("{other:?} is neither Cluster nor Local"))),
    }
}

/// `loadBalancerSourceRanges`. Fails closed: what cannot be read lets nobody in.
fn source_ranges(spec: &Map<String, Value>, notes: &mut Notes) -> Option<Box<[IpNet]>> {
    let list = match json::list(spec, "loadBalancerSourceRanges") {
        Ok([]) => return None,
        Ok(list) => list,
        Err(fault) => {
            notes.add(&fault.below("spec"));
            return Some(Box::default());
        }
    };
    let mut ranges = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        // K8S: spaces around a range are allowed (ValidateLoadBalancerSourceRanges).
        match json::as_text(value).and_then(|text| network(text.trim())) {
            Ok(range) => ranges.push(range),
            Err(fault) => {
                notes.add(&fault.below(&format!("spec.loadBalancerSourceRanges{}", element(index))));
            }
        }
    }
    Some(ranges.into())
}

fn wanted_ip(spec: &Map<String, Value>) -> Result<Option<IpAddr>, Fault> {
    match json::text(spec, "loadBalancerIP")? {
        None | Some("") => Ok(None),
        Some(text) => remote_address(text).map(Some).map_err(|fault| fault.below("loadBalancerIP")),
    }
}
