//! Connections tried without pause while everything happens: none that should be refused comes about, and
//! none that should come about is refused.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use test_netns::{Attachment, Expect, Hammer, HammerSpec, Protocol};

use crate::lab::{Firewall, Lab, PATIENCE, tables_can_be_owned};

/// How long to go on; each disturbance comes at least once.
const LONG: Duration = Duration::from_secs(8);
/// Attempts that each hammer makes at least in each state, so that it has seen it.
const SOME: u64 = 5;
/// Attempts of each that must be judged before it ends.
const ENOUGH: u64 = 60;

/// From z always; from `{name}` now and then.
fn policy(more: &str) -> String {
    format!(
        "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Ingress, Egress], ingress: [{{from: [\
         {{namespaceSelector: {{matchLabels: {{ns: z}}}}}}]}}{more}], egress: [{{to: [\
         {{namespaceSelector: {{matchLabels: {{ns: z}}}}}}]}}]}}"
    )
}

const Y_TO_81: &str = ", {from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 81}]}";

struct Struck {
    name: String,
    hammer: Hammer,
}

fn strike(lab: &Lab, from: &str, to: IpAddr, protocol: Protocol, port: u16, expected: Expect) -> Struck {
    let spec = HammerSpec {
        protocol,
        // Refusals are answered at once, and what is allowed may take its time on a busy machine.
        patience: PATIENCE,
        ..HammerSpec::tcp(from, to, port)
    };
    let hammer = lab.cluster.hammer(&spec, expected).expect("hammers");
    Struck { name: format!("{from} -> {to} {protocol} {port}"), hammer }
}

impl Struck {
    fn finish(self) {
        let report = self.hammer.stop().expect("hammered");
        let (leaks, refusals) = (report.leaks, report.wrong_refusals);
        assert_eq!((leaks, refusals), (0, 0), "{}: leaks, wrong refusals; {report:?}", self.name);
    }
}

/// What happens to the program and its table, one after the other, with what must not matter.
fn disturb(lab: &mut Lab, firewall: &mut Firewall, round: usize) {
    match round % 6 {
        0 => {
            firewall.kill();
            *firewall = lab.start("n1", &[]);
        }
        1 => {
            // Elsewhere it would be open until it is mended.
            if tables_can_be_owned() {
                let flushed = firewall.nft(&["flush", "ruleset"]);
                assert!(flushed.is_ok() && !firewall.table().is_empty(), "what is owned stays: {flushed:?}");
            }
        }
        2 => {
            firewall.terminate();
            // Other rules to refuse and to count, other chains for them.
            *firewall = lab.start("n1", &["--nflog-group=none"]);
        }
        3 => {
            if tables_can_be_owned() {
                firewall.nft(&["delete", "table", "inet", "npc_firewall"]).expect_err("it is owned");
            }
            lab.objects.namespace("y").label("round", &round.to_string());
        }
        4 => {
            firewall.kill();
            // What changes while nobody is there.
            lab.objects.policy("y/own", "{podSelector: {}, policyTypes: [Ingress]}");
            lab.write();
            *firewall = lab.start("n1", &["--mark-mask=0x3000"]);
        }
        _ => {
            lab.objects.policies.remove("y/own");
            firewall.terminate();
            *firewall = lab.start("n1", &[]);
        }
    }
}

fn hammer(attachment: Attachment) {
    let mut lab = Lab::new(attachment, 1, 6);
    lab.objects.policy("x/p", &policy(""));
    lab.write();
    let mut firewall = lab.start("n1", &[]);
    lab.apply(&[&firewall]);
    let (x4, x6, y4) = (lab.v4("x/a"), lab.v6("x/a"), lab.v4("y/b"));
    let steady = [
        strike(&lab, "y/a", x4, Protocol::Tcp, 80, Expect::Blocked),
        strike(&lab, "y/a", x6, Protocol::Tcp, 80, Expect::Blocked),
        strike(&lab, "y/a", x4, Protocol::Udp, 80, Expect::Blocked),
        strike(&lab, "x/a", y4, Protocol::Tcp, 80, Expect::Blocked),
        strike(&lab, "z/a", x4, Protocol::Tcp, 80, Expect::Connected),
        strike(&lab, "z/a", x6, Protocol::Tcp, 80, Expect::Connected),
        strike(&lab, "n1", x4, Protocol::Tcp, 80, Expect::Connected),
    ];
    // Allowed in every second round.
    let turning = [
        strike(&lab, "y/b", x4, Protocol::Tcp, 81, Expect::Blocked),
        strike(&lab, "y/b", x6, Protocol::Tcp, 81, Expect::Blocked),
    ];
    let start = Instant::now();
    let mut round = 0;
    let judged = |struck: &Struck| {
        let report = struck.hammer.report();
        report.attempts() - report.unjudged
    };
    let all_struck = || steady.iter().chain(&turning).all(|struck| judged(struck) >= ENOUGH);
    while start.elapsed() < LONG || round < 6 || !all_struck() {
        disturb(&mut lab, &mut firewall, round);
        // Another policy for the same pod is another chain for it; a label is other elements.
        let open = round % 2 == 0;
        lab.objects.policy("x/p", &policy(if open { Y_TO_81 } else { "" }));
        if round % 3 == 0 {
            lab.objects
                .policy("x/q", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}");
        } else {
            lab.objects.policies.remove("x/q");
        }
        lab.objects.pod("z/b").meta.label("round", &round.to_string());
        turning.iter().for_each(|struck| struck.hammer.expect(Expect::Anything));
        lab.apply(&[&firewall]);
        let expected = if open { Expect::Connected } else { Expect::Blocked };
        turning.iter().for_each(|struck| struck.hammer.expect(expected));
        for struck in turning.iter().chain(&steady) {
            assert!(struck.hammer.wait_for(SOME, PATIENCE), "{} stands still", struck.name);
        }
        round += 1;
    }
    steady.into_iter().chain(turning).for_each(Struck::finish);
}

#[test]
fn no_leak_and_no_wrong_refusal_on_routed_pods_whatever_happens_to_the_program() {
    hammer(Attachment::Routed);
}

#[test]
fn no_leak_and_no_wrong_refusal_on_bridged_pods_whatever_happens_to_the_program() {
    hammer(Attachment::Bridge);
}
