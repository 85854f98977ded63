//! The program ends, in whatever way, and starts again: its rules stay in force, and it goes on from them.

use std::fs;
use std::net::TcpListener;

use test_netns::{Attachment, Flow, Protocol};

use crate::lab::{
    ALL_PORTS, EXCHANGE, FAR, Firewall, Lab, PATIENCE, nft, settled, table, tables_can_be_owned, until,
};

const FROM_Y: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}";
const FROM_Z: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}";

/// A node with x/a isolated but for y, and the program on it.
fn lab(flags: &[&str]) -> (Lab, Firewall) {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    lab.objects.policy("x/p", FROM_Y);
    let firewall = lab.start("n1", flags);
    lab.apply(&[&firewall]);
    (lab, firewall)
}

fn from_y_only(lab: &Lab, case: &str) {
    lab.check(case, &ALL_PORTS, |t| !t.to_ns("x") || t.of_ns("y"));
}

fn from_z_only(lab: &Lab, case: &str) {
    lab.check(case, &ALL_PORTS, |t| !t.to_ns("x") || t.of_ns("z"));
}

/// Flows to x/a of TCP and UDP, by both IP versions.
fn flows(lab: &Lab, from: &str) -> Vec<Flow> {
    let mut flows = Vec::new();
    for to in [lab.v4("x/a"), lab.v6("x/a")] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let flow = lab.cluster.connect(from, to, protocol, 80, PATIENCE).expect("tried");
            assert!(flow.opened().is_connected(), "{from} -> {to} {protocol}: {}", flow.opened());
            flows.push(flow);
        }
    }
    flows
}

fn all_live(flows: &mut [Flow], case: &str) {
    for flow in flows {
        let outcome = flow.exchange(PATIENCE);
        assert!(outcome.is_connected(), "{case}: {outcome}");
    }
}

/// Ends the program in the way that the case is about.
type End = fn(&mut Firewall);
const ENDS: [(&str, End); 2] = [
    ("SIGKILL", |firewall| firewall.kill()),
    ("SIGTERM", |firewall| {
        let status = firewall.terminate();
        assert!(status.success(), "{status}: {}", firewall.log());
    }),
];

#[test]
fn rules_and_connections_outlive_the_program_and_are_adopted_without_a_change() {
    for flags in [&[][..], &["--table-ownership=never"]] {
        for (end, stop) in ENDS {
            let case = format!("{end} {flags:?}");
            let (lab, mut firewall) = lab(flags);
            let mut flows = flows(&lab, "y/a");
            // A change of the generation that is put off is made before the end.
            settled(&firewall);
            stop(&mut firewall);
            let left = table(firewall.namespace());
            from_y_only(&lab, &case);
            all_live(&mut flows, &case);
            let again = lab.start("n1", flags);
            // To own the table is one.
            let ops = again.kernel_ops();
            assert!(ops <= u64::from(flags.is_empty()), "{case}: {ops} operations\n{}", again.log());
            assert_eq!(again.table(), left, "{case}");
            from_y_only(&lab, &case);
            all_live(&mut flows, &case);
        }
    }
}

#[test]
fn what_changed_meanwhile_is_in_force_when_the_program_is_ready() {
    for (end, stop) in ENDS {
        let (mut lab, mut firewall) = lab(&[]);
        let mut lost = flows(&lab, "y/a");
        let mut kept: Vec<_> = [lab.v4("y/a"), lab.v6("y/a")]
            .map(|to| lab.cluster.connect("x/a", to, Protocol::Tcp, 80, PATIENCE).expect("tried"))
            .into();
        stop(&mut firewall);
        lab.objects.policy("x/p", FROM_Z);
        lab.write();
        from_y_only(&lab, "while nobody sees the change");
        all_live(&mut lost, "while nobody sees the change");
        let again = lab.start("n1", &[]);
        from_z_only(&lab, end);
        let ops = again.kernel_ops();
        assert!((1..60).contains(&ops), "{end}: the difference is small: {ops} operations");
        for flow in &mut lost {
            until("cut", || !flow.exchange(EXCHANGE).is_connected());
            assert!(!flow.exchange(EXCHANGE).is_connected(), "{end}: it has come back to life");
        }
        all_live(&mut kept, end);
    }
}

#[test]
fn other_flags_take_over_the_table_of_the_ones_before() {
    // Each is an upgrade of the one before, with what its table has to say then.
    let steps: [(&[&str], &str, &str); 7] = [
        (&[], "0x00ff0000", "log prefix"),
        (&["--deny-action=drop"], "0x00ff0000", "drop"),
        (&["--mark-mask=0xf0"], "0x000000f0", "reject"),
        (&["--mark-mask=0", "--nflog-group=none"], "reject", "dispatch"),
        (&["--established=keep"], "ct state", "log prefix"),
        (&["--table-ownership=never"], "0x00ff0000", "group 100"),
        (&["--egress-to-node=false"], "0x00ff0000", "0x00ff0000"),
    ];
    let (mut lab, mut firewall) = lab(&[]);
    let mut flows = flows(&lab, "y/a");
    for (number, (flags, one, other)) in steps.into_iter().enumerate() {
        if number % 2 == 0 {
            firewall.kill();
        } else {
            firewall.terminate();
        }
        from_y_only(&lab, "between two");
        firewall = lab.start("n1", flags);
        let shown = firewall.table();
        assert!(shown.contains(one) && shown.contains(other), "{flags:?}: {shown}");
        assert_eq!(flags.contains(&"--nflog-group=none"), !shown.contains("log prefix"), "{flags:?}");
        assert_eq!(flags.contains(&"--egress-to-node=false"), !shown.contains("hook input"), "{flags:?}");
        from_y_only(&lab, &format!("{flags:?}"));
        all_live(&mut flows, &format!("{flags:?}"));
    }
    // The last is a firewall like any other.
    lab.objects.policy("x/p", FROM_Z);
    lab.write();
    until("a change is seen", || lab.connects("z/a", "x/a", 80));
    from_z_only(&lab, "after all that");
}

#[test]
fn one_family_can_be_given_up_and_taken_back() {
    let (lab, mut firewall) = lab(&[]);
    firewall.kill();
    let mut only4 = lab.start("n1", &["--enable-ipv6=false"]);
    lab.check("IPv4 only", &ALL_PORTS, |t| !t.v4() || !t.to_ns("x") || t.of_ns("y"));
    only4.terminate();
    let _both = lab.start("n1", &[]);
    from_y_only(&lab, "both again");
}

/// A kubeconfig of an API server that nobody runs.
fn kubeconfig(lab: &Lab, port: u16) -> String {
    let path = lab.manifests().with_file_name("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// All that nftables has, with handles, without the counters' values.
fn everything(firewall: &Firewall) -> String {
    nft(firewall.namespace(), &["-a", "-s", "list", "ruleset"]).expect("nft")
}

#[test]
fn before_the_first_sync_nothing_in_the_kernel_is_touched() {
    let (lab, mut firewall) = lab(&[]);
    firewall.kill();
    let node = firewall.namespace().clone();
    let ends = ["forward", "in4", "ok"];
    let before = everything(&firewall);
    assert!(ends.iter().all(|name| before.contains(name)), "{before}");
    // One that nobody listens to, and one that never answers.
    let mute = node.run(|| TcpListener::bind(("127.0.0.1", 6444))).expect("entered").expect("listens");
    for port in [6443, 6444] {
        let config = kubeconfig(&lab, port);
        let mut waiting = lab.spawn_with("n1", &["--kubeconfig", &config, "--node-name=n1", "-v"]);
        waiting.until("running", || waiting.get("/healthz").is_some());
        waiting.until("has tried", || waiting.get("/readyz").is_some_and(|(status, _)| status == 503));
        from_y_only(&lab, "while it waits for an API server");
        assert_eq!(everything(&firewall), before);
        let status = waiting.terminate();
        assert_eq!(everything(&firewall), before, "after its end: {status}");
        let words = ["--kubeconfig", &config, "--node-name=n1", "--cache-sync-timeout=1s"];
        let mut late = lab.spawn_with("n1", &words);
        let status = late.wait();
        assert!(
            !status.success() && late.log().contains("after 1s http://127.0.0.1:"),
            "{status}: {}",
            late.log()
        );
        assert_eq!(everything(&firewall), before, "after it has given up");
    }
    drop(mute);
    let mut missing = lab.spawn_with("n1", &["--manifests=/nonexistent", "--node-name=n1"]);
    let status = missing.wait();
    assert!(!status.success() && missing.log().contains("/nonexistent"), "{status}: {}", missing.log());
    assert_eq!(everything(&firewall), before);
    from_y_only(&lab, "after all that");
}

#[test]
fn once_leaves_the_rules_in_force_and_exits() {
    let mut lab = Lab::new(Attachment::Bridge, 2, 3);
    lab.objects.policy("x/p", FROM_Y);
    lab.objects.policy("y/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 14.215.0.10/32}}]}]}");
    lab.write();
    for node in ["n1", "n2"] {
        let (succeeded, _, log) = lab.run(node, &["--once"]);
        assert!(succeeded, "{log}");
    }
    let allowed = |case: &str, lab: &Lab| {
        lab.check(case, &ALL_PORTS, |t| (!t.to_ns("x") || t.of_ns("y")) && (!t.to_ns("y") || t.from == FAR));
    };
    allowed("after --once", &lab);
    for node in ["n1", "n2"] {
        let (succeeded, _, log) = lab.run(node, &["--once"]);
        assert!(succeeded, "{log}");
    }
    allowed("after a second time", &lab);
}

#[test]
fn a_second_program_on_a_node_leaves_the_table_to_the_first() {
    let (lab, firewall) = lab(&[]);
    let before = everything(&firewall);
    let second = lab.spawn("n1", &["--health-port=20245"]);
    if tables_can_be_owned() {
        second.until("it says why", || second.log().contains("owned by another process"));
    } else {
        // Both want the same, so neither changes what the other made.
        second.until("it is ready", || {
            second.get_from(20245, "/readyz").is_some_and(|(status, _)| status == 200)
        });
    }
    assert_eq!(everything(&firewall), before);
    from_y_only(&lab, "with two");
    // When the first has gone, the second takes over.
    drop(firewall);
    second.until("it takes over", || {
        second.get_from(20245, "/readyz").is_some_and(|(status, _)| status == 200)
    });
    from_y_only(&lab, "with the second");
}
