//! Whatever comes in by the standard input and the environment: an answer, and no panic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use cni_bridge::verbs::Program;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Answer, call};

const KEYS: [&str; 26] = [
    "cniVersion",
    "name",
    "bridge",
    "isGateway",
    "forceAddress",
    "ipMasq",
    "ipMasqBackend",
    "mtu",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "disableContainerInterface",
    "portIsolation",
    "dns",
    "args",
    "runtimeConfig",
    "RuntimeConfig",
    "prevResult",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "ipam",
    "capabilities",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        prop_oneof![Just("host-local"), Just("10.0.0.0/24"), Just("fd00::/64"), Just("1.1.0"), Just("tcp")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![
            Just("type".to_owned()),
            Just("subnet".to_owned()),
            Just("ranges".to_owned()),
            Just("mac".to_owned()),
            Just("cni".to_owned()),
            Just("portMappings".to_owned()),
            Just("hostPort".to_owned()),
            Just("containerPort".to_owned()),
            Just("ips".to_owned()),
            Just("minID".to_owned()),
            "[a-z]{0,6}",
        ];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key, inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// ADD into the host's own namespace: refused before anything is made.
fn add(program: Program, input: &str, args: &str) -> Answer {
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_PATH", "/"),
        ("CNI_ARGS", args),
    ];
    call(program, &variables, input)
}

fn is_refusal(answer: &Answer) -> bool {
    let json = answer.json();
    answer.code == 1 && json["code"].as_u64().is_some_and(|code| code > 0) && json["msg"].as_str() != Some("")
}

proptest! {
    #[test]
    fn fuzz_values_of_all_keys(values in vec((0..KEYS.len(), any_json()), 0..5), args in "[A-Z=;.0-9]{0,20}") {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "bridge"});
        for (key, value) in values {
            conf[KEYS[key]] = value;
        }
        let answer = add(Program::Bridge, &conf.to_string(), &args);
        prop_assert!(is_refusal(&answer), "{:?}", answer);
    }

    #[test]
    fn fuzz_damaged_text(damage in vec((any::<prop::sample::Index>(), any::<char>()), 1..6), end in any::<prop::sample::Index>()) {
        let conf = json!({"cniVersion": "0.4.0", "name": "n", "type": "bridge", "vlan": 7, "isGateway": true,
            "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "dns": {"nameservers": ["1.1.1.1"]}});
        let mut text: Vec<char> = conf.to_string().chars().collect();
        for (place, letter) in &damage {
            let place = place.index(text.len());
            text[place] = *letter;
        }
        let whole: String = text.iter().collect();
        let cut: String = text[..end.index(text.len())].iter().collect();
        for text in [whole, cut] {
            let answer = add(Program::Bridge, &text, "");
            prop_assert!(is_refusal(&answer), "{:?}", answer);
        }
    }

    #[test]
    fn fuzz_environment(values in vec(prop_oneof![".{0,20}", Just("ADD".to_owned()), Just("eth0".to_owned())], 6)) {
        let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS"];
        let variables: Vec<_> = names.iter().zip(&values).map(|(name, value)| (*name, value.as_str())).collect();
        let answer = call(Program::Bridge, &variables, "{");
        prop_assert!(answer.code == 0 && values[0].is_empty() || is_refusal(&answer), "{:?}", answer);
    }
}
