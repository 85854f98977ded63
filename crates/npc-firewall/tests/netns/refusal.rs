//! How packets are refused, counted and logged; and what is never refused.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use test_netns::{Attachment, Outcome, Protocol};

use crate::lab::{ALL_PORTS, BOTH, Firewall, Lab, PATIENCE, until};
use crate::nflog::Nflog;

const ISOLATED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
/// To, from, and between the isolated pods of x: x/a on n1 and x/b on n2, with y/b beside the former.
const REFUSED: [(&str, &str); 5] =
    [("y/a", "x/a"), ("y/b", "x/a"), ("x/a", "y/a"), ("x/a", "y/b"), ("x/a", "x/b")];

fn each_refused(lab: &Lab, mut judge: impl FnMut(&str, Protocol, &Outcome)) {
    for (from, to) in REFUSED {
        for family in BOTH {
            let address = lab.cluster.address(to, family).expect("an address");
            for (protocol, port) in ALL_PORTS {
                let outcome = lab.probe(from, address, protocol, port);
                judge(&format!("{from} -> {to} {protocol} {port} {family:?}: {outcome}"), protocol, &outcome);
            }
        }
    }
}

#[test]
fn refused_tcp_gets_a_reset_and_the_rest_admin_prohibited() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut lab = Lab::new(attachment, 2, 3);
        let firewalls = lab.start_all(&[]);
        lab.objects.policy("x/p", ISOLATED);
        lab.apply(&firewalls.iter().collect::<Vec<_>>());
        each_refused(&lab, |case, protocol, outcome| match outcome {
            Outcome::Refused => assert_eq!(protocol, Protocol::Tcp, "{attachment:?} {case}"),
            Outcome::Unreachable(icmp) => {
                assert!(icmp.is_admin_prohibited() && protocol != Protocol::Tcp, "{attachment:?} {case}");
            }
            _ => panic!("{attachment:?} {case}"),
        });
    }
}

#[test]
fn deny_action_drop_says_nothing() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&["--deny-action=drop"]);
    lab.objects.policy("x/p", ISOLATED);
    lab.apply(&firewalls.iter().collect::<Vec<_>>());
    lab.check("isolated", &ALL_PORTS, |t| !t.of_ns("x") && !t.to_ns("x"));
    for (from, to) in [("y/a", "x/a"), ("x/a", "y/b")] {
        for family in BOTH {
            let to = lab.cluster.address(to, family).expect("an address");
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let outcome = lab.probe(from, to, protocol, 80);
                assert_eq!(outcome, Outcome::TimedOut, "{from} -> {to} {protocol}");
            }
        }
    }
}

#[test]
fn refused_packets_are_counted_by_direction() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    let firewall = lab.start("n1", &[]);
    let denied = |direction: &str| {
        firewall.metric("npc_firewall_denied_packets_total", &format!("direction=\"{direction}\""))
    };
    lab.objects.policy("x/p", ISOLATED);
    lab.apply(&[&firewall]);
    assert_eq!((denied("ingress"), denied("egress")), (0, 0));
    for _ in 0..3 {
        assert_eq!(lab.probe("y/a", lab.v4("x/a"), Protocol::Tcp, 80), Outcome::Refused);
    }
    assert_eq!((denied("ingress"), denied("egress")), (3, 0), "a refused connection is one packet");
    assert_eq!(lab.probe("x/a", lab.v6("y/a"), Protocol::Tcp, 80), Outcome::Refused);
    assert!(lab.probe("z/a", lab.v6("y/a"), Protocol::Tcp, 80).is_connected());
    assert_eq!((denied("ingress"), denied("egress")), (3, 1));
    // Counters live on in the table, and the metric goes on counting.
    lab.objects.policy("y/p", ISOLATED);
    lab.apply(&[&firewall]);
    assert_eq!(lab.probe("z/a", lab.v4("y/a"), Protocol::Tcp, 80), Outcome::Refused);
    assert_eq!((denied("ingress"), denied("egress")), (4, 1));
}

#[test]
fn refused_packets_are_logged_to_the_group_with_their_direction() {
    for (flags, group) in [(&[][..], 100), (&["--nflog-group=7"], 7)] {
        let mut lab = Lab::new(Attachment::Routed, 1, 3);
        let firewall = lab.start("n1", flags);
        lab.objects.policy("x/p", ISOLATED);
        lab.apply(&[&firewall]);
        let mut log = Nflog::bind(firewall.namespace(), group);
        let cases = [
            ("y/a", lab.v4("x/a"), "npc-firewall ingress: "),
            ("y/a", lab.v6("x/a"), "npc-firewall ingress: "),
            ("x/a", lab.v4("y/a"), "npc-firewall egress: "),
            ("x/a", lab.v6("y/a"), "npc-firewall egress: "),
        ];
        assert!(lab.probe("z/a", lab.v4("y/a"), Protocol::Tcp, 80).is_connected(), "allowed, so not logged");
        for (from, to, prefix) in cases {
            assert!(!lab.probe(from, to, Protocol::Tcp, 80).is_connected());
            let logged = log.next(PATIENCE).expect("a packet");
            let from = lab.cluster.host(from).expect("a pod");
            let source = from.addresses.iter().find(|a| a.is_ipv4() == to.is_ipv4()).expect("an address");
            assert_eq!(logged.prefix, prefix, "{} -> {to}", from.name);
            assert_eq!(ends(&logged.packet), (*source, to));
        }
    }
}

#[test]
fn nothing_is_logged_to_no_group_and_a_flood_is_logged_ten_times() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = [lab.start("n1", &["--nflog-group=none"]), lab.start("n2", &[])];
    lab.objects.policy("x/p", ISOLATED);
    lab.apply(&firewalls.iter().collect::<Vec<_>>());
    let mut silent = Nflog::bind(firewalls[0].namespace(), 100);
    let mut flooded = Nflog::bind(firewalls[1].namespace(), 100);
    let flood = |to: &str| {
        let probe =
            test_netns::Probe { from: "z/a".into(), to: lab.v4(to), protocol: Protocol::Tcp, port: 80 };
        let outcomes = lab.cluster.probe_all(&vec![probe; 200], PATIENCE).expect("probed");
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Refused));
    };
    flood("x/a");
    flood("x/b");
    let mut count = 0;
    while flooded.next(if count < 10 { PATIENCE } else { Duration::from_secs(2) }).is_some() {
        count += 1;
    }
    // The burst, and one more for each six seconds that this takes on a busy machine.
    assert!((10..100).contains(&count), "{count} of 200 refused packets were logged");
    assert!(silent.next(Duration::from_millis(1)).is_none(), "--nflog-group=none");
}

/// Source and destination of an IP packet.
fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let at = |from: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[from..from + 4]).expect("four"));
        (at(12), at(16))
    } else {
        let at = |from: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[from..from + 16]).expect("sixteen"));
        (at(8), at(24))
    }
}

/// Isolates x and y but for UDP from x to y.
fn only_udp_from_x_to_y(lab: &mut Lab, firewalls: &[Firewall]) {
    lab.objects.policy(
        "x/p",
        "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [\
         {namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{protocol: UDP}]}]}",
    );
    lab.objects.policy(
        "y/p",
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [\
         {namespaceSelector: {matchLabels: {ns: x}}}], ports: [{protocol: UDP}]}]}",
    );
    lab.apply(&firewalls.iter().collect::<Vec<_>>());
}

#[test]
fn icmp_errors_of_allowed_packets_pass_both_isolated_ends() {
    // Without marks the error itself is judged, with them its connection has been.
    for (attachment, flags) in
        [(Attachment::Routed, &[][..]), (Attachment::Bridge, &[]), (Attachment::Routed, &["--mark-mask=0"])]
    {
        let mut lab = Lab::new(attachment, 2, 3);
        let firewalls = lab.start_all(flags);
        only_udp_from_x_to_y(&mut lab, &firewalls);
        // y/b is on the node of x/a, y/a on the other; nobody listens to 4444.
        for to in ["y/a", "y/b"] {
            for family in BOTH {
                let address = lab.cluster.address(to, family).expect("an address");
                let outcome = lab.probe("x/a", address, Protocol::Udp, 4444);
                let told = matches!(outcome, Outcome::Unreachable(icmp) if icmp.is_port_unreachable());
                assert!(told, "{attachment:?} x/a -> {to} {family:?}: {outcome}");
            }
        }
        let ping = lab.probe("x/a", lab.v4("y/a"), Protocol::Icmp, 0);
        assert!(ping.is_rejected(), "but no other ICMP: {ping}");
    }
}

#[test]
fn a_narrow_link_on_the_way_is_found_out_by_isolated_pods() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&[]);
    only_udp_from_x_to_y(&mut lab, &firewalls);
    let link = lab.cluster.host("y/a").expect("a pod").node_link().to_owned();
    firewalls[1].namespace().ip(&format!("link set {link} mtu 1300\n")).expect("set");
    lab.cluster.namespace("y/a").expect("a pod").ip("link set eth0 mtu 1300\n").expect("set");
    let pod = lab.cluster.namespace("x/a").expect("a pod");
    for (from, to) in [(lab.v4("x/a"), lab.v4("y/a")), (lab.v6("x/a"), lab.v6("y/a"))] {
        let open = || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((from, 0))?;
            socket.connect((to, 80))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        };
        let socket = pod.run(open).expect("entered").expect("opened");
        // 1,400 bytes do not fit until the kernel has heard of the link; then it sends fragments.
        until("a large datagram gets there", || {
            let sent = socket.send(&[b'x'; 1400]);
            sent.is_ok() && socket.recv(&mut [0; 2048]).is_ok()
        });
        let route = pod.output("ip", &["route", "get", &to.to_string()], "").expect("a route");
        assert!(route.contains("mtu 1300"), "{route}");
    }
}

#[test]
fn neighbours_find_each_other_whatever_policies_say() {
    let mut lab = Lab::new(Attachment::Bridge, 2, 3);
    let firewalls = lab.start_all(&[]);
    only_udp_from_x_to_y(&mut lab, &firewalls);
    let ways = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
    for way in ways {
        let value = firewalls[0].namespace().output("cat", &[&format!("/proc/sys/{way}")], "");
        assert_eq!(value.expect("read").trim(), "1", "bridged packets are judged");
    }
    for _ in 0..3 {
        // Solicitations and advertisements between two pods of a bridge, and of a pod and its gateway.
        for pod in ["x/a", "y/b", "y/a"] {
            lab.cluster.namespace(pod).expect("a pod").ip("neigh flush dev eth0\n").expect("flushed");
        }
        for to in ["y/a", "y/b"] {
            for family in BOTH {
                let address = lab.cluster.address(to, family).expect("an address");
                let outcome = lab.probe("x/a", address, Protocol::Udp, 80);
                assert!(outcome.is_connected(), "x/a -> {to} {family:?}: {outcome}");
            }
        }
    }
    assert!(!lab.probe("z/a", lab.v6("x/a"), Protocol::Udp, 80).is_connected());
}
