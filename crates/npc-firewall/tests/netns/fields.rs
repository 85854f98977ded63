//! Every field of a NetworkPolicy, and how fields combine: all pairs of pods on one node and across two, and
//! hosts outside, by IPv4 and IPv6, TCP, UDP, SCTP and ping.

use test_netns::{Attachment, Protocol};

use crate::lab::{ALL_PORTS, FAR, FAR6, Lab, Try};
use crate::objects::Objects;

/// What a case is about, the objects that make it, and what passes then.
type Case = (&'static str, fn(&mut Objects), fn(&Try) -> bool);

const WEB: &str = "[{ports: [{name: web, containerPort: 80}]}]";

/// Pods: x/a, z/a, y/b on n1; y/a, x/b, z/b on n2.
fn hold(attachment: Attachment, cases: &[Case]) {
    let mut lab = Lab::new(attachment, 2, 3);
    let firewalls = lab.start_all(&[]);
    let firewalls: Vec<_> = firewalls.iter().collect();
    lab.check("without policies everything passes", &ALL_PORTS, |_| true);
    for (name, change, allowed) in cases {
        lab.objects = Objects::of(&lab.cluster);
        change(&mut lab.objects);
        lab.apply(&firewalls);
        lab.check(name, &ALL_PORTS, allowed);
    }
    lab.objects = Objects::of(&lab.cluster);
    lab.apply(&firewalls);
    lab.check("without policies everything passes again", &ALL_PORTS, |_| true);
}

const PEERS: [Case; 12] = [
    (
        "an ingress policy without rules refuses everything, ping too",
        |o| o.policy("x/p", "{podSelector: {matchLabels: {pod: a}}}"),
        |t| t.to != "x/a",
    ),
    (
        "an egress policy without rules refuses everything, ping too",
        |o| o.policy("x/p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}"),
        |t| t.from != "x/a",
    ),
    (
        "an empty podSelector selects all pods of the policy's namespace, and both types isolate both ways",
        |o| o.policy("x/p", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
        |t| !t.of_ns("x") && !t.to_ns("x"),
    ),
    (
        "policyTypes without egress rules default to ingress, with them to both",
        |o| {
            o.policy("x/p", "{podSelector: {}}");
            o.policy(
                "y/p",
                "{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}",
            );
        },
        |t| !t.to_ns("x") && !t.to_ns("y") && (!t.of_ns("y") || t.to_ns("z")),
    ),
    (
        "podSelector alone means the policy's own namespace",
        |o| o.policy("x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}]}"),
        |t| t.to != "x/a" || t.of_ns("x"),
    ),
    (
        "namespaceSelector alone means all pods of those namespaces",
        |o| {
            let from =
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}";
            o.policy("x/p", from);
        },
        |t| !t.to_ns("x") || t.of_ns("y"),
    ),
    (
        "both selectors in one peer mean and, two peers mean or",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [\
                 {namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}},\
                 {podSelector: {matchLabels: {pod: b}}}]}]}",
            );
        },
        |t| t.to != "x/a" || ["y/b", "x/b"].contains(&t.from),
    ),
    (
        "an empty namespaceSelector means all pods and nobody outside",
        |o| o.policy("x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"),
        |t| !t.to_ns("x") || t.of_pod(),
    ),
    (
        "an empty rule allows everybody, outside too",
        |o| {
            o.policy("x/p", "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}");
        },
        |_| true,
    ),
    (
        "In and NotIn select by value, and NotIn selects objects without the key",
        |o| {
            o.namespace("y").label("team", "blue");
            o.namespace("z").label("team", "red");
            let rule = |operator: &str| {
                format!(
                    "[{{from: [{{namespaceSelector: {{matchExpressions: [\
                     {{key: team, operator: {operator}, values: [blue, green]}}]}}}}]}}]"
                )
            };
            o.policy(
                "x/p",
                &format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: {}}}", rule("In")),
            );
            o.policy(
                "x/q",
                &format!("{{podSelector: {{matchLabels: {{pod: b}}}}, ingress: {}}}", rule("NotIn")),
            );
        },
        |t| match t.to {
            "x/a" => t.of_ns("y"),
            "x/b" => t.of_ns("x") || t.of_ns("z"),
            _ => true,
        },
    ),
    (
        "Exists and DoesNotExist select by key, whatever its value",
        |o| {
            o.pod("y/a").meta.label("team", "");
            o.pod("z/b").meta.label("team", "red");
            let rule = |operator: &str| {
                format!(
                    "[{{from: [{{namespaceSelector: {{}}, podSelector: {{matchExpressions: [\
                     {{key: team, operator: {operator}}}]}}}}]}}]"
                )
            };
            o.policy(
                "x/p",
                &format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: {}}}", rule("Exists")),
            );
            let without = rule("DoesNotExist");
            o.policy("x/q", &format!("{{podSelector: {{matchLabels: {{pod: b}}}}, ingress: {without}}}"));
        },
        |t| match t.to {
            "x/a" => ["y/a", "z/b"].contains(&t.from),
            "x/b" => t.of_pod() && !["y/a", "z/b"].contains(&t.from),
            _ => true,
        },
    ),
    (
        "policies of one pod add up, and both ends are judged",
        |o| {
            let to = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [\
                      {namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}";
            o.policy("x/to-y", to);
            o.policy("x/to-z", &to.replace("ns: 'y'", "ns: z"));
            o.policy(
                "y/from-x",
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}",
            );
            o.policy(
                "z/from-y",
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}",
            );
        },
        |t| {
            let egress = t.from != "x/a" || t.to_ns("y") || t.to_ns("z");
            let ingress = (!t.to_ns("y") || t.of_ns("x")) && (!t.to_ns("z") || t.of_ns("y"));
            egress && ingress
        },
    ),
];

const PORTS: [Case; 11] = [
    (
        "a numeric port opens that port of that protocol and no ping",
        |o| o.policy("x/p", "{podSelector: {}, ingress: [{ports: [{protocol: TCP, port: 80}]}]}"),
        |t| !t.to_ns("x") || t.tcp(80),
    ),
    (
        "UDP and SCTP ports are their own",
        |o| {
            let ports = "[{protocol: UDP, port: 80}, {protocol: SCTP, port: 81}]";
            o.policy(
                "x/p",
                &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: {ports}}}]}}"),
            );
        },
        |t| !t.of_ns("x") || (t.is(Protocol::Udp) && t.port == 80) || (t.is(Protocol::Sctp) && t.port == 81),
    ),
    (
        "a port without number is all of TCP, or of the protocol that it names",
        |o| {
            o.policy("x/p", "{podSelector: {}, ingress: [{ports: [{}]}]}");
            o.policy("y/p", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}");
            o.policy("z/p", "{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}");
        },
        |t| match t.to.split('/').next() {
            Some("x") => t.is(Protocol::Tcp),
            Some("y") => t.is(Protocol::Udp),
            Some("z") => t.is(Protocol::Sctp),
            _ => true,
        },
    ),
    (
        "ping passes only where a rule has no ports",
        |o| {
            let all = "[{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]";
            o.policy("x/p", &format!("{{podSelector: {{}}, ingress: [{{ports: {all}}}]}}"));
            o.policy("y/p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}");
        },
        |t| match t.to.split('/').next() {
            Some("x") => !t.is(Protocol::Icmp),
            Some("y") => t.of_ns("y"),
            _ => true,
        },
    ),
    (
        "endPort is included, and so is port",
        |o| {
            let rule =
                |from: u16, to: u16| format!("ingress: [{{ports: [{{port: {from}, endPort: {to}}}]}}]");
            o.policy("x/p", &format!("{{podSelector: {{}}, {}}}", rule(79, 80)));
            o.policy("y/p", &format!("{{podSelector: {{}}, {}}}", rule(81, 90)));
            o.policy("z/p", &format!("{{podSelector: {{}}, {}}}", rule(80, 81)));
        },
        |t| match t.to.split('/').next() {
            Some("x") => t.tcp(80),
            Some("y") => t.tcp(81),
            Some("z") => t.is(Protocol::Tcp),
            _ => true,
        },
    ),
    (
        "a named port is each pod's own number",
        |o| {
            o.pod("x/a").containers = WEB.into();
            o.pod("x/b").containers = WEB.replace("80", "81");
            o.policy("x/p", "{podSelector: {}, ingress: [{ports: [{port: web}]}]}");
        },
        |t| match t.to {
            "x/a" => t.tcp(80),
            "x/b" => t.tcp(81),
            _ => true,
        },
    ),
    (
        "a named port of an egress rule is the destination's, and is nothing where none declares it",
        |o| {
            o.pod("y/a").containers = WEB.into();
            o.pod("z/a").containers = WEB.replace("80", "81");
            o.policy("x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}");
        },
        |t| !t.of_ns("x") || (t.to == "y/a" && t.tcp(80)) || (t.to == "z/a" && t.tcp(81)),
    ),
    (
        "a named port of an egress rule with peers is the peers'",
        |o| {
            o.pod("y/a").containers = WEB.into();
            o.pod("z/a").containers = WEB.into();
            let peers = "[{namespaceSelector: {matchLabels: {ns: 'y'}}}]";
            o.policy(
                "x/p",
                &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: {peers}, ports: [{{port: web}}]}}]}}"),
            );
        },
        |t| !t.of_ns("x") || (t.to == "y/a" && t.tcp(80)),
    ),
    (
        "a name with another protocol opens nothing",
        |o| {
            o.pod("x/a").containers = WEB.into();
            o.policy("x/p", "{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: web}]}]}");
        },
        |t| !t.to_ns("x"),
    ),
    (
        "sidecars have ports, init containers that end have none",
        |o| {
            o.pod("x/a").init_containers =
                "[{restartPolicy: Always, ports: [{name: side, containerPort: 81}]}, \
                  {ports: [{name: early, containerPort: 80}]}]"
                    .into();
            o.policy("x/p", "{podSelector: {}, ingress: [{ports: [{port: side}, {port: early}]}]}");
        },
        |t| !t.to_ns("x") || (t.to == "x/a" && t.tcp(81)),
    ),
    (
        "peers and ports in one rule mean and, two rules mean or",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {}, ingress: [\
                 {from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}]},\
                 {from: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{protocol: UDP, port: 81}]}]}",
            );
        },
        |t| {
            !t.to_ns("x")
                || (t.of_ns("y") && t.tcp(80))
                || (t.of_ns("z") && t.is(Protocol::Udp) && t.port == 81)
        },
    ),
];

const BLOCKS: [Case; 7] = [
    (
        "a block without its exceptions may come in",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {}, ingress: [{from: [\
                 {ipBlock: {cidr: 14.215.0.0/16, except: [14.215.9.0/24]}}, \
                 {ipBlock: {cidr: '2001:db8:14::/48'}}]}]}",
            );
        },
        |t| !t.to_ns("x") || [FAR, FAR6].contains(&t.from),
    ),
    (
        "a block without its exceptions may be reached",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {}, policyTypes: [Egress], egress: [{to: [\
                 {ipBlock: {cidr: 14.215.0.0/16, except: [14.215.9.0/24]}}], ports: [{port: 80}]}]}",
            );
        },
        |t| !t.of_ns("x") || (t.to == FAR && t.tcp(80)),
    ),
    (
        "blocks match pods as well",
        |o| o.policy("x/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.2.0/24}}]}]}"),
        |t| !t.to_ns("x") || (t.v4() && ["y/a", "x/b", "z/b"].contains(&t.from)),
    ),
    (
        "all of IPv4 is none of IPv6",
        |o| {
            o.policy("x/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}");
            o.policy("y/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}");
        },
        |t| (!t.to_ns("x") || t.v4()) && (!t.to_ns("y") || !t.v4()),
    ),
    (
        "an exception cuts only its own block, and blocks may overlap (W4)",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [\
                 {ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}, \
                 {ipBlock: {cidr: 10.244.1.0/24}}, {ipBlock: {cidr: 10.244.2.11/32}}]}]}",
            );
        },
        // 10.244.2.11 is x/b.
        |t| t.to != "x/a" || (t.v4() && ["x/b", "z/a", "y/b"].contains(&t.from)),
    ),
    (
        "a block that is its own exception opens nothing (W4)",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.0/16]}}]}]}",
            );
        },
        |t| !t.to_ns("x"),
    ),
    (
        "blocks and selectors in one rule mean or",
        |o| {
            o.policy(
                "x/p",
                "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 14.215.0.0/16}}, \
                 {namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80}]}]}",
            );
        },
        |t| !t.to_ns("x") || (t.tcp(80) && (t.of_ns("z") || (t.from.starts_with("14.215.")))),
    ),
];

#[test]
fn peers_are_judged_as_the_api_says_on_routed_pods() {
    hold(Attachment::Routed, &PEERS);
}

#[test]
fn peers_are_judged_as_the_api_says_on_bridged_pods() {
    hold(Attachment::Bridge, &PEERS);
}

#[test]
fn ports_are_judged_as_the_api_says_on_routed_pods() {
    hold(Attachment::Routed, &PORTS);
}

#[test]
fn ports_are_judged_as_the_api_says_on_bridged_pods() {
    hold(Attachment::Bridge, &PORTS);
}

#[test]
fn blocks_are_judged_as_the_api_says_on_routed_pods() {
    hold(Attachment::Routed, &BLOCKS);
}

#[test]
fn blocks_are_judged_as_the_api_says_on_bridged_pods() {
    hold(Attachment::Bridge, &BLOCKS);
}
