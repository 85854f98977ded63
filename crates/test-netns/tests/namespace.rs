//! Namespaces are private, and nothing of them stays.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_netns::{Attachment, ClusterSpec, Family, Namespace, Protocol};

/// Puts one end of a veth pair into each namespace: the near ends go when the namespaces of the far ends do.
fn tie(observer: &Namespace, paths: &[String]) {
    let lines: String = paths
        .iter()
        .enumerate()
        .map(|(n, path)| format!("link add tie{n} type veth peer name tied netns {path}\n"))
        .collect();
    observer.ip(&lines).expect("tied");
    assert_eq!(ties(observer), paths.len());
}

fn ties(observer: &Namespace) -> usize {
    observer.output("ip", &["-o", "link"], "").expect("lists").matches(" tie").count()
}

/// The kernel takes namespaces away a moment after their last user.
fn vanish(observer: &Namespace) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while ties(observer) > 0 {
        assert!(Instant::now() < deadline, "{} namespaces are still there", ties(observer));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn hosts(cluster: &test_netns::Cluster) -> Vec<String> {
    let names = cluster.pods().iter().map(String::as_str).chain(cluster.nodes()).chain(["outside"]);
    names.map(|name| cluster.namespace(name).expect("host").path().display().to_string()).collect()
}

fn small(attachment: Attachment) -> test_netns::Cluster {
    ClusterSpec::uniform(attachment, &[Family::V4, Family::V6], 2, 2)
        .serve(Protocol::Tcp, 80)
        .serve(Protocol::Sctp, 9003)
        .build()
        .expect("built")
}

#[test]
fn every_namespace_is_gone_after_the_cluster_is_dropped() {
    let observer = Namespace::new("observer").expect("made");
    let cluster = small(Attachment::Bridge);
    tie(&observer, &hosts(&cluster));
    drop(cluster);
    vanish(&observer);
}

#[test]
fn every_namespace_is_gone_after_a_panic() {
    let observer = Namespace::new("observer").expect("made");
    let result = std::panic::catch_unwind(|| {
        let cluster = small(Attachment::Routed);
        tie(&observer, &hosts(&cluster));
        panic!("a test fails");
    });
    assert!(result.is_err());
    vanish(&observer);
}

#[test]
fn every_namespace_and_daemon_is_gone_after_the_process_is_killed() {
    let observer = Namespace::new("observer").expect("made");
    let mut child = Command::new(env!("CARGO_BIN_EXE_hold-cluster"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut paths = Vec::new();
    let mut daemon = None;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("read");
        if line == "ready" {
            break;
        }
        let (name, rest) = line.split_once('\t').expect("two columns");
        match name {
            "daemon" => daemon = rest.parse().ok(),
            _ => paths.push(rest.to_owned()),
        }
    }
    assert_eq!(paths.len(), 7, "four pods, two nodes, outside");
    tie(&observer, &paths);
    let daemon = Pid::from_raw(daemon.expect("told"));
    kill(daemon, None).expect("the daemon lives");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).expect("killed");
    child.wait().expect("reaped");
    vanish(&observer);
    assert!(!std::path::Path::new(&format!("/proc/{daemon}/net")).exists() || is_zombie(daemon));
}

/// An orphan may wait for whoever is process 1 here to reap it.
fn is_zombie(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z"))
}

#[test]
fn the_test_s_own_namespace_gets_no_links_and_no_names() {
    let links = || Command::new("ip").args(["-o", "link"]).output().expect("runs").stdout;
    let names = || Command::new("ip").args(["netns", "list"]).output().expect("runs").stdout;
    let before = (links(), names());
    let cluster = small(Attachment::Bridge);
    assert_eq!((links(), names()), before);
    drop(cluster);
    assert_eq!((links(), names()), before);
}

#[test]
fn twenty_clusters_live_side_by_side_with_the_same_addresses() {
    std::thread::scope(|scope| {
        for number in 0..20 {
            scope.spawn(move || {
                let attachment = if number % 2 == 0 { Attachment::Routed } else { Attachment::Bridge };
                let cluster = small(attachment);
                let ports = [(Protocol::Tcp, 80), (Protocol::Sctp, 9003), (Protocol::Icmp, 0)];
                for family in [Family::V4, Family::V6] {
                    for matrix in cluster.matrix(&ports, family).expect("probed") {
                        assert_eq!(matrix.rows(), ["....", "....", "....", "...."], "{matrix}");
                    }
                }
            });
        }
    });
}

#[test]
fn commands_and_sysctls_act_inside_only() {
    let (one, two) = (Namespace::new("one").expect("made"), Namespace::new("two").expect("made"));
    one.nft("table inet only_here { }").expect("loads");
    one.sysctl("net/ipv4/ip_forward", "1").expect("set");
    let tables = |ns: &Namespace| ns.output("nft", &["list", "tables"], "").expect("lists");
    assert_eq!(tables(&one), "table inet only_here\n");
    assert_eq!(tables(&two), "");
    let seen = |ns: &Namespace| {
        let output = ns.command("cat").arg("/proc/sys/net/ipv4/ip_forward").output().expect("runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!((seen(&one), seen(&two)), ("1".into(), "0".into()));
}

#[test]
fn an_error_of_a_command_says_where_and_why() {
    let namespace = Namespace::new("lonely").expect("made");
    let error = format!("{:#}", namespace.nft("table inet").expect_err("refused"));
    assert!(error.contains("lonely") && error.contains("syntax error"), "{error}");
}
