//! Each kind of answer is told from the others.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::time::{Duration, Instant};

use test_netns::{
    Attachment, Cluster, ClusterSpec, Expect, Expected, Family, HammerSpec, Outcome, Probe, Protocol, TIMEOUT,
};

const ALL: [(Protocol, u16); 4] =
    [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 9003), (Protocol::Icmp, 0)];
const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Bound of every wait: far above what anything takes, since the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

fn cluster(attachment: Attachment, nodes: u8, pods: u8) -> Cluster {
    let spec = ALL
        .iter()
        .fold(ClusterSpec::uniform(attachment, &BOTH, nodes, pods), |spec, (p, port)| spec.serve(*p, *port));
    spec.build().expect("built")
}

fn rule(cluster: &Cluster, rule: &str) {
    let chain = format!(
        "add table inet t\ndelete table inet t\ntable inet t {{\n chain f {{\n type filter hook forward priority -5;\n {rule}\n }}\n}}\n"
    );
    cluster.namespace("n1").expect("node").nft(&chain).expect("loads");
}

#[test]
fn a_port_without_server_refuses_and_says_how() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        let probe = |protocol| cluster.probe("x/a", to, protocol, 9).expect("probed");
        assert_eq!(probe(Protocol::Tcp), Outcome::Refused);
        assert_eq!(probe(Protocol::Sctp), Outcome::Refused);
        let Outcome::Unreachable(icmp) = probe(Protocol::Udp) else { panic!("{}", probe(Protocol::Udp)) };
        assert!(icmp.is_port_unreachable(), "{icmp}");
        assert!(!Outcome::Unreachable(icmp).is_rejected());
    }
}

#[test]
fn a_rule_that_drops_is_a_time_out_and_one_that_rejects_is_not() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        rule(&cluster, "drop");
        for (protocol, port) in ALL {
            assert_eq!(cluster.probe("x/a", to, protocol, port).expect("probed"), Outcome::TimedOut);
        }
        rule(&cluster, "reject with icmpx admin-prohibited");
        for (protocol, port) in ALL {
            match cluster.probe("x/a", to, protocol, port).expect("probed") {
                Outcome::Unreachable(icmp) => assert!(icmp.is_admin_prohibited(), "{protocol}: {icmp}"),
                other => panic!("{family:?} {protocol}: {other}"),
            }
        }
        rule(&cluster, "meta l4proto tcp reject with tcp reset");
        assert_eq!(cluster.probe("x/a", to, Protocol::Tcp, 80).expect("probed"), Outcome::Refused);
        assert!(cluster.probe("x/a", to, Protocol::Udp, 53).expect("probed").is_connected());
    }
}

#[test]
fn sctp_rejected_on_one_port_connects_on_the_other_between_the_same_pods() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    cluster.serve("y/a", Protocol::Sctp, 9005).expect("serves");
    rule(&cluster, "sctp dport 9005 reject with icmpx admin-prohibited");
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        let probe = |port| Probe { from: "x/a".into(), to, protocol: Protocol::Sctp, port };
        let outcomes = cluster.probe_all(&[probe(9003), probe(9005), probe(9003)], TIMEOUT).expect("probed");
        assert!(outcomes[0].is_connected() && outcomes[2].is_connected(), "{outcomes:?}");
        assert!(outcomes[1].is_rejected(), "{outcomes:?}");
    }
}

#[test]
fn conntrack_takes_the_sctp_packets_for_good_ones() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    rule(
        &cluster,
        "ct state invalid drop; ct state established,related accept; sctp dport 9003 ct state new accept; drop",
    );
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        let outcome = cluster.probe("x/a", to, Protocol::Sctp, 9003).expect("probed");
        assert!(outcome.is_connected(), "{family:?}: {outcome}");
    }
}

#[test]
fn translation_shows_in_the_address_that_the_server_saw() {
    let cluster = cluster(Attachment::Routed, 2, 1);
    let node = cluster.namespace("n1").expect("node");
    node.nft("table ip t { chain p { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }")
        .expect("loads");
    let to = cluster.address("y/a", Family::V4).expect("address");
    for (protocol, port) in &ALL[..3] {
        let outcome = cluster.probe("x/a", to, *protocol, *port).expect("probed");
        let Outcome::Connected(answer) = outcome else { panic!("{protocol}: {outcome}") };
        assert_eq!(answer.server, "y/a");
        assert_eq!(answer.seen_source, cluster.address("n1", Family::V4).ok(), "{protocol}");
    }
}

#[test]
fn no_route_is_a_local_failure_not_a_refusal() {
    let cluster = ClusterSpec::uniform(Attachment::Routed, &[Family::V4], 1, 1).build().expect("built");
    let to = "2001:db8::1".parse().expect("address");
    let outcome = cluster.probe("x/a", to, Protocol::Tcp, 80).expect("probed");
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome}");
}

#[test]
fn a_matrix_agrees_with_the_rules_and_says_which_cell_does_not() {
    let cluster = cluster(Attachment::Routed, 1, 3);
    let to = cluster.address("z/a", Family::V4).expect("address");
    let from = cluster.address("x/a", Family::V4).expect("address");
    rule(&cluster, &format!("ip saddr {from} ip daddr {to} tcp dport 80 drop"));
    let matrices = cluster.matrix(&ALL, Family::V4).expect("probed");
    assert_eq!(matrices[0].rows(), ["..X", "...", "..."]);
    assert_eq!(matrices[1].rows(), ["...", "...", "..."]);
    let expected = Expected::parse(cluster.pods(), &["..X", "..?", "-.."]).expect("reads");
    matrices[0].check(&expected).expect("as expected");
    let expected = Expected::parse(cluster.pods(), &["...", "...", "X.."]).expect("reads");
    let wrong: Vec<String> = matrices[0].wrong(&expected).iter().map(ToString::to_string).collect();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert_eq!(wrong[0], "x/a -> z/a should connect: timed out");
    assert!(wrong[1].starts_with("z/a -> x/a should be blocked: connected to x/a"), "{wrong:?}");
}

#[test]
fn thousands_of_probes_time_out_together() {
    let cluster = cluster(Attachment::Routed, 1, 9);
    rule(&cluster, "drop");
    let names: Vec<&str> = cluster.pods().iter().map(String::as_str).collect();
    let ports: Vec<_> =
        (0..7).flat_map(|n| ALL[..3].iter().map(move |(protocol, port)| (*protocol, port + n))).collect();
    let start = Instant::now();
    let matrices = cluster.matrix_between(&names, &names, &ports, Family::V4).expect("probed");
    // One after the other they would take twenty minutes.
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    for matrix in &matrices {
        for (from, row) in matrix.rows().iter().enumerate() {
            for (to, cell) in row.chars().enumerate() {
                assert!(from == to || cell == 'X', "{matrix}");
            }
        }
    }
}

#[test]
fn a_kept_flow_notices_when_it_is_cut_and_when_it_lives_again() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        for (protocol, port) in ALL {
            rule(&cluster, "accept");
            let mut flow = cluster.connect("x/a", to, protocol, port, LIMIT).expect("opened");
            assert!(flow.opened().is_connected(), "{protocol}: {}", flow.opened());
            assert!(flow.exchange(LIMIT).is_connected(), "{protocol}");
            rule(&cluster, "drop");
            assert_eq!(flow.exchange(Duration::from_millis(100)), Outcome::TimedOut, "{protocol}");
            rule(&cluster, "accept");
            let again = flow.exchange(LIMIT);
            assert!(again.is_connected(), "{family:?} {protocol}: {again}");
            rule(&cluster, "meta l4proto tcp reject with tcp reset; reject with icmpx admin-prohibited");
            let end = flow.exchange(LIMIT);
            assert!(end.is_rejected(), "{family:?} {protocol}: {end}");
        }
    }
}

#[test]
fn a_hammer_finds_leaks_and_wrong_refusals_and_forgives_what_a_change_overlaps() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    let to = cluster.address("y/a", Family::V4).expect("address");
    let reject = "meta l4proto tcp reject with tcp reset";
    rule(&cluster, "accept");
    let spec = HammerSpec { patience: LIMIT, ..HammerSpec::tcp("x/a", to, 80) };
    let hammer = cluster.hammer(&spec, Expect::Connected).expect("starts");
    assert!(hammer.wait_for(200, LIMIT));
    hammer.expect(Expect::Anything);
    rule(&cluster, reject);
    hammer.expect(Expect::Blocked);
    assert!(hammer.wait_for(200, LIMIT));
    let good = hammer.report();
    assert_eq!((good.leaks, good.wrong_refusals), (0, 0), "{:?}", good.surprises);
    assert!(good.connected >= 200 && good.rejected >= 199, "{good:?}");
    // Now the rules change behind its back, both ways.
    rule(&cluster, "accept");
    assert!(hammer.wait_for(50, LIMIT));
    hammer.expect(Expect::Anything);
    hammer.expect(Expect::Connected);
    rule(&cluster, reject);
    assert!(hammer.wait_for(50, LIMIT));
    let bad = hammer.stop().expect("stops");
    assert!(bad.leaks > 0 && bad.wrong_refusals > 0, "{bad:?}");
    assert!(bad.surprises.len() <= 20 && bad.surprises[0].began > Duration::ZERO);
}

#[test]
fn a_hammer_stops_by_itself_at_its_bounds() {
    let cluster = cluster(Attachment::Routed, 1, 2);
    let to = cluster.address("y/a", Family::V4).expect("address");
    let spec = HammerSpec { most_attempts: 100, threads: 2, ..HammerSpec::tcp("x/a", to, 80) };
    let hammer = cluster.hammer(&spec, Expect::Connected).expect("starts");
    let deadline = Instant::now() + LIMIT;
    while hammer.report().attempts() < 100 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(hammer.stop().expect("stops").attempts(), 100);
}
