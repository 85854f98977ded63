//! Small nasty clusters and histories of changes, for proptest.
//!
//! Few names, labels, addresses and ports, so that everything meets everything: selectors select, addresses
//! are shared and reused, ranges end where probes begin. About one value in twenty is one that the API server
//! would refuse. `tests/mutants.rs` measures that the distribution notices each known mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{
    Change, IpBlock, LabelSelector, LabelSelectorRequirement, Labels, NamedPort, Namespace, NetworkPolicy,
    Object, ObjectKey, ObjectRef, Pod, PolicyPeer, PolicyPort, PolicyRule, PortRef, Protocol, RuleSpec,
    Service, ServicePort, Str,
};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use super::oracle::{self, Connection};

pub const NODES: [&str; 2] = ["n1", "n2"];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 2] = ["app", "role"];
const VALUES: [&str; 3] = ["", "x", "y"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Addresses of hosts: hostNetwork pods have them, and they are nobody's to the policies.
pub const NODE_ADDRESSES: [[&str; 2]; 2] = [["192.168.0.1", "fd01::1"], ["192.168.0.2", "fd01::2"]];
const OUTSIDE: [&str; 4] = ["203.0.113.9", "10.0.9.9", "2001:db8::9", "fd00:9::9"];

const CIDRS: [&str; 18] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "10.0.0.3/32",
    "10.0.0.5/29", // host bits are set, as the API allows
    "10.0.9.0/24",
    "203.0.113.0/24",
    "192.168.0.0/16",
    "::/0",
    "fd00::/16",
    "fd00::/64",
    "fd00::2/127",
    "fd00::3/128",
    "fd00:9::/32",
    "2001:db8::/32",
];

fn string(text: &str) -> Str {
    text.into()
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { namespace: namespace.into(), name: name.into() }
}

fn label_map() -> impl Strategy<Value = BTreeMap<Str, Str>> {
    subsequence(KEYS.to_vec(), 0..=KEYS.len()).prop_flat_map(|keys| {
        let count = keys.len();
        prop::collection::vec(select(VALUES.to_vec()), count).prop_map(move |values| {
            keys.iter().map(|k| string(k)).zip(values.into_iter().map(string)).collect()
        })
    })
}

/// `kubernetes.io/metadata.name` is always there, as the API server sees to.
fn namespace_labels(name: &'static str) -> impl Strategy<Value = Labels> {
    label_map().prop_map(move |mut labels| {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        labels.into()
    })
}

fn annotation() -> impl Strategy<Value = Option<Str>> {
    prop_oneof![
        16 => Just(None),
        1 => Just(Some(r#"{"ingress":{"isolation":"DefaultDeny"}}"#)),
        1 => Just(Some(r#"{"ingress":{"isolation":"DefaultDeny"}"#)), // a brace is missing
        1 => select(vec![
            "{}",
            r#"{"ingress":null}"#,
            r#"{"ingress":{}}"#,
            r#"{"ingress":{"isolation":null}}"#,
            r#"{"ingress":{"isolation":"None"}}"#,
            r#"{"ingress":{"isolation":true}}"#,
            r#"{"ingress":"DefaultDeny"}"#,
            r#""DefaultDeny""#,
            "",
        ])
        .prop_map(Some),
    ]
    .prop_map(|text| text.map(string))
}

pub fn namespace() -> impl Strategy<Value = Object> {
    (select(NAMESPACES.to_vec()).prop_flat_map(|name| (Just(name), namespace_labels(name))), annotation())
        .prop_map(|((name, labels), network_policy_annotation)| {
            Object::Namespace(Arc::new(Namespace { name: name.into(), labels, network_policy_annotation }))
        })
}

/// No address, one of either family, or both; mostly the pod's own, sometimes one that others may have too.
fn addresses(own: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    let number = prop_oneof![5 => Just(own + 1), 1 => 1..4usize];
    (prop_oneof![4 => Just((true, true)), 2 => Just((true, false)), 2 => Just((false, true)), 1 => Just((false, false))], number.clone(), number)
        .prop_map(|((v4, v6), four, six)| {
            let four = v4.then(|| format!("10.0.0.{four}").parse().unwrap());
            let six = v6.then(|| format!("fd00::{six:x}").parse().unwrap());
            four.into_iter().chain(six).collect()
        })
}

fn named_ports() -> impl Strategy<Value = Arc<[NamedPort]>> {
    let pool = [
        ("http", Protocol::Tcp, 80),
        ("http", Protocol::Tcp, 8080), // on two containers of one pod, or on another pod
        ("http", Protocol::Udp, 81),
        ("dns", Protocol::Udp, 53),
        ("dns", Protocol::Tcp, 53),
        ("sctp", Protocol::Sctp, 90),
    ]
    .map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port });
    subsequence(pool.to_vec(), 0..=3).prop_map(Arc::from)
}

/// One of nine pods, three in each namespace.
pub fn pod() -> impl Strategy<Value = Object> {
    let identity = (0..9usize).prop_flat_map(|number| {
        (Just(key(NAMESPACES[number % 3], &format!("p{number}"))), addresses(number))
    });
    let node = prop_oneof![8 => select(NODES.to_vec()).prop_map(Some), 1 => Just(None)];
    let state = prop_oneof![10 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true))];
    (identity, label_map(), node, state, 0..3i64, named_ports()).prop_map(
        |((key, ips), labels, node, (host_network, finished), created, ports)| {
            let host = NODES.iter().position(|name| Some(*name) == node);
            let ips = match host.filter(|_| host_network) {
                Some(host) => NODE_ADDRESSES[host].iter().map(|text| text.parse().unwrap()).collect(),
                None => ips.into_iter().collect(),
            };
            let labels = Arc::new(labels);
            let node = node.map(string);
            Object::Pod(Arc::new(Pod { key, labels, created, ips, node, host_network, finished, ports }))
        },
    )
}

fn requirement() -> impl Strategy<Value = LabelSelectorRequirement> {
    let good = prop_oneof![
        (select(vec!["In", "NotIn"]), prop::collection::vec(select(VALUES.to_vec()), 1..3)),
        (select(vec!["Exists", "DoesNotExist"]), Just(vec![])),
    ];
    let bad = select(vec![
        ("in", vec!["x"]),
        ("Gt", vec!["1"]),
        ("", vec![]),
        ("In", vec![]),
        ("NotIn", vec![]),
        ("Exists", vec!["x"]),
        ("DoesNotExist", vec!["x"]),
    ]);
    (select(KEYS.to_vec()), prop_oneof![16 => good, 1 => bad]).prop_map(|(key, (operator, values))| {
        let values = values.into_iter().map(string).collect();
        LabelSelectorRequirement { key: key.into(), operator: operator.into(), values }
    })
}

pub fn selector() -> impl Strategy<Value = LabelSelector> {
    let one_label = (select(KEYS.to_vec()), select(VALUES.to_vec()))
        .prop_map(|(key, value)| BTreeMap::from([(string(key), string(value))]));
    let labels = prop_oneof![5 => Just(BTreeMap::new()), 2 => one_label, 1 => label_map()];
    let expressions = prop_oneof![
        5 => Just(vec![]),
        2 => requirement().prop_map(|requirement| vec![requirement]),
        1 => prop::collection::vec(requirement(), 2),
    ];
    (labels, expressions)
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    let by_name = select(NAMESPACES.to_vec()).prop_map(|name| LabelSelector {
        match_labels: BTreeMap::from([("kubernetes.io/metadata.name".into(), name.into())]),
        match_expressions: vec![],
    });
    prop_oneof![3 => selector(), 1 => by_name]
}

fn block() -> impl Strategy<Value = IpBlock> {
    let good = select(CIDRS.to_vec()).prop_flat_map(|cidr| {
        let inside: Vec<_> = CIDRS.into_iter().filter(|inner| strictly_inside(inner, cidr)).collect();
        let most = inside.len().min(2);
        (Just(cidr), subsequence(inside, 0..=most))
    });
    let bad = select(vec![
        ("10.0.0.0/33", vec![]),
        ("10.0.0.1", vec![]),
        ("10.0.0/24", vec![]),
        ("fd00::/129", vec![]),
        ("", vec![]),
        ("all", vec![]),
        ("0.0.0.0/0", vec!["10.0.0.0/x"]),
        ("10.0.0.0/8", vec!["203.0.113.0/24"]),
        ("10.0.0.0/24", vec!["10.0.0.0/8"]),
        ("10.0.0.0/24", vec!["10.0.0.0/24"]),
        ("0.0.0.0/0", vec!["fd00::/64"]),
    ]);
    prop_oneof![24 => good, 1 => bad].prop_map(|(cidr, except)| IpBlock {
        cidr: cidr.to_owned(),
        except: except.into_iter().map(str::to_owned).collect(),
    })
}

fn strictly_inside(inner: &str, outer: &str) -> bool {
    let (inner, outer): (IpNet, IpNet) = (inner.parse().unwrap(), outer.parse().unwrap());
    outer.contains(&inner) && inner.prefix_len() > outer.prefix_len()
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    let peer = |pod_selector, namespace_selector, ip_block| PolicyPeer {
        pod_selector,
        namespace_selector,
        ip_block,
    };
    prop_oneof![
        8 => selector().prop_map(move |pods| peer(Some(pods), None, None)),
        8 => namespace_selector().prop_map(move |namespaces| peer(None, Some(namespaces), None)),
        8 => (selector(), namespace_selector()).prop_map(move |(pods, names)| peer(Some(pods), Some(names), None)),
        12 => block().prop_map(move |block| peer(None, None, Some(block))),
        1 => Just(PolicyPeer::default()),
        1 => (selector(), block()).prop_map(move |(pods, block)| peer(Some(pods), None, Some(block))),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    use PortRef::{Name, Number};
    let number = || select(vec![1i64, 53, 80, 81, 90, 8080, 65535]);
    let good = prop_oneof![
        2 => Just((None, None)),
        4 => number().prop_map(|port| (Some(Number(port)), None)),
        3 => (number(), select(vec![0i64, 1, 10, 8000]))
            .prop_map(|(port, more)| (Some(Number(port)), Some((port + more).min(65535)))),
        5 => select(vec!["http", "http", "dns", "sctp", "nobody"]).prop_map(|name| (Some(Name(name.into())), None)),
    ];
    let bad = select(vec![
        (Some(Number(0)), None),
        (Some(Number(-1)), None),
        (Some(Number(65536)), None),
        (Some(Number(65536 + 80)), None), // 80, if cut to 16 bits
        (Some(Number(65536 + 53)), None),
        (Some(Number(0)), Some(65535)),
        (Some(Number(80)), Some(79)),
        (Some(Number(80)), Some(65536)),
        (Some(Name("http".into())), Some(8080)),
        (None, Some(80)),
    ]);
    let protocol = prop_oneof![
        12 => Just("TCP"), 8 => Just("UDP"), 4 => Just("SCTP"), 1 => select(vec!["ICMP", "tcp", ""]),
    ];
    (protocol, prop_oneof![12 => good, 1 => bad]).prop_map(|(protocol, (port, end_port))| PolicyPort {
        protocol: protocol.into(),
        port,
        end_port,
    })
}

fn rule() -> impl Strategy<Value = RuleSpec> {
    let block_peer =
        || block().prop_map(|block| PolicyPeer { ip_block: Some(block), ..PolicyPeer::default() });
    let peers = prop_oneof![
        1 => Just(vec![]),
        5 => prop::collection::vec(peer(), 1..4),
        1 => prop::collection::vec(block_peer(), 2..4),
    ];
    let ports = prop_oneof![2 => Just(vec![]), 4 => prop::collection::vec(policy_port(), 1..4)];
    let name = select(vec![("http", "TCP"), ("http", "UDP"), ("dns", "UDP")]);
    let named_port = name.prop_map(|(name, protocol)| PolicyPort {
        protocol: protocol.into(),
        port: Some(PortRef::Name(name.into())),
        end_port: None,
    });
    let (peers_again, block_peer) = (peers.clone(), prop_oneof![peer(), block_peer()]);
    let rule = prop_oneof![
        6 => (peers, ports),
        1 => (prop::collection::vec(block_peer, 1..3), named_port.clone().prop_map(|port| vec![port])),
        1 => (peers_again, named_port.prop_map(|port| vec![port])),
    ];
    prop_oneof![
        30 => rule.prop_map(|(peers, ports)| RuleSpec::Rule(PolicyRule { peers, ports })),
        1 => Just(RuleSpec::Malformed("ports: expected a list, got a string".into())),
    ]
}

fn rules() -> impl Strategy<Value = Vec<RuleSpec>> {
    prop_oneof![2 => Just(vec![]), 5 => prop::collection::vec(rule(), 1..3)]
}

pub fn policy() -> impl Strategy<Value = Object> {
    let types = select(vec![(true, false), (true, true), (false, true)]);
    (select(NAMESPACES.to_vec()), 0..4u8, selector(), types, rules(), rules()).prop_map(
        |(namespace, number, pod_selector, (isolates_ingress, isolates_egress), ingress, egress)| {
            Object::NetworkPolicy(Arc::new(NetworkPolicy {
                key: key(namespace, &format!("policy{number}")),
                pod_selector,
                isolates_ingress,
                isolates_egress,
                ingress,
                egress,
            }))
        },
    )
}

/// A Service; its external addresses may be those of nodes.
pub fn service() -> impl Strategy<Value = Object> {
    let addresses = ["10.96.0.1", "fd96::1"].into_iter().chain(NODE_ADDRESSES.into_iter().flatten());
    let addresses: Vec<IpAddr> = addresses.map(|text| text.parse().unwrap()).collect();
    let node_port = prop_oneof![2 => Just(None), 1 => select(vec![80, 81, 30080]).prop_map(Some)];
    let port = (select(PROTOCOLS.to_vec()), select(vec![53, 80, 443]), node_port)
        .prop_map(|(protocol, port, node_port)| ServicePort { protocol, port, node_port });
    let name = (select(NAMESPACES.to_vec()), 0..2u8);
    let health = prop_oneof![3 => Just(None), 1 => Just(Some(30081))];
    (name, subsequence(addresses, 0..3), prop::collection::vec(port, 1..3), health).prop_map(
        |((namespace, number), ips, ports, health_check_node_port)| {
            let key = key(namespace, &format!("service{number}"));
            Object::Service(Service { key, ips: ips.into(), ports, health_check_node_port }.into())
        },
    )
}

/// A whole cluster; of objects with the same key the last is kept.
pub fn cluster() -> impl Strategy<Value = Vec<Object>> {
    let namespaces = prop::collection::vec(namespace(), 0..6);
    let services = prop::collection::vec(service(), 0..3);
    (namespaces, prop::collection::vec(pod(), 2..9), prop::collection::vec(policy(), 1..6), services)
        .prop_map(|(namespaces, pods, policies, services)| {
            let objects = namespaces.into_iter().chain(pods).chain(policies).chain(services);
            objects
                .map(|object| (object.object_ref(), object))
                .collect::<BTreeMap<_, _>>()
                .into_values()
                .collect()
        })
}

/// One step of a history, to be resolved against the objects that are there then.
#[derive(Clone, Debug)]
pub enum Edit {
    /// An object is new, or takes the place of one with the same key.
    Apply(Object),
    /// One of the objects is deleted.
    Delete(Index),
    /// One of the objects can no longer be read.
    Exclude(Index),
    /// A pod or namespace gets other labels.
    Relabel(Index, Labels),
    /// A policy gets other rules, for the same pods.
    Rewrite(Index, Vec<RuleSpec>, Vec<RuleSpec>),
    /// A policy loses its last ingress rule and its last egress rule.
    DropRules(Index),
    /// A pod finishes and another, or itself again, takes its addresses.
    MoveAddresses(Index, Index),
    /// Nothing happened, but an object is sent again.
    Resend(Index),
}

pub fn object() -> impl Strategy<Value = Object> {
    prop_oneof![1 => namespace(), 4 => pod(), 3 => policy(), 1 => service()]
}

pub fn history() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        6 => object().prop_map(Edit::Apply),
        3 => any::<Index>().prop_map(Edit::Delete),
        1 => any::<Index>().prop_map(Edit::Exclude),
        3 => (any::<Index>(), label_map()).prop_map(|(at, labels)| Edit::Relabel(at, labels.into())),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Edit::MoveAddresses(from, to)),
        2 => (any::<Index>(), rules(), rules())
            .prop_map(|(at, ingress, egress)| Edit::Rewrite(at, ingress, egress)),
        2 => any::<Index>().prop_map(Edit::DropRules),
        1 => any::<Index>().prop_map(Edit::Resend),
    ];
    prop::collection::vec(edit, 1..12)
}

/// The objects of a cluster by their key.
pub type Objects = BTreeMap<ObjectRef, Object>;

impl Edit {
    /// What the source would tell of this step.
    pub fn changes(&self, objects: &Objects) -> Vec<Change> {
        let list: Vec<_> = objects.values().collect();
        let pods: Vec<_> = oracle::pods(list.iter().copied()).collect();
        let policies: Vec<_> = oracle::policies(list.iter().copied()).collect();
        match self {
            Self::Apply(object) => vec![Change::Applied(object.clone())],
            _ if list.is_empty() => vec![],
            Self::Delete(at) => vec![Change::Deleted(at.get(&list).object_ref())],
            Self::Exclude(at) => {
                let object = at.get(&list).object_ref();
                vec![Change::Excluded { object, reason: "spec: expected a map, got a list".into() }]
            }
            Self::Relabel(at, labels) => match at.get(&list) {
                Object::Pod(pod) => {
                    vec![Change::Applied(Object::Pod(Arc::new(Pod {
                        labels: labels.clone(),
                        ..(**pod).clone()
                    })))]
                }
                Object::Namespace(namespace) => {
                    let mut labels = (**labels).clone();
                    labels.insert("kubernetes.io/metadata.name".into(), namespace.name.clone());
                    let namespace = Namespace { labels: labels.into(), ..(**namespace).clone() };
                    vec![Change::Applied(Object::Namespace(namespace.into()))]
                }
                _ => vec![],
            },
            Self::Rewrite(..) | Self::DropRules(_) if policies.is_empty() => vec![],
            Self::Rewrite(at, ingress, egress) => {
                let (ingress, egress) = (ingress.clone(), egress.clone());
                let policy = NetworkPolicy { ingress, egress, ..(*at.get(&policies)).clone() };
                vec![Change::Applied(Object::NetworkPolicy(policy.into()))]
            }
            Self::DropRules(at) => {
                let mut policy = (*at.get(&policies)).clone();
                policy.ingress.pop();
                policy.egress.pop();
                vec![Change::Applied(Object::NetworkPolicy(policy.into()))]
            }
            Self::MoveAddresses(..) if pods.is_empty() => vec![],
            Self::MoveAddresses(from, to) => {
                let (from, to) = (*from.get(&pods), *to.get(&pods));
                let gone = Pod { finished: true, ..from.clone() };
                let next =
                    Pod { ips: from.ips.clone(), finished: false, created: from.created + 1, ..to.clone() };
                [gone, next].map(|pod| Change::Applied(Object::Pod(pod.into()))).into()
            }
            Self::Resend(at) => vec![Change::Applied((*at.get(&list)).clone())],
        }
    }
}

/// Applies a change to the objects. What cannot be read no longer holds.
pub fn apply(objects: &mut Objects, change: &Change) {
    match change {
        Change::Applied(object) => objects.insert(object.object_ref(), object.clone()),
        Change::Deleted(object) | Change::Excluded { object, .. } => objects.remove(object),
    };
}

/// Connections between all the addresses of a cluster and some outside of it, on every port that something in
/// the cluster speaks of, its neighbours, and one of which nothing does.
pub fn connections(cluster: &[Object]) -> Vec<Connection> {
    let mut addresses: BTreeSet<IpAddr> = OUTSIDE.iter().map(|text| text.parse().unwrap()).collect();
    addresses.extend(NODE_ADDRESSES.iter().flatten().map(|text| text.parse::<IpAddr>().unwrap()));
    addresses.extend(oracle::pods(cluster).flat_map(|pod| pod.ips.iter().copied()));
    let ports = ports(cluster);
    let mut connections = vec![];
    for &source in &addresses {
        for &destination in addresses.iter().filter(|other| other.is_ipv4() == source.is_ipv4()) {
            if oracle::pod_at(cluster, source).is_none() && oracle::pod_at(cluster, destination).is_none() {
                continue;
            }
            for protocol in PROTOCOLS {
                connections.extend(ports.iter().map(|&port| Connection {
                    source,
                    destination,
                    protocol,
                    port,
                }));
            }
        }
    }
    connections
}

fn ports(cluster: &[Object]) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from([7]);
    ports.extend(oracle::pods(cluster).flat_map(|pod| pod.ports.iter().map(|port| port.port)));
    for service in oracle::services(cluster) {
        ports.extend(service.health_check_node_port);
        ports.extend(service.ports.iter().flat_map(|port| [port.node_port, Some(port.port)]).flatten());
    }
    for policy in oracle::policies(cluster) {
        for rule in policy.ingress.iter().chain(&policy.egress) {
            let RuleSpec::Rule(rule) = rule else { continue };
            for port in &rule.ports {
                let Some(PortRef::Number(first)) = port.port else { continue };
                let last = port.end_port.unwrap_or(first);
                ports.extend(
                    [first, last - 1, last, last + 1].into_iter().filter_map(|n| u16::try_from(n).ok()),
                );
            }
        }
    }
    ports.remove(&0);
    ports
}
