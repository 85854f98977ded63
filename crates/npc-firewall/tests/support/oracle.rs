//! networking.k8s.io/v1 NetworkPolicy, the long way: no caches, no shared code with the planner, one function
//! for each sentence of the API documentation. It judges connections between addresses; who has an address is
//! looked up in the objects each time.
//!
//! Out of scope: traffic between a node and its own pods, which is always allowed in.

use std::net::IpAddr;

use common_informer::object::{
    IpBlock, LabelSelector, LabelSelectorRequirement, Labels, Namespace, NetworkPolicy, Object, Pod,
    PolicyPeer, PolicyPort, PolicyRule, PortRef, Protocol, RuleSpec, Service, ServicePort,
};
use ipnet::IpNet;

/// A connection attempt, after DNAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// Which end of the connection a policy speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The destination lets it in.
    Ingress,
    /// The source lets it out.
    Egress,
}

/// Whether the connection may be made: both ends must agree, and a pod may always talk to itself.
pub fn allowed(cluster: &[Object], connection: &Connection) -> bool {
    allowed_at(cluster, connection, Direction::Egress) && allowed_at(cluster, connection, Direction::Ingress)
}

/// Whether one end of the connection agrees to it. An address that is no pod's agrees to everything.
pub fn allowed_at(cluster: &[Object], connection: &Connection, direction: Direction) -> bool {
    let subject = match direction {
        Direction::Ingress => connection.destination,
        Direction::Egress => connection.source,
    };
    let Some(subject) = pod_at(cluster, subject) else { return true };
    if connection.source == connection.destination {
        return true;
    }
    let isolating: Vec<_> = policies(cluster).filter(|policy| isolates(policy, subject, direction)).collect();
    let default_deny = direction == Direction::Ingress && annotated_default_deny(cluster, subject);
    (isolating.is_empty() && !default_deny)
        || isolating.iter().any(|policy| allows(cluster, policy, connection, direction))
}

/// The pod that has the address: hostNetwork and finished pods have none of their own; of several live pods
/// the newest has it, of equally old ones the one with the greatest key.
pub fn pod_at(cluster: &[Object], address: IpAddr) -> Option<&Pod> {
    pods(cluster)
        .filter(|pod| !pod.host_network && !pod.finished && pod.ips.contains(&address))
        .max_by_key(|pod| (pod.created, pod.key.clone()))
}

/// Whether the policy takes the pod's default "everything is allowed" away. Requirements of its podSelector
/// that make no sense are passed over here: they must not open a pod that the others select.
pub fn isolates(policy: &NetworkPolicy, pod: &Pod, direction: Direction) -> bool {
    let this_direction = match direction {
        Direction::Ingress => policy.isolates_ingress,
        Direction::Egress => policy.isolates_egress,
    };
    let valid = LabelSelector {
        match_labels: policy.pod_selector.match_labels.clone(),
        match_expressions: valid_requirements(&policy.pod_selector).cloned().collect(),
    };
    this_direction && policy.key.namespace == pod.key.namespace && selects(&valid, &pod.labels)
}

fn allows(cluster: &[Object], policy: &NetworkPolicy, connection: &Connection, direction: Direction) -> bool {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    valid_selector(&policy.pod_selector)
        && rules.iter().any(|rule| match rule {
            RuleSpec::Rule(rule) => {
                valid_rule(rule) && rule_allows(cluster, policy, rule, connection, direction)
            }
            RuleSpec::Malformed(_) => false,
        })
}

/// A peer and a port must match. Named ports are those of the destination pod, whoever is the subject; an
/// ipBlock as destination has no pod, so no named ports.
fn rule_allows(
    cluster: &[Object],
    policy: &NetworkPolicy,
    rule: &PolicyRule,
    connection: &Connection,
    direction: Direction,
) -> bool {
    let everybody = [None];
    let peers: Vec<Option<&PolicyPeer>> =
        if rule.peers.is_empty() { everybody.to_vec() } else { rule.peers.iter().map(Some).collect() };
    let remote = match direction {
        Direction::Ingress => connection.source,
        Direction::Egress => connection.destination,
    };
    peers.into_iter().any(|peer| {
        let to_block = direction == Direction::Egress && peer.is_some_and(|peer| peer.ip_block.is_some());
        let destination = if to_block { None } else { pod_at(cluster, connection.destination) };
        peer.is_none_or(|peer| peer_matches(cluster, policy, peer, remote))
            && (rule.ports.is_empty()
                || rule.ports.iter().any(|port| port_matches(port, destination, connection)))
    })
}

fn peer_matches(cluster: &[Object], policy: &NetworkPolicy, peer: &PolicyPeer, remote: IpAddr) -> bool {
    if let Some(block) = &peer.ip_block {
        let within = |cidr: &String| cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&remote));
        return within(&block.cidr) && !block.except.iter().any(within);
    }
    let Some(pod) = pod_at(cluster, remote) else { return false };
    let namespace_matches = match &peer.namespace_selector {
        Some(selector) => selects(selector, &namespace_labels(cluster, &pod.key.namespace)),
        None => pod.key.namespace == policy.key.namespace,
    };
    namespace_matches && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
}

fn port_matches(port: &PolicyPort, destination: Option<&Pod>, connection: &Connection) -> bool {
    let number = i64::from(connection.port);
    Protocol::parse(&port.protocol) == Some(connection.protocol)
        && match &port.port {
            None => true,
            Some(PortRef::Number(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&number),
            Some(PortRef::Name(name)) => destination.is_some_and(|pod| {
                pod.ports.iter().any(|declared| {
                    declared.name == *name
                        && declared.protocol == connection.protocol
                        && declared.port == connection.port
                })
            }),
        }
}

/// meta/v1 LabelSelector: all requirements hold; empty selects everything.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = value.is_some_and(|value| requirement.values.contains(value));
            match &*requirement.operator {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("operator {other} was not refused by validation"),
            }
        })
}

// What the API server would refuse. One such value makes its rule allow nothing.

pub fn valid_rule(rule: &PolicyRule) -> bool {
    rule.peers.iter().all(valid_peer) && rule.ports.iter().all(valid_port)
}

pub fn valid_peer(peer: &PolicyPeer) -> bool {
    let selectors = [&peer.pod_selector, &peer.namespace_selector];
    match &peer.ip_block {
        Some(block) => selectors.iter().all(|selector| selector.is_none()) && valid_block(block),
        None => {
            selectors.iter().any(|s| s.is_some()) && selectors.iter().all(|s| s.iter().all(valid_selector))
        }
    }
}

fn valid_block(block: &IpBlock) -> bool {
    let Ok(cidr) = block.cidr.parse::<IpNet>() else { return false };
    block.except.iter().all(|except| except.parse::<IpNet>().is_ok_and(|except| cidr.contains(&except)))
}

pub fn valid_port(port: &PolicyPort) -> bool {
    let range_valid = match (&port.port, port.end_port) {
        (Some(PortRef::Number(first)), None) => (1..=65535).contains(first),
        (Some(PortRef::Number(first)), Some(last)) => 1 <= *first && *first <= last && last <= 65535,
        (Some(PortRef::Name(_)) | None, end_port) => end_port.is_none(),
    };
    Protocol::parse(&port.protocol).is_some() && range_valid
}

pub fn valid_selector(selector: &LabelSelector) -> bool {
    valid_requirements(selector).count() == selector.match_expressions.len()
}

pub fn valid_requirements(selector: &LabelSelector) -> impl Iterator<Item = &LabelSelectorRequirement> {
    let valid = |requirement: &&LabelSelectorRequirement| match &*requirement.operator {
        "In" | "NotIn" => !requirement.values.is_empty(),
        "Exists" | "DoesNotExist" => requirement.values.is_empty(),
        _ => false,
    };
    selector.match_expressions.iter().filter(valid)
}

/// The form of isolation before policies had types. What cannot be read, or asks for an isolation that there
/// never was, isolates.
fn annotated_default_deny(cluster: &[Object], pod: &Pod) -> bool {
    use serde_json::{Value, from_str};
    let namespace = namespace(cluster, &pod.key.namespace);
    let Some(text) = namespace.and_then(|namespace| namespace.network_policy_annotation.clone()) else {
        return false;
    };
    let json: Value = from_str(&text).unwrap_or(Value::from("not readable"));
    let asks_for_nothing = match json.get("ingress") {
        None | Some(Value::Null) => json.is_object(),
        Some(ingress) => ingress.is_object() && ingress.get("isolation").is_none_or(Value::is_null),
    };
    !asks_for_nothing
}

fn namespace_labels(cluster: &[Object], name: &str) -> Labels {
    match namespace(cluster, name) {
        Some(namespace) => namespace.labels.clone(),
        None => Labels::new([("kubernetes.io/metadata.name".into(), name.into())].into()),
    }
}

fn namespace<'a>(cluster: &'a [Object], name: &str) -> Option<&'a Namespace> {
    cluster.iter().find_map(|object| match object {
        Object::Namespace(namespace) if &*namespace.name == name => Some(&**namespace),
        _ => None,
    })
}

pub fn pods<'a>(cluster: impl IntoIterator<Item = &'a Object>) -> impl Iterator<Item = &'a Pod> {
    cluster.into_iter().filter_map(|object| if let Object::Pod(pod) = object { Some(&**pod) } else { None })
}

pub fn policies<'a>(
    cluster: impl IntoIterator<Item = &'a Object>,
) -> impl Iterator<Item = &'a NetworkPolicy> {
    cluster.into_iter().filter_map(|object| match object {
        Object::NetworkPolicy(policy) => Some(&**policy),
        _ => None,
    })
}

pub fn services(cluster: &[Object]) -> impl Iterator<Item = &Service> {
    cluster
        .iter()
        .filter_map(|object| if let Object::Service(service) = object { Some(&**service) } else { None })
}

/// Whether a packet to a node goes to a Service: an address of it and a port, or a port that every node opens
/// for it. Where that leads to is judged after DNAT, and not here.
pub fn goes_to_service(cluster: &[Object], connection: &Connection) -> bool {
    let Connection { destination, protocol, port, .. } = *connection;
    services(cluster).any(|service| {
        let own =
            |p: &ServicePort| service.ips.contains(&destination) && (p.protocol, p.port) == (protocol, port);
        let node_port = |p: &ServicePort| (p.protocol, p.node_port) == (protocol, Some(port));
        let health = protocol == Protocol::Tcp && service.health_check_node_port == Some(port);
        health || service.ports.iter().any(|p| own(p) || node_port(p))
    })
}
