//! What kube-router gets wrong, by the numbers of the list in the issue. Others of it are where they belong: W4
//! in `fields`, W5 in `established`, W6 in `node`, W8 also in `kernel_table`.

use test_netns::{Attachment, Protocol};

use crate::lab::{ALL_PORTS, Lab, PATIENCE};
use crate::objects::Objects;

#[test]
fn w1_a_policy_of_both_types_isolates_the_pods_that_it_selects_from_each_other() {
    // x/a and z/a, y/b on n1; y/a, x/b, z/b on n2; x/c on n1.
    let mut lab = Lab::new(Attachment::Routed, 2, 4);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: [{}]}");
    lab.apply(&firewalls);
    lab.check("nobody in, everybody out", &ALL_PORTS, |t| !t.to_ns("x"));
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: []}");
    lab.apply(&firewalls);
    lab.check("everybody in, nobody out", &ALL_PORTS, |t| !t.of_ns("x"));
}

#[test]
fn w2_a_port_name_opens_what_the_pod_itself_declares_and_nothing_where_it_declares_none() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    let from = "from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: ";
    lab.objects.policy("x/p", &format!("{{podSelector: {{}}, ingress: [{{{from}[{{port: htpp}}]}}]}}"));
    lab.objects.pod("x/a").containers = "[{ports: [{name: http, containerPort: 80}]}]".into();
    lab.apply(&firewalls);
    lab.check("a misspelt name", &ALL_PORTS, |t| !t.to_ns("x"));
    let problems = firewalls[0].state()["excluded"].to_string();
    assert!(problems.contains("x/p") && problems.contains("htpp"), "{problems}");
    // One pod's number for a name is not the other's.
    lab.objects = Objects::of(&lab.cluster);
    let ports = |http: u16, metrics: u16| {
        format!(
            "[{{ports: [{{name: http, containerPort: {http}}}, {{name: metrics, containerPort: {metrics}}}]}}]"
        )
    };
    lab.objects.pod("x/a").containers = ports(80, 9);
    lab.objects.pod("x/b").containers = ports(81, 80);
    lab.objects.policy("x/p", &format!("{{podSelector: {{}}, ingress: [{{{from}[{{port: http}}]}}]}}"));
    lab.apply(&firewalls);
    lab.check("two pods", &ALL_PORTS, |t| match t.to {
        "x/a" => t.of_ns("y") && t.tcp(80),
        "x/b" => t.of_ns("y") && t.tcp(81),
        _ => true,
    });
}

#[test]
fn w8_what_changes_no_rule_changes_nothing_in_the_kernel_and_counters_go_on() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    let firewall = lab.start("n1", &[]);
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Ingress]}");
    lab.apply(&[&firewall]);
    assert!(!lab.connects("y/a", "x/a", 80));
    let handles = || firewall.nft(&["-a", "list", "chains", "inet"]).expect("nft");
    let (before, ops) = (handles(), firewall.kernel_ops());
    // Nobody selects by these.
    lab.objects.pod("y/a").meta.label("nobody", "asks");
    lab.objects.namespace("z").label("nobody", "asks");
    lab.objects.policy("elsewhere/p", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    lab.apply(&[&firewall]);
    firewall.until("the Service that tells when is counted", || firewall.kernel_ops() > ops);
    assert_eq!(firewall.kernel_ops() - ops, 2, "{}", firewall.log());
    assert_eq!(handles(), before);
    assert_eq!(firewall.metric("npc_firewall_denied_packets_total", "ingress"), 1);
}

#[test]
fn w11_an_object_that_cannot_be_read_stops_no_other() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    let firewall = lab.start("n1", &[]);
    lab.objects.policy("x/good", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}");
    lab.objects.policy(
        "y/bad",
        "{podSelector: {matchExpressions: [{key: a, operator: Perhaps}]}, policyTypes: [Ingress]}",
    );
    lab.objects.policy(
        "z/half",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}, \
         {from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: 80}]}]}",
    );
    lab.apply(&[&firewall]);
    // A selector that cannot be understood may mean any pod of its namespace.
    lab.check("two are bad, in part or wholly", &ALL_PORTS, |t| {
        !t.to_ns("x") && !t.to_ns("y") && (!t.to_ns("z") || (t.of_ns("x") && t.tcp(80)))
    });
    let excluded = firewall.state()["excluded"].to_string();
    assert!(excluded.contains("y/bad") && excluded.contains("z/half"), "{excluded}");
    assert!(!excluded.contains("x/good"), "{excluded}");
}

#[test]
fn w29_a_node_is_ready_when_its_policies_are_in_force_and_not_before() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    lab.objects.policy("x/p", "{podSelector: {}, policyTypes: [Ingress]}");
    lab.write();
    for _ in 0..5 {
        let mut firewall = lab.spawn("n1", &[]);
        let mut asked = 0;
        firewall.until("ready", || {
            asked += 1;
            firewall.get("/readyz").is_some_and(|(status, _)| status == 200)
        });
        assert!(!lab.connects("y/a", "x/a", 80), "ready at question {asked}");
        assert_eq!(firewall.get("/healthz").expect("a page").0, 200);
        firewall.terminate();
        assert!(lab.run("n1", &["cleanup"]).0);
        let outcome = lab.cluster.connect("y/a", lab.v4("x/a"), Protocol::Tcp, 80, PATIENCE).expect("tried");
        assert!(outcome.opened().is_connected(), "cleaned up");
    }
}
