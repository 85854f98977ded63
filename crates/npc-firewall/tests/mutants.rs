//! Shows that the random clusters notice mistakes: each judge here has one known mistake, and must be caught
//! differing from the oracle. Most are mistakes that five public engines and two test suites were found to
//! make or to miss; the rest are about what those suites never touch (reused addresses, bad values).
//!
//! A mistake is planted by changing what the oracle is shown, so the oracle itself stays readable.

#![allow(clippy::ptr_arg, reason = "some mutants add objects, and all have one type")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use common_informer::object::{
    LabelSelector, LabelSelectorRequirement, NamedPort, Namespace, NetworkPolicy, Object, Pod, PolicyPeer,
    PolicyPort, PolicyRule, PortRef, Protocol, RuleSpec,
};
use ipnet::IpNet;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use support::oracle::{self, Connection, Direction};
use support::random;

/// Every mutant must be noticed within so many clusters.
const CLUSTERS: usize = 400;
/// Connections tried on each cluster.
const CONNECTIONS: usize = 500;

enum Mutant {
    /// Judges rightly, but sees other objects.
    Objects(fn(&mut Vec<Object>)),
    /// Judges otherwise.
    Judge(fn(&[Object], &Connection) -> bool),
}

#[test]
fn every_planted_mistake_is_noticed() {
    let mut runner = TestRunner::deterministic();
    let mut unnoticed = mutants();
    for case in 1..=CLUSTERS {
        let cluster = random::cluster().new_tree(&mut runner).unwrap().current();
        let all = random::connections(&cluster);
        let sample: Vec<_> = all.iter().skip(case % 7).step_by(all.len() / CONNECTIONS + 1).collect();
        let right: Vec<_> = sample.iter().map(|connection| oracle::allowed(&cluster, connection)).collect();
        unnoticed.retain(|(name, mutant)| {
            let mut shown = cluster.clone();
            let judge = match mutant {
                Mutant::Objects(change) => {
                    change(&mut shown);
                    oracle::allowed
                }
                Mutant::Judge(judge) => *judge,
            };
            let noticed =
                sample.iter().zip(&right).any(|(connection, right)| judge(&shown, connection) != *right);
            if noticed {
                println!("cluster {case:3}: {name}");
            }
            !noticed
        });
        if unnoticed.is_empty() {
            return;
        }
    }
    panic!("not noticed: {:#?}", unnoticed.iter().map(|(name, _)| name).collect::<Vec<_>>());
}

fn mutants() -> Vec<(&'static str, Mutant)> {
    use Mutant::{Judge, Objects};
    vec![
        ("NotIn needs the key", Objects(not_in_needs_the_key)),
        ("DoesNotExist is passed over", Objects(|c| requirements(c, |r| &*r.operator != "DoesNotExist"))),
        ("matchLabels with an empty value match an absent key", Objects(empty_value_matches_absent)),
        ("matchExpressions are passed over", Objects(|c| requirements(c, |_| false))),
        ("no protocol is any protocol", Objects(no_protocol_is_any)),
        (
            "no port is no port at all",
            Objects(|c| ports(c, |port| if port.port.is_none() { vec![] } else { vec![port] })),
        ),
        ("endPort is passed over", Objects(|c| ports(c, |port| vec![PolicyPort { end_port: None, ..port }]))),
        ("endPort is exclusive", Objects(end_port_is_exclusive)),
        ("a named port has any protocol", Objects(named_port_has_any_protocol)),
        ("an egress named port is the source's", Judge(egress_named_port_is_the_sources)),
        ("a named port is any number", Objects(named_port_is_any_number)),
        ("a named port is one number everywhere", Objects(named_port_is_global)),
        ("an ipBlock to a pod knows its named ports", Judge(block_knows_named_ports)),
        ("except is passed over", Objects(|c| blocks(c, |except, _, _| except.clear()))),
        ("except cuts the other ipBlocks too", Objects(except_cuts_all_blocks)),
        ("an ipBlock never matches pods", Objects(block_never_matches_pods)),
        ("an ipBlock with host bits is bad", Objects(block_with_host_bits_is_bad)),
        ("0.0.0.0/0 matches IPv6", Objects(everything_matches_the_other_family)),
        ("a podSelector alone speaks of all namespaces", Objects(pod_selector_speaks_of_all_namespaces)),
        ("podSelector or namespaceSelector is enough", Objects(either_selector_is_enough)),
        ("a missing Namespace has no labels", Objects(missing_namespace_has_no_labels)),
        (
            "egress rules do not isolate",
            Objects(|c| policies(c, |p| p.isolates_egress &= p.egress.is_empty())),
        ),
        ("every policy isolates egress", Objects(|c| policies(c, |p| p.isolates_egress = true))),
        ("every policy isolates ingress", Objects(|c| policies(c, |p| p.isolates_ingress = true))),
        ("no rules is one that allows everything", Objects(no_rules_allow_everything)),
        ("policies speak of all namespaces", Objects(policies_speak_of_all_namespaces)),
        ("the first policy decides", Judge(first_policy_decides)),
        ("a policy of SCTP does not isolate TCP", Judge(sctp_does_not_isolate)),
        ("a peer of one rule goes with the ports of another", Objects(rules_are_merged)),
        (
            "only the source is asked",
            Judge(|c, connection| oracle::allowed_at(c, connection, Direction::Egress)),
        ),
        (
            "only the destination is asked",
            Judge(|c, connection| oracle::allowed_at(c, connection, Direction::Ingress)),
        ),
        ("a pod needs a rule to talk to itself", Judge(itself_needs_a_rule)),
        ("finished pods keep their addresses", Objects(|c| pods(c, |pod| pod.finished = false))),
        ("hostNetwork pods are pods", Objects(|c| pods(c, |pod| pod.host_network = false))),
        ("the oldest pod keeps the address", Objects(|c| pods(c, |pod| pod.created = -pod.created))),
        ("of equally old pods the smallest key wins", Objects(smallest_key_wins)),
        ("a bad peer costs only itself", Objects(bad_peer_costs_only_itself)),
        ("a bad port costs only itself", Objects(bad_port_costs_only_itself)),
        ("a bad rule costs its policy", Objects(bad_rule_costs_its_policy)),
        ("an empty peer is everybody", Objects(empty_peer_is_everybody)),
        ("a port is cut to 16 bits", Objects(port_is_cut)),
        ("a bad podSelector costs the policy", Objects(bad_pod_selector_costs_the_policy)),
        ("a bad podSelector is mended", Objects(bad_pod_selector_is_mended)),
        ("the annotation is passed over", Objects(|c| namespaces(c, |n| n.network_policy_annotation = None))),
        ("an annotation that can't be read is passed over", Objects(bad_annotation_is_passed_over)),
    ]
}

// Ways to change what is shown.

fn pods(cluster: &mut [Object], change: impl Fn(&mut Pod)) {
    for object in cluster {
        if let Object::Pod(pod) = object {
            change(Arc::make_mut(pod));
        }
    }
}

fn namespaces(cluster: &mut [Object], change: impl Fn(&mut Namespace)) {
    for object in cluster {
        if let Object::Namespace(namespace) = object {
            change(Arc::make_mut(namespace));
        }
    }
}

fn policies(cluster: &mut [Object], change: impl Fn(&mut NetworkPolicy)) {
    for object in cluster {
        if let Object::NetworkPolicy(policy) = object {
            change(Arc::make_mut(policy));
        }
    }
}

/// Changes the rules that have the right shape; a rule for which `change` returns false allows nothing.
fn rules(cluster: &mut [Object], change: impl Fn(&mut PolicyRule) -> bool) {
    policies(cluster, |policy| {
        for spec in policy.ingress.iter_mut().chain(&mut policy.egress) {
            if let RuleSpec::Rule(rule) = spec
                && !change(rule)
            {
                *spec = RuleSpec::Malformed("by a mutant".into());
            }
        }
    });
}

fn peers(cluster: &mut [Object], change: impl Fn(&mut PolicyPeer)) {
    rules(cluster, |rule| {
        rule.peers.iter_mut().for_each(&change);
        true
    });
}

/// Replaces each port by others; a rule that loses all of them allows nothing.
fn ports(cluster: &mut [Object], change: impl Fn(PolicyPort) -> Vec<PolicyPort>) {
    rules(cluster, |rule| {
        let all = rule.ports.is_empty();
        rule.ports = rule.ports.drain(..).flat_map(&change).collect();
        all || !rule.ports.is_empty()
    });
}

/// Changes the excepts of each good ipBlock, given its CIDR and the addresses of all pods.
fn blocks(cluster: &mut [Object], change: fn(&mut Vec<String>, IpNet, &[IpNet])) {
    let addresses: Vec<IpNet> =
        oracle::pods(&*cluster).flat_map(|pod| pod.ips.iter().copied()).map(IpNet::from).collect();
    peers(cluster, |peer| {
        if let Some(block) = &mut peer.ip_block
            && let Ok(cidr) = block.cidr.parse()
        {
            change(&mut block.except, cidr, &addresses);
        }
    });
}

fn selectors(cluster: &mut [Object], change: impl Fn(&mut LabelSelector)) {
    policies(cluster, |policy| change(&mut policy.pod_selector));
    peers(cluster, |peer| {
        for selector in [&mut peer.pod_selector, &mut peer.namespace_selector].into_iter().flatten() {
            change(selector);
        }
    });
}

fn requirements(cluster: &mut [Object], keep: impl Fn(&LabelSelectorRequirement) -> bool) {
    selectors(cluster, |selector| selector.match_expressions.retain(&keep));
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    let values = values.iter().map(|value| (*value).into()).collect();
    LabelSelectorRequirement { key: key.into(), operator: operator.into(), values }
}

// Selectors.

fn not_in_needs_the_key(cluster: &mut Vec<Object>) {
    selectors(cluster, |selector| {
        let negative = selector.match_expressions.iter().filter(|r| &*r.operator == "NotIn");
        let more: Vec<_> = negative.map(|r| requirement(&r.key, "Exists", &[])).collect();
        selector.match_expressions.extend(more);
    });
}

fn empty_value_matches_absent(cluster: &mut Vec<Object>) {
    selectors(cluster, |selector| {
        let (empty, rest): (BTreeMap<_, _>, _) =
            std::mem::take(&mut selector.match_labels).into_iter().partition(|(_, value)| value.is_empty());
        selector.match_labels = rest;
        selector.match_expressions.extend(empty.keys().map(|key| requirement(key, "NotIn", &["x", "y"])));
    });
}

// Ports.

fn no_protocol_is_any(cluster: &mut Vec<Object>) {
    ports(cluster, |port| match &*port.protocol {
        "TCP" => {
            ["TCP", "UDP", "SCTP"].map(|word| PolicyPort { protocol: word.into(), ..port.clone() }).into()
        }
        _ => vec![port],
    });
}

fn end_port_is_exclusive(cluster: &mut Vec<Object>) {
    ports(cluster, |port| match (&port.port, port.end_port) {
        (Some(PortRef::Number(first)), Some(last)) if last == *first => vec![],
        (_, last) => vec![PolicyPort { end_port: last.map(|last| last - 1), ..port }],
    });
}

fn named_port_has_any_protocol(cluster: &mut Vec<Object>) {
    let all = |port: &NamedPort| {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| NamedPort { protocol, ..port.clone() })
    };
    pods(cluster, |pod| pod.ports = pod.ports.iter().flat_map(all).collect());
}

fn named_port_is_any_number(cluster: &mut Vec<Object>) {
    ports(cluster, |port| {
        let named = matches!(port.port, Some(PortRef::Name(_)));
        vec![if named { PolicyPort { port: None, ..port } } else { port }]
    });
}

fn named_port_is_global(cluster: &mut Vec<Object>) {
    let declared: Vec<_> = oracle::pods(&*cluster).flat_map(|pod| pod.ports.to_vec()).collect();
    ports(cluster, |port| number_of(port, &declared));
}

fn number_of(port: PolicyPort, declared: &[NamedPort]) -> Vec<PolicyPort> {
    let Some(PortRef::Name(name)) = &port.port else { return vec![port] };
    let found = declared.iter().find(|d| d.name == *name && d.protocol.to_string() == *port.protocol);
    match found {
        Some(found) => vec![PolicyPort { port: Some(PortRef::Number(found.port.into())), ..port }],
        None => vec![port],
    }
}

fn egress_named_port_is_the_sources(cluster: &[Object], connection: &Connection) -> bool {
    let mut shown = cluster.to_vec();
    if let Some(source) = oracle::pod_at(cluster, connection.source) {
        pods(&mut shown, |pod| pod.ports = source.ports.clone());
    }
    oracle::allowed_at(&shown, connection, Direction::Egress)
        && oracle::allowed_at(cluster, connection, Direction::Ingress)
}

fn block_knows_named_ports(cluster: &[Object], connection: &Connection) -> bool {
    let mut shown = cluster.to_vec();
    if let Some(destination) = oracle::pod_at(cluster, connection.destination) {
        let declared = destination.ports.iter().filter(|port| port.port == connection.port).cloned();
        let declared: Vec<_> = declared.collect();
        ports(&mut shown, |port| number_of(port, &declared));
    }
    oracle::allowed_at(&shown, connection, Direction::Egress)
        && oracle::allowed_at(cluster, connection, Direction::Ingress)
}

fn port_is_cut(cluster: &mut Vec<Object>) {
    ports(cluster, |port| match port.port {
        Some(PortRef::Number(number @ 65536..)) => {
            vec![PolicyPort { port: Some(PortRef::Number(number & 0xffff)), ..port }]
        }
        _ => vec![port],
    });
}

// ipBlocks.

fn except_cuts_all_blocks(cluster: &mut Vec<Object>) {
    rules(cluster, |rule| {
        let excepts: Vec<_> = rule
            .peers
            .iter()
            .filter_map(|peer| peer.ip_block.as_ref())
            .flat_map(|b| b.except.clone())
            .collect();
        for block in rule.peers.iter_mut().filter_map(|peer| peer.ip_block.as_mut()) {
            let Ok(cidr) = block.cidr.parse() else { continue };
            block.except.extend(excepts.iter().filter(|except| inside(except, cidr)).cloned());
        }
        true
    });
}

fn inside(except: &str, cidr: IpNet) -> bool {
    except.parse::<IpNet>().is_ok_and(|e| cidr.contains(&e) && e.prefix_len() > cidr.prefix_len())
}

fn block_never_matches_pods(cluster: &mut Vec<Object>) {
    blocks(cluster, |except, cidr, pods| {
        except.extend(pods.iter().map(IpNet::to_string).filter(|pod| inside(pod, cidr)));
    });
}

fn block_with_host_bits_is_bad(cluster: &mut Vec<Object>) {
    rules(cluster, |rule| {
        let mut blocks = rule.peers.iter().filter_map(|peer| peer.ip_block.as_ref());
        blocks.all(|block| block.cidr.parse::<IpNet>().is_ok_and(|net| net.trunc() == net))
    });
}

fn everything_matches_the_other_family(cluster: &mut Vec<Object>) {
    rules(cluster, |rule| {
        let zero = |peer: &&PolicyPeer| peer.ip_block.as_ref().is_some_and(|block| block.cidr == "0.0.0.0/0");
        if let Some(mut peer) = rule.peers.iter().find(zero).cloned() {
            let block = peer.ip_block.as_mut().unwrap();
            block.cidr = "::/0".into();
            block.except.clear();
            rule.peers.push(peer);
        }
        true
    });
}

// Peers and namespaces.

fn pod_selector_speaks_of_all_namespaces(cluster: &mut Vec<Object>) {
    peers(cluster, |peer| {
        if peer.pod_selector.is_some() {
            peer.namespace_selector.get_or_insert_default();
        }
    });
}

fn either_selector_is_enough(cluster: &mut Vec<Object>) {
    rules(cluster, |rule| {
        rule.peers = rule.peers.drain(..).flat_map(either).collect();
        true
    });
}

fn either(peer: PolicyPeer) -> Vec<PolicyPeer> {
    if peer.pod_selector.is_none() || peer.namespace_selector.is_none() {
        return vec![peer];
    }
    let pods = PolicyPeer { namespace_selector: None, ..peer.clone() };
    vec![pods, PolicyPeer { pod_selector: None, ..peer }]
}

fn missing_namespace_has_no_labels(cluster: &mut Vec<Object>) {
    for name in ["a", "b", "c"] {
        // The oracle takes the first of two.
        let namespace =
            Namespace { name: name.into(), labels: Arc::default(), network_policy_annotation: None };
        cluster.push(Object::Namespace(namespace.into()));
    }
}

fn bad_annotation_is_passed_over(cluster: &mut Vec<Object>) {
    namespaces(cluster, |namespace| {
        let text = namespace.network_policy_annotation.take();
        let readable = |text: &Arc<str>| serde_json::from_str::<serde_json::Value>(text).is_ok();
        namespace.network_policy_annotation = text.filter(readable);
    });
}

// Policies.

fn no_rules_allow_everything(cluster: &mut Vec<Object>) {
    policies(cluster, |policy| {
        for rules in [&mut policy.ingress, &mut policy.egress] {
            if rules.is_empty() {
                rules.push(RuleSpec::Rule(PolicyRule::default()));
            }
        }
    });
}

fn policies_speak_of_all_namespaces(cluster: &mut Vec<Object>) {
    let all: Vec<_> = oracle::policies(&*cluster).cloned().collect();
    for policy in all {
        for name in ["a", "b", "c"].into_iter().filter(|name| **name != *policy.key.namespace) {
            let mut policy = policy.clone();
            policy.key.namespace = name.into();
            cluster.push(Object::NetworkPolicy(policy.into()));
        }
    }
}

fn first_policy_decides(cluster: &[Object], connection: &Connection) -> bool {
    let ends = [(Direction::Egress, connection.source), (Direction::Ingress, connection.destination)];
    ends.into_iter().all(|(direction, subject)| {
        let Some(subject) = oracle::pod_at(cluster, subject) else { return true };
        let mut found = false;
        let mut shown = cluster.to_vec();
        shown.retain(|object| match object {
            Object::NetworkPolicy(policy) => {
                let selects = oracle::isolates(policy, subject, direction);
                let first = selects && !found;
                found |= selects;
                first
            }
            _ => true,
        });
        oracle::allowed_at(&shown, connection, direction)
    })
}

fn sctp_does_not_isolate(cluster: &[Object], connection: &Connection) -> bool {
    let mut shown = cluster.to_vec();
    let only_sctp = |spec: &RuleSpec| match spec {
        RuleSpec::Rule(rule) => {
            !rule.ports.is_empty() && rule.ports.iter().all(|port| &*port.protocol == "SCTP")
        }
        RuleSpec::Malformed(_) => false,
    };
    if connection.protocol != Protocol::Sctp {
        policies(&mut shown, |policy| {
            policy.isolates_ingress &= policy.ingress.is_empty() || !policy.ingress.iter().all(only_sctp);
            policy.isolates_egress &= policy.egress.is_empty() || !policy.egress.iter().all(only_sctp);
        });
    }
    oracle::allowed(&shown, connection)
}

fn rules_are_merged(cluster: &mut Vec<Object>) {
    policies(cluster, |policy| {
        for rules in [&mut policy.ingress, &mut policy.egress] {
            let good: Vec<_> = rules
                .iter()
                .filter_map(|spec| if let RuleSpec::Rule(rule) = spec { Some(rule.clone()) } else { None })
                .filter(|rule| oracle::valid_rule(rule) && !rule.peers.is_empty() && !rule.ports.is_empty())
                .collect();
            if good.len() > 1 {
                let peers = good.iter().flat_map(|rule| rule.peers.clone()).collect();
                let ports = good.iter().flat_map(|rule| rule.ports.clone()).collect();
                rules.push(RuleSpec::Rule(PolicyRule { peers, ports }));
            }
        }
    });
}

/// Gives the pod a twin with another address, so that the oracle doesn't see that it is the same pod.
fn itself_needs_a_rule(cluster: &[Object], connection: &Connection) -> bool {
    let Some(pod) = oracle::pod_at(cluster, connection.source) else {
        return oracle::allowed(cluster, connection);
    };
    if connection.source != connection.destination {
        return oracle::allowed(cluster, connection);
    }
    let mut twin = pod.clone();
    let source = if connection.source.is_ipv4() { "10.0.0.99" } else { "fd00::99" }.parse().unwrap();
    twin.key.name = "twin".into();
    twin.ips = [source].into_iter().collect();
    let mut shown = cluster.to_vec();
    shown.push(Object::Pod(twin.into()));
    oracle::allowed(&shown, &Connection { source, ..*connection })
}

// Pods.

fn smallest_key_wins(cluster: &mut Vec<Object>) {
    let mut keys: Vec<_> = oracle::pods(&*cluster).map(|pod| pod.key.clone()).collect();
    keys.sort();
    keys.reverse();
    pods(cluster, |pod| {
        let rank = keys.iter().position(|key| *key == pod.key).unwrap();
        pod.created = pod.created * 100 + i64::try_from(rank).unwrap();
    });
}

// Values that the API server would refuse.

fn bad_peer_costs_only_itself(cluster: &mut Vec<Object>) {
    rules(cluster, |rule| {
        let all = rule.peers.is_empty();
        rule.peers.retain(oracle::valid_peer);
        all || !rule.peers.is_empty()
    });
}

fn bad_port_costs_only_itself(cluster: &mut Vec<Object>) {
    ports(cluster, |port| if oracle::valid_port(&port) { vec![port] } else { vec![] });
}

fn bad_rule_costs_its_policy(cluster: &mut Vec<Object>) {
    let good = |spec: &RuleSpec| matches!(spec, RuleSpec::Rule(rule) if oracle::valid_rule(rule));
    policies(cluster, |policy| {
        if !policy.ingress.iter().chain(&policy.egress).all(good) {
            policy.ingress.clear();
            policy.egress.clear();
        }
    });
}

fn empty_peer_is_everybody(cluster: &mut Vec<Object>) {
    rules(cluster, |rule| {
        if rule.peers.contains(&PolicyPeer::default()) {
            rule.peers.clear();
        }
        true
    });
}

fn bad_pod_selector_costs_the_policy(cluster: &mut Vec<Object>) {
    cluster.retain(|object| match object {
        Object::NetworkPolicy(policy) => oracle::valid_selector(&policy.pod_selector),
        _ => true,
    });
}

fn bad_pod_selector_is_mended(cluster: &mut Vec<Object>) {
    policies(cluster, |policy| {
        policy.pod_selector.match_expressions =
            oracle::valid_requirements(&policy.pod_selector).cloned().collect();
    });
}
