//! What direct return needs of the node beside IPVS and the table: the way of marked packets to IPVS, devices that
//! let replies pass, tunnels in pods ([`pod`]).

pub mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common_informer::object::Family;
use ipnet::IpNet;
use kernel_netlink::route::{
    self, Command, Link, LinkIndex, LinkName, Mark, NextHop, Route, RouteFilter, RouteProtocol, RouteType,
    Rtnetlink, Rule, RuleAction, Scope, Table,
};
use kernel_netlink::sysctl::{Name, State, Sysctls};

use super::address::failed;
use crate::error::Error;
use crate::model::addresses::Addresses;
use crate::owned;
use crate::plan::planner::DirectNeeds;

/// Families in the order of [`DirectNeeds::families`].
const FAMILIES: [route::Family; 2] = [route::Family::Ipv4, route::Family::Ipv6];
const LEADING: &str = "leading marked packets to IPVS (ip rule, table 78)";

/// What leads marked packets to IPVS, and what has to be done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leading {
    /// They were led there before, by this process or one before it.
    pub was_led: bool,
    /// What is missing. ORDER: goes first, so that no packet is without a way for a moment.
    pub additions: Vec<Command>,
    /// What is too much.
    pub removals: Vec<Command>,
}

/// Looks what is missing for marked packets to be this node's in the families that need it, and what is too much.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn leading(netlink: &mut impl Rtnetlink, needs: &DirectNeeds) -> Result<Leading, Error> {
    let mut leading = Leading::default();
    let loopback = match LinkName::new("lo") {
        Some(name) => netlink.observe_link(&name).map_err(failed(LEADING))?.map(|link| link.index),
        None => None,
    };
    for (family, needed) in FAMILIES.into_iter().zip(needs.families) {
        let rule = rule(family);
        let rules = netlink.observe_rules(family).map_err(failed(LEADING))?;
        let ours: Vec<_> = rules.into_iter().filter(is_ours).collect();
        leading.was_led |= !ours.is_empty();
        let filter =
            RouteFilter { family: Some(family), table: Some(Table(owned::MARK_TABLE)), protocol: None };
        let routes = netlink.observe_routes(&filter).map_err(failed(LEADING))?;
        if needed && let Some(loopback) = loopback {
            let route = everything(family, loopback);
            if !routes.contains(&route.clone().as_stored()) {
                leading.additions.push(Command::ReplaceRoute(route));
            }
            if !ours.contains(&rule) {
                leading.additions.push(Command::AddRule(rule.clone()));
            }
        }
        let unwanted = ours.into_iter().filter(|found| !needed || *found != rule);
        leading.removals.extend(unwanted.map(Command::DeleteRule));
        let by_us = |route: &Route| route.protocol == RouteProtocol(owned::ROUTE_PROTOCOL);
        let unwanted = routes.into_iter().filter(|route| !needed && by_us(route));
        leading.removals.extend(unwanted.map(Command::DeleteRoute));
    }
    Ok(leading)
}

/// Carries that out. Says how many changes it took.
///
/// # Errors
/// When not all was done.
pub fn lead(netlink: &mut impl Rtnetlink, leading: &Leading) -> Result<usize, Error> {
    netlink.commit(&leading.additions).map_err(failed(LEADING))?;
    netlink.commit(&leading.removals).map_err(failed(LEADING))?;
    Ok(leading.additions.len() + leading.removals.len())
}

fn rule(family: route::Family) -> Rule {
    Rule {
        mark: Some(Mark { value: owned::MARK, mask: owned::MARK_MASK }),
        protocol: RouteProtocol(owned::ROUTE_PROTOCOL),
        ..Rule::new(family, owned::MARK_RULE, RuleAction::Lookup(Table(owned::MARK_TABLE)))
    }
}

/// kube-router has a rule for each Service, with other marks.
fn is_ours(found: &Rule) -> bool {
    found.preference == owned::MARK_RULE
        && found.mark == Some(Mark { value: owned::MARK, mask: owned::MARK_MASK })
}

/// `local default dev lo table 78`
fn everything(family: route::Family, loopback: LinkIndex) -> Route {
    let (destination, scope) = match family {
        route::Family::Ipv4 => (IpNet::V4(ipnet::Ipv4Net::default()), Scope::HOST),
        route::Family::Ipv6 => (IpNet::V6(ipnet::Ipv6Net::default()), Scope::UNIVERSE),
    };
    Route {
        table: Table(owned::MARK_TABLE),
        protocol: RouteProtocol(owned::ROUTE_PROTOCOL),
        kind: RouteType::Local,
        scope,
        ..Route::new(destination, NextHop::link(loopback))
    }
}

/// The way to endpoints on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Bytes of the largest packet that gets to any of them from outside; `None` if no device is known.
    pub mtu: Option<u16>,
    /// The devices that lead to endpoints, by endpoint.
    pub devices: BTreeMap<IpAddr, Device>,
}

/// A device that leads to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// It has an IPv4 address: a bridge has, the veth of a single pod mostly has none.
    pub has_address: bool,
}

/// Looks how packets get to endpoints on this node: from the device with the node's own address, by the device
/// that the main table names (a bridge, or one of the pod's own).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn paths<'a>(
    netlink: &mut impl Rtnetlink,
    pods: impl IntoIterator<Item = &'a IpAddr>,
    addresses: &Addresses,
) -> Result<Paths, Error> {
    const LOOKING: &str = "looking how packets get to pods";
    let links = netlink.observe_links().map_err(failed(LOOKING))?;
    let links: BTreeMap<LinkIndex, Link> = links.into_iter().map(|link| (link.index, link)).collect();
    let filter = RouteFilter { table: Some(Table::MAIN), ..RouteFilter::default() };
    let routes = netlink.observe_routes(&filter).map_err(failed(LOOKING))?;
    let held = netlink.observe_addresses().map_err(failed(LOOKING))?;
    let mut paths = Paths::default();
    let mut used = BTreeSet::new();
    for pod in pods {
        let on_link = |route: &&Route| {
            route.kind == RouteType::Unicast
                && route.destination.contains(pod)
                && route.next_hops.first().is_some_and(|hop| hop.gateway.is_none())
        };
        let route = routes.iter().filter(on_link).max_by_key(|route| route.destination.prefix_len());
        let link = route.and_then(|route| route.next_hops.first()?.link).and_then(|link| links.get(&link));
        if let Some(link) = link {
            let has_address =
                held.iter().any(|held| held.link == link.index && held.address.addr().is_ipv4());
            paths.devices.insert(*pod, Device { name: link.name.as_str().to_owned(), has_address });
            used.insert(link.index);
        }
    }
    let own: BTreeSet<_> =
        [Family::V4, Family::V6].iter().filter_map(|family| addresses.source(*family)).collect();
    used.extend(held.iter().filter(|held| own.contains(&held.address.addr())).map(|held| held.link));
    let mtu = used.iter().filter_map(|index| links.get(index)).map(|link| link.mtu).min();
    paths.mtu = mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
    Ok(paths)
}

/// Lets replies with the source of a virtual address in by the devices that lead to endpoints. Gives what stands
/// against it, by endpoint.
///
/// KERNEL: what counts is the larger of `all` and the device (`IN_DEV_RPFILTER`). 1 asks that the way to the
/// source be the device by which the packet came, which is never so here; 2 that there be any, which there is
/// where there is a default route, but on a device without an IPv4 address 2 is as 1 (`__fib_validate_source()`).
/// Nothing of that for IPv6.
pub fn let_replies_in(sysctls: &Sysctls, paths: &Paths) -> BTreeMap<IpAddr, String> {
    let mut against = BTreeMap::new();
    let filters = Filters { sysctls };
    for (pod, device) in paths.devices.iter().filter(|(pod, _)| pod.is_ipv4()) {
        let Some(own) = filters.value(&device.name) else { continue };
        let done = match (filters.value("all").unwrap_or(0).max(own), device.has_address) {
            (0, _) | (2.., true) => Ok(()),
            (_, true) => filters.set(&device.name, 2),
            (_, false) => filters.spread().and_then(|()| filters.set(&device.name, 0)),
        };
        if let Err(why) = done {
            against.insert(*pod, format!("replies are dropped: {why}"));
        }
    }
    against
}

/// The reverse path filters of devices.
struct Filters<'a> {
    sysctls: &'a Sysctls,
}

impl Filters<'_> {
    fn name(device: &str) -> Option<Name> {
        Name::of(["net", "ipv4", "conf", device, "rp_filter"])
    }

    fn value(&self, device: &str) -> Option<u8> {
        self.sysctls.read(&Self::name(device)?).ok().flatten()?.trim().parse().ok()
    }

    fn set(&self, device: &str, value: u8) -> Result<(), String> {
        let Some(name) = Self::name(device) else { return Ok(()) };
        match self.sysctls.ensure(&name, &value.to_string()) {
            // The device is gone.
            State::On | State::Changed(_) | State::Missing => Ok(()),
            State::Stuck { reason, .. } => Err(format!("{name} is not {value}: {reason}")),
        }
    }

    /// Moves the value that holds for all devices into each of them, so that it can be another for one. Those that
    /// come later begin with `default`.
    fn spread(&self) -> Result<(), String> {
        let Some(all) = self.value("all").filter(|all| *all != 0) else { return Ok(()) };
        let Some(folder) = Name::parse("net/ipv4/conf") else { return Ok(()) };
        let devices = self.sysctls.list(&folder).map_err(|error| format!("{folder}: {error}"))?;
        for device in devices.iter().filter(|device| *device != "all") {
            self.set(device, self.value(device).unwrap_or(0).max(all))?;
        }
        // ORDER: last, or nothing would be filtered for a moment.
        self.set("all", 0)
    }
}

/// Sets the sysctls of [`owned::DIRECT_SYSCTLS`].
pub fn ensure_sysctls(sysctls: &Sysctls, needs: &DirectNeeds) -> super::sysctl::Found {
    let [pmtu, sloppy] = owned::DIRECT_SYSCTLS;
    let wanted =
        [(pmtu, if needs.datagrams { "0" } else { "1" }), (sloppy, if needs.hashed { "1" } else { "0" })];
    let ensured = wanted
        .into_iter()
        .filter_map(|(name, value)| Some((name, sysctls.ensure(&Name::parse(name)?, value))));
    ensured.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kernel_netlink::route::{Address, Fake, NewLink, NewLinkKind};

    use super::*;

    fn node() -> (Fake, LinkIndex) {
        let mut fake = Fake::new();
        let lo = fake.observe_link(&LinkName::new("lo").unwrap()).unwrap().unwrap().index;
        let up = route::LinkChange { up: Some(true), ..route::LinkChange::default() };
        fake.commit(&[Command::SetLink(lo, up)]).unwrap();
        (fake, lo)
    }

    fn needs(v4: bool, v6: bool) -> DirectNeeds {
        DirectNeeds { families: [v4, v6], ..DirectNeeds::default() }
    }

    /// Whether they were led before, and how many changes it took.
    fn led(fake: &mut Fake, needs: &DirectNeeds) -> (bool, usize) {
        let leading = leading(fake, needs).unwrap();
        (leading.was_led, lead(fake, &leading).unwrap())
    }

    #[test]
    fn marked_packets_are_led_to_ipvs_as_long_as_it_is_needed() {
        let (mut fake, lo) = node();
        assert_eq!(led(&mut fake, &needs(false, false)), (false, 0));
        assert_eq!(led(&mut fake, &needs(true, true)), (false, 4));
        assert_eq!(led(&mut fake, &needs(true, true)), (true, 0));
        let rules = fake.observe_rules(route::Family::Ipv6).unwrap();
        let shown: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let wanted = "32764: from all fwmark 0x4d000000/0xff000000 lookup 78".to_owned();
        assert!(shown.contains(&wanted), "{shown:?}");
        fake.commit(&[Command::DeleteRoute(everything(route::Family::Ipv4, lo))]).unwrap();
        assert_eq!(led(&mut fake, &needs(true, true)), (true, 1), "mended");
        assert_eq!(led(&mut fake, &needs(false, true)), (true, 2));
        assert_eq!(led(&mut fake, &needs(false, false)), (true, 2));
        assert_eq!(led(&mut fake, &needs(false, false)), (false, 0));
    }

    #[test]
    fn rules_of_kube_router_stay_but_its_route_becomes_ours() {
        let (mut fake, lo) = node();
        let theirs = Rule {
            mark: Some(Mark { value: 0x1abc, mask: u32::MAX }),
            ..Rule::new(route::Family::Ipv4, owned::MARK_RULE, RuleAction::Lookup(Table(owned::MARK_TABLE)))
        };
        let route = Route { protocol: RouteProtocol::BOOT, ..everything(route::Family::Ipv4, lo) };
        fake.commit(&[Command::AddRule(theirs.clone()), Command::AddRoute(route)]).unwrap();
        assert_eq!(led(&mut fake, &needs(false, false)), (false, 0));
        assert_eq!(led(&mut fake, &needs(true, false)), (false, 2));
        assert_eq!(led(&mut fake, &needs(false, false)), (true, 2));
        assert!(fake.observe_rules(route::Family::Ipv4).unwrap().contains(&theirs));
    }

    #[test]
    fn the_smallest_device_on_the_way_tells_how_large_packets_may_be() {
        let (mut fake, _) = node();
        let add = |fake: &mut Fake, name: &str, mtu| {
            let name = LinkName::new(name).unwrap();
            let link = NewLink { up: true, mtu: Some(mtu), ..NewLink::new(name.clone(), NewLinkKind::Dummy) };
            fake.commit(&[Command::AddLink(link)]).unwrap();
            fake.observe_link(&name).unwrap().unwrap().index
        };
        let (eth0, wide, pod) =
            (add(&mut fake, "eth0", 1500), add(&mut fake, "br", 9000), add(&mut fake, "cali", 1440));
        let on = |link, text: &str| Command::AddAddress(Address::new(link, text.parse().unwrap()));
        let to = |link, text: &str| Command::AddRoute(Route::new(text.parse().unwrap(), NextHop::link(link)));
        fake.commit(&[on(eth0, "192.168.50.1/24"), on(wide, "10.244.1.1/24"), to(pod, "10.244.1.7/32")])
            .unwrap();
        let own = Addresses { source: [Some("192.168.50.1".parse().unwrap()), None], ..Addresses::default() };
        let [one, other]: [IpAddr; 2] = ["10.244.1.6".parse().unwrap(), "10.244.1.7".parse().unwrap()];
        let found = paths(&mut fake, [&one], &own).unwrap();
        assert_eq!(
            (found.mtu, &*found.devices[&one].name, found.devices[&one].has_address),
            (Some(1500), "br", true)
        );
        let found = paths(&mut fake, [&one, &other], &own).unwrap();
        assert_eq!(
            (found.mtu, &*found.devices[&other].name, found.devices[&other].has_address),
            (Some(1440), "cali", false)
        );
    }

    #[test]
    fn reverse_path_filters_let_replies_in_and_stay_as_strict_as_they_are_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let path = |device: &str| root.path().join("net/ipv4/conf").join(device);
        let read = |device: &str| {
            fs::read_to_string(path(device).join("rp_filter")).unwrap().trim().parse::<u8>().unwrap()
        };
        let sysctls = Sysctls::new(root.path());
        let pod: IpAddr = [10, 244, 1, 6].into();
        for (has_address, before, after) in [
            // `all`, the pod's device, another one.
            (true, [0, 0, 1], [0, 0, 1]),
            (true, [0, 2, 1], [0, 2, 1]),
            (true, [2, 1, 1], [2, 1, 1]),
            (true, [0, 1, 1], [0, 2, 1]),
            (true, [1, 0, 0], [1, 2, 0]),
            (false, [0, 0, 1], [0, 0, 1]),
            (false, [0, 2, 0], [0, 0, 0]),
            (false, [1, 0, 0], [0, 0, 1]),
            (false, [2, 1, 1], [0, 0, 2]),
            (false, [1, 0, 2], [0, 0, 2]),
        ] {
            for (device, value) in ["all", "cali1", "eth0"].into_iter().zip(before) {
                fs::create_dir_all(path(device)).unwrap();
                fs::write(path(device).join("rp_filter"), value.to_string()).unwrap();
            }
            let device = Device { name: "cali1".to_owned(), has_address };
            let paths = Paths { mtu: None, devices: [(pod, device)].into() };
            assert_eq!(let_replies_in(&sysctls, &paths), BTreeMap::new());
            assert_eq!(["all", "cali1", "eth0"].map(read), after, "{has_address} {before:?}");
        }
    }
}
