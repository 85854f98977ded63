//! Endpoints leave without taking their connections along.

use std::time::Duration;

use serde_json::json;
use test_netns::{Expect, Flow, HammerSpec, Outcome, Protocol};

use crate::lab::{Lab, PATIENCE, Proxy, WEB, ip};

/// A connection from p3 to web, which p1 and p2 serve, and the server of it.
fn connected(lab: &mut Lab, flags: &[&str]) -> (Proxy, Flow, &'static str, &'static str) {
    lab.web(json!({}), &["p1", "p2"]);
    let n1 = lab.start("n1", flags);
    let flow = lab.cluster.connect("p3", ip(WEB[0]), Protocol::Tcp, 80, PATIENCE).unwrap();
    let Outcome::Connected(answer) = flow.opened() else { panic!("{}", flow.opened()) };
    let (server, other) = if answer.server == "p1" { ("p1", "p2") } else { ("p2", "p1") };
    (n1, flow, server, other)
}

/// The line of an endpoint of web by TCP and IPv4, with its weight; empty if there is none.
fn line(lab: &Lab, n1: &Proxy, pod: &str) -> String {
    let start = format!("-a -t {}:80 -r {}:8080 ", WEB[0], lab.addresses(pod)[0]);
    let ipvs = n1.ipvs();
    ipvs.lines().find(|line| line.starts_with(&start)).unwrap_or_default().to_owned()
}

#[test]
fn w16_a_connection_outlives_its_endpoint_which_is_removed_when_the_last_one_is_closed() {
    let mut lab = Lab::routed();
    let (n1, mut flow, server, other) = connected(&mut lab, &["--ipvs-graceful-period=10m"]);
    lab.set_endpoints(lab.endpoints(&[other]));
    lab.apply(&[&n1]);
    assert!(line(&lab, &n1, server).ends_with("-w 0"), "{}", n1.shown());
    assert_eq!(lab.servers("p3", ip(WEB[0]), Protocol::Tcp, 4), [other; 4], "new connections go elsewhere");
    // Longer than it takes to look at drains.
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1200));
        assert!(flow.exchange(PATIENCE).is_connected(), "the old one lives");
    }
    assert!(line(&lab, &n1, server).ends_with("-w 0"), "{}", n1.shown());
    drop(flow);
    n1.until("the endpoint is removed", || line(&lab, &n1, server).is_empty());
}

#[test]
fn w16_an_endpoint_that_returns_while_it_is_drained_serves_again_and_stays() {
    let mut lab = Lab::routed();
    let (n1, mut flow, server, other) = connected(&mut lab, &["--ipvs-graceful-period=12s"]);
    lab.set_endpoints(lab.endpoints(&[other]));
    lab.apply(&[&n1]);
    assert!(line(&lab, &n1, server).ends_with("-w 0"), "{}", n1.shown());
    lab.set_endpoints(lab.endpoints(&[server, other]));
    lab.apply(&[&n1]);
    assert!(line(&lab, &n1, server).ends_with("-w 1"), "{}", n1.shown());
    // The drain of before would have ended by now.
    std::thread::sleep(Duration::from_secs(15));
    assert!(line(&lab, &n1, server).ends_with("-w 1"), "{}", n1.shown());
    assert!(flow.exchange(PATIENCE).is_connected(), "the connection has lived through it");
    let met = lab.servers("p3", ip(WEB[0]), Protocol::Tcp, 4);
    assert!(met.iter().any(|name| name == server), "{met:?}");
}

#[test]
fn a_drain_ends_when_its_time_is_over_and_goes_on_after_a_restart() {
    let mut lab = Lab::routed();
    let (mut n1, mut flow, server, other) = connected(&mut lab, &["--ipvs-graceful-period=10m"]);
    lab.set_endpoints(lab.endpoints(&[other]));
    lab.apply(&[&n1]);
    n1.kill();
    // Longer than a start takes, on a machine that is emulated as well.
    let n1 = lab.start("n1", &["--ipvs-graceful-period=20s"]);
    assert!(line(&lab, &n1, server).ends_with("-w 0"), "{}", n1.shown());
    assert!(flow.exchange(PATIENCE).is_connected(), "it lives through the restart");
    n1.until("the endpoint is removed", || line(&lab, &n1, server).is_empty());
    n1.until("its connection is cut", || !flow.exchange(Duration::from_secs(3)).is_connected());
}

#[test]
fn no_connection_fails_while_endpoints_come_and_go() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1", "p2"]);
    let n1 = lab.start("n1", &[]);
    let spec = HammerSpec { patience: Duration::from_secs(30), ..HammerSpec::tcp("p3", ip(WEB[0]), 80) };
    let hammer = lab.cluster.hammer(&spec, Expect::Connected).unwrap();
    for endpoints in [&["p1"][..], &["p1", "q1"], &["p2", "q1"], &["p2"], &["p1", "p2", "q1"]] {
        lab.set_endpoints(lab.endpoints(endpoints));
        lab.apply(&[&n1]);
        if !hammer.wait_for(20, PATIENCE) {
            let connections = n1.output(&["ipvsadm", "-Lnc"]);
            panic!("with {endpoints:?}: {:?}\n{connections}", hammer.stop());
        }
    }
    let report = hammer.stop().unwrap();
    assert_eq!((report.wrong_refusals, report.unjudged), (0, 0), "{report:?}");
    assert!(report.connected >= 100, "{report:?}");
}

#[test]
fn without_drains_an_endpoint_leaves_with_its_connections() {
    let mut lab = Lab::routed();
    let (n1, mut flow, server, other) = connected(&mut lab, &["--ipvs-graceful-termination=false"]);
    lab.set_endpoints(lab.endpoints(&[other]));
    lab.apply(&[&n1]);
    assert_eq!(line(&lab, &n1, server), "");
    n1.until("its connection is cut", || !flow.exchange(Duration::from_secs(3)).is_connected());
    assert_eq!(lab.servers("p3", ip(WEB[0]), Protocol::Tcp, 2), [other; 2]);
}
