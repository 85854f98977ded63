//! What the API says of a packet to a Service, the slow and obvious way: looked up in the objects one by one, by
//! the words of the API (core/v1 Service, discovery/v1 EndpointSlice, KEP-1669, KEP-2433, KEP-3015) and of this
//! program's flags. It knows nothing of virtual services, tables or plans.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{
    AddressType, Change, Endpoint, EndpointSlice, Family, FullService, FullServicePort, Object, ObjectRef,
    ServiceType, Str, TrafficPolicy,
};
use ipnet::IpNet;
use svc_proxy_ipvs::args::Config;
use svc_proxy_ipvs::model::addresses::Addresses;

use super::node::{Connection, Fate, Place, Seen};

/// The objects of a cluster.
pub type Objects = BTreeMap<ObjectRef, Object>;

/// Takes a change.
pub fn apply(objects: &mut Objects, change: &Change) {
    match change {
        Change::Applied(object) => {
            objects.insert(object.object_ref(), object.clone());
        }
        Change::Deleted(object) | Change::Excluded { object, .. } => {
            objects.remove(object);
        }
    }
}

/// Somebody who has read the documentation.
#[derive(Clone, Copy)]
pub struct Oracle<'a> {
    pub objects: &'a Objects,
    pub config: &'a Config,
    pub addresses: &'a Addresses,
    pub node: &'a str,
}

/// Which kind of a Service's addresses a packet goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster,
    NodePort,
    External,
    Balancer,
}

/// An address and port that a Service wants.
struct Claim<'a> {
    service: &'a FullService,
    port: &'a FullServicePort,
    kind: Kind,
}

fn within(ranges: &[IpNet], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&ip))
}

impl<'a> Oracle<'a> {
    /// What becomes of a connection.
    pub fn fate(&self, connection: &Connection) -> Fate {
        let destination = connection.destination;
        let excluded = within(&self.config.admission.excluded, destination);
        if !self.config.plan.families.contains(&Family::of(destination)) || excluded {
            return Fate::Passed;
        }
        if let Some(claim) = self.owner(connection) {
            return self.served(&claim, connection);
        }
        let own = self.addresses.own.contains(&destination);
        if !own && self.is_virtual(destination) {
            return if self.config.plan.guard_addresses { Fate::Refused } else { Fate::Passed };
        }
        if !own && within(&self.config.plan.cluster_ranges, destination) {
            return Fate::Dropped;
        }
        Fate::Passed
    }

    /// The Services that a proxy of our name serves.
    fn services(&self) -> impl Iterator<Item = &'a FullService> {
        let ours = |service: &FullService| {
            let settings = &service.settings;
            settings.service_type != ServiceType::ExternalName
                && !settings.headless
                && !settings.headless_label
                && settings.proxy_name.as_deref().is_none_or(|name| name == self.config.proxy_name)
                && !service.cluster_ips.is_empty()
        };
        self.objects
            .values()
            .filter_map(|object| match object {
                Object::FullService(service) => Some(&**service),
                _ => None,
            })
            .filter(move |service| ours(service))
    }

    /// Whether a Service may have an address of a kind, by the operator's ranges. Nobody may hide a node port.
    fn admits(&self, kind: Kind, ip: IpAddr, port: u16) -> bool {
        let admission = &self.config.admission;
        let ranges = match kind {
            Kind::Cluster | Kind::NodePort => return true,
            Kind::External => &admission.external,
            Kind::Balancer => &admission.balancer,
        };
        let is_node_port = self.addresses.own.contains(&ip) && self.config.node_ports.contains(&port);
        !is_node_port && (!admission.strict || within(ranges, ip) && !within(&admission.cluster, ip))
    }

    /// Every address and port that a Service has, or would have if no other had it.
    fn claims(&self, service: &'a FullService) -> Vec<(IpAddr, u16, Claim<'a>)> {
        let settings = &service.settings;
        let mut claims = Vec::new();
        let skips = settings.flag("service.skiplbips") == Ok(Some(true));
        for port in &service.ports {
            let mut claim = |ip, number, kind| {
                if settings.families.contains(&Family::of(ip)) && self.admits(kind, ip, number) {
                    claims.push((ip, number, Claim { service, port, kind }));
                }
            };
            service.cluster_ips.iter().for_each(|ip| claim(*ip, port.port, Kind::Cluster));
            for address in settings.load_balancer_ips.iter().filter(|address| !address.proxied && !skips) {
                claim(address.ip, port.port, Kind::Balancer);
            }
            settings.external_ips.iter().for_each(|ip| claim(*ip, port.port, Kind::External));
            if let Some(number) = port.node_port {
                self.addresses.node_ports.iter().for_each(|ip| claim(*ip, number, Kind::NodePort));
            }
        }
        claims
    }

    /// Whose the address and port is: of whom the API server gave it to, then the oldest, then the first by name.
    /// Of several reasons of one Service the API server's counts, then the load balancer's.
    fn owner(&self, connection: &Connection) -> Option<Claim<'a>> {
        let mut claims: Vec<_> = self
            .services()
            .flat_map(|service| self.claims(service))
            .filter(|(ip, number, claim)| {
                let front = (*ip, *number, claim.port.protocol);
                front == (connection.destination, connection.port, connection.protocol)
            })
            .map(|(.., claim)| claim)
            .filter(|claim| claim.kind != Kind::NodePort || self.has_node_port(claim))
            .collect();
        claims.sort_by_key(|Claim { service, kind, .. }| {
            let given = matches!(kind, Kind::Cluster | Kind::NodePort);
            (!given, service.created, service.key.clone(), *kind == Kind::External)
        });
        claims.into_iter().next()
    }

    /// Whether its node port is the Service's: of both families, or of none.
    fn has_node_port(&self, claim: &Claim<'a>) -> bool {
        let wants = |service: &&FullService| {
            let mut ports = service.ports.iter();
            ports.any(|port| (port.protocol, port.node_port) == (claim.port.protocol, claim.port.node_port))
        };
        let first =
            self.services().filter(wants).min_by_key(|service| (service.created, service.key.clone()));
        first.is_some_and(|first| first.key == claim.service.key)
    }

    /// Whether it is an address that some Service has, whatever the port.
    fn is_virtual(&self, address: IpAddr) -> bool {
        let mut claims = self.services().flat_map(|service| self.claims(service));
        claims.any(|(ip, _, claim)| ip == address && claim.kind != Kind::NodePort)
    }

    fn served(&self, claim: &Claim<'a>, connection: &Connection) -> Fate {
        let settings = &claim.service.settings;
        let family = Family::of(connection.destination);
        let local = settings.external_policy == TrafficPolicy::Local
            || settings.flag("service.local") == Ok(Some(true));
        // core/v1: externalTrafficPolicy is about packets from outside of the cluster. Others take the cluster IP.
        let limited = claim.kind == Kind::Balancer && settings.source_ranges.is_some();
        // LIMIT: docs/adr/0009. Where sources are limited, there is no short cut.
        let inside = connection.place != Place::Elsewhere && !limited && self.has_cluster_ip(claim, family);
        let short_cut = claim.kind != Kind::Cluster && local && inside;
        let policy = match claim.kind {
            Kind::Cluster => settings.internal_policy,
            // LIMIT: docs/adr/0009. The API has Cluster here, whatever the internal policy.
            _ if short_cut => settings.internal_policy,
            _ if local => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let anywhere = self.endpoints(claim, family, TrafficPolicy::Cluster);
        if anywhere.is_empty() {
            return Fate::Refused;
        }
        if claim.kind == Kind::Balancer
            && connection.place != Place::Node
            && settings.source_ranges.as_deref().is_some_and(|ranges| !within(ranges, connection.source))
        {
            return Fate::Dropped;
        }
        let endpoints = self.endpoints(claim, family, policy);
        if endpoints.is_empty() {
            return Fate::Dropped;
        }
        let seen = |(ip, port)| (ip, port, self.seen(ip, connection));
        Fate::Served(endpoints.into_iter().map(seen).collect())
    }

    /// Whether the Service has a cluster IP of a family, with the port, that is served here.
    fn has_cluster_ip(&self, claim: &Claim<'a>, family: Family) -> bool {
        let Some(ip) = claim.service.cluster_ips.iter().find(|ip| Family::of(**ip) == family) else {
            return false;
        };
        let port = claim.port;
        let place = Place::Elsewhere;
        let to =
            Connection { place, source: *ip, destination: *ip, protocol: port.protocol, port: port.port };
        !within(&self.config.admission.excluded, *ip)
            && self.owner(&to).is_some_and(|owner| owner.service.key == claim.service.key)
    }

    /// As whom the endpoint at `ip` sees the client. Its answer has to come back by this node.
    fn seen(&self, ip: IpAddr, connection: &Connection) -> Seen {
        match connection.place {
            Place::Node => Seen::Node,
            _ if self.addresses.own.contains(&ip) => Seen::Client,
            Place::Pod if ip == connection.source => Seen::Front,
            _ if self.config.plan.masquerade_all => Seen::Node,
            Place::Pod => Seen::Client,
            Place::Elsewhere if self.is_pod_here(ip) => Seen::Client,
            Place::Elsewhere => Seen::Node,
        }
    }

    fn pod_ranges(&self) -> Vec<IpNet> {
        let mut nodes = self.objects.values().filter_map(|object| match object {
            Object::Node(node) if &*node.name == self.node => Some(node.pod_cidrs.to_vec()),
            _ => None,
        });
        nodes.next().unwrap_or_default()
    }

    fn is_pod_here(&self, ip: IpAddr) -> bool {
        let mut endpoints = self.slices().flat_map(|slice| slice.endpoints.iter());
        within(&self.pod_ranges(), ip)
            || endpoints.any(|endpoint| endpoint.address == ip && self.is_here(&endpoint))
    }

    fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }

    fn slices(&self) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
        self.objects.values().filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        })
    }

    fn zone(&self) -> Option<Str> {
        self.objects.values().find_map(|object| match object {
            Object::Node(node) if &*node.name == self.node => node.zone.clone(),
            _ => None,
        })
    }

    /// The endpoints that serve a port under a policy.
    fn endpoints(&self, claim: &Claim<'a>, family: Family, policy: TrafficPolicy) -> BTreeSet<(IpAddr, u16)> {
        let mut all: Vec<(u16, Endpoint)> = Vec::new();
        for slice in self.slices() {
            let of_service = slice.key.namespace == claim.service.key.namespace
                && slice.service.as_ref() == Some(&claim.service.key.name);
            if !of_service || slice.address_type != AddressType::Ip(family) {
                continue;
            }
            for port in slice.ports.iter() {
                if port.name == claim.port.name && port.protocol == claim.port.protocol {
                    all.extend(
                        port.port.iter().flat_map(|number| slice.endpoints.iter().map(move |e| (*number, e))),
                    );
                }
            }
        }
        if policy == TrafficPolicy::Local {
            // One that is in several slices is here if any of them says so.
            let here: BTreeSet<_> =
                all.iter().filter(|(_, e)| self.is_here(e)).map(|(port, e)| (e.address, *port)).collect();
            all.retain(|(port, endpoint)| here.contains(&(endpoint.address, *port)));
        }
        let sockets = |list: Vec<(u16, Endpoint)>| list.iter().map(|(p, e)| (e.address, *p)).collect();
        let ready: Vec<_> = all.iter().filter(|(_, endpoint)| endpoint.ready).cloned().collect();
        if ready.is_empty() {
            all.retain(|(_, endpoint)| endpoint.serving && endpoint.terminating);
            return sockets(all);
        }
        if policy == TrafficPolicy::Local {
            return sockets(ready);
        }
        sockets(self.hinted(ready))
    }

    /// Those that hints leave: for our node, else for our zone; all if any has no hint, or none is for us.
    fn hinted(&self, ready: Vec<(u16, Endpoint)>) -> Vec<(u16, Endpoint)> {
        let names = |endpoint: &Endpoint, of_nodes: bool| -> Vec<Str> {
            let hints = endpoint.hints.as_ref();
            let names = hints.map(|hints| if of_nodes { &hints.nodes } else { &hints.zones });
            names.map(|names| names.to_vec()).unwrap_or_default()
        };
        for (of_nodes, ours) in [(true, Some(Str::from(self.node))), (false, self.zone())] {
            let Some(ours) = ours else { continue };
            let meant: Vec<_> =
                ready.iter().filter(|(_, e)| names(e, of_nodes).contains(&ours)).cloned().collect();
            if !meant.is_empty() && ready.iter().all(|(_, e)| !names(e, of_nodes).is_empty()) {
                return meant;
            }
        }
        ready
    }
}
