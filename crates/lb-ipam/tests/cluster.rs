//! Whole processes against an API server: bursts, refusals, leaders that die, hang or lose their Lease.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::apiserver::{ApiServer, Shut};
use support::process::Process;

const RANGE: &str = "--loadbalancer-ip-range=10.0.0.0/22";

fn load_balancer() -> Value {
    json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]})
}

async fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

fn all_served(server: &ApiServer) -> bool {
    server.addresses().values().all(|ips| ips.len() == 1)
}

/// No address in two statuses at any time, and each Service has had one address only.
fn assert_sane(server: &ApiServer) {
    let state = server.state();
    assert_eq!(state.doubles, [""; 0]);
    let mut had: BTreeMap<_, Vec<&Vec<String>>> = BTreeMap::new();
    for (_, _, key, ips) in &state.written {
        let list = had.entry(key).or_default();
        if list.last() != Some(&ips) {
            list.push(ips);
        }
    }
    for (key, list) in had {
        assert_eq!(list.len(), 1, "{key:?} had {list:?}");
        let [ip] = list[0].as_slice() else { panic!("{key:?}: {list:?}") };
        assert!(ip != "10.0.0.0" && ip != "10.0.3.255", "{key:?} has {ip}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_500_services_gets_500_addresses_although_writes_are_refused_now_and_then() {
    let server = ApiServer::new(Duration::from_millis(3));
    let url = server.door(0).await;
    let mut process = Process::start(&url, "a", &[RANGE]);
    eventually("a leader", PATIENCE, || server.state().holder().starts_with("a_")).await;
    server.state().refusals = [409, 500, 409, 409, 409, 503, 429].repeat(10).into();
    for n in 0..500 {
        server.put(&format!("s{n}"), load_balancer());
    }
    eventually("all are served", PATIENCE, || all_served(&server)).await;
    assert_sane(&server);
    assert!(server.state().refusals.is_empty(), "no write was refused");
    assert!(process.stop().success());
    assert_eq!(server.state().holder(), "", "the lease was given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_is_given_twice_when_the_leader_dies_in_the_middle_of_a_burst() {
    let server = ApiServer::new(Duration::from_millis(5));
    let (door_a, door_b) = (server.door(0).await, server.door(1).await);
    let mut a = Process::start_with_lease(&door_a, "a", 3, &[RANGE]);
    eventually("a leads", PATIENCE, || server.state().holder().starts_with("a_")).await;
    let mut b = Process::start(&door_b, "b", &[RANGE]);
    server.let_through(Some(61));
    for n in 0..250 {
        server.put(&format!("first{n}"), load_balancer());
    }
    eventually("some are served", PATIENCE, || server.state().written.len() == 61).await;
    a.kill();
    server.let_through(None);
    for n in 0..250 {
        server.put(&format!("second{n}"), load_balancer());
    }
    eventually("b serves the rest", PATIENCE, || all_served(&server)).await;
    assert!(server.state().holder().starts_with("b_"));
    assert!(b.stop().success());
    assert_sane(&server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_hands_over_at_once() {
    let server = ApiServer::new(Duration::ZERO);
    let (door_a, door_b) = (server.door(0).await, server.door(1).await);
    let mut a = Process::start(&door_a, "a", &[RANGE]);
    server.put("first", load_balancer());
    eventually("a serves", PATIENCE, || all_served(&server)).await;
    let mut b = Process::start(&door_b, "b", &[RANGE]);
    assert!(a.stop().success());
    // Otherwise it would wait for an hour.
    server.put("second", load_balancer());
    eventually("b serves", PATIENCE, || all_served(&server)).await;
    assert!(server.state().holder().starts_with("b_"));
    assert!(b.stop().success());
    assert_sane(&server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_its_lease_stops_writing_and_leads_again_later() {
    let server = ApiServer::new(Duration::from_millis(2));
    let (door_a, door_b) = (server.door(0).await, server.door(1).await);
    // Long enough that neither of them is too late, however busy the machine is.
    let mut a = Process::start_with_lease(&door_a, "a", 12, &[RANGE]);
    server.put("s0", load_balancer());
    eventually("a serves", PATIENCE, || all_served(&server)).await;
    let mut b = Process::start_with_lease(&door_b, "b", 12, &[RANGE]);
    // It cannot renew, but could write very well.
    server.shut(0, "leases", Some(Shut::Silent));
    let shut = Instant::now();
    let mut n = 0;
    while !server.state().holder().starts_with("b_") {
        n += 1;
        server.put(&format!("s{n}"), load_balancer());
        assert!(shut.elapsed() < PATIENCE, "b does not lead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let taken = Instant::now();
    for more in 0..50 {
        server.put(&format!("more{more}"), load_balancer());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eventually("b serves", PATIENCE, || all_served(&server)).await;
    {
        let state = server.state();
        let by_a: Vec<_> =
            state.written.iter().filter(|(_, door, ..)| *door == 0).map(|(at, ..)| *at).collect();
        assert!(by_a.iter().any(|at| *at > shut), "it wrote while it still led");
        let late: Vec<_> = by_a.iter().filter(|at| **at > taken).map(|at| *at - taken).collect();
        assert!(late.is_empty(), "it wrote while another led, for {late:?}");
    }
    server.shut(0, "leases", None);
    assert!(b.stop().success());
    server.put("again", load_balancer());
    eventually("a leads again", PATIENCE, || all_served(&server)).await;
    assert!(server.state().holder().starts_with("a_"));
    assert!(a.stop().success());
    assert_sane(&server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_does_not_write_what_it_had_planned() {
    let server = ApiServer::new(Duration::from_millis(5));
    let (door_a, door_b) = (server.door(0).await, server.door(1).await);
    let mut a = Process::start_with_lease(&door_a, "a", 3, &[RANGE]);
    eventually("a leads", PATIENCE, || server.state().holder().starts_with("a_")).await;
    let mut b = Process::start(&door_b, "b", &[RANGE]);
    server.let_through(Some(41));
    for n in 0..300 {
        server.put(&format!("s{n}"), load_balancer());
    }
    eventually("some are served", PATIENCE, || server.state().written.len() == 41).await;
    a.signal("STOP");
    // What it had asked for by then may still be done.
    server.let_through(None);
    eventually("b leads", PATIENCE, || server.state().holder().starts_with("b_")).await;
    let taken = Instant::now();
    a.signal("CONT");
    eventually("b serves", PATIENCE, || all_served(&server)).await;
    let late = server.state().written.iter().filter(|(at, door, ..)| *door == 0 && *at > taken).count();
    assert_eq!(late, 0);
    assert!(a.stop().success() && b.stop().success());
    assert_sane(&server);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_comes_back_when_its_service_goes_or_is_no_longer_ours() {
    let server = ApiServer::new(Duration::ZERO);
    let url = server.door(0).await;
    server.put("a", load_balancer());
    server.put("b", load_balancer());
    let mut process = Process::start(&url, "a", &["--loadbalancer-ip-range=192.0.2.0/30"]);
    eventually("both are served", PATIENCE, || all_served(&server)).await;
    server.put("c", load_balancer());
    eventually("c is told", PATIENCE, || !server.state().events.is_empty()).await;
    let event = server.state().events[0].clone();
    assert_eq!((&event["reason"], &event["involvedObject"]["name"]), (&json!("NoAddressFree"), &json!("c")));
    assert_eq!(server.address("c"), "");
    let a = server.address("a");
    server.respec("a", json!({"type": "ClusterIP", "ports": [{"port": 80}]}));
    eventually("c is served", PATIENCE, || server.address("c") == a).await;
    assert_eq!(server.address("a"), "");
    // Another class: what this program has written goes, and the address with it.
    let mut spec = load_balancer();
    spec["loadBalancerClass"] = "acme.io/lb".into();
    server.put("c", spec);
    eventually("c is let go", PATIENCE, || server.address("c").is_empty()).await;
    server.put("e", load_balancer());
    eventually("e is served", PATIENCE, || server.address("e") == a).await;
    server.put("d", load_balancer());
    server.delete("b");
    eventually("d is served", PATIENCE, || server.address("d") == "192.0.2.2").await;
    assert!(process.stop().success());
    assert_eq!(server.state().doubles, [""; 0]);
    let told = server.state().events.iter().filter(|event| event["involvedObject"]["name"] == "c").count();
    assert_eq!(told, 1, "each problem is told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_never_written_to_another_service_of_the_same_name() {
    let server = ApiServer::new(Duration::from_millis(20));
    let url = server.door(0).await;
    let mut process = Process::start(&url, "a", &[RANGE]);
    eventually("a leads", PATIENCE, || server.state().holder().starts_with("a_")).await;
    for _ in 0..30 {
        for name in ["s", "t"] {
            server.put(name, load_balancer());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        server.delete("s");
    }
    // And one that comes too late for sure.
    server.put("s", load_balancer());
    eventually("both are served", PATIENCE, || all_served(&server)).await;
    let before = server.state().uid_mismatches;
    server.let_through(Some(0));
    server.put("late", load_balancer());
    eventually("it is on its way", PATIENCE, || server.state().waited.contains("late")).await;
    server.delete("late");
    server.put("late", load_balancer());
    server.let_through(None);
    eventually("all are served", PATIENCE, || all_served(&server)).await;
    assert!(process.stop().success());
    assert_eq!(server.state().doubles, [""; 0]);
    assert!(server.state().uid_mismatches > before, "it was written to the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_kube_router_are_adopted_and_those_of_other_controllers_left_alone() {
    let server = ApiServer::new(Duration::ZERO);
    let url = server.door(0).await;
    for name in ["adopted", "twin", "cloud", "acme"] {
        let mut spec = load_balancer();
        if name == "acme" {
            spec["loadBalancerClass"] = "acme.io/lb".into();
        }
        server.put(name, spec);
    }
    server.show("adopted", "kube-router", &["10.0.0.77"]);
    server.show("twin", "kube-router", &["10.0.0.77"]);
    server.show("cloud", "cloud", &["203.0.113.9"]);
    server.show("acme", "acme", &["10.0.0.1"]);
    let mut process = Process::start(&url, "a", &[RANGE, "--once"]);
    assert!(process.wait(PATIENCE).success());
    let expected =
        [("acme", "10.0.0.1"), ("adopted", "10.0.0.77"), ("cloud", "203.0.113.9"), ("twin", "10.0.0.2")];
    let expected: BTreeMap<_, _> = expected.map(|(name, ip)| (name.to_owned(), vec![ip.to_owned()])).into();
    assert_eq!(server.addresses(), expected);
    assert_eq!(server.state().holder(), "", "the lease was given back");
    let reasons: Vec<_> = server.state().events.iter().map(|event| event["reason"].clone()).collect();
    assert!(
        reasons.contains(&json!("AddressConflict")) && reasons.contains(&json!("StatusOfOthers")),
        "{reasons:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn once_fails_when_another_instance_leads() {
    let server = ApiServer::new(Duration::ZERO);
    let url = server.door(0).await;
    let mut leader = Process::start(&url, "a", &[RANGE]);
    eventually("a leads", PATIENCE, || server.state().holder().starts_with("a_")).await;
    let mut once = Process::start(&url, "b", &[RANGE, "--once", "--cache-sync-timeout=2s"]);
    assert!(!once.wait(PATIENCE).success());
    assert!(leader.stop().success());
}
