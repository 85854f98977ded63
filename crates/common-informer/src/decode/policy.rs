//! networking.k8s.io/v1 NetworkPolicy.
//!
//! Every mistake fails closed: a rule that cannot be read allows nothing, `policyTypes` that cannot be read
//! isolate both directions. Only if it cannot be known whom the policy selects is the object excluded.

use serde_json::{Map, Value};

use super::json::{self, Fault, as_object, element};
use super::{Notes, metadata};
use crate::intern::Interner;
use crate::object::{
    IpBlock, Kind, LabelSelector, LabelSelectorRequirement, NetworkPolicy, PolicyPeer, PolicyPort,
    PolicyRule, PortRef, RuleSpec,
};

pub(super) fn decode(
    value: &Value,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Result<NetworkPolicy, Fault> {
    let root = as_object(value)?;
    let key = metadata(Kind::NetworkPolicy, root, interner)?.key;
    // K8S: `spec` and `podSelector` may be absent; the zero value selects every pod of the namespace.
    let empty = Map::new();
    let spec = json::object(root, "spec")?.unwrap_or(&empty);
    let pod_selector =
        selector(spec, "podSelector", interner).map_err(|fault| fault.below("spec"))?.unwrap_or_default();
    let ingress = rules(spec, "ingress", "from", interner);
    let egress = rules(spec, "egress", "to", interner);
    let (isolates_ingress, isolates_egress) = match policy_types(spec, notes) {
        Ok(Some(types)) => types,
        Ok(None) => (true, !egress.is_empty()),
        Err(fault) => {
            notes.add(&fault.below("spec"));
            (true, true)
        }
    };
    Ok(NetworkPolicy { key, pod_selector, isolates_ingress, isolates_egress, ingress, egress })
}

/// Whether `policyTypes` has `Ingress` and `Egress`; `None` if it is absent or empty.
fn policy_types(spec: &Map<String, Value>, notes: &mut Notes) -> Result<Option<(bool, bool)>, Fault> {
    let list = json::list(spec, "policyTypes")?;
    let mut types = (false, false);
    for (index, value) in list.iter().enumerate() {
        let path = format!("policyTypes{}", element(index));
        match json::as_text(value).map_err(|fault| fault.below(&path))? {
            "Ingress" => types.0 = true,
            "Egress" => types.1 = true,
            other => {
                let reason = format!("{other:?} is neither Ingress nor Egress; both are isolated");
                notes.add(&Fault::new(path, reason).below("spec"));
                return Ok(Some((true, true)));
            }
        }
    }
    Ok((!list.is_empty()).then_some(types))
}

fn rules(
    spec: &Map<String, Value>,
    direction: &str,
    peers: &'static str,
    interner: &mut Interner,
) -> Vec<RuleSpec> {
    let list = match json::list(spec, direction) {
        Ok(list) => list,
        Err(fault) => return vec![RuleSpec::Malformed(fault.to_string())],
    };
    let read = |(index, value): (usize, &Value)| match rule(value, peers, interner) {
        Ok(rule) => RuleSpec::Rule(rule),
        Err(fault) => RuleSpec::Malformed(fault.below(&format!("{direction}{}", element(index))).to_string()),
    };
    list.iter().enumerate().map(read).collect()
}

fn rule(value: &Value, peers: &'static str, interner: &mut Interner) -> Result<PolicyRule, Fault> {
    // A `null` rule would be `{}` to the API server and allow everything. Here it is most likely an
    // unfinished line of a file, so it is a mistake.
    let fields = as_object(value)?;
    Ok(PolicyRule {
        peers: elements(fields, peers, |value| peer(value, interner))?,
        ports: elements(fields, "ports", |value| port(value, interner))?,
    })
}

/// Reads each element of a list; absent is empty.
fn elements<T>(
    fields: &Map<String, Value>,
    name: &str,
    mut read: impl FnMut(&Value) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let read =
        |(index, value)| read(value).map_err(|fault| fault.below(&format!("{name}{}", element(index))));
    json::list(fields, name)?.iter().enumerate().map(read).collect()
}

fn peer(value: &Value, interner: &mut Interner) -> Result<PolicyPeer, Fault> {
    let fields = as_object(value)?;
    let ip_block = match json::object(fields, "ipBlock")? {
        None => None,
        Some(block) => {
            let below = |fault: Fault| fault.below("ipBlock");
            Some(IpBlock {
                cidr: json::text(block, "cidr").map_err(below)?.unwrap_or_default().to_owned(),
                except: elements(block, "except", |value| json::as_text(value).map(str::to_owned))
                    .map_err(below)?,
            })
        }
    };
    Ok(PolicyPeer {
        pod_selector: selector(fields, "podSelector", interner)?,
        namespace_selector: selector(fields, "namespaceSelector", interner)?,
        ip_block,
    })
}

fn port(value: &Value, interner: &mut Interner) -> Result<PolicyPort, Fault> {
    let fields = as_object(value)?;
    let port = match json::field(fields, "port") {
        None => None,
        Some(Value::String(name)) => Some(PortRef::Name(interner.string(name))),
        Some(_) => json::integer(fields, "port")?.map(PortRef::Number),
    };
    Ok(PolicyPort {
        protocol: interner.string(json::text(fields, "protocol")?.unwrap_or("TCP")),
        port,
        end_port: json::integer(fields, "endPort")?,
    })
}

/// A field that is a label selector. Its operators and values are not judged here.
fn selector(
    parent: &Map<String, Value>,
    name: &str,
    interner: &mut Interner,
) -> Result<Option<LabelSelector>, Fault> {
    let Some(fields) = json::object(parent, name)? else { return Ok(None) };
    let below = |fault: Fault| fault.below(name);
    Ok(Some(LabelSelector {
        match_labels: json::string_map(fields, "matchLabels", interner).map_err(below)?,
        match_expressions: elements(fields, "matchExpressions", |value| {
            let fields = as_object(value)?;
            Ok(LabelSelectorRequirement {
                key: interner.string(json::text(fields, "key")?.unwrap_or_default()),
                operator: interner.string(json::text(fields, "operator")?.unwrap_or_default()),
                values: elements(fields, "values", |value| {
                    json::as_text(value).map(|text| interner.string(text))
                })?,
            })
        })
        .map_err(below)?,
    }))
}
