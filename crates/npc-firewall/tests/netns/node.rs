//! Pods and their own node, and Services in between.

use std::net::IpAddr;

use test_netns::{Attachment, Outcome, Protocol};

use crate::lab::{ALL_PORTS, BOTH, FAR, FAR_EXCEPT, Lab, ip};

const ISOLATED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
const TCP_AND_UDP: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn a_node_always_reaches_its_own_pods_and_no_other_nodes() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut lab = Lab::new(attachment, 2, 3);
        let firewalls = lab.start_all(&[]);
        for namespace in ["x", "y", "z"] {
            lab.objects.policy(&format!("{namespace}/p"), ISOLATED);
        }
        lab.apply(&firewalls.iter().collect::<Vec<_>>());
        for family in BOTH {
            for (pod, own, other) in [("x/a", "n1", "n2"), ("y/b", "n1", "n2"), ("x/b", "n2", "n1")] {
                let to = lab.cluster.address(pod, family).expect("an address");
                for (protocol, port) in ALL_PORTS {
                    let outcome = lab.probe(own, to, protocol, port);
                    assert!(outcome.is_connected(), "{attachment:?} {own} -> {pod} {protocol}: {outcome}");
                    let outcome = lab.probe(other, to, protocol, port);
                    assert!(outcome.is_rejected(), "{attachment:?} {other} -> {pod} {protocol}: {outcome}");
                }
            }
        }
    }
}

/// Where a pod of n1 can reach its node.
fn ways_to_n1(lab: &Lab, attachment: Attachment) -> Vec<IpAddr> {
    let gateways: &[_] =
        if attachment == Attachment::Bridge { &["10.244.1.1", "fd00:10:244:1::1"] } else { &[] };
    [lab.v4("n1"), lab.v6("n1")].into_iter().chain(gateways.iter().map(|text| ip(text))).collect()
}

#[test]
fn what_a_pod_sends_to_its_own_node_is_judged_by_its_egress_policies() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut lab = Lab::new(attachment, 2, 3);
        let firewalls = lab.start_all(&[]);
        let firewalls: Vec<_> = firewalls.iter().collect();
        lab.cluster.serve("n1", Protocol::Tcp, 80).expect("serves");
        lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Egress]}");
        // Ingress policies have nothing to do with it.
        lab.objects.policy("z/p", "{podSelector: {}, policyTypes: [Ingress]}");
        lab.apply(&firewalls);
        for to in ways_to_n1(&lab, attachment) {
            for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Icmp, 0)] {
                for (from, passes) in [("x/a", false), ("y/b", true), ("z/a", true)] {
                    let outcome = lab.probe(from, to, protocol, port);
                    let right = if passes { outcome.is_connected() } else { outcome.is_rejected() };
                    assert!(right, "{attachment:?} {from} -> {to} {protocol}: {outcome}");
                }
            }
        }
        let remote = lab.probe("x/b", lab.v4("n1"), Protocol::Tcp, 80);
        assert!(remote.is_rejected(), "from the pod of another node: {remote}");
        lab.objects.policy(
            "x/p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.18.0.2/32}}], \
             ports: [{port: 80}]}]}",
        );
        lab.apply(&firewalls);
        for from in ["x/a", "x/b"] {
            let outcome = lab.probe(from, lab.v4("n1"), Protocol::Tcp, 80);
            assert!(outcome.is_connected(), "{attachment:?} {from}: allowed by a block: {outcome}");
            let outcome = lab.probe(from, lab.v4("n1"), Protocol::Tcp, 81);
            assert!(outcome.is_rejected(), "{attachment:?} {from}: another port: {outcome}");
            let outcome = lab.probe(from, lab.v6("n1"), Protocol::Tcp, 80);
            assert!(outcome.is_rejected(), "{attachment:?} {from}: another address: {outcome}");
        }
    }
}

#[test]
fn egress_to_node_false_lets_pods_reach_their_own_node_and_nothing_else() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&["--egress-to-node=false"]);
    lab.cluster.serve("n1", Protocol::Tcp, 80).expect("serves");
    lab.objects.policy("x/p", ISOLATED);
    lab.write();
    // There is no set of Services to see it by.
    for firewall in &firewalls {
        firewall.until("isolated", || firewall.table().contains("x/p"));
    }
    for to in ways_to_n1(&lab, Attachment::Routed) {
        let outcome = lab.probe("x/a", to, Protocol::Tcp, 80);
        assert!(outcome.is_connected(), "x/a -> {to}: {outcome}");
        let outcome = lab.probe("x/b", to, Protocol::Tcp, 80);
        assert!(outcome.is_rejected(), "x/b -> {to}: {outcome}");
    }
    lab.check("pods", &ALL_PORTS, |t| !t.of_ns("x") && !t.to_ns("x"));
}

/// W6. The node answers on the addresses of Services itself, so whatever is exempt connects.
#[test]
fn what_goes_to_a_service_is_exempt_by_exact_address_protocol_and_port() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    let firewall = lab.start("n1", &[]);
    let (v4, v6, other) = (ip("10.96.0.10"), ip("fd00:96::10"), ip("10.96.0.11"));
    firewall
        .namespace()
        .ip("addr add 10.96.0.10/32 dev lo\naddr add 10.96.0.11/32 dev lo\naddr add fd00:96::10/128 dev lo nodad\n")
        .expect("added");
    for port in [80, 81, 30080, 30081] {
        lab.cluster.serve("n1", Protocol::Tcp, port).expect("serves");
    }
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Egress]}");
    lab.objects.service("web", &v4.to_string(), "TCP", 80, Some(30080));
    lab.objects.service("web6", &v6.to_string(), "TCP", 80, None);
    lab.apply(&[&firewall]);
    let node = [lab.v4("n1"), lab.v6("n1")];
    // Nobody listens to UDP: that the node says so is as good.
    let arrives = |from, to, protocol, port| {
        let outcome = lab.probe(from, to, protocol, port);
        let closed = matches!(outcome, Outcome::Unreachable(icmp) if icmp.is_port_unreachable());
        assert!(
            outcome.is_connected() || closed || outcome.is_rejected(),
            "{from} -> {to} {protocol}: {outcome}"
        );
        outcome.is_connected() || closed
    };
    for (to, protocol, port, exempt) in [
        (v4, Protocol::Tcp, 80, true),
        (v6, Protocol::Tcp, 80, true),
        (v4, Protocol::Tcp, 81, false),
        (v6, Protocol::Tcp, 81, false),
        (v4, Protocol::Udp, 80, false),
        (v6, Protocol::Udp, 80, false),
        (other, Protocol::Tcp, 80, false),
        (node[0], Protocol::Tcp, 30080, true),
        (node[1], Protocol::Tcp, 30080, true),
        (node[0], Protocol::Udp, 30080, false),
        (node[0], Protocol::Tcp, 30081, false),
        (node[0], Protocol::Tcp, 80, false),
        (v4, Protocol::Icmp, 0, false),
    ] {
        assert_eq!(arrives("x/a", to, protocol, port), exempt, "{to} {protocol} {port}");
        assert!(arrives("y/a", to, protocol, port), "a free pod, {to} {protocol} {port}");
    }
    lab.objects.others.clear();
    lab.apply(&[&firewall]);
    for (to, port) in [(v4, 80), (v6, 80), (node[0], 30080)] {
        let outcome = lab.probe("x/a", to, Protocol::Tcp, port);
        assert!(outcome.is_rejected(), "{to} {port} is no Service any more: {outcome}");
    }
}

/// Translates on n1 as kube-proxy does: Service number n at 10.96.0.n and fd00:96::n, TCP and UDP 80. A pod that
/// reaches itself sees its node, or it would answer itself within.
fn translate(lab: &Lab, backends: &[(u8, &str)]) {
    let mut rules = String::new();
    for (number, pod) in backends {
        for protocol in ["tcp", "udp"] {
            rules += &format!(
                "ip daddr 10.96.0.{number} {protocol} dport 80 dnat ip to {}:80; \
                 ip6 daddr fd00:96::{number} {protocol} dport 80 dnat ip6 to [{}]:80; ",
                lab.v4(pod),
                lab.v6(pod)
            );
        }
    }
    let (own4, own6, node4, node6) = (lab.v4("x/a"), lab.v6("x/a"), lab.v4("n1"), lab.v6("n1"));
    let rules = format!(
        "table inet proxy {{ \
         chain pre {{ type nat hook prerouting priority dstnat; {rules} }}; \
         chain post {{ type nat hook postrouting priority srcnat; \
         ip saddr {own4} ip daddr {own4} snat ip to {node4}; \
         ip6 saddr {own6} ip6 daddr {own6} snat ip6 to {node6}; }}; }}"
    );
    lab.cluster.namespace("n1").expect("a node").nft(&rules).expect("loaded");
}

#[test]
fn what_goes_through_a_service_is_judged_by_its_real_ends() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut lab = Lab::new(attachment, 2, 3);
        let firewalls = lab.start_all(&[]);
        // x/a, z/a, y/b are on n1; y/a, x/b, z/b on n2.
        translate(&lab, &[(1, "y/a"), (2, "y/b"), (3, "x/a")]);
        if attachment == Attachment::Bridge {
            // As the kubelet's and the bridge plugin's hairpin mode.
            let link = lab.cluster.host("x/a").expect("a pod").node_link();
            let line = format!("link set {link} type bridge_slave hairpin on\n");
            firewalls[0].namespace().ip(&line).expect("set");
        }
        let addresses = |number: u8| [ip(&format!("10.96.0.{number}")), ip(&format!("fd00:96::{number}"))];
        for number in 1..=3 {
            lab.objects.service(&format!("s{number}"), &format!("10.96.0.{number}"), "TCP", 80, None);
        }
        let expect = |lab: &Lab, case: &str, from: &str, number: u8, passes: bool| {
            for to in addresses(number) {
                for protocol in TCP_AND_UDP {
                    let outcome = lab.probe(from, to, protocol, 80);
                    let right = if passes { outcome.is_connected() } else { outcome.is_rejected() };
                    assert!(right, "{attachment:?} {case}: {from} -> {to} {protocol}: {outcome}");
                }
            }
        };
        let firewalls: Vec<_> = firewalls.iter().collect();
        lab.apply(&firewalls);
        for (from, number) in [("x/a", 1), ("x/a", 2), ("z/a", 1), ("z/a", 3), ("x/a", 3)] {
            expect(&lab, "without policies", from, number, true);
        }
        lab.objects
            .policy("x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}");
        lab.apply(&firewalls);
        expect(&lab, "the backend is not among the peers", "x/a", 1, false);
        expect(&lab, "the backend is not among the peers", "x/a", 2, false);
        expect(&lab, "another client", "z/a", 1, true);
        lab.objects.policy(
            "x/p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}}, \
             {ipBlock: {cidr: 'fd00:96::/64'}}]}]}",
        );
        lab.apply(&firewalls);
        expect(&lab, "the virtual address is not what counts", "x/a", 2, false);
        lab.objects.policy(
            "x/p",
            "{podSelector: {}, policyTypes: [Egress], egress: [{to: [\
             {namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}, {protocol: UDP, port: 80}]}]}",
        );
        lab.objects.policy(
            "y/p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}",
        );
        lab.apply(&firewalls);
        expect(&lab, "both ends allow it", "x/a", 1, true);
        expect(&lab, "both ends allow it", "x/a", 2, true);
        expect(&lab, "the backend allows others only", "z/a", 1, false);
        expect(&lab, "the backend allows others only", "z/a", 2, false);
        lab.objects.policy("x/p", ISOLATED);
        lab.apply(&firewalls);
        expect(&lab, "to itself, whatever policies say", "x/a", 3, true);
        expect(&lab, "to an isolated pod", "z/a", 3, false);
        expect(&lab, "from an isolated pod", "x/a", 2, false);
    }
}

#[test]
fn a_node_port_is_judged_by_the_client_that_it_is_for() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    let firewall = lab.start("n1", &[]);
    let to = lab.v4("n1");
    firewall
        .namespace()
        .nft(&format!(
            "table ip proxy {{ chain pre {{ type nat hook prerouting priority dstnat; \
             fib daddr type local tcp dport 30080 dnat to {}:80; }}; \
             chain post {{ type nat hook postrouting priority srcnat; \
             ct status dnat masquerade; }}; }}",
            lab.v4("x/a")
        ))
        .expect("loaded");
    lab.objects.service("web", "10.96.0.10", "TCP", 80, Some(30080));
    lab.objects.policy("x/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 14.215.0.0/24}}]}]}");
    lab.apply(&[&firewall]);
    let outcome = lab.probe(FAR, to, Protocol::Tcp, 30080);
    assert!(outcome.is_connected(), "in the block: {outcome}");
    let outcome = lab.probe(FAR_EXCEPT, to, Protocol::Tcp, 30080);
    assert!(outcome.is_rejected(), "outside the block: {outcome}");
    // An isolated pod that goes by way of its node's port reaches what it may reach, no more.
    lab.objects.policy("y/p", "{podSelector: {}, policyTypes: [Egress]}");
    lab.objects.policy("x/p", "{podSelector: {}, ingress: [{}]}");
    lab.apply(&[&firewall]);
    let outcome = lab.probe("y/a", to, Protocol::Tcp, 30080);
    assert!(outcome.is_rejected(), "judged after translation: {outcome}");
    let outcome = lab.probe("z/a", to, Protocol::Tcp, 30080);
    assert!(outcome.is_connected(), "{outcome}");
}
