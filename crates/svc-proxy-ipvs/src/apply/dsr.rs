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
    pub devices: BTreeMap<IpAddr, String>,
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
            paths.devices.insert(*pod, link.name.as_str().to_owned());
            used.insert(link.index);
        }
    }
    let own: BTreeSet<_> =
        [Family::V4, Family::V6].iter().filter_map(|family| addresses.source(*family)).collect();
    let held = netlink.observe_addresses().map_err(failed(LOOKING))?;
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
/// where there is a default route. Nothing of that for IPv6.
pub fn let_replies_in(sysctls: &Sysctls, paths: &Paths) -> BTreeMap<IpAddr, String> {
    let mut against = BTreeMap::new();
    let value = |device: &str| {
        let name = Name::of(["net", "ipv4", "conf", device, "rp_filter"])?;
        let value = sysctls.read(&name).ok().flatten()?;
        Some((name, value.trim().parse::<u8>().ok()?))
    };
    let all = value("all").map_or(0, |(_, value)| value);
    for (pod, device) in paths.devices.iter().filter(|(pod, _)| pod.is_ipv4()) {
        let Some((name, own)) = value(device) else { continue };
        if all.max(own) != 1 {
            continue;
        }
        if let State::Stuck { reason, .. } = sysctls.ensure(&name, "2") {
            against.insert(*pod, format!("replies are dropped: {name} is 1 and not 2: {reason}"));
        }
    }
    against
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
        assert_eq!((found.mtu, found.devices[&one].as_str()), (Some(1500), "br"));
        let found = paths(&mut fake, [&one, &other], &own).unwrap();
        assert_eq!((found.mtu, found.devices[&other].as_str()), (Some(1440), "cali"));
    }

    #[test]
    fn only_a_strict_reverse_path_filter_is_loosened() {
        let root = tempfile::tempdir().unwrap();
        let write = |device: &str, value: &str| {
            let folder = root.path().join("net/ipv4/conf").join(device);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("rp_filter"), value).unwrap();
        };
        let read = |device: &str| {
            let path = root.path().join("net/ipv4/conf").join(device).join("rp_filter");
            fs::read_to_string(path).unwrap().trim().to_owned()
        };
        let pod: IpAddr = [10, 244, 1, 6].into();
        let paths = |device: &str| Paths { mtu: None, devices: [(pod, device.to_owned())].into() };
        let sysctls = Sysctls::new(root.path());
        for (all, before, after) in
            [("0", "0", "0"), ("0", "2", "2"), ("2", "1", "1"), ("0", "1", "2"), ("1", "0", "2")]
        {
            write("all", all);
            write("br", before);
            assert_eq!(let_replies_in(&sysctls, &paths("br")), BTreeMap::new());
            assert_eq!((read("all").as_str(), read("br").as_str()), (all, after), "{all} {before}");
        }
    }
}
