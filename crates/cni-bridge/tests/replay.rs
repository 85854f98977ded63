//! The recorded calls of the reference's `bridge` are made here, each test's in namespaces of their own, and answered
//! as it answered them: addresses, routes, name servers, interfaces, refusals. Names and addresses of veths aside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use cni_bridge::verbs::Program;
use serde_json::{Value, json};
use support::{call, exchanges, localise};
use test_netns::Namespace;

const THREADS: usize = 8;
/// Of a kernel that cannot tell VLANs apart.
const NO_VLANS: &str =
    "failed to create bridge \"bridge0\": could not add \"bridge0\": operation not supported";
const NO_ADDRESS: &str = "cannot convert: no valid IP addresses";

/// The calls of one test: those with one folder of reservations, or one namespace.
fn tests(all: &[Value]) -> Vec<Vec<(usize, &Value)>> {
    let mut tests: BTreeMap<String, Vec<(usize, &Value)>> = BTreeMap::new();
    for (line, exchange) in all.iter().enumerate() {
        let netns = exchange["netns"].as_str().unwrap();
        let folder = exchange.pointer("/stdin/ipam/dataDir").and_then(Value::as_str);
        tests.entry(folder.unwrap_or(netns).to_owned()).or_default().push((line + 1, exchange));
    }
    tests.into_values().collect()
}

fn names(interfaces: &Value) -> Vec<(String, bool)> {
    let names = interfaces.as_array().into_iter().flatten().map(|interface| {
        let name = interface["name"].as_str().unwrap();
        let name = if name.starts_with("veth") { "veth" } else { name };
        (name.to_owned(), interface.get("sandbox").is_some())
    });
    names.collect()
}

struct Test {
    node: Namespace,
    pods: BTreeMap<String, Namespace>,
    folder: tempfile::TempDir,
    servers: Vec<Value>,
    result: Value,
    has_vlans: bool,
}

impl Test {
    fn make(&mut self, line: usize, exchange: &Value) {
        let text = |name: &str| exchange[name].as_str().unwrap();
        let recorded: Value = serde_json::from_str(text("stdout")).unwrap_or_default();
        let mut stdin = exchange["stdin"].clone();
        localise(&mut stdin, &recorded, self.folder.path(), &mut self.servers);
        if stdin.get("prevResult").is_some() {
            stdin["prevResult"] = self.result.clone();
        }
        let netns = text("netns").to_owned();
        let pod = self.pods.entry(netns).or_insert_with(|| Namespace::new("pod").unwrap());
        let path = pod.path();
        let variables = [
            ("CNI_COMMAND", text("command")),
            ("CNI_CONTAINERID", text("containerID")),
            ("CNI_IFNAME", text("ifname")),
            ("CNI_NETNS", path.to_str().unwrap()),
            ("CNI_ARGS", text("args")),
            ("CNI_PATH", "/"),
        ];
        let answer = self.node.run(|| call(Program::Bridge, &variables, &stdin.to_string())).unwrap();
        let json = answer.json();
        if text("command") == "DEL" {
            // Also where the reference refuses: what was never added is not there.
            assert_eq!((answer.code, answer.output.as_str()), (0, ""), "line {line}");
            return;
        }
        let old = stdin["cniVersion"].as_str().unwrap() < "0.3.0";
        if exchange["ok"] == false {
            // Where several things are wrong, ours is what can be known before anything is made.
            let layer2 = stdin["ipam"] == json!({});
            let crowded = stdin["ipam"]["ranges"].as_array().is_some_and(|sets| sets.len() > 2);
            let words = match (old, layer2, crowded) {
                (true, true, _) => json!(NO_ADDRESS),
                (true, _, true) => {
                    let version = stdin["cniVersion"].as_str().unwrap();
                    json!(format!("CNI version {version} does not support more than 1 address per family"))
                }
                _ => recorded["msg"].clone(),
            };
            if words == NO_VLANS && self.has_vlans {
                assert_eq!(answer.code, 0, "line {line}: {answer:?}");
            } else {
                assert_eq!((answer.code, &json["msg"]), (1, &words), "line {line}");
            }
            return;
        }
        assert_eq!(answer.code, 0, "line {line}: {answer:?}");
        for field in ["cniVersion", "ips", "routes", "dns", "ip4", "ip6"] {
            assert_eq!(json.get(field), recorded.get(field), "{field} of line {line}");
        }
        assert_eq!(names(&json["interfaces"]), names(&recorded["interfaces"]), "line {line}");
        if text("args").contains("MAC=") && !old {
            let mac = |result: &Value| result["interfaces"][2]["mac"].clone();
            assert_eq!(mac(&json), mac(&recorded), "line {line}");
        }
        if text("command") == "ADD" {
            self.result = json;
        }
    }
}

#[test]
fn recorded_calls_are_answered_as_the_reference_answered_them() {
    let all = exchanges("bridge-exchanges.jsonl");
    assert_eq!(all.len(), 491);
    let probe = Namespace::new("probe").unwrap();
    let has_vlans = probe.ip("link add name br0 type bridge vlan_filtering 1").is_ok();
    let tests = tests(&all);
    let queue = Mutex::new(tests.iter());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(calls) = queue.lock().unwrap().next() else { break };
                    let mut test = Test {
                        node: Namespace::new("node").unwrap(),
                        pods: BTreeMap::new(),
                        folder: tempfile::tempdir().unwrap(),
                        servers: Vec::new(),
                        result: Value::Null,
                        has_vlans,
                    };
                    for (line, exchange) in calls {
                        test.make(*line, exchange);
                    }
                }
            });
        }
    });
}
