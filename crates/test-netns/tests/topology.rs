//! Real packets through every shape of cluster.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use test_netns::{Attachment, Cluster, ClusterSpec, Expected, Family, NodeSpec, Outcome, PodSpec, Protocol};

const ALL: [(Protocol, u16); 4] =
    [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 9003), (Protocol::Icmp, 0)];
const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn uniform(attachment: Attachment, nodes: u8, pods: u8) -> ClusterSpec {
    ALL.iter().fold(ClusterSpec::uniform(attachment, &BOTH, nodes, pods), |spec, (protocol, port)| {
        spec.serve(*protocol, *port)
    })
}

fn everyone_reaches_everyone(cluster: &Cluster, others: &[&str]) {
    let mut names: Vec<&str> = cluster.pods().iter().map(String::as_str).collect();
    names.extend(others);
    for family in BOTH {
        for matrix in cluster.matrix_between(&names, &names, &ALL, family).expect("probed") {
            matrix.check(&Expected::by(&names, &names, |_, _| true)).expect("all connect");
        }
    }
}

#[test]
fn routed_pods_reach_each_other_and_outside_in_both_families() {
    let cluster = uniform(Attachment::Routed, 2, 3).build().expect("built");
    everyone_reaches_everyone(&cluster, &["outside"]);
}

#[test]
fn bridged_pods_reach_each_other_and_outside_in_both_families() {
    let cluster = uniform(Attachment::Bridge, 2, 3).build().expect("built");
    everyone_reaches_everyone(&cluster, &["outside"]);
}

#[test]
fn pods_of_three_nodes_of_nine_reach_each_other() {
    let cluster = uniform(Attachment::Routed, 3, 9).build().expect("built");
    everyone_reaches_everyone(&cluster, &[]);
}

#[test]
fn pods_with_addresses_outside_every_cidr_are_reached_on_both_attachments() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let ip = |text: &str| text.parse().expect("address");
        let mut spec = ClusterSpec::new(attachment)
            .node(NodeSpec::new("n1"))
            .node(NodeSpec::new("n2"))
            .pod(PodSpec::new("x/a", "n1", [ip("10.244.1.10"), ip("fd00:10:244:1::110")]))
            .pod(PodSpec::new("x/b", "n2", [ip("10.244.1.11"), ip("fd00:10:244:1::111")]))
            .pod(PodSpec::new("y/a", "n1", [ip("192.168.7.1"), ip("fd77::1")]));
        for (protocol, port) in ALL {
            spec = spec.serve(protocol, port);
        }
        let mut cluster = spec.build().expect("built");
        cluster.add_pod(PodSpec::new("y/b", "n1", [ip("192.168.9.9"), ip("fd77::9")])).expect("added later");
        everyone_reaches_everyone(&cluster, &["outside"]);
    }
}

#[test]
fn nodes_reach_pods_of_their_own_and_of_other_nodes() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let cluster = uniform(attachment, 2, 2).build().expect("built");
        let pods: Vec<&str> = cluster.pods().iter().map(String::as_str).collect();
        for family in BOTH {
            for matrix in cluster.matrix_between(&["n1", "n2"], &pods, &ALL, family).expect("probed") {
                matrix.check(&Expected::by(&["n1", "n2"], &pods, |_, _| true)).expect("all connect");
            }
        }
    }
}

#[test]
fn pods_reach_their_own_node_when_it_serves() {
    let cluster = uniform(Attachment::Bridge, 2, 1).build().expect("built");
    cluster.serve("n1", Protocol::Tcp, 10250).expect("serves");
    let to = cluster.address("n1", Family::V4).expect("address");
    let outcome = cluster.probe("x/a", to, Protocol::Tcp, 10250).expect("probed");
    let Outcome::Connected(answer) = outcome else { panic!("{outcome}") };
    assert_eq!(answer.server, "n1");
    assert_eq!(answer.seen_source, cluster.address("x/a", Family::V4).ok());
}

#[test]
fn the_outside_host_answers_on_and_probes_from_each_of_its_addresses() {
    let far = "14.215.0.10";
    let cluster =
        uniform(Attachment::Routed, 1, 1).outside(far.parse().expect("address")).build().expect("built");
    for (protocol, port) in ALL {
        let out = cluster.probe("x/a", far.parse().expect("address"), protocol, port).expect("probed");
        assert!(out.is_connected(), "{protocol}: {out}");
        let pod = cluster.address("x/a", Family::V4).expect("address");
        match cluster.probe(far, pod, protocol, port).expect("probed") {
            Outcome::Connected(answer) if protocol != Protocol::Icmp => {
                assert_eq!(answer.seen_source, far.parse().ok(), "{protocol}");
            }
            outcome => assert!(outcome.is_connected(), "{protocol}: {outcome}"),
        }
    }
}

#[test]
fn an_address_can_be_used_again_on_another_node_after_its_pod_was_removed() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut cluster = uniform(attachment, 2, 2).build().expect("built");
        let address = "192.168.7.7".parse().expect("address");
        for (name, node) in [("z/one", "n1"), ("z/two", "n1"), ("z/three", "n2"), ("z/four", "n1")] {
            cluster.add_pod(PodSpec::new(name, node, [address])).expect("added");
            for from in ["x/a", "y/a", "outside"] {
                let outcome = cluster.probe(from, address, Protocol::Udp, 53).expect("probed");
                let Outcome::Connected(answer) = outcome else { panic!("{from} to {name}: {outcome}") };
                assert_eq!(answer.server, name);
            }
            cluster.remove_pod(name).expect("removed");
            let outcome = cluster.probe("x/a", address, Protocol::Tcp, 80).expect("probed");
            assert!(!outcome.is_connected(), "{name} is gone: {outcome}");
        }
    }
}

#[test]
fn a_bridge_keeps_packets_of_one_node_out_of_the_ip_hooks_until_it_is_told() {
    let cluster = ClusterSpec::uniform(Attachment::Bridge, &BOTH, 1, 2)
        .serve(Protocol::Tcp, 80)
        .build()
        .expect("built");
    let node = cluster.namespace("n1").expect("node");
    node.nft("table inet t { chain c { type filter hook forward priority 0; policy drop; }; }")
        .expect("loads");
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        let switched = cluster.probe("x/a", to, Protocol::Tcp, 80).expect("probed");
        assert!(switched.is_connected(), "{family:?}: {switched}");
    }
    // Where the kernel has br_netfilter, the same rule judges them once the sysctls are set.
    node.sysctl("net/bridge/bridge-nf-call-iptables", "1").expect("set");
    node.sysctl("net/bridge/bridge-nf-call-ip6tables", "1").expect("set");
    for family in BOTH {
        let to = cluster.address("y/a", family).expect("address");
        assert_eq!(cluster.probe("x/a", to, Protocol::Tcp, 80).expect("probed"), Outcome::TimedOut);
    }
}
