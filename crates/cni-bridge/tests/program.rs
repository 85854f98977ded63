//! The program itself: by which name it is called, how it is called from a shell.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cni-bridge");

fn run(program: &Path, verb: &str, input: &str) -> Output {
    let mut child = Command::new(program)
        .env_clear()
        .envs([
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_PATH", "/"),
        ])
        .env("CNI_COMMAND", verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn installed_as_host_local_it_gives_out_addresses_alone() {
    let folder = tempfile::tempdir().unwrap();
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "type": "macvlan", "mtu": "of another plugin",
        "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "dataDir": folder.path().join("data")}});
    for (name, reserves) in [("host-local", true), ("bridge", false), ("cni-bridge", false)] {
        let program = folder.path().join(name);
        symlink(PROGRAM, &program).unwrap();
        let output = run(&program, "ADD", &conf.to_string());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.success(), reserves, "{name}: {answer}");
        if reserves {
            assert_eq!(answer["ips"], json!([{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]));
            assert!(run(&program, "CHECK", &conf.to_string()).status.success());
            assert!(run(&program, "DEL", &conf.to_string()).status.success());
            assert!(!run(&program, "CHECK", &conf.to_string()).status.success());
        } else {
            assert!(answer["msg"].as_str().unwrap().starts_with("failed to load netconf"), "{answer}");
        }
    }
}

#[test]
fn from_a_shell_exec_makes_the_call_of_a_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "bridge": "br0",
        "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "dataDir": folder.path().join("data")}}]});
    let conf = folder.path().join("10.conflist");
    std::fs::write(&conf, list.to_string()).unwrap();
    let exec = |words: &[&str]| {
        let output = Command::new(PROGRAM).arg("exec").args(words).env_clear().output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let conf = conf.to_str().unwrap();
    let (code, answer) = exec(&["add", "--conf", conf, "--netns", "/proc/self/ns/net", "--id", "c"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &answer["code"], &answer["cniVersion"]), (1, &json!(8), &json!("1.0.0")));
    assert_eq!(exec(&["gc", "--conf", conf]).0, 1, "the version has no GC");
    assert_eq!(exec(&["add", "--netns", "x"]), (2, String::new()));
}

#[test]
fn who_only_looks_at_it_is_told_the_versions() {
    let output = Command::new(PROGRAM).env_clear().output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0")
    );
}
