//! An object of the API reduced, while it is read, to the fields that are read here.
//!
//! A pod is 5 to 20 kB of JSON, most of it `managedFields`, environment, volumes and conditions. What
//! [`decode`](crate::decode) looks at is 1 kB. Nothing else is ever stored, and no shape is ever refused:
//! one object that is not as it should be must not end a list of thousands.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DynamicResourceScope;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::object::Kind;

/// The fields of an object that are read here.
#[derive(Clone, Debug)]
pub(super) struct Trimmed {
    /// As much of the object as [`FIELDS`] names.
    pub(super) value: Value,
    /// Only `resourceVersion`, which kube's watcher asks for.
    meta: ObjectMeta,
}

/// What to keep of a value. Lists are looked through: it holds for their elements.
enum Keep {
    /// All of it.
    All,
    /// Of an object these fields; of anything else all, so that it can be reported.
    Fields(&'static [(&'static str, Keep)]),
}

use Keep::{All, Fields};

/// The fields that any of the kinds needs; kinds have no field in common that only one of them reads and
/// that is large.
static FIELDS: Keep = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", All),
            ("namespace", All),
            ("resourceVersion", All),
            ("creationTimestamp", All),
            ("labels", All),
            ("annotations", Fields(&[("net.beta.kubernetes.io/network-policy", All)])),
        ]),
    ),
    (
        "spec",
        Fields(&[
            // Pod
            ("nodeName", All),
            ("hostNetwork", All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
            // NetworkPolicy
            ("podSelector", All),
            ("policyTypes", All),
            ("ingress", All),
            ("egress", All),
            // Service
            ("type", All),
            ("clusterIP", All),
            ("clusterIPs", All),
            ("externalIPs", All),
            ("ports", All),
            ("healthCheckNodePort", All),
        ]),
    ),
    (
        "status",
        Fields(&[
            // Pod
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
            // Service
            ("loadBalancer", All),
        ]),
    ),
]);

const CONTAINER: Keep = Fields(&[("ports", All), ("restartPolicy", All)]);

impl Resource for Trimmed {
    type DynamicType = Kind;
    type Scope = DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        kind.to_string().into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::NetworkPolicy => "networking.k8s.io".into(),
            Kind::Pod | Kind::Namespace | Kind::Service => "".into(),
        }
    }

    fn version(_: &Kind) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        match kind {
            Kind::Pod => "pods",
            Kind::Namespace => "namespaces",
            Kind::NetworkPolicy => "networkpolicies",
            Kind::Service => "services",
        }
        .into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl<'de> serde::Deserialize<'de> for Trimmed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = (&FIELDS).deserialize(deserializer)?;
        let version = value.get("metadata").and_then(|metadata| metadata.get("resourceVersion"));
        let resource_version = version.and_then(Value::as_str).map(str::to_owned);
        // An object without a version makes the watcher list anew.
        let meta = ObjectMeta { resource_version, ..ObjectMeta::default() };
        Ok(Self { value, meta })
    }
}

impl<'de> DeserializeSeed<'de> for &Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Keep {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element_seed(self)? {
            list.push(element);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let keep = match self {
                All => Some(self),
                Fields(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, keep)| keep),
            };
            match keep {
                Some(keep) => {
                    let value = entries.next_value_seed(keep)?;
                    object.insert(key, value);
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(object))
    }
}
