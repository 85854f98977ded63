//! core/v1 Service: its addresses and ports.

use std::net::IpAddr;

use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::json::{self, Fault, as_object, element};
use super::pod::{address, protocol};
use super::{Notes, metadata};
use crate::intern::Interner;
use crate::object::{Kind, Service, ServicePort};

pub(super) fn decode(value: &Value, interner: &mut Interner, notes: &mut Notes) -> Result<Service, Fault> {
    let root = as_object(value)?;
    let key = metadata(Kind::Service, root, interner)?.key;
    let spec = json::object(root, "spec")?.ok_or_else(|| Fault::new("spec", "is missing"))?;
    let in_spec = |fault: Fault| fault.below("spec");
    if json::text(spec, "type").map_err(in_spec)? == Some("ExternalName")
        || is_headless(spec).map_err(in_spec)?
    {
        // A name in the DNS: it has no address here, whatever else the object says. kube-proxy skips it too
        // (pkg/proxy/util, ShouldSkipService).
        return Ok(Service { key, ips: SmallVec::new(), ports: Vec::new(), health_check_node_port: None });
    }
    let mut ips = SmallVec::new();
    cluster_ips(spec, &mut ips, notes);
    addresses(spec, "externalIPs", &mut ips, notes);
    ingress_ips(root, &mut ips, notes);
    let mut ports = Vec::new();
    for (index, value) in notes.or_default(json::list(spec, "ports").map_err(in_spec)).iter().enumerate() {
        match port(value) {
            Ok(port) => ports.push(port),
            Err(fault) => notes.add(&fault.below(&format!("spec.ports{}", element(index)))),
        }
    }
    let health_check = json::port(spec, "healthCheckNodePort", true).map_err(in_spec);
    Ok(Service { key, ips, ports, health_check_node_port: notes.or_default(health_check) })
}

pub(super) fn is_headless(spec: &Map<String, Value>) -> Result<bool, Fault> {
    let first = json::list(spec, "clusterIPs")?.first().and_then(Value::as_str);
    Ok(first == Some("None") || json::text(spec, "clusterIP")? == Some("None"))
}

/// `clusterIPs`, or `clusterIP` in objects from before there were two.
pub(super) fn cluster_ips(spec: &Map<String, Value>, ips: &mut SmallVec<[IpAddr; 2]>, notes: &mut Notes) {
    if json::field(spec, "clusterIPs").is_some() {
        addresses(spec, "clusterIPs", ips, notes);
    } else {
        let text = json::text(spec, "clusterIP").map(|text| text.unwrap_or_default());
        let text = notes.or_default(text.map_err(|fault| fault.below("spec")));
        add(text, "spec.clusterIP", ips, notes);
    }
}

fn addresses(spec: &Map<String, Value>, name: &str, ips: &mut SmallVec<[IpAddr; 2]>, notes: &mut Notes) {
    let list = json::list(spec, name).map_err(|fault| fault.below("spec"));
    for (index, value) in notes.or_default(list).iter().enumerate() {
        let path = format!("spec.{name}{}", element(index));
        let text = notes.or_default(json::as_text(value).map_err(|fault| fault.below(&path)));
        add(text, &path, ips, notes);
    }
}

/// `status.loadBalancer.ingress[].ip`, without those behind a proxy: packets to these leave the node as they
/// are (KEP-1860).
fn ingress_ips(root: &Map<String, Value>, ips: &mut SmallVec<[IpAddr; 2]>, notes: &mut Notes) {
    for (index, value) in notes.or_default(ingress(root)).iter().enumerate() {
        let path = format!("status.loadBalancer.ingress{}", element(index));
        let text = as_object(value).and_then(|ingress| {
            let proxied = json::text(ingress, "ipMode")? == Some("Proxy");
            Ok(if proxied { None } else { json::text(ingress, "ip")? })
        });
        let text = notes.or_default(text.map_err(|fault| fault.below(&path))).unwrap_or_default();
        add(text, &format!("{path}.ip"), ips, notes);
    }
}

/// `status.loadBalancer.ingress`
pub(super) fn ingress(root: &Map<String, Value>) -> Result<&[Value], Fault> {
    let Some(status) = json::object(root, "status")? else { return Ok(&[]) };
    let balancer = json::object(status, "loadBalancer").map_err(|fault| fault.below("status"))?;
    let Some(balancer) = balancer else { return Ok(&[]) };
    json::list(balancer, "ingress").map_err(|fault| fault.below("status.loadBalancer"))
}

fn add(text: &str, path: &str, ips: &mut SmallVec<[IpAddr; 2]>, notes: &mut Notes) {
    if text.is_empty() {
        return;
    }
    match address(text) {
        Ok(address) if !ips.contains(&address) => ips.push(address),
        Ok(_) => {}
        Err(fault) => notes.add(&fault.below(path)),
    }
}

fn port(value: &Value) -> Result<ServicePort, Fault> {
    let fields = as_object(value)?;
    Ok(ServicePort {
        protocol: protocol(fields)?,
        port: json::port(fields, "port", false)?.ok_or_else(|| Fault::new("port", "is missing"))?,
        node_port: json::port(fields, "nodePort", true)?,
    })
}
