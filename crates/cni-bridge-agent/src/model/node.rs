//! What this node's Node says of its pods' addresses and its own.
//!
//! Pod CIDRs are taken from the first of these that says anything, as a whole:
//!
//! 1. the annotation `kube-router.io/pod-cidrs`, a list with commas;
//! 2. the annotation `kube-router.io/pod-cidr`, one (deprecated in kube-router);
//! 3. `spec.podCIDRs`, else `spec.podCIDR`.
//!
//! kube-router reads 1 and 3 for its CNI configuration (pkg/utils/pod_cidr.go) and 2 for its routes of the same node
//! (pkg/controllers/routing): with only 2, pods got addresses that were not advertised. Here it is one.
//!
//! Of IPv4 one is used: a bridge is the gateway of one IPv4 network (as the reference's plugin has it), and every other
//! pod would not start. Of IPv6 it can be the gateway of several.
//!
//! What is malformed costs itself: the rest of the same source is used, and never another source, which would move the
//! node's pods to addresses that nobody meant.

use std::net::IpAddr;

use common_informer::object::{Family, Node, NodeAddressKind};
use ipnet::IpNet;

use super::problem::{Problem, Reason};

/// The annotation with a list.
pub const POD_CIDRS: &str = "kube-router.io/pod-cidrs";
/// The annotation with one.
pub const POD_CIDR: &str = "kube-router.io/pod-cidr";

/// Where pod CIDRs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// [`POD_CIDRS`]
    AnnotatedList,
    /// [`POD_CIDR`]
    AnnotatedOne,
    /// `spec.podCIDRs` or `spec.podCIDR`
    Spec,
}

/// What a Node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The networks of its pods: without host bits, none part of another, in order.
    pub pod_cidrs: Vec<IpNet>,
    /// Who said so.
    pub source: Source,
    /// Something was said that could not be used. It may have been a network that pods have addresses of.
    pub in_part: bool,
    /// Its internal addresses, in order.
    pub internal: Vec<IpAddr>,
    /// The condition NetworkUnavailable, if there is one: whether it is anything but False.
    pub network_unavailable: Option<bool>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl Source {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AnnotatedList => "annotation kube-router.io/pod-cidrs",
            Self::AnnotatedOne => "annotation kube-router.io/pod-cidr",
            Self::Spec => "spec.podCIDRs",
        }
    }
}

/// The family of a network.
pub const fn family(network: &IpNet) -> Family {
    match network {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

/// Reads a Node.
pub fn read(node: &Node) -> Facts {
    let annotation = |name: &str| node.annotations.get(name).filter(|text| !text.trim().is_empty());
    let mut problems = Vec::new();
    let (source, found) = if let Some(text) = annotation(POD_CIDRS) {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        (Source::AnnotatedList, parse(parts, Source::AnnotatedList, &mut problems))
    } else if let Some(text) = annotation(POD_CIDR) {
        (Source::AnnotatedOne, parse([text.trim()], Source::AnnotatedOne, &mut problems))
    } else {
        // What is malformed in `spec` is told where it is read (`/state`, reason `objects_read_in_part`).
        (Source::Spec, node.pod_cidrs.to_vec())
    };
    let pod_cidrs = usable(found, source, &mut problems);
    let internal = node.addresses.iter().filter(|address| address.kind == NodeAddressKind::Internal);
    Facts {
        pod_cidrs,
        source,
        in_part: !problems.is_empty() || source == Source::Spec && node.pod_cidrs_in_part,
        internal: internal.map(|address| address.ip).collect(),
        network_unavailable: node.network_unavailable,
        problems,
    }
}

/// Host bits are cleared, as Go's `net.ParseCIDR` does for kube-router.
fn parse<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    source: Source,
    problems: &mut Vec<Problem>,
) -> Vec<IpNet> {
    let mut found = Vec::new();
    for text in texts {
        match text.parse::<IpNet>() {
            Ok(network) => found.push(network.trunc()),
            Err(_) => {
                let message = format!("{}: {text:?} is not a network, such as 10.1.0.0/24", source.as_str());
                problems.push(Problem::new(Reason::MalformedPodCidr, message));
            }
        }
    }
    found
}

/// Those that addresses can be given out of, each once.
fn usable(found: Vec<IpNet>, source: Source, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let mut usable: Vec<IpNet> = Vec::new();
    for network in found {
        let overlap = usable.iter().find(|other| other.contains(&network) || network.contains(*other));
        // The network's own address, the gateway's and a pod's, as host-local counts.
        let too_small = network.prefix_len() + 2 > network.max_prefix_len();
        let other_v4 = usable.iter().find(|other| matches!((other, network), (IpNet::V4(_), IpNet::V4(_))));
        let why = match overlap {
            Some(same) if *same == network => continue,
            Some(other) => format!("{network} overlaps with {other}"),
            None if too_small => format!("{network} is too small to give addresses out of"),
            None if let Some(other) = other_v4 => {
                format!("the bridge is the gateway of {other} and cannot be that of {network} too")
            }
            None => {
                usable.push(network);
                continue;
            }
        };
        problems.push(Problem::new(Reason::UnusablePodCidr, format!("{}: {why}", source.as_str())));
    }
    usable
}

#[cfg(test)]
mod tests {
    use common_informer::decode;
    use common_informer::intern::Interner;
    use common_informer::object::{Kind, Object};
    use serde_json::{Value, json};

    use super::*;

    fn facts(annotations: Value, spec: Value) -> Facts {
        let node = json!({"metadata": {"name": "n1", "annotations": annotations}, "spec": spec,
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "ExternalIP", "address": "198.51.100.1"},
                {"type": "InternalIP", "address": "2001:db8::1"}]}});
        let decoded = decode::object_of(Kind::Node, &node, &mut Interner::new()).unwrap();
        let Object::Node(node) = decoded.object else { panic!("no Node") };
        read(&node)
    }

    fn cidrs(facts: &Facts) -> Vec<String> {
        facts.pod_cidrs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_source_that_says_anything_counts_as_a_whole() {
        let spec = json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]});
        let both = json!({POD_CIDRS: " 10.2.0.0/24, fd00:2::/64,", POD_CIDR: "10.3.0.0/24"});
        assert_eq!(cidrs(&facts(both, spec.clone())), ["10.2.0.0/24", "fd00:2::/64"]);
        let one = json!({POD_CIDRS: " ", POD_CIDR: "10.3.0.7/24"});
        assert_eq!(cidrs(&facts(one, spec.clone())), ["10.3.0.0/24"]);
        assert_eq!(cidrs(&facts(json!({}), spec)), ["10.1.0.0/24", "fd00:1::/64"]);
        assert_eq!(cidrs(&facts(json!({}), json!({"podCIDR": "10.1.0.0/24"}))), ["10.1.0.0/24"]);
        let none = facts(json!({}), json!({}));
        assert!(none.pod_cidrs.is_empty() && !none.in_part);
    }

    #[test]
    fn what_is_malformed_costs_itself_and_leads_to_no_other_source() {
        let spec = json!({"podCIDRs": ["10.1.0.0/24"]});
        let facts_ = facts(json!({POD_CIDRS: "10.2.0.0/24,fd00:2::/640"}), spec.clone());
        assert_eq!(cidrs(&facts_), ["10.2.0.0/24"]);
        assert!(facts_.in_part);
        assert_eq!(facts_.problems[0].reason, Reason::MalformedPodCidr);
        assert!(facts_.problems[0].message.contains("fd00:2::/640"), "{}", facts_.problems[0]);
        let nothing = facts(json!({POD_CIDR: "10.2.0.0"}), spec);
        assert!(nothing.pod_cidrs.is_empty() && nothing.in_part);
        let in_spec = facts(json!({}), json!({"podCIDRs": ["10.1.0.0/24", "fd00::/129"]}));
        assert_eq!(cidrs(&in_spec), ["10.1.0.0/24"]);
        assert!(in_spec.in_part && in_spec.problems.is_empty());
    }

    #[test]
    fn networks_that_overlap_or_have_no_room_are_not_used() {
        let found = facts(
            json!({POD_CIDRS: "10.2.0.0/16,10.2.3.0/24,10.2.0.0/16,10.9.0.0/31,fd00::/127,fd00:1::/64,10.3.0.0/16,fd00:2::/64"}),
            json!({}),
        );
        assert_eq!(cidrs(&found), ["10.2.0.0/16", "fd00:1::/64", "fd00:2::/64"]);
        assert_eq!(found.problems.len(), 4, "{:?}", found.problems);
        assert!(found.problems.iter().all(|problem| problem.reason == Reason::UnusablePodCidr));
    }

    #[test]
    fn only_internal_addresses_say_which_link_counts() {
        let found = facts(json!({}), json!({}));
        assert_eq!(found.internal, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    }
}
