//! core/v1 Pod.

use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::json::{self, Fault, as_object, element};
use super::{Notes, metadata};
use crate::intern::Interner;
use crate::object::{Kind, NamedPort, Pod, Protocol};

pub(super) fn decode(value: &Value, interner: &mut Interner, notes: &mut Notes) -> Result<Pod, Fault> {
    let root = as_object(value)?;
    let metadata = metadata(Kind::Pod, root, interner)?;
    let spec = json::object(root, "spec")?.ok_or_else(|| Fault::new("spec", "is missing"))?;
    let in_spec = |fault: Fault| fault.below("spec");
    let node = json::text(spec, "nodeName").map_err(in_spec)?.filter(|node| !node.is_empty());
    let host_network = json::boolean(spec, "hostNetwork").map_err(in_spec)?;
    // The API server leaves a new pod's status empty; files have none.
    let empty = Map::new();
    let status = notes.or_default(json::object(root, "status")).unwrap_or(&empty);
    let phase = json::text(status, "phase").map_err(|fault| fault.below("status"));
    let ports = named_ports(spec, interner, notes);
    Ok(Pod {
        created: notes.or_default(created(metadata.fields)),
        ips: addresses(status, notes),
        node: node.map(|node| interner.string(node)),
        host_network,
        finished: matches!(notes.or_default(phase), Some("Succeeded" | "Failed")),
        ports: interner.ports(&ports),
        labels: interner.labels(metadata.labels),
        key: metadata.key,
    })
}

/// `metadata.creationTimestamp` in seconds since 1970; 0 when absent.
pub(super) fn created(metadata: &Map<String, Value>) -> Result<i64, Fault> {
    let path = "creationTimestamp";
    json::text(metadata, path)
        .and_then(|text| match text {
            None => Ok(0),
            Some(text) => Timestamp::from_str(text)
                .map(Timestamp::as_second)
                .map_err(|_| Fault::new(path, format!("{text:?} is not a time of RFC 3339"))),
        })
        .map_err(|fault| fault.below("metadata"))
}

/// `status.podIPs`, or `status.podIP` where it is missing: the first address of each family.
fn addresses(status: &Map<String, Value>, notes: &mut Notes) -> SmallVec<[IpAddr; 2]> {
    let mut addresses = SmallVec::<[IpAddr; 2]>::new();
    let mut add = |result: Result<Option<IpAddr>, Fault>, path: &str, notes: &mut Notes| match result {
        Ok(Some(address)) if addresses.iter().all(|other| other.is_ipv4() != address.is_ipv4()) => {
            addresses.push(address);
        }
        Ok(_) => {}
        Err(fault) => notes.add(&fault.below(path)),
    };
    let list = notes.or_default(json::list(status, "podIPs").map_err(|fault| fault.below("status")));
    for (index, item) in list.iter().enumerate() {
        let address = as_object(item).and_then(|item| optional_address(item, "ip"));
        add(address, &format!("status.podIPs{}", element(index)), notes);
    }
    if list.is_empty() {
        add(optional_address(status, "podIP"), "status", notes);
    }
    addresses
}

fn optional_address(fields: &Map<String, Value>, name: &str) -> Result<Option<IpAddr>, Fault> {
    match json::text(fields, name)? {
        None | Some("") => Ok(None),
        Some(text) => address(text).map(Some).map_err(|fault| fault.below(name)),
    }
}

/// An address that a pod or a service can have.
pub(super) fn address(text: &str) -> Result<IpAddr, Fault> {
    match IpAddr::from_str(text) {
        // `::ffff:10.0.0.1` is 10.0.0.1 to Go, and on the wire.
        Ok(address) if !address.is_unspecified() => Ok(address.to_canonical()),
        _ => Err(Fault::new("", format!("{text:?} is not an address"))),
    }
}

/// An address that packets can be sent to from another machine, as the API server asks of endpoints and
/// external addresses (`ValidateNonSpecialIP` in `pkg/apis/core/validation`): whoever may write Services must
/// not reach a node's own loopback or link-local services through them.
pub(super) fn remote_address(text: &str) -> Result<IpAddr, Fault> {
    let address = address(text)?;
    let (loopback, link_local) = match address {
        IpAddr::V4(v4) => (v4.is_loopback(), v4.is_link_local() || v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_loopback(), v6.is_unicast_link_local() || v6.segments()[0] == 0xff02),
    };
    match (loopback, link_local) {
        (false, false) => Ok(address),
        (true, _) => Err(Fault::new("", format!("{address} is a loopback address"))),
        (_, true) => Err(Fault::new("", format!("{address} is a link-local address"))),
    }
}

/// Named ports of containers, then of sidecars: init containers that go on running beside the containers
/// (`restartPolicy: Always`, KEP-753).
fn named_ports(spec: &Map<String, Value>, interner: &mut Interner, notes: &mut Notes) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for (list_name, sidecars_only) in [("containers", false), ("initContainers", true)] {
        let in_spec = |fault: Fault| fault.below("spec");
        let containers = notes.or_default(json::list(spec, list_name).map_err(in_spec));
        for (index, container) in containers.iter().enumerate() {
            let path = format!("spec.{list_name}{}", element(index));
            let list = as_object(container).and_then(|container| {
                let sidecar = container.get("restartPolicy").and_then(Value::as_str) == Some("Always");
                if sidecars_only && !sidecar { Ok(&[][..]) } else { json::list(container, "ports") }
            });
            let list = notes.or_default(list.map_err(|fault| fault.below(&path)));
            for (index, port) in list.iter().enumerate() {
                let port = named_port(port, interner)
                    .map_err(|fault| fault.below(&format!("{path}.ports{}", element(index))));
                if let Some(port) = notes.or_default(port)
                    && !ports.contains(&port)
                {
                    ports.push(port);
                }
            }
        }
    }
    ports
}

/// A port that has a name.
fn named_port(value: &Value, interner: &mut Interner) -> Result<Option<NamedPort>, Fault> {
    let fields = as_object(value)?;
    let Some(name) = json::text(fields, "name")?.filter(|name| !name.is_empty()) else { return Ok(None) };
    let port = json::port(fields, "containerPort", false)?
        .ok_or_else(|| Fault::new("containerPort", "is missing"))?;
    Ok(Some(NamedPort { name: interner.string(name), protocol: protocol(fields)?, port }))
}

/// `protocol`, TCP by default.
pub(super) fn protocol(fields: &Map<String, Value>) -> Result<Protocol, Fault> {
    let text = json::text(fields, "protocol")?.filter(|text| !text.is_empty()).unwrap_or("TCP");
    Protocol::parse(text)
        .ok_or_else(|| Fault::new("protocol", format!("{text:?} is none of TCP, UDP and SCTP")))
}
