//! discovery.k8s.io/v1 EndpointSlice.
//!
//! An endpoint that cannot be read costs itself: it serves nobody. Its node and its hints cost only themselves:
//! without a node it is on no node, without hints the Service is spread over all endpoints, as the API has it
//! for endpoints that say nothing.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::json::{self, Fault, as_object, element};
use super::pod::{protocol, remote_address};
use super::{Notes, metadata};
use crate::intern::Interner;
use crate::object::{
    AddressType, Endpoint, EndpointPort, EndpointSlice, Endpoints, Family, Hints, Kind, Str,
};

/// Label with the name of the Service that a slice is made for.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn decode(
    value: &Value,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Result<EndpointSlice, Fault> {
    let root = as_object(value)?;
    let metadata = metadata(Kind::EndpointSlice, root, interner)?;
    let address_type = address_type(root)?;
    let ports = ports(root, interner, notes);
    let endpoints = match address_type {
        AddressType::Ip(family) => endpoints(root, family, interner, notes),
        AddressType::Fqdn => Endpoints::default(),
    };
    Ok(EndpointSlice {
        service: metadata.labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty()).cloned(),
        key: metadata.key,
        address_type,
        ports: interner.endpoint_ports(&ports),
        endpoints,
    })
}

fn address_type(root: &Map<String, Value>) -> Result<AddressType, Fault> {
    match json::text(root, "addressType")? {
        None => Err(Fault::new("addressType", "is missing")),
        Some("FQDN") => Ok(AddressType::Fqdn),
        Some(text) => Family::parse(text)
            .map(AddressType::Ip)
            .ok_or_else(|| Fault::new("addressType", format!("{text:?} is none of IPv4, IPv6 and FQDN"))),
    }
}

fn ports(root: &Map<String, Value>, interner: &mut Interner, notes: &mut Notes) -> Vec<EndpointPort> {
    let mut ports = Vec::new();
    for (index, value) in notes.or_default(json::list(root, "ports")).iter().enumerate() {
        let port = as_object(value).and_then(|fields| {
            Ok(EndpointPort {
                name: interner.string(json::text(fields, "name")?.unwrap_or_default()),
                protocol: protocol(fields)?,
                // K8S: 0 is what Go makes of a port that was left out by old writers.
                port: json::port(fields, "port", true)?,
            })
        });
        match port {
            Ok(port) => ports.push(port),
            Err(fault) => notes.add(&fault.below(&format!("ports{}", element(index)))),
        }
    }
    ports
}

fn endpoints(
    root: &Map<String, Value>,
    family: Family,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Endpoints {
    let list = notes.or_default(json::list(root, "endpoints"));
    let mut endpoints = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let path = || format!("endpoints{}", element(index));
        match as_object(value).and_then(|fields| endpoint(fields, family)) {
            Ok(endpoint) => {
                // It is an object, or there would be no endpoint.
                let empty = Map::new();
                let fields = value.as_object().unwrap_or(&empty);
                let node = json::text(fields, "nodeName").map_err(|fault| fault.below(&path()));
                let node = notes.or_default(node).filter(|node| !node.is_empty());
                let hints = hints(fields, interner).map_err(|fault| fault.below(&path()));
                let node = node.map(|node| interner.string(node));
                endpoints.push(Endpoint { node, hints: notes.or_default(hints), ..endpoint });
            }
            Err(fault) => notes.add(&fault.below(&path())),
        }
    }
    Endpoints::interned(&endpoints, interner)
}

/// An endpoint without its node and hints.
fn endpoint(fields: &Map<String, Value>, family: Family) -> Result<Endpoint, Fault> {
    let address = address(fields, family)?;
    let empty = Map::new();
    let conditions = json::object(fields, "conditions")?.unwrap_or(&empty);
    let condition = |name, default| {
        json::optional_boolean(conditions, name)
            .map(|value| value.unwrap_or(default))
            .map_err(|fault| fault.below("conditions"))
    };
    Ok(Endpoint {
        address,
        // K8S: "A nil value should be interpreted as true", for terminating as false (EndpointConditions).
        ready: condition("ready", true)?,
        serving: condition("serving", true)?,
        terminating: condition("terminating", false)?,
        node: None,
        hints: None,
    })
}

/// The first address: "no semantics are defined for additional addresses" (Endpoint).
fn address(fields: &Map<String, Value>, family: Family) -> Result<IpAddr, Fault> {
    let value = json::list(fields, "addresses")?.first();
    let value = value.ok_or_else(|| Fault::new("addresses", "there is none"))?;
    let address = json::as_text(value).and_then(remote_address).and_then(|address| {
        if Family::of(address) == family {
            Ok(address)
        } else {
            Err(Fault::new("", format!("{address} is not an {family} address")))
        }
    });
    address.map_err(|fault| fault.below(&format!("addresses{}", element(0))))
}

fn hints(fields: &Map<String, Value>, interner: &mut Interner) -> Result<Option<Arc<Hints>>, Fault> {
    let Some(hints) = json::object(fields, "hints")? else { return Ok(None) };
    let mut names = |list: &str| -> Result<Box<[Str]>, Fault> {
        let name = |(index, value)| {
            as_object(value)
                .and_then(|fields| json::text(fields, "name"))
                .map(|name| interner.string(name.unwrap_or_default()))
                .map_err(|fault| fault.below(&format!("hints.{list}{}", element(index))))
        };
        json::list(hints, list).map_err(|fault| fault.below("hints"))?.iter().enumerate().map(name).collect()
    };
    let hints = Hints { zones: names("forZones")?, nodes: names("forNodes")? };
    Ok((hints != Hints::default()).then(|| interner.hints(hints)))
}
