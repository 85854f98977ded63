//! The pods, the policies, and what each policy should do.
//!
//! The policies are the examples of TKE's published guide to NetworkPolicy. What each should do is written
//! down a second time, as a few lines of Rust about names, so that the firewall isn't asked to judge itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use test_netns::{Attachment, Cluster, ClusterSpec, NodeSpec, PodSpec, Protocol};

/// Addresses of the outside host: one in the block that two of the policies name, one elsewhere.
pub(crate) const OUTSIDE: [&str; 2] = [NAMED, "203.0.113.9"];
const NAMED: &str = "14.215.0.10";

/// What is probed after each step.
pub(crate) const PORTS: [(Protocol, u16); 5] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 6379),
    (Protocol::Tcp, 5978),
    (Protocol::Udp, 53),
    (Protocol::Icmp, 0),
];

/// Namespace, name, node.
const PODS: [(&str, &str, u8); 7] = [
    ("nsa", "web", 1),
    ("nsa", "api", 2),
    ("nsa", "redis", 1),
    ("nsb", "shop", 1),
    ("nsb", "job", 2),
    ("nsc", "tool", 2),
    ("nsc", "test", 1),
];

/// The namespaces; each has the label `app=<name>`.
pub(crate) const NAMESPACES: [&str; 3] = ["nsa", "nsb", "nsc"];

/// One act of the demo.
pub(crate) struct Step {
    /// What the policy is for, in one line.
    pub title: &'static str,
    /// The policy's document; `None` takes it away.
    pub policy: Option<&'static str>,
    /// Which of [`PORTS`] are worth showing; all are judged.
    pub show: &'static [(Protocol, u16)],
    allows: fn(&Attempt<'_>) -> bool,
}

/// Who tries to reach whom.
struct Attempt<'a> {
    from: &'a str,
    to: &'a str,
    protocol: Protocol,
    port: u16,
}

impl Attempt<'_> {
    fn is_from(&self, namespace: &str) -> bool {
        self.from.starts_with(namespace)
    }

    fn is_to(&self, namespace: &str) -> bool {
        self.to.starts_with(namespace)
    }

    fn is_tcp(&self, port: u16) -> bool {
        (self.protocol, self.port) == (Protocol::Tcp, port)
    }
}

impl Step {
    /// Whether `from` should reach `to`. A pod always reaches itself.
    pub(crate) fn allows(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
        from == to || (self.allows)(&Attempt { from, to, protocol, port })
    }
}

/// The acts, each with one policy alone.
pub(crate) const STEPS: [Step; 7] = [
    Step {
        title: "No policy: everybody reaches everybody",
        policy: None,
        show: &[(Protocol::Tcp, 80)],
        allows: |_| true,
    },
    Step {
        title: "Pods of nsa are reached from their own namespace only",
        policy: Some(SAME_NAMESPACE),
        show: &[(Protocol::Tcp, 80)],
        allows: |try_| !try_.is_to("nsa") || try_.is_from("nsa"),
    },
    Step {
        title: "Pods of nsa are reached by nobody",
        policy: Some(DENY_ALL),
        show: &[(Protocol::Tcp, 80)],
        allows: |try_| !try_.is_to("nsa"),
    },
    Step {
        title: "Pods of nsa are reached from namespaces labelled app=nsb, on TCP 6379",
        policy: Some(LABELLED_NAMESPACE),
        show: &[(Protocol::Tcp, 6379), (Protocol::Tcp, 80)],
        allows: |try_| !try_.is_to("nsa") || (try_.is_from("nsb") && try_.is_tcp(6379)),
    },
    Step {
        title: "Pods of nsa reach 14.215.0.0/16 on TCP 5978, and nothing else",
        policy: Some(EGRESS_TO_BLOCK),
        show: &[(Protocol::Tcp, 5978), (Protocol::Tcp, 80)],
        allows: |try_| !try_.is_from("nsa") || (try_.to == NAMED && try_.is_tcp(5978)),
    },
    Step {
        title: "Pods of nsa are reached from 14.215.0.0/16, on TCP 80",
        policy: Some(INGRESS_FROM_BLOCK),
        show: &[(Protocol::Tcp, 80), (Protocol::Tcp, 6379)],
        allows: |try_| !try_.is_to("nsa") || (try_.from == NAMED && try_.is_tcp(80)),
    },
    Step {
        title: "The policy is deleted: everybody reaches everybody again",
        policy: None,
        show: &[(Protocol::Tcp, 80)],
        allows: |_| true,
    },
];

const SAME_NAMESPACE: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: npa, namespace: nsa}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {}
";

const DENY_ALL: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: npa, namespace: nsa}
spec:
  podSelector: {}
  policyTypes: [Ingress]
";

const LABELLED_NAMESPACE: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: npa, namespace: nsa}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {app: nsb}}
    ports:
    - {protocol: TCP, port: 6379}
";

const EGRESS_TO_BLOCK: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: npa, namespace: nsa}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: 14.215.0.0/16}
    ports:
    - {protocol: TCP, port: 5978}
";

const INGRESS_FROM_BLOCK: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: npa, namespace: nsa}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - ipBlock: {cidr: 14.215.0.0/16}
    ports:
    - {protocol: TCP, port: 80}
";

/// Makes the nodes, pods and the outside host.
pub(crate) fn cluster() -> Result<Cluster> {
    let mut spec = ClusterSpec::new(Attachment::Routed);
    for node in 1..=2u8 {
        let v4 = format!("10.244.{node}.0/24").parse()?;
        let v6 = format!("fd00:10:244:{node}::/64").parse()?;
        spec = spec.node(NodeSpec::new(format!("n{node}")).pod_cidr(v4).pod_cidr(v6));
    }
    for (host, (namespace, name, node)) in (10..).zip(PODS) {
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 244, node, host));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, u16::from(host)));
        spec = spec.pod(PodSpec::new(format!("{namespace}/{name}"), format!("n{node}"), [v4, v6]));
    }
    for address in OUTSIDE {
        spec = spec.outside(address.parse()?);
    }
    PORTS.iter().fold(spec, |spec, (protocol, port)| spec.serve(*protocol, *port)).build()
}
