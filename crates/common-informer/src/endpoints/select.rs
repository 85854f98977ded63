//! The endpoints of one port of a Service, and which of them serve.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::policy::Policies;
use crate::object::{AddressType, EndpointSlice, Family, Hints, Protocol, Str, TrafficPolicy};

/// The node from which it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub node: Str,
    /// Its zone, if it is in one.
    pub zone: Option<Str>,
}

/// A port of a Service in one family: what the ports of slices are matched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortKey<'a> {
    /// `ports[].name` of the Service.
    pub name: &'a str,
    /// `ports[].protocol` of the Service.
    pub protocol: Protocol,
    /// Family of the address that packets are sent to; that of the endpoints is the same.
    pub family: Family,
}

/// In what state an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// It can serve neither now nor for the time of its termination.
    NotReady,
    /// Not ready, but it still serves while it terminates.
    Terminating,
    /// `ready`, whatever else it is: with `publishNotReadyAddresses` also what terminates and does not serve.
    Ready,
}

/// Whether an endpoint serves under a policy, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It is ready.
    Serves,
    /// It terminates, but nothing is ready and it still serves.
    ServesTerminating,
    /// It is not ready.
    NotReady,
    /// It terminates, and there are ready ones.
    Terminating,
    /// It is on another node, and the policy is Local.
    OtherNode,
    /// It is meant for other nodes, and there is one that is meant for this node.
    HintedOtherNode,
    /// It is meant for other zones, and there is one that is meant for this zone.
    HintedOtherZone,
}

/// How hints narrow the endpoints under the policy Cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topology {
    /// Not at all.
    Anywhere,
    /// To those that are meant for this node.
    SameNode,
    /// To those that are meant for this zone.
    SameZone,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It goes to one of the endpoints that serve.
    Served,
    /// It is dropped: there are endpoints, but none here. The sender may be lucky elsewhere.
    Dropped,
    /// It is refused: there are no endpoints.
    Refused,
}

/// An endpoint of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its address.
    pub address: IpAddr,
    /// The port on which it listens.
    pub port: u16,
    /// It is on this node.
    pub local: bool,
    /// Its state.
    pub condition: Condition,
    /// Whether it serves under the policy Cluster.
    pub cluster: Verdict,
    /// Whether it serves under the policy Local.
    pub here: Verdict,
}

/// The endpoints of a port, and which of them serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Every endpoint once, by address, then port.
    pub endpoints: Vec<Candidate>,
    /// How hints narrow those that serve under the policy Cluster.
    pub topology: Topology,
}

/// The endpoints of `port` in `slices`, which are those of its Service, as `place` sees them.
///
/// - Slices of the other family and of names, and ports of slices that have no number, have no endpoint here
///   (kube-proxy passes them over too).
/// - An endpoint (address and port) that is in several slices, or twice in one, is one. K8S: this is so while
///   it is moved between slices, and consumers must expect it. Its best state counts, since the other copy may
///   be on its way out; it is local if any copy is. kube-proxy takes one copy by chance.
/// - `ready` decides alone where anything is ready: `serving` and `terminating` only count where nothing is
///   (KEP-1669), separately for the whole cluster and for this node.
/// - Hints count only if every ready endpoint has them and one is meant for us: first those for nodes, then
///   those for zones. They never narrow the policy Local.
pub fn select<'a>(
    port: PortKey<'_>,
    place: &Place,
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
) -> Selection {
    let found = find(port, place, slices);
    let topology = topology(&found, place);
    let ready = found.iter().any(|endpoint| endpoint.condition == Condition::Ready);
    let ready_here = found.iter().any(|endpoint| endpoint.local && endpoint.condition == Condition::Ready);
    let endpoints = found
        .iter()
        .map(|&Found { address, port, condition, local, ref hints }| Candidate {
            address,
            port,
            local,
            condition,
            cluster: match of_condition(condition, ready) {
                Verdict::Serves => hinted(hints.as_deref(), topology, place),
                verdict => verdict,
            },
            here: if local { of_condition(condition, ready_here) } else { Verdict::OtherNode },
        })
        .collect();
    Selection { endpoints, topology }
}

/// How many addresses of `family` are on this node and ready on any port: what `healthCheckNodePort` answers.
/// Endpoints that terminate do not count, so that load balancers turn away while they still serve (KEP-1669).
pub fn ready_addresses_here<'a>(
    family: Family,
    place: &Place,
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
) -> usize {
    let slices = slices.into_iter().filter(|slice| {
        slice.address_type == AddressType::Ip(family) && slice.ports.iter().any(|port| port.port.is_some())
    });
    let ready = slices
        .flat_map(|slice| slice.endpoints.iter())
        .filter(|endpoint| endpoint.ready && endpoint.node.as_ref() == Some(&place.node));
    ready.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
}

/// An endpoint before it is judged.
struct Found {
    address: IpAddr,
    port: u16,
    condition: Condition,
    local: bool,
    hints: Option<Arc<Hints>>,
}

/// The endpoints of a port, each once, by address and port.
fn find<'a>(
    port: PortKey<'_>,
    place: &Place,
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for slice in slices.into_iter().filter(|slice| slice.address_type == AddressType::Ip(port.family)) {
        let matching =
            slice.ports.iter().filter(|other| *other.name == *port.name && other.protocol == port.protocol);
        for number in matching.filter_map(|port| port.port) {
            found.extend(slice.endpoints.iter().map(|endpoint| Found {
                address: endpoint.address,
                port: number,
                condition: match (endpoint.ready, endpoint.serving && endpoint.terminating) {
                    (true, _) => Condition::Ready,
                    (false, true) => Condition::Terminating,
                    (false, false) => Condition::NotReady,
                },
                local: endpoint.node.as_ref() == Some(&place.node),
                hints: endpoint.hints,
            }));
        }
    }
    // The best copy first; hints only so that the order of the slices does not matter.
    let order =
        |found: &'_ Found| (found.address, found.port, Reverse(found.condition), Reverse(found.local));
    found.sort_by(|one, other| order(one).cmp(&order(other)).then_with(|| one.hints.cmp(&other.hints)));
    found.dedup_by(|other, first| {
        let same = (other.address, other.port) == (first.address, first.port);
        first.local |= same && other.local;
        same
    });
    found
}

fn topology(found: &[Found], place: &Place) -> Topology {
    let has = |names: &[Str], name: &str| names.iter().any(|other| **other == *name);
    let ready = || found.iter().filter(|endpoint| endpoint.condition == Condition::Ready);
    let narrows = |names: fn(&Hints) -> &[Str], ours: &str| {
        ready().all(|endpoint| endpoint.hints.as_ref().is_some_and(|hints| !names(hints).is_empty()))
            && ready().any(|endpoint| endpoint.hints.as_ref().is_some_and(|hints| has(names(hints), ours)))
    };
    if narrows(|hints| &hints.nodes, &place.node) {
        Topology::SameNode
    } else if place.zone.as_ref().is_some_and(|zone| narrows(|hints| &hints.zones, zone)) {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}

/// The verdict on a ready endpoint under the policy Cluster.
fn hinted(hints: Option<&Hints>, topology: Topology, place: &Place) -> Verdict {
    let meant = |names: fn(&Hints) -> &[Str], ours: Option<&Str>| {
        hints.is_some_and(|hints| names(hints).iter().any(|name| Some(name) == ours))
    };
    match topology {
        Topology::SameNode if !meant(|hints| &hints.nodes, Some(&place.node)) => Verdict::HintedOtherNode,
        Topology::SameZone if !meant(|hints| &hints.zones, place.zone.as_ref()) => Verdict::HintedOtherZone,
        Topology::SameNode | Topology::SameZone | Topology::Anywhere => Verdict::Serves,
    }
}

/// The verdict on an endpoint where something is ready, or nothing.
fn of_condition(condition: Condition, any_ready: bool) -> Verdict {
    match condition {
        Condition::Ready => Verdict::Serves,
        Condition::Terminating if any_ready => Verdict::Terminating,
        Condition::Terminating => Verdict::ServesTerminating,
        Condition::NotReady => Verdict::NotReady,
    }
}

impl Selection {
    /// The endpoints that serve under `policy`.
    pub fn serving(&self, policy: TrafficPolicy) -> impl Iterator<Item = &Candidate> {
        self.endpoints.iter().filter(move |endpoint| endpoint.verdict(policy).serves())
    }

    /// The endpoints that serve any packet that can come to this node.
    pub fn reachable(&self, policies: Policies) -> impl Iterator<Item = &Candidate> {
        self.endpoints.iter().filter(move |endpoint| {
            [TrafficPolicy::Cluster, TrafficPolicy::Local]
                .into_iter()
                .any(|policy| policies.uses(policy) && endpoint.verdict(policy).serves())
        })
    }

    /// Whether any endpoint could serve, on whatever node.
    pub fn has_any(&self) -> bool {
        // Hints never leave none, so Cluster has one if there is one anywhere.
        self.serving(TrafficPolicy::Cluster).next().is_some()
    }

    /// What becomes of a packet for which endpoints are chosen by `policy`.
    pub fn fate(&self, policy: TrafficPolicy) -> Fate {
        if self.serving(policy).next().is_some() {
            Fate::Served
        } else if self.has_any() {
            Fate::Dropped
        } else {
            Fate::Refused
        }
    }
}

impl Candidate {
    /// Whether it serves under `policy`, and why.
    pub fn verdict(&self, policy: TrafficPolicy) -> Verdict {
        match policy {
            TrafficPolicy::Cluster => self.cluster,
            TrafficPolicy::Local => self.here,
        }
    }
}

impl Verdict {
    /// Whether it serves.
    pub fn serves(self) -> bool {
        matches!(self, Self::Serves | Self::ServesTerminating)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serves => "serves: it is ready",
            Self::ServesTerminating => "serves: it terminates, but nothing is ready",
            Self::NotReady => "does not serve: it is not ready",
            Self::Terminating => "does not serve: it terminates, and others are ready",
            Self::OtherNode => "does not serve: it is on another node, and the policy is Local",
            Self::HintedOtherNode => "does not serve: it is meant for other nodes, and another for this one",
            Self::HintedOtherZone => "does not serve: it is meant for other zones, and another for this one",
        })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Served => "packets are served",
            Self::Dropped => "packets are dropped: endpoints serve only elsewhere",
            Self::Refused => "packets are refused: no endpoint serves anywhere",
        })
    }
}
