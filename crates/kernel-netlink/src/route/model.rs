//! What the kernel does with commands: the memory of [`Fake`](super::Fake).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc;

use super::command::Command;
use super::entry::*;
use super::link::*;
use crate::family::Family;

/// Of an Ethernet, and of loopback.
const ETHERNET_MTU: u32 = 1500;
const LOOPBACK_MTU: u32 = 65536;
/// KERNEL: `IP6_RT_PRIO_ADDRCONF`, of routes that come with an IPv6 address.
const ADDRCONF_METRIC: u32 = 256;

/// One network namespace.
pub(super) struct Model {
    links: BTreeMap<LinkIndex, Link>,
    last_index: u32,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: BTreeMap<(Family, RouteKey), Route>,
    /// Of both families, in the order in which they are asked.
    pub(super) rules: Vec<Rule>,
}

impl Default for Model {
    fn default() -> Self {
        let mut model = Self {
            links: BTreeMap::new(),
            last_index: 0,
            addresses: Vec::new(),
            routes: BTreeMap::new(),
            rules: Vec::new(),
        };
        let lo = model.next(LinkName::told(b"lo"), LinkKind::Device);
        model.insert(Link { mtu: LOOPBACK_MTU, mac: None, ..lo });
        for (family, preference, table) in [
            (Family::Ipv4, 0, Table::LOCAL),
            (Family::Ipv6, 0, Table::LOCAL),
            (Family::Ipv4, 32766, Table::MAIN),
            (Family::Ipv6, 32766, Table::MAIN),
            (Family::Ipv4, 32767, Table::DEFAULT),
        ] {
            let rule = Rule::new(family, preference, RuleAction::Lookup(table));
            model.rules.push(Rule { protocol: RouteProtocol::KERNEL, ..rule });
        }
        model
    }
}

impl Model {
    /// All links, in the order of their numbers.
    pub(super) fn links(&self) -> Vec<Link> {
        self.links
            .values()
            .map(|link| Link { carrier: self.carries(link), running: self.carries(link), ..link.clone() })
            .collect()
    }

    /// A device of a driver, up.
    pub(super) fn plug_in(&mut self, name: &LinkName) -> LinkIndex {
        let link = self.next(name.clone(), LinkKind::Device);
        let index = link.index;
        self.insert(Link { up: true, ..link });
        index
    }

    /// Carries out one command; `Err` is the errno.
    pub(super) fn carry_out(&mut self, command: &Command) -> Result<(), i32> {
        match command {
            Command::AddLink(link) => self.add_link(link),
            Command::SetLink(index, change) => self.set_link(*index, change),
            Command::SetPort(index, change) => self.set_port(*index, *change),
            // LIMIT: nothing here tells VLANs apart, as a kernel without CONFIG_BRIDGE_VLAN_FILTERING.
            Command::FilterVlans(link, _) => self.link(*link).and(Err(libc::EOPNOTSUPP)),
            Command::AddVlans(vlans) | Command::DeleteVlans(vlans) => {
                self.port(vlans.port).and(Err(libc::EOPNOTSUPP))
            }
            Command::AddForwarding(entry) => self.port(entry.port).map(drop),
            Command::DeleteLink(index) => self.delete_link(*index),
            Command::AddAddress(address) => self.add_address(address),
            Command::DeleteAddress(address) => self.delete_address(address),
            Command::AddRoute(route) => self.add_route(route, false),
            Command::ReplaceRoute(route) => self.add_route(route, true),
            Command::DeleteRoute(route) => self.delete_route(route),
            Command::AddRule(rule) => self.add_rule(rule),
            Command::DeleteRule(rule) => self.delete_rule(rule),
        }
    }

    /// Whether packets get through: both ends of a veth are up, a bridge has a port that carries.
    fn carries(&self, link: &Link) -> bool {
        let up = |index: LinkIndex| self.links.get(&index).is_some_and(|peer| peer.up);
        link.up
            && match link.kind {
                LinkKind::Veth => link.peer.is_none_or(up),
                LinkKind::Bridge => {
                    self.links.values().any(|port| port.master == Some(link.index) && self.carries(port))
                }
                _ => true,
            }
    }

    fn next(&mut self, name: LinkName, kind: LinkKind) -> Link {
        self.last_index += 1;
        let [.., a, b] = self.last_index.to_be_bytes();
        Link {
            index: LinkIndex(self.last_index),
            name,
            vlan_filtering: (kind == LinkKind::Bridge).then_some(false),
            kind,
            mtu: ETHERNET_MTU,
            mac: Some(MacAddress([0x02, 0, 0, 0, a, b])),
            up: false,
            running: false,
            promiscuous: false,
            alias: None,
            carrier: false,
            master: None,
            port: None,
            peer: None,
            peer_namespace: None,
        }
    }

    fn insert(&mut self, link: Link) {
        self.links.insert(link.index, link);
    }

    fn link(&self, index: LinkIndex) -> Result<&Link, i32> {
        self.links.get(&index).ok_or(libc::ENODEV)
    }

    fn is_taken(&self, name: &LinkName) -> bool {
        self.links.values().any(|link| link.name == *name)
    }

    fn add_link(&mut self, new: &NewLink) -> Result<(), i32> {
        if self.is_taken(&new.name) {
            return Err(libc::EEXIST);
        }
        if let Some(master) = new.master {
            self.master(master)?;
        }
        let (kind, ether) = match &new.kind {
            NewLinkKind::Dummy => (LinkKind::Dummy, true),
            NewLinkKind::Bridge(_) => (LinkKind::Bridge, true),
            NewLinkKind::Veth(peer) => {
                let here = peer.namespace.is_none();
                if here && (peer.name == new.name || self.is_taken(&peer.name)) {
                    return Err(libc::EEXIST);
                }
                (LinkKind::Veth, true)
            }
            NewLinkKind::Ipip(tunnel) => (LinkKind::Ipip(*tunnel), false),
            NewLinkKind::Ip6tnl(tunnel) => (LinkKind::Ip6tnl(*tunnel), false),
        };
        let mut first = self.next(new.name.clone(), kind);
        first.up = new.up;
        first.mtu = new.mtu.unwrap_or(first.mtu);
        first.mac = if ether { new.mac.or(first.mac) } else { None };
        first.master = new.master;
        first.port = new.master.map(|_| Port::default());
        if let NewLinkKind::Veth(peer) = &new.kind {
            self.add_peer(&mut first, peer);
        }
        self.insert(first);
        Ok(())
    }

    fn add_peer(&mut self, first: &mut Link, peer: &Peer) {
        if peer.namespace.is_some() {
            // Numbers of elsewhere are not known here.
            first.peer_namespace = Some(0);
            return;
        }
        let mut second = self.next(peer.name.clone(), LinkKind::Veth);
        second.mac = peer.mac.or(second.mac);
        second.mtu = peer.mtu.unwrap_or(second.mtu);
        second.peer = Some(first.index);
        first.peer = Some(second.index);
        self.insert(second);
    }

    /// KERNEL: only some devices can have ports.
    fn master(&self, index: LinkIndex) -> Result<(), i32> {
        // `do_set_master()` finds none, or one without `ndo_add_slave`.
        let link = self.links.get(&index).ok_or(libc::EINVAL)?;
        if link.kind == LinkKind::Bridge { Ok(()) } else { Err(libc::EOPNOTSUPP) }
    }

    fn set_link(&mut self, index: LinkIndex, change: &LinkChange) -> Result<(), i32> {
        let mut link = self.link(index)?.clone();
        if change.namespace.is_some() {
            self.forget(index);
            return Ok(());
        }
        if let Some(name) = &change.name
            && *name != link.name
        {
            if self.is_taken(name) {
                return Err(libc::EEXIST);
            }
            link.name = name.clone();
        }
        link.mac = change.mac.or(link.mac);
        link.mtu = change.mtu.unwrap_or(link.mtu);
        if let Some(master) = change.master {
            if let Some(master) = master {
                self.master(master)?;
            }
            if link.master != master {
                link.port = master.map(|_| Port::default());
            }
            link.master = master;
        }
        link.promiscuous = change.promiscuous.unwrap_or(link.promiscuous);
        if let Some(alias) = &change.alias {
            link.alias = Some(alias.clone()).filter(|alias| !alias.is_empty());
        }
        let was_up = link.up;
        let up = change.up.unwrap_or(was_up);
        link.up = up;
        self.insert(link);
        match (was_up, up) {
            (true, false) => self.went_down(index),
            (false, true) => self.came_up(index),
            _ => {}
        }
        Ok(())
    }

    fn set_port(&mut self, index: LinkIndex, change: PortChange) -> Result<(), i32> {
        let port = self.port(index)?;
        port.hairpin = change.hairpin.unwrap_or(port.hairpin);
        port.isolated = change.isolated.unwrap_or(port.isolated);
        port.locked = change.locked.unwrap_or(port.locked);
        Ok(())
    }

    fn port(&mut self, index: LinkIndex) -> Result<&mut Port, i32> {
        let link = self.links.get_mut(&index).ok_or(libc::ENODEV)?;
        link.port.as_mut().ok_or(libc::EOPNOTSUPP)
    }

    fn delete_link(&mut self, index: LinkIndex) -> Result<(), i32> {
        let link = self.link(index)?;
        if link.kind == LinkKind::Device {
            return Err(libc::EOPNOTSUPP);
        }
        let peer = link.peer;
        self.forget(index);
        if let Some(peer) = peer {
            self.forget(peer);
        }
        Ok(())
    }

    /// All that is on a link goes with it.
    fn forget(&mut self, index: LinkIndex) {
        self.links.remove(&index);
        self.addresses.retain(|address| address.link != index);
        self.routes.retain(|_, route| !leads_to(route, index));
        for link in self.links.values_mut() {
            link.master = link.master.filter(|master| *master != index);
            link.port = link.port.filter(|_| link.master.is_some());
        }
    }

    /// KERNEL: IPv6 keeps neither addresses nor routes on a link that is down; IPv4 keeps its addresses and what is
    /// of host scope.
    fn went_down(&mut self, index: LinkIndex) {
        self.addresses
            .retain(|address| address.link != index || Family::of(address.address.addr()) == Family::Ipv4);
        self.routes.retain(|_, route| {
            !leads_to(route, index) || (route.family() == Family::Ipv4 && route.scope == Scope::HOST)
        });
    }

    fn came_up(&mut self, index: LinkIndex) {
        let addresses: Vec<_> =
            self.addresses.iter().filter(|address| address.link == index).copied().collect();
        for address in addresses {
            self.add_routes_of(&address);
        }
    }

    fn add_address(&mut self, new: &Address) -> Result<(), i32> {
        let up = self.link(new.link)?.up;
        if self.position(new).is_some() {
            return Err(libc::EEXIST);
        }
        let mut stored = *new;
        if Family::of(new.address.addr()) == Family::Ipv6 {
            stored.scope = Scope::UNIVERSE;
        } else if self.addresses.iter().any(|other| other.link == new.link && shares_network(other, new)) {
            stored.flags = stored.flags.union(AddressFlags::SECONDARY);
        }
        self.addresses.push(stored);
        if up {
            self.add_routes_of(&stored);
        }
        Ok(())
    }

    /// The routes that come with an address: to itself and to its network.
    fn add_routes_of(&mut self, address: &Address) {
        let addr = address.address.addr();
        let by_kernel = |route: Route| Route { protocol: RouteProtocol::KERNEL, ..route };
        let itself = by_kernel(Route::local(addr.into(), address.link));
        let ipv4 = Family::of(addr) == Family::Ipv4;
        let source = ipv4.then_some(addr);
        self.put(Route { preferred_source: source, ..itself });
        let network = address.address.trunc();
        let single = network.prefix_len() == network.max_prefix_len();
        if single || address.flags.contains(AddressFlags::NO_PREFIX_ROUTE) {
            return;
        }
        let near = by_kernel(Route::new(network, NextHop::link(address.link)));
        let metric = if ipv4 { 0 } else { ADDRCONF_METRIC };
        self.put(Route { preferred_source: source, metric, ..near });
    }

    fn put(&mut self, route: Route) {
        // Beneath the rule that an IPv6 metric is never 0: what the kernel makes itself.
        let key = RouteKey { metric: route.metric, ..route.key() };
        self.routes.entry((route.family(), key)).or_insert(route);
    }

    fn delete_address(&mut self, old: &Address) -> Result<(), i32> {
        self.link(old.link)?;
        let at = self.position(old).ok_or(libc::EADDRNOTAVAIL)?;
        let old = self.addresses.remove(at);
        let gone = old.address.addr();
        let network = old.address.trunc();
        self.routes.retain(|_, route| {
            let itself = route.protocol == RouteProtocol::KERNEL
                && leads_to(route, old.link)
                && (route.destination == IpNet::from(gone) || route.destination == network);
            // KERNEL: `fib_sync_down_addr()`; IPv6 only forgets the source (`fib6_remove_prefsrc()`).
            let by_source = route.family() == Family::Ipv4 && route.preferred_source == Some(gone);
            !(itself || by_source)
        });
        for route in self.routes.values_mut().filter(|route| route.preferred_source == Some(gone)) {
            route.preferred_source = None;
        }
        for address in self.addresses.clone() {
            if self.links.get(&address.link).is_some_and(|link| link.up) {
                self.add_routes_of(&address);
            }
        }
        Ok(())
    }

    fn position(&self, wanted: &Address) -> Option<usize> {
        let ipv6 = Family::of(wanted.address.addr()) == Family::Ipv6;
        self.addresses.iter().position(|have| {
            let same = have.link == wanted.link && have.address.addr() == wanted.address.addr();
            // KERNEL: `ipv6_add_addr()` looks at no more.
            same && (ipv6 || (have.address == wanted.address && have.peer == wanted.peer))
        })
    }

    fn has_address(&self, wanted: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.address.addr() == wanted)
            || self.routes.values().any(|route| {
                route.table == Table::LOCAL
                    && route.kind == RouteType::Local
                    && route.destination.contains(&wanted)
            })
    }

    fn add_route(&mut self, wanted: &Route, replace: bool) -> Result<(), i32> {
        self.check_route(wanted)?;
        let mut route = wanted.clone().as_stored();
        if route.table == Table(0) {
            route.table = Table::MAIN;
        }
        for hop in &mut route.next_hops {
            hop.link = Some(self.check_hop(wanted, hop)?);
        }
        self.check_source(wanted)?;
        let key = (route.family(), route.key());
        if !replace && self.routes.contains_key(&key) {
            return Err(libc::EEXIST);
        }
        self.routes.insert(key, route);
        Ok(())
    }

    /// What can be said without a look at links.
    fn check_route(&self, route: &Route) -> Result<(), i32> {
        // KERNEL: `fib_table_insert()` refuses bits behind the prefix; IPv6 drops them.
        let ipv4 = route.family() == Family::Ipv4;
        if ipv4 && route.destination != route.destination.trunc() {
            return Err(libc::EINVAL);
        }
        if route.kind.is_refusal() {
            return if ipv4 && !route.next_hops.is_empty() { Err(libc::EINVAL) } else { Ok(()) };
        }
        if route.next_hops.is_empty() {
            return Err(libc::ENODEV);
        }
        Ok(())
    }

    /// The link of a next hop, if the kernel takes it.
    fn check_hop(&self, route: &Route, hop: &NextHop) -> Result<LinkIndex, i32> {
        let ipv4 = route.family() == Family::Ipv4;
        let index = match (hop.link, hop.gateway) {
            (Some(link), _) => link,
            (None, Some(gateway)) => {
                self.neighbour(gateway).ok_or(if ipv4 { libc::ENETUNREACH } else { libc::EHOSTUNREACH })?
            }
            (None, None) => return Err(libc::ENODEV),
        };
        let link = self.link(index)?;
        // KERNEL: an IPv4 route of host scope stays when its link goes down, and so may be added.
        let stays = ipv4 && route.scope == Scope::HOST;
        if !link.up && !stays {
            return Err(libc::ENETDOWN);
        }
        if let Some(gateway) = hop.gateway
            && !hop.on_link
            && self.neighbour(gateway) != Some(index)
        {
            return Err(if ipv4 { libc::ENETUNREACH } else { libc::EHOSTUNREACH });
        }
        Ok(index)
    }

    /// The link whose network an address is in.
    fn neighbour(&self, gateway: IpAddr) -> Option<LinkIndex> {
        let routes = self.routes.values().filter(|route| {
            route.table == Table::MAIN
                && route.kind == RouteType::Unicast
                && route.destination.contains(&gateway)
                && route.next_hops.iter().all(|hop| hop.gateway.is_none())
        });
        routes
            .max_by_key(|route| route.destination.prefix_len())
            .and_then(|route| route.next_hops.first()?.link)
    }

    /// KERNEL: `fib_valid_prefsrc()`, `ip6_route_info_create()`: the source is one of ours, or the very address
    /// that becomes ours.
    fn check_source(&self, route: &Route) -> Result<(), i32> {
        let Some(source) = route.preferred_source else { return Ok(()) };
        let itself = route.family() == Family::Ipv4
            && route.kind == RouteType::Local
            && route.destination == IpNet::from(source);
        let ours = match route.family() {
            Family::Ipv4 => self.has_address(source),
            Family::Ipv6 => self.addresses.iter().any(|address| address.address.addr() == source),
        };
        if itself || ours { Ok(()) } else { Err(libc::EINVAL) }
    }

    fn delete_route(&mut self, wanted: &Route) -> Result<(), i32> {
        let found = self.routes.iter().find(|(_, route)| matches(route, wanted)).map(|(key, _)| *key);
        self.routes.remove(&found.ok_or(libc::ESRCH)?);
        Ok(())
    }

    fn add_rule(&mut self, wanted: &Rule) -> Result<(), i32> {
        if self.rules.iter().any(|rule| same_rule(rule, wanted)) {
            return Err(libc::EEXIST);
        }
        let at = self.rules.partition_point(|rule| rule.preference <= wanted.preference);
        self.rules.insert(at, Rule { has_more: false, ..wanted.clone() });
        Ok(())
    }

    fn delete_rule(&mut self, wanted: &Rule) -> Result<(), i32> {
        let at =
            self.rules.iter().position(|rule| same_rule(rule, wanted) && rule.protocol == wanted.protocol);
        self.rules.remove(at.ok_or(libc::ENOENT)?);
        Ok(())
    }
}

/// KERNEL: `rule_exists()` leaves out who made it.
fn same_rule(one: &Rule, other: &Rule) -> bool {
    let anonymous = |rule: &Rule| Rule { protocol: RouteProtocol::UNSPEC, has_more: false, ..rule.clone() };
    anonymous(one) == anonymous(other)
}

fn leads_to(route: &Route, link: LinkIndex) -> bool {
    route.next_hops.iter().any(|hop| hop.link == Some(link))
}

fn shares_network(one: &Address, other: &Address) -> bool {
    one.address.prefix_len() == other.address.prefix_len() && one.address.contains(&other.address.addr())
}

/// KERNEL: `fib_table_delete()`, `inet6_rtm_delroute()`: what is not told matches everything.
fn matches(route: &Route, wanted: &Route) -> bool {
    let told = |metric: u32| metric == 0 || metric == route.metric;
    let common = route.family() == wanted.family()
        && route.table == wanted.table
        && route.destination == wanted.destination.trunc()
        && told(wanted.metric)
        && (wanted.protocol == RouteProtocol::UNSPEC || wanted.protocol == route.protocol);
    let hops = wanted.next_hops.iter().all(|hop| {
        route.next_hops.iter().any(|have| {
            hop.link.is_none_or(|link| have.link == Some(link))
                && hop.gateway.is_none_or(|gateway| have.gateway == Some(gateway))
        })
    });
    let ipv4 = wanted.family() == Family::Ipv6
        || (route.tos == wanted.tos
            && route.kind == wanted.kind
            && route.scope == wanted.scope
            && wanted.preferred_source.is_none_or(|source| route.preferred_source == Some(source)));
    common && hops && ipv4
}
