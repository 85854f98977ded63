//! core/v1 Node.

use ipnet::IpNet;
use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::json::{self, Fault, as_object, element};
use super::pod::address;
use super::{Notes, annotations, metadata};
use crate::intern::Interner;
use crate::object::{Kind, Node, NodeAddress, NodeAddressKind};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const NETWORK_CONDITION: &str = "NetworkUnavailable";
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub(super) fn decode(value: &Value, interner: &mut Interner, notes: &mut Notes) -> Result<Node, Fault> {
    let root = as_object(value)?;
    let metadata = metadata(Kind::Node, root, interner)?;
    // Files may have a node only for its zone.
    let empty = Map::new();
    let spec = notes.or_default(json::object(root, "spec")).unwrap_or(&empty);
    let status = notes.or_default(json::object(root, "status")).unwrap_or(&empty);
    let addresses = addresses(status, notes);
    let (pod_cidrs, pod_cidrs_in_part) = pod_cidrs(spec, notes);
    Ok(Node {
        name: metadata.key.name,
        zone: metadata.labels.get(ZONE_LABEL).filter(|zone| !zone.is_empty()).cloned(),
        excluded_from_load_balancers: metadata.labels.contains_key(EXCLUDED_LABEL),
        leaving: metadata.fields.contains_key("deletionTimestamp") || is_tainted(spec, LEAVING_TAINT),
        addresses,
        pod_cidrs,
        pod_cidrs_in_part,
        network_unavailable: network_unavailable(status),
        annotations: annotations(metadata.fields, interner, notes),
    })
}

fn is_tainted(spec: &Map<String, Value>, key: &str) -> bool {
    let taints = spec.get("taints").and_then(Value::as_array).into_iter().flatten();
    taints.filter_map(|taint| taint.get("key")).any(|found| found == key)
}

/// Nobody's business but of who sets it: a list of another shape is passed over without a note.
fn network_unavailable(status: &Map<String, Value>) -> Option<bool> {
    let conditions = status.get("conditions")?.as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition.get("type").is_some_and(|found| found == NETWORK_CONDITION))?;
    Some(found.get("status").is_none_or(|status| status != "False"))
}

fn addresses(status: &Map<String, Value>, notes: &mut Notes) -> Vec<NodeAddress> {
    let mut addresses = Vec::new();
    let list = notes.or_default(json::list(status, "addresses").map_err(|fault| fault.below("status")));
    for (index, value) in list.iter().enumerate() {
        match as_object(value).and_then(node_address) {
            Ok(Some(address)) if !addresses.contains(&address) => addresses.push(address),
            Ok(_) => {}
            Err(fault) => notes.add(&fault.below(&format!("status.addresses{}", element(index)))),
        }
    }
    addresses
}

/// `None` for host names.
fn node_address(fields: &Map<String, Value>) -> Result<Option<NodeAddress>, Fault> {
    let kind = match json::text(fields, "type")? {
        Some("InternalIP") => NodeAddressKind::Internal,
        Some("ExternalIP") => NodeAddressKind::External,
        _ => return Ok(None),
    };
    let text = json::text(fields, "address")?.unwrap_or_default();
    let ip = address(text).map_err(|fault| fault.below("address"))?;
    Ok(Some(NodeAddress { kind, ip }))
}

/// `podCIDRs`, or `podCIDR` in objects from before there were two; and whether something could not be read.
fn pod_cidrs(spec: &Map<String, Value>, notes: &mut Notes) -> (SmallVec<[IpNet; 2]>, bool) {
    let mut cidrs = SmallVec::new();
    let mut in_part = false;
    let mut add = |text: Result<&str, Fault>, path: &str| match text
        .and_then(|text| if text.is_empty() { Ok(None) } else { network(text).map(Some) })
    {
        Ok(Some(cidr)) if !cidrs.contains(&cidr) => cidrs.push(cidr),
        Ok(_) => {}
        Err(fault) => {
            in_part = true;
            notes.add(&fault.below(path));
        }
    };
    let list = json::list(spec, "podCIDRs").unwrap_or_else(|fault| {
        add(Err(fault), "spec");
        &[]
    });
    for (index, value) in list.iter().enumerate() {
        add(json::as_text(value), &format!("spec.podCIDRs{}", element(index)));
    }
    if list.is_empty() {
        match json::text(spec, "podCIDR") {
            Ok(text) => add(Ok(text.unwrap_or_default()), "spec.podCIDR"),
            Err(fault) => add(Err(fault), "spec"),
        }
    }
    (cidrs, in_part)
}

/// A network with its host bits cleared, as Go's `net.ParseCIDR` gives it.
pub(super) fn network(text: &str) -> Result<IpNet, Fault> {
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .map_err(|_| Fault::new("", format!("{text:?} is not a network, such as 10.0.0.0/8")))
}
