//! The program, killed at any time.

use std::io::Write;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Instant;

use serde_json::{Value, json};
use test_netns::Namespace;

use crate::lab::{Lab, links};

const TIMES: u32 = 50;

fn start(lab: &Lab, pod: &Namespace, conf: &Value) -> Child {
    let mut command = lab.node.command(env!("CARGO_BIN_EXE_cni-bridge"));
    let mut child = command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "a")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", pod.path())
        .env("CNI_PATH", "/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    child
}

#[test]
fn an_add_that_is_killed_at_any_time_leaves_nothing_that_del_or_gc_does_not_find() {
    let lab = Lab::new();
    let conf = lab.conf(json!({
        "ipMasq": true, "hairpinMode": true, "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}));
    let pod = Namespace::new("pod").unwrap();
    let begin = Instant::now();
    assert!(start(&lab, &pod, &conf).wait().unwrap().success());
    let whole = begin.elapsed();
    lab.del("a", &pod, &conf).success();
    let mut unfinished = 0;
    for time in 0..TIMES {
        let mut child = start(&lab, &pod, &conf);
        sleep(whole * time / TIMES);
        child.kill().unwrap();
        unfinished += u32::from(!child.wait().unwrap().success());
        let what = format!("killed after {:?}", whole * time / TIMES);
        let netns = pod.path();
        match time % 3 {
            0 => lab.call("DEL", "a", netns.to_str().unwrap(), &conf),
            // The namespace is gone for the runtime.
            1 => lab.call("DEL", "a", "", &conf),
            // It forgets the container, and asks for GC at some time.
            _ => lab.call("GC", "", "", &lab.conf(json!({"cni.dev/valid-attachments": []}))),
        }
        .success();
        lab.assert_nothing_left(&what);
        assert!(links(&pod).is_empty(), "{what}");
    }
    assert!(unfinished > TIMES / 4, "only {unfinished} were killed before they were done");
}
