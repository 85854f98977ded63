//! The table of TKE's published test of network policies, each row also with both pods on one node.

use test_netns::{Attachment, Protocol};

use crate::lab::{FAR, FAR_EXCEPT, Firewall, Lab};

const PORTS: [(Protocol, u16); 5] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 6379),
    (Protocol::Tcp, 5978),
    (Protocol::Udp, 80),
    (Protocol::Icmp, 0),
];

/// Pods a and c of x, z and b and d of y on n1, the others on n2: pairs of each kind on one node and across.
fn lab(attachment: Attachment) -> (Lab, Vec<Firewall>) {
    let lab = Lab::new(attachment, 2, 6);
    let firewalls = lab.start_all(&[]);
    (lab, firewalls)
}

fn row(lab: &mut Lab, firewalls: &[Firewall], policies: &[(&str, &str)]) {
    lab.objects.policies.clear();
    for (key, spec) in policies {
        lab.objects.policy(key, spec);
    }
    lab.apply(&firewalls.iter().collect::<Vec<_>>());
}

fn hold(attachment: Attachment) {
    let (mut lab, firewalls) = lab(attachment);
    lab.objects.namespace("y").label("access", "yes");

    row(&mut lab, &firewalls, &[("x/same", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")]);
    lab.check("namespaces isolated from each other, pods inside able to talk", &PORTS, |t| {
        !t.to_ns("x") || t.of_ns("x")
    });

    row(&mut lab, &firewalls, &[("x/none", "{podSelector: {}, policyTypes: [Ingress]}")]);
    lab.check("isolated also inside", &PORTS, |t| !t.to_ns("x"));

    let from_y =
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {access: 'yes'}}}]}]}";
    row(&mut lab, &firewalls, &[("x/from-y", from_y)]);
    lab.check("whitelist of one namespace", &PORTS, |t| !t.to_ns("x") || t.of_ns("y"));

    let port = from_y.replace("}}}]}", "}}}], ports: [{protocol: TCP, port: 6379}]}");
    row(&mut lab, &firewalls, &[("x/port", &port)]);
    lab.check("whitelist of namespace and port", &PORTS, |t| !t.to_ns("x") || (t.of_ns("y") && t.tcp(6379)));

    let out = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 14.215.0.0/16}}], \
               ports: [{protocol: TCP, port: 5978}]}]}";
    row(&mut lab, &firewalls, &[("x/out", out)]);
    lab.check("egress only to an outside block", &PORTS, |t| {
        !t.of_ns("x") || ([FAR, FAR_EXCEPT].contains(&t.to) && t.tcp(5978))
    });

    let into = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 14.215.0.0/16}}], \
                ports: [{protocol: TCP, port: 80}]}]}";
    row(&mut lab, &firewalls, &[("x/in", into)]);
    lab.check("ingress only from an outside block", &PORTS, |t| {
        !t.to_ns("x") || ([FAR, FAR_EXCEPT].contains(&t.from) && t.tcp(80))
    });
}

#[test]
fn the_published_table_holds_on_routed_pods() {
    hold(Attachment::Routed);
}

#[test]
fn the_published_table_holds_on_bridged_pods() {
    hold(Attachment::Bridge);
}
