//! The configuration that is planned, whatever stands in the file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::net::IpAddr;

use cni_bridge_agent::model::json::Json;
use cni_bridge_agent::plan::conf::{Desired, Left, merge, without_ours};
use cni_bridge_agent::plan::mtu::Wanted;
use cni_bridge_agent::plan::{Form, PlanConfig};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Networks that ranges and CIDRs are taken of, so that they often meet.
const NETWORKS: [&str; 10] = [
    "10.1.0.0/24",
    "10.1.0.0/16",
    "10.1.0.128/25",
    "10.2.0.0/24",
    "10.3.0.7/24",
    "10.4.0.0/31",
    "fd00:1::/64",
    "fd00:1::/80",
    "fd00:2::/64",
    "nonsense",
];
const ADDRESSES: [&str; 6] = ["10.1.0.1", "10.1.0.200", "10.2.0.9", "fd00:1::9", "10.1.0.255", "x"];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from)
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,3}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Keys that are nobody's but the user's.
fn users_keys() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("user-[a-z]{1,2}", any_value(), 0..4)
        .prop_map(|map| map.into_iter().collect())
}

fn any_range() -> impl Strategy<Value = Value> {
    let address = || prop::option::of(prop::sample::select(ADDRESSES.to_vec()));
    let subnet = prop::sample::select(NETWORKS.to_vec());
    (subnet, address(), address(), address()).prop_map(|(subnet, start, end, gateway)| {
        let mut range = json!({ "subnet": subnet });
        for (key, value) in [("rangeStart", start), ("rangeEnd", end), ("gateway", gateway)] {
            if let Some(value) = value {
                range[key] = value.into();
            }
        }
        range
    })
}

fn any_ipam() -> impl Strategy<Value = Value> {
    let sets = prop::collection::vec(prop::collection::vec(any_range(), 0..3), 0..4);
    (users_keys(), prop::option::of(sets), prop::option::of(any_range()), any::<bool>()).prop_map(
        |(keys, sets, legacy, typed)| {
            let mut ipam = Value::Object(keys);
            if let Some(sets) = sets {
                ipam["ranges"] = json!(sets);
            }
            if let Some(Value::Object(legacy)) = legacy {
                ipam.as_object_mut().unwrap().extend(legacy);
            }
            if typed {
                ipam["type"] = "host-local".into();
            }
            ipam
        },
    )
}

fn ours() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        Just(json!({"type": "cni-bridge"})),
        Just(json!({"type": "cni-bridge", "bridge": "cni0", "mtu": 9000})),
        Just(json!({"type": "bridge", "bridge": "kube-bridge"})),
        Just(json!({"bridge": "kube-bridge", "capabilities": {"ips": true}, "type": "bridge"})),
    ];
    (kind, users_keys(), prop::option::of(any_ipam())).prop_map(|(mut plugin, keys, ipam)| {
        plugin.as_object_mut().unwrap().extend(keys);
        if let Some(ipam) = ipam {
            plugin["ipam"] = ipam;
        }
        plugin
    })
}

fn theirs() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        Just(json!({"type": "portmap", "capabilities": {"portMappings": true}})),
        Just(json!({"type": "bridge", "bridge": "cni0"})),
        Just(json!({"type": "tuning"})),
    ];
    (kind, users_keys()).prop_map(|(mut plugin, keys)| {
        plugin.as_object_mut().unwrap().extend(keys);
        plugin
    })
}

/// A list of plugins, one of them ours, and where that is.
fn any_list() -> impl Strategy<Value = (Value, usize)> {
    let others = || prop::collection::vec(theirs(), 0..3);
    (users_keys(), others(), ours(), others(), any::<bool>()).prop_map(
        |(keys, before, ours, after, named)| {
            let at = before.len();
            let plugins: Vec<_> = before.into_iter().chain([ours]).chain(after).collect();
            let mut root = Value::Object(keys);
            root["plugins"] = json!(plugins);
            if named {
                root["name"] = "mynet".into();
                root["cniVersion"] = "0.3.0".into();
            }
            (root, at)
        },
    )
}

fn desired() -> impl Strategy<Value = Desired> {
    // As `model::node` gives them: none part of another.
    let v4 = prop::sample::subsequence(vec!["10.1.0.0/24", "10.2.0.0/24", "10.7.0.0/24"], 0..=3);
    let v6 = prop::sample::subsequence(vec!["fd00:1::/64", "fd00:2::/64"], 0..=2);
    (v4, v6, any::<bool>(), any::<bool>(), prop::option::of(1280u32..9000)).prop_map(
        |(v4, v6, v6_first, in_part, mtu)| {
            let all = if v6_first { [v6, v4].concat() } else { [v4, v6].concat() };
            let all = if all.is_empty() { vec!["10.1.0.0/24"] } else { all };
            let pod_cidrs = all.iter().map(|cidr| cidr.parse().unwrap()).collect();
            Desired { pod_cidrs, in_part, mtu }
        },
    )
}

fn config() -> PlanConfig {
    PlanConfig { plugin_type: "cni-bridge".to_owned(), form: Form::List, mtu: Wanted::Untouched }
}

fn to_json(value: &Value) -> Json {
    serde_json::from_str(&value.to_string()).unwrap()
}

fn to_value(json: &Json) -> Value {
    serde_json::from_str(&json.render()).unwrap()
}

/// All ranges of our plugin: network, and who narrowed them.
fn ranges(file: &Value, at: usize) -> Vec<Vec<(IpNet, Value)>> {
    let sets = file["plugins"][at]["ipam"]["ranges"].as_array().unwrap();
    let range = |range: &Value| (range["subnet"].as_str().unwrap().parse().unwrap(), range.clone());
    sets.iter().map(|set| set.as_array().unwrap().iter().map(range).collect()).collect()
}

/// Without the keys that are ours.
fn users_part(plugin: &Value) -> Value {
    let mut plugin = plugin.clone();
    let fields = plugin.as_object_mut().unwrap();
    let owned = ["type", "bridge", "mtu", "capabilities"];
    fields.retain(|key, _| !owned.contains(&key.as_str()));
    if let Some(ipam) = fields.get_mut("ipam").and_then(Value::as_object_mut) {
        let owned = ["type", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway"];
        ipam.retain(|key, _| !owned.contains(&key.as_str()));
        if ipam.is_empty() {
            fields.remove("ipam");
        }
    }
    plugin
}

proptest! {
    #[test]
    fn what_is_planned_twice_is_planned_once((found, _) in any_list(), desired in desired()) {
        let once = merge(Some(&to_json(&found)), &desired, &config()).unwrap();
        prop_assert_eq!(merge(Some(&once), &desired, &config()).unwrap(), once);
    }

    #[test]
    fn what_is_planned_is_taken_by_the_plugin((found, _) in any_list(), desired in desired()) {
        let planned = to_value(&merge(Some(&to_json(&found)), &desired, &config()).unwrap());
        prop_assert_eq!(support::read_by_the_plugin(&planned, "cni-bridge"), Ok(()), "{}", planned);
    }

    #[test]
    fn what_others_wrote_stays_in_its_place((found, at) in any_list(), desired in desired()) {
        let before = to_json(&found);
        let planned = merge(Some(&before), &desired, &config()).unwrap();
        let keys = |json: &Json| json.as_object().unwrap().iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
        prop_assert!(keys(&planned).starts_with(&keys(&before)));
        let planned = to_value(&planned);
        let (had, has) = (found["plugins"].as_array().unwrap(), planned["plugins"].as_array().unwrap());
        prop_assert_eq!(had.len(), has.len());
        for (index, (had, has)) in had.iter().zip(has).enumerate() {
            if index == at {
                prop_assert_eq!(users_part(had), users_part(has));
            } else {
                prop_assert_eq!(had, has);
            }
        }
        for (key, value) in found.as_object().unwrap().iter().filter(|(key, _)| *key != "plugins") {
            prop_assert_eq!(&planned[key], value);
        }
    }

    #[test]
    fn addresses_come_from_the_nodes_cidrs_and_from_all_of_them((found, at) in any_list(), desired in desired()) {
        let planned = to_value(&merge(Some(&to_json(&found)), &desired, &config()).unwrap());
        let sets = ranges(&planned, at);
        let all: Vec<_> = sets.iter().flatten().collect();
        for cidr in &desired.pod_cidrs {
            prop_assert!(all.iter().any(|(network, _)| cidr.contains(network)), "{} is not used: {}", cidr, planned);
        }
        for (network, range) in &all {
            let of_a_cidr = desired.pod_cidrs.iter().any(|cidr| cidr.contains(network));
            let family_is_unknown = desired.in_part
                && desired.pod_cidrs.iter().all(|cidr| cidr.addr().is_ipv4() != network.addr().is_ipv4());
            prop_assert!(of_a_cidr || family_is_unknown, "{} of nobody: {}", network, planned);
            let whole = desired.pod_cidrs.contains(network);
            let chosen = range.as_object().unwrap().len() > 1;
            prop_assert!(whole || chosen || family_is_unknown, "{} is a part that nobody chose", network);
            for key in ["rangeStart", "rangeEnd", "gateway"] {
                if let Some(ip) = range.get(key) {
                    let ip: IpAddr = ip.as_str().unwrap().parse().unwrap();
                    prop_assert!(network.contains(&ip));
                }
            }
        }
    }

    #[test]
    fn without_us_everything_else_is_left((found, at) in any_list(), desired in desired()) {
        let planned = merge(Some(&to_json(&found)), &desired, &config()).unwrap();
        let mut plugins = to_value(&planned)["plugins"].as_array().unwrap().clone();
        plugins.remove(at);
        match without_ours(&planned, "cni-bridge") {
            Left::Rest(rest) => prop_assert_eq!(&to_value(&rest)["plugins"], &json!(plugins)),
            Left::Nothing => prop_assert!(plugins.is_empty()),
            Left::NotOurs => prop_assert!(false, "it was planned by us"),
        }
    }

    #[test]
    fn no_text_is_a_panic(text in prop::collection::vec(any::<u8>(), 0..60), value in any_value()) {
        for text in [text, value.to_string().into_bytes()] {
            if let Ok(Some(json)) = cni_bridge_agent::plan::conf::parse(&text) {
                let desired = Desired { pod_cidrs: Vec::new(), in_part: false, mtu: None };
                for form in [Form::List, Form::Single] {
                    let config = PlanConfig { form, ..config() };
                    prop_assert!(merge(Some(&json), &desired, &config).is_err());
                }
            }
        }
    }
}
