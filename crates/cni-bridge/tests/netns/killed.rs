//! The program, killed at any time.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use serde_json::{Value, json};
use test_netns::Namespace;

use crate::lab::{Lab, links};

const TIMES: u32 = 50;

/// Starts `command` with the environment and input of a call.
fn start(mut command: Command, verb: &str, pod: &Namespace, conf: &Value) -> Child {
    let mut child = command
        .env("CNI_COMMAND", verb)
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

/// All that an attachment may have.
fn conf(lab: &Lab) -> Value {
    lab.conf(json!({
        "ipMasq": true, "hairpinMode": true, "macspoofchk": true, "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80}, {"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]}}))
}

/// What may come after a call that was killed, by turns.
fn clean(lab: &Lab, turn: usize, pod: &Namespace, conf: &Value) {
    match turn % 3 {
        0 => lab.del("a", pod, conf),
        // The namespace is gone for the runtime.
        1 => lab.call("DEL", "a", "", conf),
        // It forgets the container, and asks for GC at some time.
        _ => lab.call("GC", "", "", &lab.conf(json!({"cni.dev/valid-attachments": []}))),
    }
    .success();
}

fn program(lab: &Lab) -> Command {
    lab.node.command(env!("CARGO_BIN_EXE_cni-bridge"))
}

#[test]
fn an_add_that_is_killed_at_any_time_leaves_nothing_that_del_or_gc_does_not_find() {
    let lab = Lab::new();
    let conf = conf(&lab);
    let pod = Namespace::new("pod").unwrap();
    let begin = Instant::now();
    assert!(start(program(&lab), "ADD", &pod, &conf).wait().unwrap().success());
    let mut whole = begin.elapsed();
    lab.del("a", &pod, &conf).success();
    let (mut turn, mut unfinished) = (0, 0);
    while turn < TIMES || unfinished < TIMES / 2 {
        assert!(turn < 20 * TIMES, "only {unfinished} of {turn} were killed before they were done");
        let pause = whole * (turn % TIMES) / TIMES;
        let begin = Instant::now();
        let mut child = start(program(&lab), "ADD", &pod, &conf);
        sleep(pause);
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            // It takes less than that: where the first one was slow, all others would be done before.
            whole = whole.min(begin.elapsed());
        } else {
            unfinished += 1;
        }
        let what = format!("killed after {pause:?}");
        clean(&lab, turn as usize, &pod, &conf);
        lab.assert_nothing_left(&what);
        assert!(links(&pod).is_empty(), "{what}");
        turn += 1;
    }
}

/// What changes anything outside of the process; it is stopped before each of them.
const CHANGES: &str = "flock,linkat,mkdir,rename,sendto,unlink,write";

/// The program, killed when it is about to change something for the `step`th time.
fn killed_at(lab: &Lab, step: usize) -> Command {
    let mut command = lab.node.command("strace");
    let inject = format!("inject={CHANGES}:signal=KILL:when={step}");
    command.args(["-qqq", "-o", "/dev/null", "-e", &inject, env!("CARGO_BIN_EXE_cni-bridge")]);
    command
}

/// Kills a call before each of its changes, from the first to the last, and lets others clean up.
fn kill_at_each_step(verb: &str, least: usize) {
    let lab = Lab::new();
    let conf = conf(&lab);
    let pod = Namespace::new("pod").unwrap();
    // What is made once, and stays.
    lab.add("a", &pod, &conf).success();
    lab.del("a", &pod, &conf).success();
    let mut step = 0;
    loop {
        step += 1;
        if verb == "DEL" {
            lab.add("a", &pod, &conf).success();
        }
        let finished = start(killed_at(&lab, step), verb, &pod, &conf).wait().unwrap().success();
        clean(&lab, step, &pod, &conf);
        lab.assert_nothing_left(&format!("{verb} killed before change {step}"));
        assert!(links(&pod).is_empty(), "{verb} killed before change {step}");
        if finished {
            break;
        }
    }
    assert!(step > least, "{verb} is done after {step} changes");
}

#[test]
fn a_del_that_is_killed_before_any_of_its_changes_is_finished_by_the_next_or_gc() {
    kill_at_each_step("DEL", 8);
}

#[test]
fn an_add_that_is_killed_before_any_of_its_changes_is_undone_by_del_or_gc() {
    kill_at_each_step("ADD", 20);
}
