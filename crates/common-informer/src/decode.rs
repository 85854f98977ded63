//! From the JSON of an object to its projection.
//!
//! Objects from files are read as the API server would have stored them: its defaults are applied here
//! (`policyTypes`, `protocol`, `kubernetes.io/metadata.name`, …; `pkg/apis/*/v1/defaults.go` in kubernetes).
//!
//! Reading is tolerant, as narrowly as is safe:
//! - a value that can be left out without changing what the rest means (one address, one port) is left out,
//!   and a note says so;
//! - a rule of a policy that has the wrong shape becomes [`RuleSpec::Malformed`](crate::object::RuleSpec);
//! - an object whose identity, labels or kind of subject cannot be known is [`Excluded`].

mod full_service;
mod json;
mod node;
mod pod;
mod policy;
mod service;
#[cfg(test)]
pub(crate) mod service_tests;
mod slice;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::intern::Interner;
use crate::object::{ANNOTATIONS, Kind, Labels, Namespace, Object, ObjectKey, ObjectRef, Str};
use json::{Fault, as_object};

/// An object, and what of it was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The projection.
    pub object: Object,
    /// Field path and reason of each value that could not be read and is missing from the projection.
    pub notes: Vec<String>,
}

/// An object that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {reason}")]
pub struct Excluded {
    /// Which object; the name is empty if it has none that is usable.
    pub object: ObjectRef,
    /// Field path and reason, for people.
    pub reason: String,
}

/// How much of a Service is kept. A program keeps what it reads; the rest would only take up memory, and
/// wake it when it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceDetail {
    /// Which packets go to a service: [`Object::Service`].
    #[default]
    Addresses,
    /// What a service proxy needs: [`Object::FullService`].
    Full,
    /// [`Object::FullService`] with its labels.
    Labelled,
}

/// Label that the API server puts on every namespace.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The annotation that isolated a namespace before NetworkPolicy had a `spec` for it.
const NETWORK_POLICY_ANNOTATION: &str = "net.beta.kubernetes.io/network-policy";
/// What the API server fills in for a namespaced object without a namespace when a client does not.
const DEFAULT_NAMESPACE: &str = "default";

/// [`object_with`] only the addresses of Services.
///
/// # Errors
/// The object is of a watched kind and cannot be read.
pub fn object(value: &Value, interner: &mut Interner) -> Result<Option<Decoded>, Excluded> {
    object_with(ServiceDetail::Addresses, value, interner)
}

/// Reads one object with its `apiVersion` and `kind`; `None` if it is of a kind that is never watched.
///
/// # Errors
/// The object is of a watched kind and cannot be read.
pub fn object_with(
    detail: ServiceDetail,
    value: &Value,
    interner: &mut Interner,
) -> Result<Option<Decoded>, Excluded> {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    match Kind::of(api_version, kind) {
        Some(kind) => object_of_with(detail, kind, value, interner).map(Some),
        // Other groups have kinds of the same name; these are the same thing, and to pass over a policy
        // silently would leave pods open.
        None if kind == "NetworkPolicy" && api_version.starts_with("extensions/") => Err(Excluded {
            object: ObjectRef {
                kind: Kind::NetworkPolicy,
                key: key_of(Kind::NetworkPolicy, value, interner),
            },
            reason: format!("apiVersion: {api_version} is no longer served, use networking.k8s.io/v1"),
        }),
        None => Ok(None),
    }
}

/// [`object_of_with`] only the addresses of Services.
///
/// # Errors
/// The object cannot be read.
pub fn object_of(kind: Kind, value: &Value, interner: &mut Interner) -> Result<Decoded, Excluded> {
    object_of_with(ServiceDetail::Addresses, kind, value, interner)
}

/// Reads one object that is known to be of `kind`, as the items of a list are.
///
/// # Errors
/// The object cannot be read.
pub fn object_of_with(
    detail: ServiceDetail,
    kind: Kind,
    value: &Value,
    interner: &mut Interner,
) -> Result<Decoded, Excluded> {
    let mut notes = Notes::default();
    let decoded = match kind {
        Kind::Pod => pod::decode(value, interner, &mut notes).map(Arc::new).map(Object::Pod),
        Kind::Namespace => namespace(value, interner).map(Arc::new).map(Object::Namespace),
        Kind::NetworkPolicy => {
            policy::decode(value, interner, &mut notes).map(Arc::new).map(Object::NetworkPolicy)
        }
        Kind::Service => match detail {
            ServiceDetail::Addresses => {
                service::decode(value, interner, &mut notes).map(Arc::new).map(Object::Service)
            }
            ServiceDetail::Full | ServiceDetail::Labelled => {
                let labels = detail == ServiceDetail::Labelled;
                full_service::decode(value, labels, interner, &mut notes)
                    .map(Arc::new)
                    .map(Object::FullService)
            }
        },
        Kind::EndpointSlice => {
            slice::decode(value, interner, &mut notes).map(Arc::new).map(Object::EndpointSlice)
        }
        Kind::Node => node::decode(value, interner, &mut notes).map(Arc::new).map(Object::Node),
    };
    match decoded {
        Ok(object) => Ok(Decoded { object, notes: notes.0 }),
        Err(fault) => Err(Excluded {
            object: ObjectRef { kind, key: key_of(kind, value, interner) },
            reason: fault.to_string(),
        }),
    }
}

/// Namespace and name of an object of `kind`, as far as they can be read: parts that cannot be are empty.
pub fn key_of(kind: Kind, value: &Value, interner: &mut Interner) -> ObjectKey {
    let metadata = value.get("metadata");
    let text = |field| metadata.and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
    let namespace =
        if kind.is_cluster_scoped() { "" } else { text("namespace").unwrap_or(DEFAULT_NAMESPACE) };
    ObjectKey {
        namespace: interner.string(namespace),
        name: text("name").filter(|name| is_name(name)).unwrap_or_default().into(),
    }
}

/// What was left out of an object.
#[derive(Default)]
struct Notes(Vec<String>);

/// Notes kept of one object. More of them would tell nothing new.
const MAX_NOTES: usize = 16;

impl Notes {
    fn add(&mut self, fault: &Fault) {
        if self.0.len() < MAX_NOTES {
            self.0.push(fault.to_string());
        }
    }

    /// The value, or its default and a note.
    fn or_default<T: Default>(&mut self, result: Result<T, Fault>) -> T {
        result.unwrap_or_else(|fault| {
            self.add(&fault);
            T::default()
        })
    }
}

/// `metadata`, read.
struct Metadata<'a> {
    key: ObjectKey,
    labels: BTreeMap<Str, Str>,
    fields: &'a Map<String, Value>,
}

fn metadata<'a>(
    kind: Kind,
    root: &'a Map<String, Value>,
    interner: &mut Interner,
) -> Result<Metadata<'a>, Fault> {
    let read = |interner: &mut Interner| {
        let fields = json::object(root, "metadata")?.ok_or_else(|| Fault::new("metadata", "is missing"))?;
        let within = |fault: Fault| fault.below("metadata");
        let name = json::text(fields, "name").map_err(within)?.unwrap_or_default();
        if !is_name(name) {
            return Err(Fault::new("metadata.name", format!("{name:?} is not a name")));
        }
        let namespace = match (kind, json::text(fields, "namespace").map_err(within)?) {
            (kind, _) if kind.is_cluster_scoped() => "",
            (_, None | Some("")) => DEFAULT_NAMESPACE,
            (_, Some(namespace)) if is_name(namespace) => namespace,
            (_, Some(namespace)) => {
                return Err(Fault::new("metadata.namespace", format!("{namespace:?} is not a name")));
            }
        };
        let labels = json::string_map(fields, "labels", interner).map_err(within)?;
        // Names are mostly unique, so to intern them would only cost the pool's entry; but slices name their Services.
        let name = if kind == Kind::Service { interner.string(name) } else { name.into() };
        let key = ObjectKey { namespace: interner.string(namespace), name };
        Ok(Metadata { key, labels, fields })
    };
    read(interner)
}

/// Annotations whose name begins with [`ANNOTATIONS`], interned as a whole. Each that cannot be read is left
/// out.
fn annotations(metadata: &Map<String, Value>, interner: &mut Interner, notes: &mut Notes) -> Labels {
    let mut ours = BTreeMap::new();
    let all = json::object(metadata, "annotations").map_err(|fault| fault.below("metadata"));
    let all = notes.or_default(all).into_iter().flatten();
    for (name, value) in all.filter(|(name, value)| name.starts_with(ANNOTATIONS) && !value.is_null()) {
        match json::as_text(value) {
            Ok(text) => {
                ours.insert(interner.string(name), interner.string(text));
            }
            Err(fault) => notes.add(&fault.below(&format!("metadata.annotations[{name}]"))),
        }
    }
    interner.labels(ours)
}

/// Whether a name can stand in a path of the API (`IsValidPathSegmentName` in apimachinery). The name rules
/// of each kind are narrower; an object that breaks only those can still be told from others.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 253 && !name.contains(['/', '%'])
}

fn namespace(value: &Value, interner: &mut Interner) -> Result<Namespace, Fault> {
    let mut metadata = metadata(Kind::Namespace, as_object(value)?, interner)?;
    let name = metadata.key.name;
    metadata.labels.insert(interner.string(NAMESPACE_NAME_LABEL), interner.string(&name));
    let network_policy_annotation = json::object(metadata.fields, "annotations")
        .and_then(|annotations| match annotations {
            Some(annotations) => {
                json::text(annotations, NETWORK_POLICY_ANNOTATION).map_err(|fault| fault.below("annotations"))
            }
            None => Ok(None),
        })
        .map_err(|fault| fault.below("metadata"))?
        .map(|text| interner.string(text));
    Ok(Namespace { name, labels: interner.labels(metadata.labels), network_policy_annotation })
}
