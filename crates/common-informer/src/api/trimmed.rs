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

use crate::object::{ANNOTATIONS, Kind};

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
    /// Of an object these fields; of anything else all, so that it can be reported. A name that ends in `/`
    /// stands for all that begin so.
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
            // Node
            ("deletionTimestamp", All),
            ("uid", All),
            ("labels", All),
            ("annotations", Fields(&[("net.beta.kubernetes.io/network-policy", All), (ANNOTATIONS, All)])),
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
            ("ipFamilies", All),
            ("ipFamilyPolicy", All),
            ("sessionAffinity", All),
            ("sessionAffinityConfig", All),
            ("internalTrafficPolicy", All),
            ("externalTrafficPolicy", All),
            ("trafficDistribution", All),
            ("publishNotReadyAddresses", All),
            ("loadBalancerSourceRanges", All),
            ("loadBalancerClass", All),
            ("loadBalancerIP", All),
            ("allocateLoadBalancerNodePorts", All),
            // Node
            ("podCIDR", All),
            ("podCIDRs", All),
            ("taints", Fields(&[("key", All)])),
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
            // Node
            ("addresses", All),
            ("conditions", Fields(&[("type", All), ("status", All)])),
        ]),
    ),
    // EndpointSlice
    ("addressType", All),
    ("ports", All),
    ("endpoints", Fields(&[("addresses", All), ("conditions", All), ("nodeName", All), ("hints", All)])),
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
            Kind::EndpointSlice => "discovery.k8s.io".into(),
            Kind::Pod | Kind::Namespace | Kind::Service | Kind::Node => "".into(),
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
            Kind::EndpointSlice => "endpointslices",
            Kind::Node => "nodes",
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
                Fields(fields) => {
                    let matches = |name: &str| name == key || name.ends_with('/') && key.starts_with(name);
                    fields.iter().find(|(name, _)| matches(name)).map(|(_, keep)| keep)
                }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::decode::tests::{any_json, every_reading};
    use crate::decode::{ServiceDetail, object_of_with, service_tests};
    use crate::intern::Interner;

    fn trimmed(value: &Value) -> Trimmed {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    #[test]
    fn what_is_not_read_is_not_stored() {
        let value = json!({"metadata": {"name": "a", "managedFields": [1], "annotations": {"a": "b"}},
            "spec": {"containers": [{"env": [1], "ports": [{"containerPort": 1}]}], "volumes": [1]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "message": "x"}], "phase": "Running", "qosClass": "x"}});
        let kept = json!({"metadata": {"name": "a", "annotations": {}},
            "spec": {"containers": [{"ports": [{"containerPort": 1}]}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}});
        assert_eq!(trimmed(&value).value, kept);
    }

    #[test]
    fn version_is_kept_for_the_watcher() {
        let meta = |value: Value| trimmed(&value).meta.resource_version;
        assert_eq!(meta(json!({"metadata": {"resourceVersion": "7"}})).as_deref(), Some("7"));
        for value in [json!({"metadata": {"resourceVersion": 7}}), json!([1]), json!("x"), json!(null)] {
            assert_eq!(meta(value), None);
        }
    }

    proptest! {
        #[test]
        fn trimmed_objects_are_read_as_whole_ones(
            metadata in any_json(), spec in any_json(), status in any_json(), endpoints in any_json(), ports in any_json(),
        ) {
            for metadata in [metadata, json!({"name": "a"})] {
                let text = json!({"metadata": metadata, "spec": spec, "status": status,
                    "addressType": "IPv4", "endpoints": endpoints, "ports": ports}).to_string();
                let whole: Value = serde_json::from_str(&text).unwrap();
                let trimmed = serde_json::from_str::<Trimmed>(&text).unwrap().value;
                for (kind, detail) in every_reading() {
                    let mut interner = Interner::new();
                    let read = object_of_with(detail, kind, &trimmed, &mut interner);
                    prop_assert_eq!(read, object_of_with(detail, kind, &whole, &mut interner));
                }
            }
        }
    }

    #[test]
    fn every_field_that_is_read_is_kept() {
        for (kind, whole) in [
            (
                Kind::Pod,
                json!({"metadata": {"name": "p", "namespace": "x", "labels": {"a": "b"}, "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"ports": [{"name": "a", "containerPort": 1, "protocol": "UDP"}]}],
                    "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "b", "containerPort": 2}]}]},
                "status": {"phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "::1"}]}}),
            ),
            (
                Kind::Namespace,
                json!({"metadata": {"name": "x", "labels": {"a": "b"},
                "annotations": {"net.beta.kubernetes.io/network-policy": "{}"}}}),
            ),
            (
                Kind::NetworkPolicy,
                json!({"metadata": {"name": "p"}, "spec": {"podSelector": {"matchLabels": {"a": "b"}},
                "policyTypes": ["Egress"], "ingress": [{"from": [{"podSelector": {}}]}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 1, "endPort": 2}]}]}}),
            ),
            (
                Kind::Service,
                json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1",
                "clusterIPs": ["10.0.0.1"], "externalIPs": ["10.0.0.2"], "healthCheckNodePort": 30000,
                "ports": [{"port": 1, "nodePort": 30001, "protocol": "UDP"}]}, "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.3"}]}}}),
            ),
            (
                Kind::Service,
                json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "clusterIP": "10.0.0.1"}}),
            ),
            (Kind::Service, service_tests::full_service()),
            (Kind::EndpointSlice, service_tests::slice()),
            (Kind::Node, service_tests::node()),
        ] {
            for detail in [ServiceDetail::Addresses, ServiceDetail::Full, ServiceDetail::Labelled] {
                let mut interner = Interner::new();
                let read = object_of_with(detail, kind, &trimmed(&whole).value, &mut interner);
                assert!(read.as_ref().is_ok_and(|read| read.notes.is_empty()), "{read:?}");
                assert_eq!(read, object_of_with(detail, kind, &whole, &mut interner));
            }
        }
    }
}
