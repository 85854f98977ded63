//! Connections that are open when policies change: what is no longer allowed is cut, the rest lives on.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use test_netns::{Attachment, Family, Flow, Protocol};

use crate::lab::{BOTH, EXCHANGE, Firewall, Lab, PATIENCE, nft, until};
use crate::objects::Objects;

/// Protocols of which a flow can be kept.
const KEPT: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

struct Open {
    name: String,
    flow: Flow,
}

impl Open {
    fn lives(&mut self) -> bool {
        self.flow.exchange(EXCHANGE).is_connected()
    }

    /// Fails unless it answers, whatever the machine is busy with.
    fn assert_lives(&mut self, case: &str) {
        let outcome = self.flow.exchange(PATIENCE);
        assert!(outcome.is_connected(), "{case}: {} should live: {outcome}", self.name);
    }

    /// Waits until it is cut, and sees that it stays so. A change of the generation may be put off by a
    /// second, since they keep that distance.
    fn assert_cut(&mut self, case: &str) {
        until(&format!("{case}: {} is cut", self.name), || !self.lives());
        for _ in 0..2 {
            let outcome = self.flow.exchange(EXCHANGE);
            assert!(!outcome.is_connected(), "{case}: {} has come back to life", self.name);
        }
    }
}

fn open(lab: &Lab, from: &str, to: &str, protocol: Protocol, port: u16, family: Family) -> Open {
    let name = format!("{from} -> {to} {protocol} {port} {family:?}");
    let address = lab.cluster.address(to, family).expect("an address");
    let flow = lab.cluster.connect(from, address, protocol, port, PATIENCE).expect("tried");
    assert!(flow.opened().is_connected(), "{name}: {}", flow.opened());
    Open { name, flow }
}

/// Flows of each protocol by both IP versions.
fn open_all(lab: &Lab, pairs: &[(&str, &str)]) -> Vec<Open> {
    let mut flows = Vec::new();
    for (from, to) in pairs {
        for family in BOTH {
            flows.extend(KEPT.map(|protocol| open(lab, from, to, protocol, 80, family)));
        }
    }
    flows
}

/// What is changed, the pairs whose flows must be cut by it, and those whose must not.
type Tightening = (&'static str, fn(&mut Objects), &'static [(&'static str, &'static str)], &'static [Pair]);
type Pair = (&'static str, &'static str);

const FROM_Y_AND_Z: &str = "{podSelector: {}, ingress: [{from: [\
    {namespaceSelector: {matchLabels: {ns: 'y'}}}, {namespaceSelector: {matchLabels: {ns: z}}}]}]}";

/// Pods: x/a, z/a, y/b on n1; y/a, x/b, z/b on n2.
const TIGHTENINGS: [Tightening; 5] = [
    (
        "a peer is taken out of a policy",
        |o| o.policy("x/p", &FROM_Y_AND_Z.replace("ns: 'y'", "ns: nobody")),
        &[("y/a", "x/a"), ("y/b", "x/a"), ("y/b", "x/b")],
        &[("z/a", "x/a"), ("z/b", "x/a"), ("z/a", "x/b"), ("x/a", "y/b"), ("y/a", "z/a")],
    ),
    (
        "a namespace loses its label",
        |o| {
            o.namespace("y").label("ns", "other");
        },
        &[("y/a", "x/a"), ("y/b", "x/a")],
        &[("z/a", "x/a"), ("z/b", "x/b"), ("y/b", "z/a")],
    ),
    (
        "a pod that nothing isolated is isolated",
        |o| o.policy("z/p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}"),
        &[("y/a", "z/a"), ("x/a", "z/a")],
        &[("y/a", "x/a"), ("y/a", "z/b"), ("z/a", "x/b"), ("z/a", "y/b")],
    ),
    (
        "the source is isolated",
        |o| {
            o.policy(
                "y/p",
                "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{to: [\
                 {namespaceSelector: {matchLabels: {ns: z}}}]}]}",
            );
        },
        &[("y/b", "x/a"), ("y/b", "x/b")],
        &[("y/b", "z/a"), ("y/b", "z/b"), ("y/a", "x/a"), ("z/a", "y/b")],
    ),
    (
        "a rule loses everything but a port",
        |o| {
            let ports = "}}}], ports: [{port: 81}]}]}";
            o.policy("x/p", &FROM_Y_AND_Z.replace("}}}]}]}", ports));
        },
        &[("y/a", "x/a"), ("z/a", "x/a")],
        &[("x/a", "z/a"), ("x/b", "y/b"), ("y/a", "z/a")],
    ),
];

fn tighten(attachment: Attachment, flags: &[&str]) {
    let mut lab = Lab::new(attachment, 2, 3);
    let firewalls = lab.start_all(flags);
    let firewalls: Vec<&Firewall> = firewalls.iter().collect();
    for (case, change, lost, kept) in TIGHTENINGS {
        lab.objects = Objects::of(&lab.cluster);
        lab.objects.policy("x/p", FROM_Y_AND_Z);
        lab.apply(&firewalls);
        let mut lost = open_all(&lab, lost);
        let mut kept = open_all(&lab, kept);
        change(&mut lab.objects);
        lab.apply(&firewalls);
        lost.iter_mut().for_each(|flow| flow.assert_cut(case));
        kept.iter_mut().for_each(|flow| flow.assert_lives(case));
    }
}

#[test]
fn tightening_cuts_what_is_no_longer_allowed_and_nothing_else_on_routed_pods() {
    tighten(Attachment::Routed, &[]);
}

#[test]
fn tightening_cuts_what_is_no_longer_allowed_and_nothing_else_on_bridged_pods() {
    tighten(Attachment::Bridge, &[]);
}

#[test]
fn without_a_mark_tightening_cuts_as_well_and_no_mark_is_set() {
    tighten(Attachment::Routed, &["--mark-mask=0"]);
    let lab = Lab::new(Attachment::Routed, 1, 2);
    let firewall = lab.start("n1", &["--mark-mask=0"]);
    let mut flow = open(&lab, "y/a", "x/a", Protocol::Tcp, 80, Family::V4);
    flow.assert_lives("without policies");
    assert!(!firewall.table().contains("mark"), "{}", firewall.table());
    let marks = firewall.namespace().output("conntrack", &["-L", "-p", "tcp"], "").expect("conntrack");
    assert!(marks.contains("mark=0 ") && !marks.contains("mark=1"), "{marks}");
}

#[test]
fn established_keep_lets_connections_live_that_policies_no_longer_allow() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&["--established=keep"]);
    let firewalls: Vec<&Firewall> = firewalls.iter().collect();
    let pairs = [("y/a", "x/a"), ("y/b", "x/a"), ("x/a", "z/b")];
    let mut flows = open_all(&lab, &pairs);
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    lab.apply(&firewalls);
    flows.iter_mut().for_each(|flow| flow.assert_lives("isolated"));
    for (from, to) in pairs {
        assert!(!lab.connects(from, to, 80), "{from} -> {to} is new and refused");
    }
    // Longer than a change of the generation could be put off.
    std::thread::sleep(npc_firewall::plan::generation::INTERVAL);
    flows.iter_mut().for_each(|flow| flow.assert_lives("still isolated"));
}

#[test]
fn connections_of_a_pod_to_its_node_are_cut_although_the_node_goes_on_talking() {
    let mut lab = Lab::new(Attachment::Routed, 1, 2);
    let firewall = lab.start("n1", &[]);
    let address = (lab.v4("n1"), 7000);
    let listen = || TcpListener::bind(address);
    let listener = firewall.namespace().run(listen).expect("entered").expect("listens");
    let pod = lab.cluster.namespace("x/a").expect("a pod");
    let mut stream = pod.run(|| TcpStream::connect(address)).expect("entered").expect("connects");
    stream.set_nonblocking(true).expect("set");
    let (mut served, _) = listener.accept().expect("a connection");
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Egress]}");
    lab.apply(&[&firewall]);
    // What the node sends is a reply; it must not pass for a judgement of the connection. What the pod sends
    // back, if only to acknowledge, is refused by a reset.
    until("the connection is cut", || {
        served.write_all(b"from the node\n").expect("the buffer has room");
        let mut buffer = [0; 2048];
        matches!(stream.read(&mut buffer), Err(error) if error.kind() == ErrorKind::ConnectionReset)
    });
}

/// Two bits are three generations. In each round a port is allowed that was not in the one before.
#[test]
fn generations_that_come_round_let_no_old_connection_live_and_cut_none_that_is_allowed() {
    const PORTS: [u16; 4] = [80, 81, 6379, 5978];
    const LATER: usize = 3;
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&["--mark-mask=0x30"]);
    let firewalls: Vec<&Firewall> = firewalls.iter().collect();
    let allow = |lab: &mut Lab, round: usize| {
        let port = PORTS[round % PORTS.len()];
        lab.objects.policy(
            "x/p",
            &format!(
                "{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: z}}}}}}]}}, \
                 {{ports: [{{port: {port}}}, {{protocol: UDP, port: {port}}}]}}]}}"
            ),
        );
        lab.apply(&firewalls);
        port
    };
    for port in [6379, 5978] {
        lab.cluster.serve("x/a", Protocol::Udp, port).expect("serves");
    }
    allow(&mut lab, 0);
    let mut always = open_all(&lab, &[("z/a", "x/a"), ("z/b", "x/a"), ("y/a", "z/b")]);
    let mut silent_for_good = open_all(&lab, &[("z/a", "x/b")]);
    let mut silent: Vec<Vec<Open>> = Vec::new();
    for round in 0..8 {
        let case = format!("round {round}");
        let port = PORTS[round % PORTS.len()];
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let mut loud: Vec<_> = protocols.map(|p| open(&lab, "y/b", "x/a", p, port, Family::V4)).into();
        silent.push(protocols.map(|p| open(&lab, "y/a", "x/a", p, port, Family::V6)).into());
        allow(&mut lab, round + 1);
        loud.iter_mut().for_each(|flow| flow.assert_cut(&case));
        always.iter_mut().for_each(|flow| flow.assert_lives(&case));
        // Marked three generations ago, hence with the number that is in force again; its port is not.
        if let Some(old) = (round + 1).checked_sub(LATER) {
            silent[old].iter_mut().for_each(|flow| flow.assert_cut(&format!("{case}, silent since {old}")));
        }
    }
    silent_for_good.iter_mut().for_each(|flow| flow.assert_lives("silent all the time"));
}

#[test]
fn bits_of_the_connection_mark_that_are_others_stay_as_they_are() {
    let mut lab = Lab::new(Attachment::Routed, 1, 2);
    let node = lab.cluster.namespace("n1").expect("a node").clone();
    node.nft(
        "table inet other { chain early { type filter hook prerouting priority mangle; \
         ct state new ct mark set 0x55000033; }; }",
    )
    .expect("loaded");
    let firewall = lab.start("n1", &[]);
    let mut flow = open(&lab, "y/a", "x/a", Protocol::Tcp, 80, Family::V4);
    let marks = || {
        let list = node.output("conntrack", &["-L", "-p", "tcp"], "").expect("conntrack");
        let marks =
            list.split_whitespace().filter_map(|word| word.strip_prefix("mark=")?.parse::<u32>().ok());
        marks.collect::<Vec<_>>()
    };
    let allowed = marks();
    assert!(
        !allowed.is_empty() && allowed.iter().all(|mark| mark & 0xff00_ffff == 0x5500_0033),
        "{allowed:x?}"
    );
    assert!(allowed.iter().any(|mark| mark & 0x00ff_0000 != 0), "{allowed:x?}");
    lab.objects.policy("y/p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}");
    lab.apply(&[&firewall]);
    flow.assert_lives("judged again");
    let judged = marks();
    assert!(judged.iter().all(|mark| mark & 0xff00_ffff == 0x5500_0033), "{judged:x?}");
    assert!(nft(&node, &["list", "table", "inet", "other"]).is_ok());
}
