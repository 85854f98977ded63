//! What the model of links, addresses, routes and rules promises is what the kernel does: one suite, run on both.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel_netlink::route::*;
use nix::libc;

/// A new network namespace, and conversations with it.
pub(crate) trait World {
    /// A new conversation, as a process of its own would have it.
    fn open(&mut self) -> Box<dyn Rtnetlink>;
}

/// Makes a test of every function below: `$run` is called with each of them.
macro_rules! route_contract {
    ($run:path) => {
        $crate::route_contract::route_contract! { $run =>
            a_new_namespace_has_loopback_and_the_first_rules
            a_bridge_is_made_changed_and_removed
            a_veth_has_two_ends_that_go_together
            a_port_belongs_to_its_bridge_until_it_is_taken_out
            a_port_is_changed_one_property_at_a_time
            a_bridge_tells_vlans_apart_when_it_is_told_to_if_it_can
            links_that_are_there_or_not_are_refused
            an_address_is_added_once_and_read_back
            an_address_brings_its_routes_and_takes_them_along
            local_routes_need_no_address
            routes_of_every_kind_read_back_equal
            routes_are_read_by_table_and_protocol
            routes_that_are_there_or_not_are_refused
            the_metric_tells_routes_apart
            a_route_is_replaced_by_its_key
            a_preferred_source_must_be_an_address_of_the_node
            a_gateway_must_be_a_neighbour
            several_next_hops_read_back_with_their_weights
            a_link_that_goes_down_keeps_ipv4_of_host_scope_only
            a_deleted_link_takes_its_routes_along
            rules_of_every_kind_read_back_equal
            rules_that_are_there_or_not_are_refused
            one_bad_command_costs_itself_alone
            a_thousand_routes_of_each_family
            two_conversations_see_the_same
            nothing_to_do_succeeds
        }
    };
    ($run:path => $($test:ident)*) => {
        $(#[test] fn $test() { $run($crate::route_contract::$test); })*
    };
}
pub(crate) use route_contract;

/// What svc-proxy-ipvs says of its routes.
pub(crate) const OURS: RouteProtocol = RouteProtocol(44);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

pub(crate) fn link(rtnetlink: &mut dyn Rtnetlink, text: &str) -> Link {
    rtnetlink.observe_link(&name(text)).unwrap().unwrap_or_else(|| panic!("no link {text}"))
}

/// Names of all links, in order. KERNEL: every namespace has `tunl0` and `ip6tnl0` where the modules are loaded
/// (net.core.fb_tunnels_only_for_init_net).
pub(crate) fn link_names(rtnetlink: &mut dyn Rtnetlink) -> Vec<String> {
    let links = rtnetlink.observe_links().unwrap();
    let mut names: Vec<_> = links.iter().map(|link| link.name.to_string()).collect();
    names.retain(|name| !["tunl0", "ip6tnl0"].contains(&name.as_str()));
    names.sort();
    names
}

pub(crate) fn new_bridge(text: &str) -> NewLink {
    NewLink { up: true, ..NewLink::new(name(text), NewLinkKind::Bridge(Bridge::default())) }
}

/// Adds a bridge that is up, with an address of each family: the node's, for what follows.
pub(crate) fn node(rtnetlink: &mut dyn Rtnetlink) -> LinkIndex {
    rtnetlink.commit(&[Command::AddLink(new_bridge("node"))]).unwrap();
    let index = link(rtnetlink, "node").index;
    let commands = ["10.0.0.1/24", "fd00::1/64"].map(|address| {
        let address = Address::new(index, net(address));
        let flags = address.flags.union(AddressFlags::NO_DAD);
        Command::AddAddress(Address { flags, ..address })
    });
    rtnetlink.commit(&commands).unwrap();
    index
}

fn ours(rtnetlink: &mut dyn Rtnetlink) -> Vec<Route> {
    let filter = RouteFilter { protocol: Some(OURS), ..RouteFilter::default() };
    let mut routes = rtnetlink.observe_routes(&filter).unwrap();
    routes.sort();
    routes
}

fn by_us(route: Route) -> Route {
    Route { protocol: OURS, ..route }
}

/// The route of a virtual address, as svc-proxy-ipvs wants it.
pub(crate) fn vip(address: &str, link: LinkIndex) -> Route {
    let address = ip(address);
    let source = if address.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    Route { preferred_source: Some(ip(source)), ..by_us(Route::local(address.into(), link)) }
}

/// (command, errno) of what was refused.
pub(crate) fn refusals(result: Result<(), CommitError>) -> Vec<(usize, i32)> {
    match result {
        Err(CommitError::Refused(refusals)) => {
            assert!(refusals.iter().all(|refusal| !refusal.description.is_empty()));
            refusals.iter().map(|refusal| (refusal.command, refusal.errno)).collect()
        }
        other => panic!("not refused by the kernel: {other:?}"),
    }
}

/// The errno of each of the commands, which are all refused.
fn errnos(rtnetlink: &mut dyn Rtnetlink, commands: &[Command]) -> Vec<i32> {
    let refusals = refusals(rtnetlink.commit(commands));
    let indices: Vec<usize> = refusals.iter().map(|refusal| refusal.0).collect();
    assert_eq!(indices, (0..commands.len()).collect::<Vec<_>>(), "not all were refused: {refusals:?}");
    refusals.into_iter().map(|refusal| refusal.1).collect()
}

pub(crate) fn a_new_namespace_has_loopback_and_the_first_rules(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let lo = link(&mut *rtnetlink, "lo");
    assert_eq!(
        (lo.index, lo.kind, lo.up, lo.mtu, lo.mac),
        (LinkIndex(1), LinkKind::Device, false, 65536, None)
    );
    assert_eq!(rtnetlink.observe_addresses().unwrap(), []);
    assert_eq!(ours(&mut *rtnetlink), []);
    let rules = |rtnetlink: &mut dyn Rtnetlink, family| -> Vec<_> {
        let rules = rtnetlink.observe_rules(family).unwrap();
        assert!(rules.iter().all(|rule| !rule.has_more && rule.mark.is_none()), "{rules:?}");
        rules.into_iter().map(|rule| (rule.preference, rule.action)).collect()
    };
    let lookup = RuleAction::Lookup;
    let ipv4 = [(0, lookup(Table::LOCAL)), (32766, lookup(Table::MAIN)), (32767, lookup(Table::DEFAULT))];
    assert_eq!(rules(&mut *rtnetlink, Family::Ipv4), ipv4);
    assert_eq!(rules(&mut *rtnetlink, Family::Ipv6), ipv4[..2]);
}

pub(crate) fn a_bridge_is_made_changed_and_removed(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    assert_eq!(rtnetlink.observe_link(&name("br.100")).unwrap(), None);
    let mac = MacAddress([2, 0, 0, 0, 0, 42]);
    let new = NewLink { up: false, mtu: Some(1400), mac: Some(mac), ..new_bridge("br.100") };
    rtnetlink.commit(&[Command::AddLink(new)]).unwrap();
    let made = link(&mut *rtnetlink, "br.100");
    assert_eq!((&made.kind, made.up, made.mtu, made.mac), (&LinkKind::Bridge, false, 1400, Some(mac)));
    let change = LinkChange { mtu: Some(1300), name: Some(name("br1")), ..LinkChange::default() };
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    rtnetlink.commit(&[Command::SetLink(made.index, change), Command::SetLink(made.index, up)]).unwrap();
    let changed = link(&mut *rtnetlink, "br1");
    assert_eq!((changed.index, changed.up, changed.mtu), (made.index, true, 1300));
    assert_eq!(rtnetlink.observe_link(&name("br.100")).unwrap(), None);
    let named = |promiscuous: bool, alias: &str| {
        let alias = Some(alias.to_owned());
        LinkChange { promiscuous: Some(promiscuous), alias, ..LinkChange::default() }
    };
    assert_eq!((changed.promiscuous, changed.alias), (false, None));
    for (promiscuous, alias) in [(true, Some("for pods")), (false, None)] {
        let change = named(promiscuous, alias.unwrap_or_default());
        rtnetlink.commit(&[Command::SetLink(made.index, change)]).unwrap();
        let changed = link(&mut *rtnetlink, "br1");
        assert_eq!((changed.promiscuous, changed.alias.as_deref(), changed.up), (promiscuous, alias, true));
    }
    rtnetlink.commit(&[Command::DeleteLink(made.index)]).unwrap();
    assert_eq!(rtnetlink.observe_link(&name("br1")).unwrap(), None);
}

pub(crate) fn a_veth_has_two_ends_that_go_together(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let mac = MacAddress([2, 0, 0, 0, 0, 7]);
    let peer = Peer { mac: Some(mac), mtu: Some(1400), ..Peer::new(name("b")) };
    rtnetlink.commit(&[Command::AddLink(NewLink::new(name("a"), NewLinkKind::Veth(peer)))]).unwrap();
    let (a, b) = (link(&mut *rtnetlink, "a"), link(&mut *rtnetlink, "b"));
    assert_eq!((&a.kind, &b.kind), (&LinkKind::Veth, &LinkKind::Veth));
    assert_eq!((a.peer, b.peer), (Some(b.index), Some(a.index)));
    assert_eq!((a.peer_namespace, b.mac, b.mtu), (None, Some(mac), 1400));
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    rtnetlink.commit(&[Command::SetLink(a.index, up.clone())]).unwrap();
    let a = link(&mut *rtnetlink, "a");
    assert_eq!((a.up, a.carrier), (true, false));
    rtnetlink.commit(&[Command::SetLink(b.index, up)]).unwrap();
    assert!(link(&mut *rtnetlink, "a").carrier);
    rtnetlink.commit(&[Command::DeleteLink(b.index)]).unwrap();
    assert_eq!(rtnetlink.observe_link(&name("a")).unwrap(), None);
}

pub(crate) fn a_port_belongs_to_its_bridge_until_it_is_taken_out(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    rtnetlink.commit(&[Command::AddLink(new_bridge("br"))]).unwrap();
    let bridge = link(&mut *rtnetlink, "br").index;
    let veth = |a, b| NewLink::new(name(a), NewLinkKind::Veth(Peer::new(name(b))));
    let born = NewLink { master: Some(bridge), ..veth("a", "b") };
    rtnetlink.commit(&[Command::AddLink(born), Command::AddLink(veth("c", "d"))]).unwrap();
    let (a, c) = (link(&mut *rtnetlink, "a"), link(&mut *rtnetlink, "c"));
    assert_eq!((a.master, c.master), (Some(bridge), None));
    let set = |master| LinkChange { master: Some(master), ..LinkChange::default() };
    rtnetlink
        .commit(&[Command::SetLink(a.index, set(None)), Command::SetLink(c.index, set(Some(bridge)))])
        .unwrap();
    let (a, c) = (link(&mut *rtnetlink, "a"), link(&mut *rtnetlink, "c"));
    assert_eq!((a.master, c.master), (None, Some(bridge)));
    rtnetlink.commit(&[Command::DeleteLink(bridge)]).unwrap();
    assert_eq!(link(&mut *rtnetlink, "c").master, None);
}

pub(crate) fn a_port_is_changed_one_property_at_a_time(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    rtnetlink.commit(&[Command::AddLink(new_bridge("br"))]).unwrap();
    let bridge = link(&mut *rtnetlink, "br").index;
    let veth = NewLink::new(name("a"), NewLinkKind::Veth(Peer::new(name("b"))));
    rtnetlink.commit(&[Command::AddLink(NewLink { master: Some(bridge), ..veth })]).unwrap();
    let port = |rtnetlink: &mut dyn Rtnetlink| link(rtnetlink, "a").port;
    assert_eq!(port(&mut *rtnetlink), Some(Port::default()));
    let index = link(&mut *rtnetlink, "a").index;
    let hairpin = PortChange { hairpin: Some(true), ..PortChange::default() };
    rtnetlink.commit(&[Command::SetPort(index, hairpin)]).unwrap();
    assert_eq!(port(&mut *rtnetlink), Some(Port { hairpin: true, ..Port::default() }));
    let change = PortChange { hairpin: Some(false), isolated: Some(true), ..PortChange::default() };
    rtnetlink.commit(&[Command::SetPort(index, change)]).unwrap();
    assert_eq!(port(&mut *rtnetlink), Some(Port { isolated: true, ..Port::default() }));
    let change = PortChange { isolated: Some(false), locked: Some(true), ..PortChange::default() };
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let commands = [Command::SetPort(index, change), Command::AddForwarding(Forwarding { port: index, mac })];
    rtnetlink.commit(&commands).unwrap();
    assert_eq!(port(&mut *rtnetlink), Some(Port { locked: true, ..Port::default() }));
    // Its other end is no port, and neither is what there is not.
    let other = link(&mut *rtnetlink, "b");
    assert_eq!(other.port, None);
    let commands = [Command::SetPort(other.index, hairpin), Command::SetPort(LinkIndex(4711), hairpin)];
    assert_eq!(errnos(&mut *rtnetlink, &commands), [libc::EOPNOTSUPP, libc::ENODEV]);
    // Out of the bridge and in again, all is as at first.
    let set = |master| LinkChange { master: Some(master), ..LinkChange::default() };
    rtnetlink.commit(&[Command::SetLink(index, set(None))]).unwrap();
    assert_eq!(port(&mut *rtnetlink), None);
    rtnetlink.commit(&[Command::SetLink(index, set(Some(bridge)))]).unwrap();
    assert_eq!(port(&mut *rtnetlink), Some(Port::default()));
}

pub(crate) fn a_bridge_tells_vlans_apart_when_it_is_told_to_if_it_can(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let veth = NewLink::new(name("a"), NewLinkKind::Veth(Peer::new(name("b"))));
    rtnetlink.commit(&[Command::AddLink(new_bridge("br")), Command::AddLink(veth)]).unwrap();
    let bridge = link(&mut *rtnetlink, "br");
    assert_eq!(bridge.vlan_filtering, Some(false));
    let mut set = |on| match rtnetlink.commit(&[Command::FilterVlans(bridge.index, on)]) {
        Ok(()) => true,
        // A kernel that cannot does not let go of it either.
        refused => {
            assert_eq!(refusals(refused), [(0, libc::EOPNOTSUPP)]);
            false
        }
    };
    let can = set(false);
    assert_eq!(set(true), can);
    assert_eq!(link(&mut *rtnetlink, "br").vlan_filtering, Some(can));
    let end = link(&mut *rtnetlink, "a");
    assert_eq!(end.vlan_filtering, None);
    let commands = [Command::FilterVlans(end.index, true), Command::FilterVlans(LinkIndex(4711), true)];
    assert_eq!(errnos(&mut *rtnetlink, &commands), [libc::EOPNOTSUPP, libc::ENODEV]);
}

pub(crate) fn links_that_are_there_or_not_are_refused(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let add = Command::AddLink(new_bridge("br"));
    rtnetlink.commit(std::slice::from_ref(&add)).unwrap();
    let veth = |a, b| Command::AddLink(NewLink::new(name(a), NewLinkKind::Veth(Peer::new(name(b)))));
    let gone = LinkIndex(4711);
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let lo = LinkIndex(1);
    let commands = [
        add,
        veth("br", "x"),
        veth("x", "br"),
        Command::DeleteLink(gone),
        Command::SetLink(gone, up),
        Command::DeleteLink(lo),
        Command::AddAddress(Address::new(gone, net("10.0.0.1/24"))),
    ];
    let (exists, missing) = (libc::EEXIST, libc::ENODEV);
    let expected = [exists, exists, exists, missing, missing, libc::EOPNOTSUPP, missing];
    assert_eq!(errnos(&mut *rtnetlink, &commands), expected);
    assert_eq!(link_names(&mut *rtnetlink), ["br", "lo"]);
}

pub(crate) fn an_address_is_added_once_and_read_back(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    rtnetlink.commit(&[Command::AddLink(NewLink { up: false, ..new_bridge("br") })]).unwrap();
    let index = link(&mut *rtnetlink, "br").index;
    let v4 = Address {
        broadcast: Some("10.1.0.255".parse().unwrap()),
        scope: Scope::LINK,
        ..Address::new(index, net("10.1.0.1/24"))
    };
    let v6 = Address::new(index, net("fd01::1/64"));
    let flags = v6.flags.union(AddressFlags::NO_DAD).union(AddressFlags::NO_PREFIX_ROUTE);
    let v6 = Address { flags, ..v6 };
    let second = Address { scope: Scope::LINK, ..Address::new(index, net("10.1.0.2/24")) };
    rtnetlink.commit(&[v4, v6, second].map(Command::AddAddress)).unwrap();
    let mut found = rtnetlink.observe_addresses().unwrap();
    found.sort();
    let second = Address { flags: second.flags.union(AddressFlags::SECONDARY), ..second };
    let mut expected = vec![v4, v6, second];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(errnos(&mut *rtnetlink, &[v4, v6].map(Command::AddAddress)), [libc::EEXIST; 2]);
    rtnetlink.commit(&[second, v4, v6].map(Command::DeleteAddress)).unwrap();
    assert_eq!(rtnetlink.observe_addresses().unwrap(), []);
    assert_eq!(errnos(&mut *rtnetlink, &[v4, v6].map(Command::DeleteAddress)), [libc::EADDRNOTAVAIL; 2]);
}

/// What the kernel added by itself, but for broadcast, multicast and link-local addresses.
fn by_kernel(rtnetlink: &mut dyn Rtnetlink) -> Vec<String> {
    let filter = RouteFilter { protocol: Some(RouteProtocol::KERNEL), ..RouteFilter::default() };
    let routes = rtnetlink.observe_routes(&filter).unwrap();
    let plain = |route: &Route| matches!(route.kind, RouteType::Unicast | RouteType::Local);
    let mut routes: Vec<String> = routes
        .iter()
        .filter(|route| plain(route) && !route.destination.to_string().starts_with("fe80"))
        .map(|route| format!("{route} scope {}", route.scope))
        .collect();
    routes.sort();
    routes
}

pub(crate) fn an_address_brings_its_routes_and_takes_them_along(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let veth = NewLink::new(name("far"), NewLinkKind::Veth(Peer::new(name("near"))));
    rtnetlink.commit(&[Command::AddLink(NewLink { up: true, ..veth })]).unwrap();
    let index = link(&mut *rtnetlink, "near").index;
    let addresses = ["10.0.0.1/24", "fd00::1/64"].map(|address| {
        let address = Address::new(index, net(address));
        Address { flags: address.flags.union(AddressFlags::NO_DAD), ..address }
    });
    rtnetlink.commit(&addresses.map(Command::AddAddress)).unwrap();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    rtnetlink.commit(&[Command::SetLink(index, up)]).unwrap();
    let expected = [
        format!("local 10.0.0.1/32 dev {index} table local proto 2 src 10.0.0.1 scope host"),
        format!("local fd00::1/128 dev {index} table local proto 2 scope global"),
        format!("unicast 10.0.0.0/24 dev {index} table main proto 2 src 10.0.0.1 scope link"),
        format!("unicast fd00::/64 dev {index} table main proto 2 metric 256 scope global"),
    ];
    // KERNEL: IPv6 waits for the carrier, which is told a little later (net/core/link_watch.c).
    let end = Instant::now() + Duration::from_secs(60);
    while by_kernel(&mut *rtnetlink) != expected && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(by_kernel(&mut *rtnetlink), expected);
    rtnetlink.commit(&addresses.map(Command::DeleteAddress)).unwrap();
    assert_eq!(by_kernel(&mut *rtnetlink), Vec::<String>::new());
}

pub(crate) fn local_routes_need_no_address(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let before = rtnetlink.observe_addresses().unwrap();
    let routes = [vip("10.96.0.1", index), vip("fd96::1", index)];
    rtnetlink.commit(&routes.clone().map(Command::AddRoute)).unwrap();
    assert_eq!(ours(&mut *rtnetlink), routes.clone().map(Route::as_stored));
    assert_eq!(rtnetlink.observe_addresses().unwrap(), before);
    rtnetlink.commit(&routes.map(Command::DeleteRoute)).unwrap();
    assert_eq!(ours(&mut *rtnetlink), []);
}

pub(crate) fn routes_of_every_kind_read_back_equal(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let through = |gateway| NextHop { link: Some(index), ..NextHop::gateway(ip(gateway)) };
    let mut routes = vec![
        Route::new(net("10.244.1.0/24"), through("10.0.0.2")),
        Route::new(net("fd00:244:1::/64"), through("fd00::2")),
        Route::new(net("10.244.2.0/24"), NextHop::link(index)),
        Route::new(net("fd00:244:2::/64"), NextHop::link(index)),
        Route { table: Table(1000), ..Route::new(net("0.0.0.0/0"), through("10.0.0.2")) },
        Route { table: Table(1000), metric: 77, ..Route::new(net("::/0"), through("fd00::2")) },
        Route { table: Table(78), ..Route::local(net("0.0.0.0/0"), index) },
        Route { table: Table(78), ..Route::local(net("::/0"), index) },
        Route { tos: 16, ..Route::new(net("10.244.1.0/24"), through("10.0.0.3")) },
        Route::new(net("10.244.3.0/24"), NextHop { on_link: true, ..through("192.0.2.1") }),
        Route::new(net("10.244.4.0/24"), through("fd00::2")),
    ];
    for (number, kind) in
        [RouteType::Blackhole, RouteType::Unreachable, RouteType::Prohibit, RouteType::Throw]
            .iter()
            .enumerate()
    {
        routes.push(Route::refusal(net(&format!("10.245.{number}.0/24")), *kind));
        routes.push(Route::refusal(net(&format!("fd00:245:{number}::/64")), *kind));
    }
    let routes: Vec<Route> = routes.into_iter().map(by_us).collect();
    let add: Vec<_> = routes.iter().cloned().map(Command::AddRoute).collect();
    rtnetlink.commit(&add).unwrap();
    let mut expected: Vec<_> = routes.iter().cloned().map(Route::as_stored).collect();
    expected.sort();
    assert_eq!(ours(&mut *rtnetlink), expected);
    let delete: Vec<_> = expected.into_iter().map(Command::DeleteRoute).collect();
    rtnetlink.commit(&delete).unwrap();
    assert_eq!(ours(&mut *rtnetlink), []);
}

pub(crate) fn routes_are_read_by_table_and_protocol(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let in_table = |table, protocol, network: &str| Route {
        table: Table(table),
        protocol,
        ..Route::new(net(network), NextHop::link(index))
    };
    let routes = [
        in_table(100, OURS, "10.1.0.0/16"),
        in_table(100, RouteProtocol::BGP, "10.2.0.0/16"),
        in_table(1000, OURS, "10.3.0.0/16"),
        in_table(100, OURS, "fd01::/64"),
        in_table(1000, RouteProtocol::BGP, "fd02::/64"),
    ];
    rtnetlink.commit(&routes.map(Command::AddRoute)).unwrap();
    let mut found = |family, table: Option<u32>, protocol| -> Vec<String> {
        let filter = RouteFilter { family, table: table.map(Table), protocol };
        let mut routes = rtnetlink.observe_routes(&filter).unwrap();
        routes.sort();
        routes.into_iter().map(|route| route.destination.to_string()).collect()
    };
    assert_eq!(found(None, Some(100), None), ["10.1.0.0/16", "10.2.0.0/16", "fd01::/64"]);
    assert_eq!(found(None, None, Some(OURS)), ["10.1.0.0/16", "10.3.0.0/16", "fd01::/64"]);
    assert_eq!(found(None, Some(1000), Some(RouteProtocol::BGP)), ["fd02::/64"]);
    assert_eq!(found(Some(Family::Ipv4), Some(100), Some(OURS)), ["10.1.0.0/16"]);
    assert_eq!(found(Some(Family::Ipv6), None, Some(OURS)), ["fd01::/64"]);
    assert_eq!(found(None, Some(4711), None), Vec::<String>::new());
    assert!(found(None, None, None).len() > 5);
}

pub(crate) fn routes_that_are_there_or_not_are_refused(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let there = [vip("10.96.0.1", index), vip("fd96::1", index)];
    rtnetlink.commit(&there.clone().map(Command::AddRoute)).unwrap();
    assert_eq!(errnos(&mut *rtnetlink, &there.clone().map(Command::AddRoute)), [libc::EEXIST; 2]);
    let others = there.map(|route| Route { protocol: RouteProtocol::BGP, ..route });
    assert_eq!(errnos(&mut *rtnetlink, &others.map(Command::DeleteRoute)), [libc::ESRCH; 2]);
    let missing = [vip("10.96.0.2", index), vip("fd96::2", index)];
    assert_eq!(errnos(&mut *rtnetlink, &missing.map(Command::DeleteRoute)), [libc::ESRCH; 2]);
    let gone = [vip("10.96.0.3", LinkIndex(4711)), vip("fd96::3", LinkIndex(4711))];
    assert_eq!(errnos(&mut *rtnetlink, &gone.map(Command::AddRoute)), [libc::ENODEV; 2]);
    let crooked = Route { destination: net("10.96.0.1/16"), ..vip("10.96.0.1", index) };
    assert_eq!(errnos(&mut *rtnetlink, &[Command::AddRoute(crooked)]), [libc::EINVAL]);
    assert_eq!(ours(&mut *rtnetlink).len(), 2);
}

pub(crate) fn the_metric_tells_routes_apart(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let with =
        |network: &str, metric| by_us(Route { metric, ..Route::new(net(network), NextHop::link(index)) });
    let routes = [with("10.1.0.0/16", 0), with("10.1.0.0/16", 5), with("fd01::/64", 0), with("fd01::/64", 5)];
    rtnetlink.commit(&routes.clone().map(Command::AddRoute)).unwrap();
    let found = ours(&mut *rtnetlink);
    assert_eq!(found.iter().map(|route| route.metric).collect::<Vec<_>>(), [0, 5, 5, 1024]);
    let [_, v4, _, v6] = routes;
    rtnetlink.commit(&[Command::DeleteRoute(v4), Command::DeleteRoute(v6)]).unwrap();
    let found = ours(&mut *rtnetlink);
    assert_eq!(found.iter().map(|route| route.metric).collect::<Vec<_>>(), [0, 1024]);
}

pub(crate) fn a_route_is_replaced_by_its_key(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let through = |network: &str, gateway: &str| {
        let hop = NextHop { link: Some(index), ..NextHop::gateway(ip(gateway)) };
        by_us(Route::new(net(network), hop))
    };
    let old = [through("10.1.0.0/16", "10.0.0.2"), through("fd01::/64", "fd00::2")];
    let new = [through("10.1.0.0/16", "10.0.0.3"), through("fd01::/64", "fd00::3")];
    for routes in [old, new] {
        rtnetlink.commit(&routes.clone().map(Command::ReplaceRoute)).unwrap();
        assert_eq!(ours(&mut *rtnetlink), routes.map(Route::as_stored));
    }
}

pub(crate) fn a_preferred_source_must_be_an_address_of_the_node(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let foreign = |address, source| {
        Command::AddRoute(Route { preferred_source: Some(ip(source)), ..vip(address, index) })
    };
    let commands = [foreign("10.96.0.1", "10.0.0.9"), foreign("fd96::1", "fd00::9")];
    assert_eq!(errnos(&mut *rtnetlink, &commands), [libc::EINVAL; 2]);
    // A local route makes an IPv4 address the node's own.
    rtnetlink
        .commit(&[Command::AddRoute(by_us(Route::local(net("10.0.0.9/32"), index))), commands[0].clone()])
        .unwrap();
}

pub(crate) fn a_gateway_must_be_a_neighbour(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let through = |network: &str, gateway: &str, link| {
        let hop = NextHop { link, ..NextHop::gateway(ip(gateway)) };
        by_us(Route::new(net(network), hop))
    };
    let far = [
        through("10.1.0.0/16", "192.0.2.1", Some(index)),
        through("10.1.0.0/16", "192.0.2.1", None),
        through("fd01::/64", "2001:db8::1", None),
    ];
    let errors = errnos(&mut *rtnetlink, &far.map(Command::AddRoute));
    assert_eq!(errors, [libc::ENETUNREACH, libc::ENETUNREACH, libc::EHOSTUNREACH]);
    // The kernel finds the device of a neighbour.
    let near = [through("10.1.0.0/16", "10.0.0.2", None), through("fd01::/64", "fd00::2", None)];
    rtnetlink.commit(&near.map(Command::AddRoute)).unwrap();
    for route in ours(&mut *rtnetlink) {
        assert_eq!(route.next_hops[0].link, Some(index), "{route}");
    }
}

pub(crate) fn several_next_hops_read_back_with_their_weights(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let hops = |gateways: [&str; 3]| {
        let hop = |(number, gateway): (usize, &str)| NextHop {
            link: Some(index),
            weight: [1, 2, 256][number],
            ..NextHop::gateway(ip(gateway))
        };
        gateways.into_iter().enumerate().map(hop).collect::<Vec<_>>()
    };
    let route = |network: &str, gateways: [&str; 3]| {
        let next_hops = hops(gateways);
        by_us(Route { next_hops: next_hops.clone(), ..Route::new(net(network), next_hops[0]) })
    };
    let routes = [
        route("10.1.0.0/16", ["10.0.0.2", "10.0.0.3", "10.0.0.4"]),
        route("fd01::/64", ["fd00::2", "fd00::3", "fd00::4"]),
    ];
    rtnetlink.commit(&routes.clone().map(Command::AddRoute)).unwrap();
    assert_eq!(ours(&mut *rtnetlink), routes.clone().map(Route::as_stored));
    rtnetlink.commit(&routes.map(Command::DeleteRoute)).unwrap();
    assert_eq!(ours(&mut *rtnetlink), []);
}

pub(crate) fn a_link_that_goes_down_keeps_ipv4_of_host_scope_only(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    node(&mut *rtnetlink);
    rtnetlink.commit(&[Command::AddLink(new_bridge("vips"))]).unwrap();
    let index = link(&mut *rtnetlink, "vips").index;
    let near = by_us(Route::new(net("10.1.0.0/16"), NextHop::link(index)));
    let routes = [vip("10.96.0.1", index), vip("fd96::1", index), near];
    rtnetlink.commit(&routes.clone().map(Command::AddRoute)).unwrap();
    let set = |up| Command::SetLink(index, LinkChange { up: Some(up), ..LinkChange::default() });
    rtnetlink.commit(&[set(false)]).unwrap();
    assert_eq!(ours(&mut *rtnetlink), routes[..1]);
    // While it is down, others are refused.
    let errors =
        errnos(&mut *rtnetlink, &routes[1..].iter().cloned().map(Command::AddRoute).collect::<Vec<_>>());
    assert_eq!(errors, [libc::ENETDOWN; 2]);
    rtnetlink.commit(&[Command::AddRoute(vip("10.96.0.2", index)), set(true)]).unwrap();
    assert_eq!(ours(&mut *rtnetlink), [vip("10.96.0.1", index), vip("10.96.0.2", index)]);
}

pub(crate) fn a_deleted_link_takes_its_routes_along(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    node(&mut *rtnetlink);
    rtnetlink.commit(&[Command::AddLink(new_bridge("vips"))]).unwrap();
    let index = link(&mut *rtnetlink, "vips").index;
    rtnetlink.commit(&[vip("10.96.0.1", index), vip("fd96::1", index)].map(Command::AddRoute)).unwrap();
    rtnetlink.commit(&[Command::DeleteLink(index)]).unwrap();
    assert_eq!(ours(&mut *rtnetlink), []);
}

pub(crate) fn rules_of_every_kind_read_back_equal(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    for (family, from, to) in
        [(Family::Ipv4, "10.1.0.0/16", "10.2.0.1/32"), (Family::Ipv6, "fd01::/64", "fd02::1/128")]
    {
        let rule = |preference, action| Rule::new(family, preference, action);
        let lookup = RuleAction::Lookup(Table(78));
        let rules = [
            Rule { from: Some(net(from)), ..rule(100, lookup) },
            Rule { to: Some(net(to)), ..rule(101, RuleAction::Lookup(Table(1000))) },
            Rule { input: Some(name("later")), inverted: true, ..rule(102, lookup) },
            Rule { suppress_prefix_length: Some(0), ..rule(103, RuleAction::Lookup(Table::MAIN)) },
            Rule { mark: Some(Mark { value: 1, mask: u32::MAX }), ..rule(104, RuleAction::Blackhole) },
            Rule { from: Some(net(from)), ..rule(105, RuleAction::Unreachable) },
            Rule { from: Some(net(from)), protocol: OURS, ..rule(106, RuleAction::Prohibit) },
            Rule { mark: Some(Mark { value: 0x1000, mask: 0xff00 }), ..rule(32764, lookup) },
        ];
        rtnetlink.commit(&rules.clone().map(Command::AddRule)).unwrap();
        let found = rtnetlink.observe_rules(family).unwrap();
        assert_eq!(found[1..=rules.len()], rules);
        rtnetlink.commit(&rules.map(Command::DeleteRule)).unwrap();
        let left = if family == Family::Ipv4 { 3 } else { 2 };
        assert_eq!(rtnetlink.observe_rules(family).unwrap().len(), left);
    }
}

pub(crate) fn rules_that_are_there_or_not_are_refused(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let marked = |family, value| Rule {
        mark: Some(Mark { value, mask: 0xff00 }),
        ..Rule::new(family, 32764, RuleAction::Lookup(Table(78)))
    };
    for family in [Family::Ipv4, Family::Ipv6] {
        let add = Command::AddRule(marked(family, 0x1000));
        rtnetlink.commit(std::slice::from_ref(&add)).unwrap();
        let delete = Command::DeleteRule(marked(family, 0x2000));
        assert_eq!(errnos(&mut *rtnetlink, &[add, delete]), [libc::EEXIST, libc::ENOENT]);
        // Rules with the same preference are different rules.
        rtnetlink.commit(&[Command::AddRule(marked(family, 0x2000))]).unwrap();
        rtnetlink.commit(&[Command::DeleteRule(marked(family, 0x1000))]).unwrap();
        let found = rtnetlink.observe_rules(family).unwrap();
        assert_eq!(found.iter().filter(|rule| rule.preference == 32764).count(), 1);
    }
}

pub(crate) fn one_bad_command_costs_itself_alone(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let good = |number: usize| Command::AddRoute(vip(&format!("10.96.1.{number}"), index));
    let bad = Command::DeleteRoute(vip("10.97.0.1", index));
    let commands: Vec<_> = (0..250).map(|at| if at % 100 == 7 { bad.clone() } else { good(at) }).collect();
    let expected = [(7, libc::ESRCH), (107, libc::ESRCH), (207, libc::ESRCH)];
    assert_eq!(refusals(rtnetlink.commit(&commands)), expected);
    assert_eq!(ours(&mut *rtnetlink).len(), 247);
}

pub(crate) fn a_thousand_routes_of_each_family(world: &mut dyn World) {
    let mut rtnetlink = world.open();
    let index = node(&mut *rtnetlink);
    let routes: Vec<_> = (0..1000)
        .flat_map(|n| {
            let v4 = format!("10.96.{}.{}", n / 250, n % 250 + 1);
            [vip(&v4, index), vip(&format!("fd96::{:x}", n + 1), index)]
        })
        .collect();
    let commands: Vec<_> = routes.iter().cloned().map(Command::AddRoute).collect();
    rtnetlink.commit(&commands).unwrap();
    let mut expected: Vec<_> = routes.into_iter().map(Route::as_stored).collect();
    expected.sort();
    assert_eq!(ours(&mut *rtnetlink), expected);
    assert_eq!(refusals(rtnetlink.commit(&commands)).len(), 2000);
    let delete: Vec<_> = expected.into_iter().map(Command::DeleteRoute).collect();
    rtnetlink.commit(&delete).unwrap();
    assert_eq!(ours(&mut *rtnetlink), []);
}

pub(crate) fn two_conversations_see_the_same(world: &mut dyn World) {
    let (mut one, mut other) = (world.open(), world.open());
    let index = node(&mut *one);
    other.commit(&[Command::AddRoute(vip("10.96.0.1", index))]).unwrap();
    assert_eq!(ours(&mut *one), [vip("10.96.0.1", index)]);
}

pub(crate) fn nothing_to_do_succeeds(world: &mut dyn World) {
    world.open().commit(&[]).unwrap();
}
