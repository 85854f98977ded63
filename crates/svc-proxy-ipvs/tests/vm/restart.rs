//! The program ends, in whatever way, and starts again: what it made serves on, and it goes on from there.

use std::time::Duration;

use serde_json::json;
use test_netns::{Expect, HammerSpec, Protocol};

use crate::lab::{Lab, PATIENCE, Proxy, WEB, ip};
use crate::tries::{from, served_itself};

#[test]
fn no_connection_fails_while_the_program_is_killed_and_started_again() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1", "p2", "q1"]);
    let mut n1 = lab.start("n1", &[]);
    let mut flow = lab.cluster.connect("p3", ip(WEB[0]), Protocol::Tcp, 80, PATIENCE).unwrap();
    let spec = HammerSpec {
        patience: Duration::from_secs(30),
        most_time: Duration::from_secs(180),
        ..HammerSpec::tcp("p3", ip(WEB[0]), 80)
    };
    let hammer = lab.cluster.hammer(&spec, Expect::Connected).unwrap();
    let ends: [fn(&mut Proxy); 2] = [|proxy| proxy.kill(), |proxy| assert!(proxy.terminate().success())];
    for end in ends {
        assert!(hammer.wait_for(20, PATIENCE));
        end(&mut n1);
        assert!(hammer.wait_for(20, PATIENCE));
        assert!(flow.exchange(PATIENCE).is_connected());
        n1 = lab.start("n1", &[]);
    }
    assert!(hammer.wait_for(20, PATIENCE));
    let report = hammer.stop().unwrap();
    assert_eq!((report.wrong_refusals, report.unjudged), (0, 0), "{report:?}\n{}", n1.log());
    assert!(flow.exchange(PATIENCE).is_connected());
}

#[test]
fn a_start_where_all_is_right_changes_nothing_in_the_kernel() {
    let mut lab = Lab::routed();
    let fields = json!({
        "type": "LoadBalancer", "externalIPs": ["203.0.113.10"], "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["14.0.0.0/8"], "sessionAffinity": "ClientIP",
    });
    lab.web(fields, &["p1", "q1"]).set_node_port(30080).ingress = vec!["198.51.100.10".into()];
    let mut n1 = lab.start("n1", &["--service-tcp-timeout=20m"]);
    let before = (n1.ipvs(), n1.table(), n1.routes());
    n1.kill();
    let n1 = lab.start("n1", &["--service-tcp-timeout=20m"]);
    assert_eq!(n1.kernel_ops(), 0, "{}", n1.shown());
    assert_eq!((n1.ipvs(), n1.table(), n1.routes()), before);
    let (ok, out, log) = lab.run("n1", &["diff", "--service-tcp-timeout=20m"]);
    assert_eq!((ok, &*out), (true, ""), "{log}");
}

#[test]
fn what_changed_while_the_program_was_away_is_in_force_when_it_is_ready() {
    let mut lab = Lab::routed();
    lab.web(json!({"externalIPs": ["203.0.113.10"]}), &["p1"]);
    let mut n1 = lab.start("n1", &[]);
    n1.kill();
    lab.web(json!({"externalIPs": ["203.0.113.11"]}), &["p2"]);
    let n1 = lab.start("n1", &[]);
    let mut tries: Vec<_> = WEB.map(|web| from("p3", ip(web), 80, served_itself(&["p2"]))).into();
    tries.push(from("outside", ip("203.0.113.11"), 80, served_itself(&["p2"])));
    lab.check("changed", &tries);
    let shown = n1.shown();
    let (kernel, _) = shown.split_once("--- log").unwrap();
    assert!(!kernel.contains("203.0.113.10"), "{kernel}");
    let ops = n1.kernel_ops();
    assert!((1..60).contains(&ops), "the difference is small: {ops}");
}
