//! One Service's part of the wanted state.
//!
//! ```text
//!   each port × each of its fronts (cluster IP, node port × address, external IP, balancer's address)
//!     endpoints that serve by the front's policy ──► Virtual ──► IPVS
//!     their fate ───────────────────────────────────► Gate ────┐
//!     policy Local: pods and the node take the cluster IP ─────┼─► the table
//!     endpoints here ──────────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::sync::{Arc, LazyLock};

use common_informer::endpoints::{
    Candidate, Fate, Frontend, Origin, Policies, PortKey, Selection, Traffic, ready_addresses_here, select,
};
use common_informer::object::{Family, FullService, FullServicePort, ServiceType, TrafficPolicy};
use ipnet::IpNet;
use kernel_netlink::ipvs::{Destination, Persistence, Service};

use super::dsr::{self, Direct};
use super::few::Few;
use super::options::{Balancing, balancing, flag};
use super::{Front, Gate, PlanConfig, Virtual};
use crate::model::addresses::Addresses;
use crate::model::problem::{Problem, Reason};
use crate::model::world::World;

/// What a load balancer asks for on `spec.healthCheckNodePort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Addresses of ready endpoints on this node.
    pub local: usize,
}

/// One Service's part of the wanted state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What packets to the Service go to.
    pub fronts: Few<Front, Entrance>,
    /// What few Services have.
    pub extras: Seldom,
}

/// What is wanted of a front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// What becomes of new connections.
    pub gate: Gate,
    /// Its address must be this node's.
    pub is_virtual: bool,
    /// It is an external front that IPVS knows by its address.
    pub is_external: bool,
    /// Its virtual service. One that is served by direct return has it once it has a mark.
    pub wanted: Option<Arc<Virtual>>,
}

/// [`Extras`], in no memory if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seldom(Option<Box<Extras>>);

static NO_EXTRAS: LazyLock<Extras> = LazyLock::new(Extras::default);

impl Deref for Seldom {
    type Target = Extras;

    fn deref(&self) -> &Extras {
        self.0.as_deref().unwrap_or(&NO_EXTRAS)
    }
}

impl DerefMut for Seldom {
    fn deref_mut(&mut self) -> &mut Extras {
        self.0.get_or_insert_default()
    }
}

/// What few Services have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// What is served by direct return. Its gates are in [`Part::fronts`], and its virtual services, once they have
    /// marks.
    pub direct: Option<Box<Direct>>,
    /// Where packets from pods of this node and from the node itself to a front go instead.
    pub inside: Few<Front, (IpAddr, u16)>,
    /// Pods of this node that serve: what comes from them, to them, and from them to themselves, is told apart.
    pub local: Few<IpAddr>,
    /// Who may use fronts with [`Gate::Sources`].
    pub sources: Option<Box<[IpNet]>>,
    /// For the load balancer.
    pub health: Option<HealthCheck>,
    /// What is not in force.
    pub problems: Vec<Problem>,
}

impl Part {
    /// The virtual services.
    pub fn virtuals(&self) -> impl Iterator<Item = &Arc<Virtual>> {
        self.fronts.iter().filter_map(|(_, entrance)| entrance.wanted.as_ref())
    }

    /// Addresses that must be this node's, each once.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        let mut last = None;
        let all = self.fronts.iter().filter(|(_, entrance)| entrance.is_virtual).map(|(front, _)| front.ip);
        // Fronts are in the order of their addresses.
        all.filter(move |ip| last.replace(*ip) != Some(*ip))
    }

    /// External fronts that IPVS knows by their address.
    pub fn external(&self) -> impl Iterator<Item = &Front> {
        self.fronts.iter().filter(|(_, entrance)| entrance.is_external).map(|(front, _)| front)
    }
}

/// The part of a Service of the world.
pub fn part(service: &FullService, world: &World, addresses: &Addresses, config: &PlanConfig) -> Part {
    let mut part = Part::default();
    let settings = &service.settings;
    let balancing = balancing(settings, config.scheduler, &mut part.extras.problems);
    let writer = Writer {
        service,
        policies: Policies::of(service),
        balancing,
        wants_direct: dsr::is_wanted(settings, &mut part.extras.problems),
        without_balancer_ips: flag(settings, "service.skiplbips", &mut part.extras.problems),
        world,
        addresses,
        node_port_range: &config.node_port_range,
    };
    writer.claims(&mut part);
    // Read for its word only: see `Policies::of`.
    flag(settings, "service.local", &mut part.extras.problems);
    for port in &service.ports {
        for &family in &config.families {
            writer.port(port, family, &mut part);
        }
    }
    writer.health(&mut part);
    let problems = &mut part.extras.problems;
    problems.sort();
    problems.dedup();
    if *part.extras == *NO_EXTRAS {
        part.extras = Seldom::default();
    }
    part
}

/// K8S: node ports are the API server's to give; external addresses are anybody's to write.
const NODE_PORT: &str = "the address is the node's, and the port is in --service-node-port-range";

fn describe(frontend: Frontend) -> String {
    match frontend {
        Frontend::Address(ip, ..) => ip.to_string(),
        Frontend::NodePort(protocol, port) => format!("node port {port}/{protocol}"),
    }
}

/// What the parts of a part have in common.
struct Writer<'a> {
    service: &'a FullService,
    policies: Policies,
    balancing: Balancing,
    wants_direct: bool,
    without_balancer_ips: bool,
    world: &'a World,
    addresses: &'a Addresses,
    node_port_range: &'a RangeInclusive<u16>,
}

impl Writer<'_> {
    /// Reports the addresses that the Service wants and does not get.
    fn claims(&self, part: &mut Part) {
        for (frontend, owner) in self.world.services().lost(&self.service.key) {
            part.extras.problems.push(Problem::new(
                Reason::AddressTaken,
                format!("{} is served for Service {}", describe(frontend), owner.key),
            ));
        }
        for (frontend, origin) in common_informer::endpoints::frontends(self.service) {
            if self.without_balancer_ips && origin == Origin::LoadBalancer {
                continue;
            }
            if let Some(why) = self.objection(frontend, origin) {
                let field = match origin {
                    Origin::ClusterIp => "spec.clusterIPs",
                    Origin::NodePort => "spec.ports",
                    Origin::ExternalIp => "spec.externalIPs",
                    Origin::LoadBalancer => "status.loadBalancer.ingress",
                };
                let message = format!("{field}: {} is not served: {why}", describe(frontend));
                part.extras.problems.push(Problem::new(Reason::AddressNotAllowed, message));
            }
        }
    }

    fn port(&self, port: &FullServicePort, family: Family, part: &mut Part) {
        let key = PortKey { name: &port.name, protocol: port.protocol, family };
        let selection = select(key, self.world.place(), self.world.slices(&self.service.key));
        for (front, origin) in self.fronts(port, family) {
            let Some(policy) = self.policies.to(origin.traffic()) else { continue };
            let own = &self.addresses.own;
            let direct =
                self.wants_direct && dsr::is_possible(&front, origin, own, &mut part.extras.problems);
            let entrance = if direct {
                self.direct_front(front, policy, &selection, part)
            } else {
                self.front(front, origin, policy, &selection)
            };
            let restricted = origin == Origin::LoadBalancer && self.service.settings.source_ranges.is_some();
            if restricted {
                part.extras.sources = self.service.settings.source_ranges.clone();
            }
            let gate = if restricted && entrance.gate == Gate::Serve { Gate::Sources } else { entrance.gate };
            part.fronts.insert(front, Entrance { gate, ..entrance });
            // What comes from here gains nothing by direct return: the answer comes back here anyway.
            let all = policy == TrafficPolicy::Local
                || (direct && self.policies.internal == TrafficPolicy::Cluster);
            // At the cluster IP nobody would look at the ranges.
            let limited = origin == Origin::LoadBalancer && self.service.settings.source_ranges.is_some();
            let short_cut = origin.traffic() == Traffic::External && all && !limited;
            if short_cut && let Some(cluster_ip) = self.cluster_ip(port, family) {
                part.extras.inside.insert(front, (cluster_ip, port.port));
            }
        }
        let own = &self.addresses.own;
        let local = selection.reachable(self.policies).filter(|endpoint| endpoint.local);
        let local = local.map(|endpoint| endpoint.address).filter(|ip| !own.contains(ip));
        local.for_each(|ip| part.extras.local.insert(ip, ()));
    }

    /// The fronts of a port that are this Service's, with where they come from.
    fn fronts(&self, port: &FullServicePort, family: Family) -> BTreeMap<Front, Origin> {
        let mut fronts = BTreeMap::new();
        let wanted = common_informer::endpoints::frontends(self.service).filter(|(frontend, origin)| {
            let of_port = match *frontend {
                Frontend::Address(ip, protocol, number) => {
                    Family::of(ip) == family && (protocol, number) == (port.protocol, port.port)
                }
                Frontend::NodePort(protocol, number) => {
                    (protocol, Some(number)) == (port.protocol, port.node_port)
                        && self.service.settings.families.contains(&family)
                }
            };
            of_port
                && !(self.without_balancer_ips && *origin == Origin::LoadBalancer)
                && self.is_ours(*frontend, *origin)
        });
        for (frontend, origin) in wanted {
            let protocol = port.protocol;
            match frontend {
                Frontend::Address(ip, _, number) => {
                    // An external address that is the balancer's too is guarded as the balancer's.
                    fronts.insert(Front { ip, protocol, port: number }, origin);
                }
                Frontend::NodePort(_, number) => {
                    let addresses = self.addresses.node_ports.iter().copied();
                    for ip in addresses
                        .filter(|ip| Family::of(*ip) == family && !self.world.admission().is_excluded(*ip))
                    {
                        fronts.entry(Front { ip, protocol, port: number }).or_insert(origin);
                    }
                }
            }
        }
        fronts
    }

    /// The cluster IP of a family, if packets to it and the port are served for this Service.
    fn cluster_ip(&self, port: &FullServicePort, family: Family) -> Option<IpAddr> {
        let ip = self.service.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)?;
        self.is_ours(Frontend::Address(ip, port.protocol, port.port), Origin::ClusterIp).then_some(ip)
    }

    /// Why a frontend is not served, whoever wants it.
    fn objection(&self, frontend: Frontend, origin: Origin) -> Option<&'static str> {
        let given = matches!(origin, Origin::ClusterIp | Origin::NodePort);
        let hides_node_port = matches!(frontend, Frontend::Address(ip, _, port)
            if !given && self.addresses.own.contains(&ip) && self.node_port_range.contains(&port));
        self.world
            .admission()
            .objection(self.service, frontend, origin)
            .or(hides_node_port.then_some(NODE_PORT))
    }

    /// Whether a frontend is served, and for this Service.
    fn is_ours(&self, frontend: Frontend, origin: Origin) -> bool {
        self.objection(frontend, origin).is_none()
            && self.world.services().owner(frontend).is_some_and(|owner| owner.key == self.service.key)
    }

    fn front(&self, front: Front, origin: Origin, policy: TrafficPolicy, selection: &Selection) -> Entrance {
        // An address that the node has anyway stays the node's: it needs no route, and its other ports are open.
        let is_virtual = origin != Origin::NodePort && !self.addresses.own.contains(&front.ip);
        let to = |endpoint: &Candidate| Some(Destination::new(endpoint.address, endpoint.port));
        let wanted = self.virtual_service(front, policy, selection, to);
        Entrance {
            gate: match selection.fate(policy) {
                Fate::Served => Gate::Serve,
                Fate::Dropped => Gate::Drop,
                Fate::Refused => Gate::Refuse,
            },
            is_virtual,
            is_external: is_virtual && origin != Origin::ClusterIp,
            wanted: Some(Arc::new(wanted)),
        }
    }

    fn direct_front(
        &self,
        front: Front,
        policy: TrafficPolicy,
        selection: &Selection,
        part: &mut Part,
    ) -> Entrance {
        let own = &self.addresses.own;
        let to = |endpoint: &Candidate| dsr::destination(endpoint, &front, own, &mut part.extras.problems);
        let wanted = self.virtual_service(front, policy, selection, to);
        let here = selection.endpoints.iter().filter(|endpoint| {
            endpoint.local && dsr::destination(endpoint, &front, own, &mut Vec::new()).is_some()
        });
        let direct = part.extras.direct.get_or_insert_default();
        for endpoint in here {
            direct.pods.entry(endpoint.address).or_default().insert(front.ip);
            direct.replies.insert(front);
        }
        let serves = !wanted.destinations.is_empty();
        direct.unmarked.insert(front, wanted);
        let gate = match selection.fate(policy) {
            Fate::Served if serves => Gate::Serve,
            Fate::Dropped => Gate::Drop,
            Fate::Served | Fate::Refused => Gate::Refuse,
        };
        Entrance { gate, is_virtual: false, is_external: false, wanted: None }
    }

    /// The virtual service of a front, with the destinations that endpoints are for it.
    fn virtual_service(
        &self,
        front: Front,
        policy: TrafficPolicy,
        selection: &Selection,
        mut destination: impl FnMut(&Candidate) -> Option<Destination>,
    ) -> Virtual {
        let seconds = self.service.settings.affinity_seconds;
        let key = front.service_key();
        let service = Service {
            flags: self.balancing.flags,
            persistence: seconds.map(|seconds| Persistence::per_client(seconds, key.family())),
            ..Service::new(key, self.balancing.scheduler)
        };
        let (mut destinations, mut lingering) = (Vec::new(), Vec::new());
        for endpoint in &selection.endpoints {
            let Some(to) = destination(endpoint) else { continue };
            if endpoint.verdict(policy).serves() {
                destinations.push(to);
            } else {
                lingering.push(to.key);
            }
        }
        Virtual { service, destinations: destinations.into(), lingering: lingering.into() }
    }

    fn health(&self, part: &mut Part) {
        let Some(port) = self.service.health_check_node_port else { return };
        let asked = self.service.settings.service_type == ServiceType::LoadBalancer
            && self.policies.external == Some(TrafficPolicy::Local);
        if !asked {
            return;
        }
        let slices = self.world.slices(&self.service.key);
        let families = self.service.settings.families.iter();
        let local = families.map(|family| ready_addresses_here(*family, self.world.place(), slices)).max();
        part.extras.health = Some(HealthCheck { port, local: local.unwrap_or(0) });
    }
}
