//! Pods that change: labels, phases, addresses that pass from one to the next.

use test_netns::{Attachment, PodSpec, Protocol};

use crate::lab::{ALL_PORTS, Lab, ip};
use crate::objects::{Objects, Pod};

const FROM_Y: &str =
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]}";

#[test]
fn relabelled_pods_and_namespaces_are_judged_by_their_new_labels() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    lab.objects.policy("x/p", FROM_Y);
    lab.apply(&firewalls);
    lab.check("no namespace has the label", &ALL_PORTS, |t| !t.to_ns("x"));
    lab.objects.namespace("y").label("team", "y");
    lab.apply(&firewalls);
    lab.check("a namespace got the label", &ALL_PORTS, |t| !t.to_ns("x") || t.of_ns("y"));
    lab.objects.namespace("y").label("team", "z");
    lab.objects.namespace("z").label("team", "y");
    lab.apply(&firewalls);
    lab.check("the label moved to another", &ALL_PORTS, |t| !t.to_ns("x") || t.of_ns("z"));
    lab.objects.policy("x/p", "{podSelector: {matchLabels: {tier: db}}}");
    lab.apply(&firewalls);
    lab.check("no pod is selected", &ALL_PORTS, |_| true);
    lab.objects.pod("x/a").meta.label("tier", "db");
    lab.apply(&firewalls);
    lab.check("a pod is selected by its new label", &ALL_PORTS, |t| t.to != "x/a");
    lab.objects.pod("x/a").meta.label("tier", "web");
    lab.objects.pod("x/b").meta.label("tier", "db");
    lab.apply(&firewalls);
    lab.check("another is selected", &ALL_PORTS, |t| t.to != "x/b");
    let from_db = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {tier: db}}}]}]}";
    lab.objects.policies.clear();
    lab.objects.policy("y/p", from_db);
    lab.apply(&firewalls);
    lab.check("a peer is known by its label", &ALL_PORTS, |t| !t.to_ns("y") || t.from == "x/b");
    lab.objects.pod("z/a").meta.label("tier", "db");
    lab.objects.pod("x/b").meta.label("tier", "web");
    lab.apply(&firewalls);
    lab.check("another peer", &ALL_PORTS, |t| !t.to_ns("y") || t.from == "z/a");
}

#[test]
fn pods_that_finished_or_have_no_address_are_nobody_and_terminating_pods_are_still_judged() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    let inside = "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}";
    lab.objects.policy("x/p", inside);
    lab.objects
        .policy("y/p", &inside.replace("podSelector: {}}]", "namespaceSelector: {matchLabels: {ns: x}}}]"));
    lab.objects.add("x/pending", Pod { phase: "Pending", ..Pod::new("n1", &[]) });
    lab.objects.pod("x/b").terminating = true;
    lab.apply(&firewalls);
    lab.check("all run, one terminates", &ALL_PORTS, |t| {
        (!t.to_ns("x") || t.of_ns("x")) && (!t.to_ns("y") || t.of_ns("x"))
    });
    for phase in ["Succeeded", "Failed"] {
        lab.objects.pod("x/a").phase = phase;
        lab.apply(&firewalls);
        // Its address is not isolated, and not a peer any more.
        lab.check(phase, &ALL_PORTS, |t| t.from == "x/b" || (t.to != "x/b" && !t.to_ns("y")));
        lab.objects.pod("x/a").phase = "Running";
        lab.apply(&firewalls);
        assert!(lab.connects("x/a", "x/b", 80), "it runs again");
    }
}

#[test]
fn an_address_that_is_used_again_is_judged_by_its_new_pod() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut lab = Lab::new(attachment, 2, 3);
        let firewalls = lab.start_all(&[]);
        let firewalls: Vec<_> = firewalls.iter().collect();
        // In the range of no node, so that it can move from one to the other.
        let address = ip("10.245.0.77");
        lab.cluster.add_pod(PodSpec::new("x/old", "n1", [address])).expect("added");
        lab.objects.add("x/old", Pod::new("n1", &[address]));
        lab.objects.policy("x/p", "{podSelector: {matchLabels: {pod: old}}, policyTypes: [Ingress, Egress]}");
        lab.objects.policy(
            "y/p",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}",
        );
        lab.apply(&firewalls);
        lab.check("the old pod is isolated", &[(Protocol::Tcp, 80)], |t| {
            t.to != "x/old" && t.from != "x/old" && (!t.to_ns("y") || t.of_ns("z"))
        });
        // The old pod has finished, but its object is still there; the new one has the address.
        lab.cluster.remove_pod("x/old").expect("removed");
        lab.cluster.add_pod(PodSpec::new("z/new", "n1", [address])).expect("added");
        lab.objects.pod("x/old").phase = "Succeeded";
        lab.objects.add("z/new", Pod { created: "2024-02-02T00:00:00Z", ..Pod::new("n1", &[address]) });
        lab.apply(&firewalls);
        let as_z = "the new pod is a pod of z";
        lab.check(as_z, &[(Protocol::Tcp, 80)], |t| !t.to_ns("y") || t.of_ns("z"));
        // An object that lies about it: still running, but older than the pod that has the address.
        lab.objects.pod("x/old").phase = "Running";
        lab.apply(&firewalls);
        lab.check("the newest pod counts", &[(Protocol::Tcp, 80)], |t| !t.to_ns("y") || t.of_ns("z"));
        // To another node, and to a third namespace.
        lab.cluster.remove_pod("z/new").expect("removed");
        lab.objects.pods.remove("z/new");
        lab.objects.pods.remove("x/old");
        lab.cluster.add_pod(PodSpec::new("x/newer", "n2", [address])).expect("added");
        lab.objects.add("x/newer", Pod::new("n2", &[address]));
        lab.apply(&firewalls);
        lab.check("as a pod of x on another node", &[(Protocol::Tcp, 80)], |t| !t.to_ns("y") || t.of_ns("z"));
    }
}

#[test]
fn pods_on_the_hosts_network_are_never_selected() {
    let mut lab = Lab::new(Attachment::Routed, 2, 3);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    lab.cluster.serve("n1", Protocol::Tcp, 80).expect("serves");
    let node = [lab.v4("n1"), lab.v6("n1")];
    lab.objects.add("x/host", Pod { host_network: true, ..Pod::new("n1", &node) });
    lab.objects.policy(
        "x/p",
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}]}",
    );
    lab.apply(&firewalls);
    for to in node {
        let out = lab.probe("z/b", to, Protocol::Tcp, 80);
        assert!(out.is_connected(), "its address is not isolated: {out}");
        let out = lab.probe("y/b", to, Protocol::Tcp, 80);
        assert!(out.is_connected(), "nor for pods of its node: {out}");
        let out = lab.probe("x/b", to, Protocol::Tcp, 80);
        assert!(!out.is_connected(), "x/b may reach nobody: {out}");
    }
    // Nor is it a peer: the node's address is in no set of pods.
    let remote = lab.probe("n1", lab.v4("x/b"), Protocol::Tcp, 80);
    assert!(!remote.is_connected(), "from another node: {remote}");
    // It may reach what a block allows.
    lab.objects.policy("x/q", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.18.0.2/32}}]}]}");
    lab.apply(&firewalls);
    let allowed = lab.probe("n1", lab.v4("x/b"), Protocol::Tcp, 80);
    assert!(allowed.is_connected(), "by its address: {allowed}");
}

#[test]
fn the_namespace_annotation_of_old_guides_isolates_for_ingress_and_bad_json_fails_closed() {
    let mut lab = Lab::new(Attachment::Bridge, 2, 3);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    let key = "net.beta.kubernetes.io/network-policy";
    let annotate = |lab: &mut Lab, value: &str| {
        lab.objects = Objects::of(&lab.cluster);
        lab.objects.namespace("x").annotations.insert(key.into(), value.into());
        lab.apply(&firewalls);
    };
    annotate(&mut lab, r#"{"ingress":{"isolation":"DefaultDeny"}}"#);
    lab.check("annotated", &ALL_PORTS, |t| !t.to_ns("x"));
    annotate(&mut lab, "{}");
    lab.check("annotated with nothing", &ALL_PORTS, |_| true);
    annotate(&mut lab, "{\"ingress\":");
    lab.check("annotated with what cannot be read", &ALL_PORTS, |t| !t.to_ns("x"));
    let excluded = firewalls[0].state()["excluded"].to_string();
    assert!(excluded.contains("bad_annotation"), "{excluded}");
    annotate(&mut lab, r#"{"ingress":{"isolation":"DefaultDeny"}}"#);
    lab.objects
        .policy("x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}]}");
    lab.apply(&firewalls);
    lab.check("with a policy for one pod", &ALL_PORTS, |t| !t.to_ns("x") || (t.to == "x/a" && t.of_ns("x")));
}
