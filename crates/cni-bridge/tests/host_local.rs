//! The recorded calls of the reference's `host-local` are answered as it answered them, field by field.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use cni_bridge::verbs::Program;
use serde_json::Value;
use support::{call, exchanges, localise};

#[test]
fn recorded_calls_are_answered_as_the_reference_answered_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    let all = exchanges("host-local-exchanges.jsonl");
    assert_eq!(all.len(), 140);
    for (line, exchange) in all.iter().enumerate() {
        let text = |name: &str| exchange[name].as_str().unwrap();
        let recorded: Value = serde_json::from_str(text("stdout")).unwrap_or_default();
        let mut stdin = exchange["stdin"].clone();
        // A DEL that leaves no answer does not say which name servers there were.
        localise(&mut stdin, &recorded, folder.path(), &mut servers);
        let variables = [
            ("CNI_COMMAND", text("command")),
            ("CNI_CONTAINERID", text("containerID")),
            ("CNI_IFNAME", text("ifname")),
            ("CNI_NETNS", text("netns")),
            ("CNI_ARGS", text("args")),
            ("CNI_PATH", "/"),
        ];
        let answer = call(Program::HostLocal, &variables, &stdin.to_string());
        let mut ours = answer.json();
        assert_eq!(exchange["ok"], answer.code == 0, "line {}: {exchange}\n{answer:?}", line + 1);
        if answer.code != 0 {
            // The specification wants the version in errors; the reference leaves it out.
            ours.as_object_mut().unwrap().remove("cniVersion");
        }
        let mut recorded = recorded;
        if recorded["msg"]
            .as_str()
            .is_some_and(|words| words.starts_with("failed to allocate all requested IPs"))
        {
            // Of two addresses of one set the reference takes one or the other, by chance; we the first.
            recorded["msg"] = format!(
                "failed to allocate all requested IPs: {}",
                stdin["args"]["cni"]["ips"][1].as_str().unwrap()
            )
            .into();
        }
        for answer in [&mut ours, &mut recorded] {
            if answer["dns"] == serde_json::json!({}) {
                answer.as_object_mut().unwrap().remove("dns");
            }
        }
        assert_eq!(ours, recorded, "line {}", line + 1);
    }
}
