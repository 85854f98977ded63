//! The built agent as a process, against an API server of few lines; no privileges.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

#[path = "support/api.rs"]
mod api;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use api::Api;
use process::{LIMIT, Process, eventually};
use serde_json::{Value, json};

fn node(cidrs: Value, unavailable: &str) -> Value {
    json!({"metadata": {}, "spec": {"podCIDRs": cidrs}, "status": {"conditions": [
        {"type": "Ready", "status": "True", "reason": "KubeletReady"},
        {"type": "NetworkUnavailable", "status": unavailable, "reason": "NoRouteCreated"}]}})
}

/// The folders of a node, and a plugin of some size.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        let body = "x".repeat(3_000_000);
        fs::write(lab.path("plugin"), format!("CNI bridge plugin cni-bridge {body}")).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn conf_path(&self) -> PathBuf {
        self.path("net.d/10-kuberouter.conflist")
    }

    fn subnet(&self) -> Option<String> {
        let conf: Value = serde_json::from_str(&fs::read_to_string(self.conf_path()).ok()?).unwrap();
        Some(conf["plugins"][0]["ipam"]["ranges"][0][0]["subnet"].as_str()?.to_owned())
    }

    fn agent(&self, url: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni-bridge-agent"));
        command
            .args(["--master", url, "--node-name=n1", "--mtu=1480"])
            .args(words)
            .arg("--cni-conf-file")
            .arg(self.conf_path())
            .arg("--cni-bin-dir")
            .arg(self.path("bin"))
            .arg("--plugin")
            .arg(self.path("plugin"))
            .arg("--sysctl-root")
            .arg(self.path("sys"))
            .env_remove("KUBECONFIG")
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("SHOW_LOG").is_some() { Stdio::inherit() } else { Stdio::null() });
        command
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status line and body of a page.
fn page(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let mut text = String::new();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn the_agent_follows_its_node_and_its_files_and_says_that_the_network_is_there() {
    let lab = Lab::new();
    let (api, url) = Api::start(node(json!([]), "True"));
    let port = free_port();
    let words = ["--health-addr=127.0.0.1", &format!("--health-port={port}")];
    let mut agent = Process(lab.agent(&url, &words).spawn().unwrap());
    // Nothing is promised before there is something.
    eventually("the plugin", || lab.path("bin/cni-bridge").exists());
    eventually("it says what is missing", || page(port, "/readyz").contains("no pod CIDR"));
    assert!(!lab.conf_path().exists() && api.state().patches.is_empty());
    assert!(page(port, "/readyz").starts_with("HTTP/1.1 503"));

    api.put(node(json!(["10.1.0.0/24"]), "True"));
    eventually("the condition", || {
        api.condition("NetworkUnavailable").is_some_and(|condition| condition["status"] == "False")
    });
    assert_eq!(lab.subnet().as_deref(), Some("10.1.0.0/24"));
    let condition = api.condition("NetworkUnavailable").unwrap();
    assert_eq!(condition["reason"], "CniBridgeIsReady");
    assert_eq!(api.condition("Ready").unwrap()["reason"], "KubeletReady");
    let (kind, query, _) = api.state().patches[0].clone();
    assert_eq!(kind, "application/strategic-merge-patch+json");
    assert!(query.contains("fieldManager=cni-bridge-agent"), "{query}");
    eventually("ready", || page(port, "/readyz").starts_with("HTTP/1.1 200"));

    api.put(node(json!(["10.2.0.0/24"]), "False"));
    eventually("the other CIDR", || lab.subnet().as_deref() == Some("10.2.0.0/24"));
    let before = fs::read(lab.conf_path()).unwrap();
    fs::remove_file(lab.conf_path()).unwrap();
    eventually("the file is back", || fs::read(lab.conf_path()).is_ok_and(|text| text == before));
    fs::write(lab.path("bin/cni-bridge"), "x").unwrap();
    eventually("the plugin is back", || {
        fs::metadata(lab.path("bin/cni-bridge")).is_ok_and(|found| found.len() > 1000)
    });

    let metrics = page(port, "/metrics");
    for line in [
        "cni_bridge_agent_in_place 1",
        "cni_bridge_agent_mtu_bytes 1480",
        "cni_bridge_agent_pod_cidrs{family=\"ipv4\"} 1",
        "cni_bridge_agent_objects{kind=\"Node\"} 1",
        "cni_bridge_agent_bridge_nf_call{family=\"ipv6\"} -1",
        "cni_bridge_agent_kernel_ops_total{op=\"condition_set\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let state = page(port, "/state");
    assert!(
        state.contains(r#""pod_cidrs":["10.2.0.0/24"]"#) && state.contains(r#""in_place":true"#),
        "{state}"
    );
    let pid = agent.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(agent.0.wait().unwrap().success());
    assert_eq!(lab.subnet().as_deref(), Some("10.2.0.0/24"), "a stop leaves all as it is");
    assert_eq!(api.state().patches.len(), 1);
}

#[test]
fn once_ends_well_only_if_all_is_in_place() {
    let lab = Lab::new();
    let (api, url) = Api::start(node(json!([]), "True"));
    assert!(!lab.agent(&url, &["--once"]).status().unwrap().success());
    api.put(node(json!(["10.1.0.0/24"]), "True"));
    assert!(lab.agent(&url, &["--once", "--set-network-available=false"]).status().unwrap().success());
    assert_eq!(api.condition("NetworkUnavailable").unwrap()["status"], "True");
    assert!(lab.agent(&url, &["--once"]).status().unwrap().success());
    assert_eq!(api.condition("NetworkUnavailable").unwrap()["status"], "False");
}

#[test]
fn a_status_that_is_forbidden_is_no_reason_to_keep_the_network_from_pods() {
    let lab = Lab::new();
    let (api, url) = Api::start(node(json!(["10.1.0.0/24"]), "True"));
    api.state().refusals = vec![403; 100];
    let port = free_port();
    let words = ["--health-addr=127.0.0.1", &format!("--health-port={port}")];
    let _agent = Process(lab.agent(&url, &words).spawn().unwrap());
    eventually("ready, and it says what is wrong", || {
        let page = page(port, "/readyz");
        page.starts_with("HTTP/1.1 200") && page.contains("status_not_written")
    });
    assert_eq!(lab.subnet().as_deref(), Some("10.1.0.0/24"));
}

#[test]
fn killed_at_any_moment_it_leaves_whole_files() {
    let lab = Lab::new();
    let (api, url) = Api::start(node(json!(["10.1.0.0/24"]), "False"));
    let plugin = |version: usize| {
        format!("CNI bridge plugin cni-bridge {version}{}", "x".repeat(2_000_000 + version * 1000))
    };
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..40usize {
        fs::write(lab.path("plugin"), plugin(round)).unwrap();
        api.put(node(json!([format!("10.{round}.0.0/24")]), "False"));
        let mut agent = Process(lab.agent(&url, &["--health-port=0"]).spawn().unwrap());
        let last = || lab.subnet() == Some(format!("10.{round}.0.0/24"));
        // From its start on, later and later; the last ones come to an end.
        let start = Instant::now();
        let pause = Duration::from_millis(round as u64 * 4);
        while start.elapsed() < pause || (round >= 36 && !last()) {
            assert!(start.elapsed() < LIMIT, "round {round} does not end");
            // A reader while it writes.
            seen.extend(lab.subnet());
        }
        agent.0.kill().unwrap();
        agent.0.wait().unwrap();
        if let Ok(found) = fs::read_to_string(lab.path("bin/cni-bridge")) {
            assert!(
                (0..=round).any(|version| found == plugin(version)),
                "a part of a plugin in round {round}"
            );
        }
        seen.extend(lab.subnet());
    }
    assert!(seen.len() >= 4, "it was always killed too early: {seen:?}");
}
