//! The answers to 47 bad or odd calls are the reference's, but for those listed with a reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use cni_bridge::verbs::Program;
use serde_json::{Value, json};
use support::{Answer, call, suite};

/// Name of a call, what we answer (code and message; none is success), and why.
type Other = (&'static str, Option<(u64, &'static str)>, &'static str);

/// Answers that are others on purpose.
const OTHERS: [Other; 3] = [
    (
        "STATUS ipam plugin missing",
        None,
        "addresses are given out by this process: nothing is looked for in CNI_PATH",
    ),
    (
        "ADD ipam type absent in path",
        Some((8, "plugin's netns and netns from CNI_NETNS should not be the same")),
        "as before; so the call goes on, and the namespace of this test is the host's own",
    ),
    (
        "ADD netns is host's own",
        Some((8, "plugin's netns and netns from CNI_NETNS should not be the same")),
        "the reference writes two answers one after the other, which nobody can read",
    ),
];

fn serve(case: &Value, folder: &str) -> Answer {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let variables: Vec<(String, String)> = case["env"]
        .as_object()
        .unwrap()
        .iter()
        // A namespace that there is: this one, which everybody may open.
        .map(|(name, value)| (name.clone(), text(value).replace("/run/netns/t1", "/proc/self/ns/net")))
        .collect();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let program = if case["plugin"] == "host-local" { Program::HostLocal } else { Program::Bridge };
    let input = text(&case["stdin"]).replace("/var/lib/cni/test", folder);
    if case["name"] == "host-local exhausted" {
        // Somebody else has the only address.
        let others: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, if *value == "abc" { "other" } else { value }))
            .collect();
        call(program, &others, &input).success();
    }
    call(program, &variables, &input)
}

#[test]
fn bad_calls_are_answered_as_the_reference_answers_them() {
    let cases: Vec<Value> = serde_json::from_str(&suite("wire-errors.json")).unwrap();
    assert_eq!(cases.len(), 47);
    for case in &cases {
        let folder = tempfile::tempdir().unwrap();
        let name = case["name"].as_str().unwrap();
        let answer = serve(case, folder.path().to_str().unwrap());
        let other = OTHERS.iter().find(|(other, ..)| *other == name);
        let wanted = match other {
            Some((_, refusal, _)) => refusal.map(|(code, words)| (json!(code), json!(words))),
            None if case["exit"] == 0 => None,
            None => Some((case["stdout"]["code"].clone(), case["stdout"]["msg"].clone())),
        };
        match wanted {
            None => assert_eq!(answer.code, 0, "{name}: {answer:?}"),
            Some((code, words)) => {
                let json = answer.json();
                assert_eq!((answer.code, &json["code"], &json["msg"]), (1, &code, &words), "{name}");
            }
        }
        if other.is_none() {
            // Details, and whole answers of success.
            assert_eq!(answer.json().get("details"), case["stdout"].get("details"), "{name}");
            if case["exit"] == 0 && case["stdout"] != "" {
                assert_eq!(answer.json(), case["stdout"], "{name}");
            }
        }
        assert_eq!(answer.error.is_empty(), case["stderr"] == "", "{name}");
    }
}

#[test]
fn each_version_allows_the_verbs_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let versions = ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for (verb, first) in [("CHECK", 5), ("GC", 7), ("STATUS", 7), ("DEL", 0)] {
        for (place, version) in versions.iter().enumerate() {
            let conf = json!({"cniVersion": version, "name": "n", "type": "host-local", "cni.dev/valid-attachments": [],
                "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "dataDir": folder.path()}});
            let variables = [
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", "c"),
                ("CNI_NETNS", "/proc/self/ns/net"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", "/"),
            ];
            let answer = call(Program::HostLocal, &variables, &conf.to_string());
            match (place < first, verb) {
                (true, _) => {
                    let words = format!("config version does not allow {verb}");
                    assert_eq!(answer.refusal(), (1, words), "{version}");
                }
                (false, "CHECK") => assert_eq!(answer.refusal().0, 999, "{version}"),
                (false, _) => assert_eq!((answer.code, answer.output.as_str()), (0, ""), "{verb} {version}"),
            }
        }
    }
}
