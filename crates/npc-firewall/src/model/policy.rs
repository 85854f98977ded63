//! A NetworkPolicy turned into rules that can only mean one thing.
//!
//! Everything that may be wrong with a policy is found here, once, and costs the rule that it is in: the rule
//! then allows nothing and says why. The direction stays isolated, so a mistake never opens anything.
//!
//! K8S: networking.k8s.io/v1, `NetworkPolicySpec`; the traps are listed in docs/architecture.md.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use common_informer::object::{
    self, LabelSelector, NetworkPolicy, ObjectKey, PolicyPeer, PolicyPort, PolicyRule, PortRef, Protocol,
    RuleSpec, Str,
};
use common_informer::selector::Selector;
use ipnet::IpNet;

use super::ranges::{Blocks, Ranges};

/// Direction of a rule, seen from the pod that the policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// Why part of an object is not in force. The words are a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A label selector is not valid.
    BadSelector,
    /// A CIDR is not valid, or an `except` is not inside its `cidr`.
    BadIpBlock,
    /// A port, range or protocol is not valid.
    BadPort,
    /// A peer has none of its fields, or fields that exclude each other.
    BadPeer,
    /// A rule has not the shape of one.
    Malformed,
    /// No pod that the rule reaches declares a port of this name and protocol.
    UnresolvedPort,
    /// The namespace's isolation annotation is not readable.
    BadAnnotation,
    /// The object could not be read at all.
    Unreadable,
    /// An address belongs to a newer pod.
    AddressTaken,
    /// The kernel refused what the object asks for.
    KernelRefused,
}

/// Something that is not in force, for the log, the metrics and `/state`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Why.
    pub reason: Reason,
    /// Field path and explanation, for people.
    pub message: String,
}

impl common_informer::problem::Problem for Problem {
    fn reason(&self) -> &'static str {
        self.reason.as_str()
    }

    fn message(&self) -> &str {
        &self.message
    }
}

/// Pods of some namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// In which namespaces.
    pub namespaces: NamespaceMatch,
    /// Which pods there.
    pub pods: Selector,
}

/// Namespaces of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceMatch {
    /// The policy's own.
    Name(Str),
    /// Those with such labels.
    Labels(Selector),
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everybody.
    All,
    /// Any of these.
    Listed {
        /// Pods, sorted, without duplicates.
        pods: Vec<Term>,
        /// Addresses.
        blocks: Blocks,
    },
}

/// Which ports of the destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// All ports of a protocol.
    All(Protocol),
    /// Numbers, inclusive.
    Range(Protocol, u16, u16),
    /// What the destination pod calls so.
    Named(Protocol, Str),
}

/// One rule: what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowRule {
    /// Index in `spec.ingress` or `spec.egress`.
    pub index: usize,
    /// Who.
    pub peers: Peers,
    /// Where to; `None` means every protocol and port.
    pub ports: Option<Vec<PortMatch>>,
}

/// A validated policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The pods that it isolates.
    pub selector: Selector,
    /// What may come in; `None` if the policy says nothing of ingress.
    pub ingress: Option<Vec<AllowRule>>,
    /// What may go out; `None` if the policy says nothing of egress.
    pub egress: Option<Vec<AllowRule>>,
    /// What is not in force.
    pub problems: Vec<Problem>,
}

impl Policy {
    /// Validates a policy. Never fails: what is wrong is left out and reported.
    pub fn validate(object: &NetworkPolicy) -> Arc<Self> {
        let mut problems = Vec::new();
        let mut rules = |isolates: bool, specs: &[RuleSpec], field: &str| {
            isolates.then(|| {
                let mut valid = Vec::new();
                for (index, spec) in specs.iter().enumerate() {
                    match validate_rule(index, spec, field, &object.key.namespace) {
                        Ok(rule) => valid.push(rule),
                        Err(problem) => problems.push(problem),
                    }
                }
                valid
            })
        };
        let mut ingress = rules(object.isolates_ingress, &object.ingress, "ingress");
        let mut egress = rules(object.isolates_egress, &object.egress, "egress");
        let selector = match Selector::parse(&object.pod_selector) {
            Ok(selector) => selector,
            Err(error) => {
                problems.push(Problem {
                    reason: Reason::BadSelector,
                    message: format!(
                        "spec.podSelector: {error}; the policy isolates every pod that the rest of the selector \
                         matches and allows nothing"
                    ),
                });
                // Fails closed: without the bad requirement the selector can only match more, and since nobody
                // knows which of those pods its rules were meant for, they allow nothing.
                for rules in [&mut ingress, &mut egress].into_iter().flatten() {
                    rules.clear();
                }
                valid_part(&object.pod_selector)
            }
        };
        Arc::new(Self { key: object.key.clone(), selector, ingress, egress, problems })
    }

    /// The rules of a direction; `None` if the policy does not isolate it.
    pub fn rules(&self, direction: Direction) -> Option<&[AllowRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// The requirements of a selector that are valid by themselves.
fn valid_part(selector: &LabelSelector) -> Selector {
    let mut kept =
        LabelSelector { match_labels: selector.match_labels.clone(), match_expressions: Vec::new() };
    if Selector::parse(&kept).is_err() {
        kept.match_labels = BTreeMap::new();
    }
    for requirement in &selector.match_expressions {
        kept.match_expressions.push(requirement.clone());
        if Selector::parse(&kept).is_err() {
            kept.match_expressions.pop();
        }
    }
    Selector::parse(&kept).unwrap_or_else(|_| Selector::everything())
}

fn validate_rule(index: usize, spec: &RuleSpec, field: &str, namespace: &Str) -> Result<AllowRule, Problem> {
    let rule = match spec {
        RuleSpec::Rule(rule) => rule,
        RuleSpec::Malformed(message) => {
            return Err(Problem { reason: Reason::Malformed, message: message.clone() });
        }
    };
    let path = format!("spec.{field}[{index}]");
    let peers = validate_peers(rule, &path, if field == "ingress" { "from" } else { "to" }, namespace)?;
    let ports = match rule.ports.as_slice() {
        [] => None,
        ports => {
            let mut valid = ports
                .iter()
                .enumerate()
                .map(|(at, port)| validate_port(port, &format!("{path}.ports[{at}]")))
                .collect::<Result<Vec<_>, _>>()?;
            valid.sort_unstable();
            valid.dedup();
            Some(valid)
        }
    };
    Ok(AllowRule { index, peers, ports })
}

fn validate_peers(rule: &PolicyRule, path: &str, field: &str, namespace: &Str) -> Result<Peers, Problem> {
    if rule.peers.is_empty() {
        return Ok(Peers::All);
    }
    let mut pods = Vec::new();
    let mut blocks = Blocks::default();
    for (at, peer) in rule.peers.iter().enumerate() {
        let path = format!("{path}.{field}[{at}]");
        let bad = |message: &str| Problem { reason: Reason::BadPeer, message: format!("{path}: {message}") };
        match peer {
            PolicyPeer { pod_selector: None, namespace_selector: None, ip_block: Some(block) } => {
                add_block(&mut blocks, block, &path)?;
            }
            PolicyPeer { ip_block: Some(_), .. } => {
                return Err(bad("ipBlock excludes podSelector and namespaceSelector"));
            }
            PolicyPeer { pod_selector: None, namespace_selector: None, ip_block: None } => {
                return Err(bad("one of podSelector, namespaceSelector and ipBlock is needed"));
            }
            PolicyPeer { pod_selector, namespace_selector, ip_block: None } => {
                let parse = |selector: &Option<LabelSelector>, field: &str| match selector {
                    None => Ok(Selector::everything()),
                    Some(selector) => Selector::parse(selector).map_err(|error| Problem {
                        reason: Reason::BadSelector,
                        message: format!("{path}.{field}: {error}"),
                    }),
                };
                let selected = parse(pod_selector, "podSelector")?;
                let namespaces = match namespace_selector {
                    None => NamespaceMatch::Name(namespace.clone()),
                    Some(_) => NamespaceMatch::Labels(parse(namespace_selector, "namespaceSelector")?),
                };
                pods.push(Term { namespaces, pods: selected });
            }
        }
    }
    pods.sort_unstable();
    pods.dedup();
    Ok(Peers::Listed { pods, blocks })
}

fn add_block(blocks: &mut Blocks, block: &object::IpBlock, path: &str) -> Result<(), Problem> {
    let bad = |message: String| Problem { reason: Reason::BadIpBlock, message };
    let parse = |text: &str, field: &str| {
        text.parse::<IpNet>().map_err(|_| bad(format!("{path}.ipBlock.{field}: {text:?} is not a CIDR")))
    };
    let cidr = parse(&block.cidr, "cidr")?;
    let mut ranges = Ranges::of(&cidr);
    for (at, except) in block.except.iter().enumerate() {
        let except = parse(except, &format!("except[{at}]"))?;
        if !cidr.contains(&except) {
            return Err(bad(format!("{path}.ipBlock.except[{at}]: {except} is not inside {cidr}")));
        }
        ranges.subtract(&Ranges::of(&except));
    }
    match cidr {
        IpNet::V4(_) => blocks.v4.unite(&ranges),
        IpNet::V6(_) => blocks.v6.unite(&ranges),
    }
    Ok(())
}

fn validate_port(port: &PolicyPort, path: &str) -> Result<PortMatch, Problem> {
    let bad = |message: String| Problem { reason: Reason::BadPort, message: format!("{path}{message}") };
    let protocol = Protocol::parse(&port.protocol)
        .ok_or_else(|| bad(format!(".protocol: {:?} is none of TCP, UDP, SCTP", port.protocol)))?;
    let number = |value: i64, field: &str| match u16::try_from(value) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(bad(format!(".{field}: {value} is not between 1 and 65535"))),
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(PortMatch::All(protocol)),
        (None, Some(_)) => Err(bad(".endPort: needs a port".into())),
        (Some(PortRef::Number(first)), None) => {
            let first = number(*first, "port")?;
            Ok(PortMatch::Range(protocol, first, first))
        }
        (Some(PortRef::Number(first)), Some(last)) => {
            let (first, last) = (number(*first, "port")?, number(last, "endPort")?);
            if last < first {
                return Err(bad(format!(".endPort: {last} is less than port {first}")));
            }
            Ok(PortMatch::Range(protocol, first, last))
        }
        (Some(PortRef::Name(_)), Some(_)) => Err(bad(".endPort: not allowed with a named port".into())),
        (Some(PortRef::Name(name)), None) => Ok(PortMatch::Named(protocol, name.clone())),
    }
}

impl Reason {
    /// The word used as metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadSelector => "bad_selector",
            Self::BadIpBlock => "bad_ip_block",
            Self::BadPort => "bad_port",
            Self::BadPeer => "bad_peer",
            Self::Malformed => "malformed_rule",
            Self::UnresolvedPort => "unresolved_port",
            Self::BadAnnotation => "bad_annotation",
            Self::Unreadable => "unreadable",
            Self::AddressTaken => "address_taken",
            Self::KernelRefused => "kernel_refused",
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            NamespaceMatch::Name(name) => write!(f, "ns={name}")?,
            NamespaceMatch::Labels(selector) if selector.is_everything() => f.write_str("ns=*")?,
            NamespaceMatch::Labels(selector) => write!(f, "ns({})", selector.canonical())?,
        }
        if self.pods.is_everything() {
            f.write_str(" pods=*")
        } else {
            write!(f, " pods({})", self.pods.canonical())
        }
    }
}
