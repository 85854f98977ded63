//! The container's side: what is done in its network namespace.

use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kernel_netlink::namespace::{Error, Namespace};
use kernel_netlink::route::{
    Address, AddressFlags, Command, Link, LinkChange, LinkIndex, LinkName, NextHop, Route, RouteProtocol,
    Rtnetlink, Scope, Socket, Table,
};

use crate::conf::NetConf;
use crate::link::{self, commit, ensure_sysctl, new_address, try_sysctl};
use crate::spec::{CniError, Code, IpConfig, Outcome};

/// How long the kernel may look for duplicates of addresses.
const DAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the namespace of a container.
///
/// # Errors
/// In the words of the reference.
pub fn open(path: &str) -> Result<Namespace, CniError> {
    Namespace::open(Path::new(path)).map_err(|error| {
        let why = match error {
            Error::Open { source, .. } => {
                let words = source.raw_os_error().map_or_else(|| source.to_string(), link::words);
                format!("failed to Statfs \"{path}\": {words}")
            }
            Error::NotANamespace(_) => format!("unknown FS magic on \"{path}\""),
            other => other.to_string(),
        };
        CniError::other(format!("failed to open netns \"{path}\": {why}"))
    })
}

/// Refuses the host's own namespace as that of a container; gives the host's own.
///
/// # Errors
/// [`Code::Namespace`], in the words of the reference.
pub fn check_is_other(namespace: &Namespace) -> Result<Namespace, CniError> {
    let own = own()?;
    if own == *namespace {
        let words = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(CniError::new(Code::Namespace, words));
    }
    Ok(own)
}

fn own() -> Result<Namespace, CniError> {
    Namespace::current().map_err(|error| CniError::other(error.to_string()))
}

/// Does some work in a namespace, on the calling thread.
///
/// # Errors
/// When it cannot be entered; what the work says.
pub fn run<T>(namespace: &Namespace, work: impl FnOnce() -> Result<T, CniError>) -> Result<T, CniError> {
    visit(namespace, &own()?, work)
}

/// [`run`], from the host's own namespace if that is known.
///
/// # Errors
/// When it cannot be entered; what the work says.
pub fn visit<T>(
    namespace: &Namespace,
    own: &Namespace,
    work: impl FnOnce() -> Result<T, CniError>,
) -> Result<T, CniError> {
    namespace.visit(own, work).map_err(|error| CniError::other(error.to_string()))?
}

/// A link of a container.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find(namespace: &Namespace, name: &LinkName) -> Result<Option<Link>, CniError> {
    run(namespace, || link::find(&mut link::open()?, name))
}

/// Gives the container's interface its addresses and routes, and brings it up. What is returned with it is a
/// conversation in the container's namespace.
///
/// # Errors
/// When the kernel refuses something of it.
pub fn configure(
    namespace: &Namespace,
    own: &Namespace,
    conf: &NetConf,
    interface: &LinkName,
    outcome: &Outcome,
) -> Result<(Link, Socket), CniError> {
    let (mut socket, found) = visit(namespace, own, || {
        let mut socket = link::open()?;
        let gone = || CniError::other(format!("failed to lookup \"{interface}\" in the container"));
        let found = link::find(&mut socket, interface)?.ok_or_else(gone)?;
        if conf.disable_container_interface {
            return Ok((socket, found));
        }
        if outcome.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
            set_up_ipv6(conf, interface)?;
        }
        let mut commands: Vec<Command> = outcome
            .ips
            .iter()
            .map(|ip| Command::AddAddress(new_address(found.index, ip.address, conf)))
            .collect();
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        commands.push(Command::SetLink(found.index, up));
        commit(&mut socket, &commands).map_err(|refused| {
            CniError::other(format!("failed to add IP addr to \"{interface}\": {}", refused.words))
        })?;
        // For `announce`. ORDER: it is up already, so that what nobody would hear is not sent.
        try_sysctl(&format!("net/ipv4/conf/{interface}/arp_notify"), "1");
        try_sysctl(&format!("net/ipv6/conf/{interface}/ndisc_notify"), "1");
        Ok((socket, found))
    })?;
    if conf.disable_container_interface {
        return Ok((found, socket));
    }
    if conf.duplicate_address_detection {
        settle_addresses(&mut socket, found.index)?;
    }
    let mut added: Vec<Route> = Vec::new();
    for route in routes(found.index, outcome) {
        // The configuration may name the default route too that a gateway brings.
        if added.contains(&route) {
            continue;
        }
        commit(&mut socket, &[Command::AddRoute(route.clone())]).map_err(|refused| {
            CniError::other(format!("failed to add route '{route}' to \"{interface}\": {}", refused.words))
        })?;
        added.push(route);
    }
    Ok((found, socket))
}

/// Tells its neighbours on which Ethernet address the container's addresses are now. They may remember who had them
/// before, and would send to nobody for ten seconds.
///
/// KERNEL: gratuitous ARP and unsolicited neighbour advertisements go out when a device with `arp_notify` and
/// `ndisc_notify` comes up, but then the bridge does not take them yet; and once more when its Ethernet address is set,
/// be it to what it was (`NETDEV_CHANGEADDR` in `inetdev_event()` and `ndisc_netdev_event()`).
pub fn announce(socket: &mut Socket, container: &Link) {
    let change = LinkChange { mac: container.mac, ..LinkChange::default() };
    // Best effort: who does not hear it finds out by himself.
    let _ = commit(socket, &[Command::SetLink(container.index, change)]);
}

fn set_up_ipv6(conf: &NetConf, interface: &LinkName) -> Result<(), CniError> {
    for name in ["lo", interface.as_str()] {
        ensure_sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0").map_err(|error| {
            CniError::other(format!("failed to enable IPv6 for interface \"{interface}\": {error}"))
        })?;
    }
    // Best effort, as in the reference: addresses say it themselves too. Without a look, which takes as long as the
    // write: the interface is new.
    let detection = if conf.duplicate_address_detection { "1" } else { "0" };
    try_sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), detection);
    try_sysctl(&format!("net/ipv6/conf/{interface}/keep_addr_on_down"), "1");
    Ok(())
}

fn settle_addresses(socket: &mut Socket, index: LinkIndex) -> Result<(), CniError> {
    let start = Instant::now();
    loop {
        let addresses = observe(socket, index)?;
        let has = |flag| addresses.iter().find(|address| address.flags.contains(flag));
        if let Some(address) = has(AddressFlags::DAD_FAILED) {
            return Err(CniError::other(format!("{}: somebody else has it", address.address.addr())));
        }
        match has(AddressFlags::TENTATIVE) {
            None => return Ok(()),
            Some(address) if start.elapsed() > DAD_TIMEOUT => {
                let address = address.address.addr();
                return Err(CniError::other(format!("{address} is still tentative after 10 seconds")));
            }
            Some(_) => sleep(Duration::from_millis(10)),
        }
    }
}

/// The addresses of a link of the calling thread's namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn observe(socket: &mut Socket, index: LinkIndex) -> Result<Vec<Address>, CniError> {
    let all = socket.observe_addresses().map_err(|error| CniError::other(error.to_string()))?;
    Ok(all.into_iter().filter(|address| address.link == index).collect())
}

/// The routes of a container, as the kernel has them.
pub fn routes(index: LinkIndex, outcome: &Outcome) -> Vec<Route> {
    outcome.routes.iter().map(|route| kernel_route(index, route, &outcome.ips)).collect()
}

fn kernel_route(index: LinkIndex, route: &crate::spec::Route, ips: &[IpConfig]) -> Route {
    let is_v4 = route.dst.addr().is_ipv4();
    let own = |ip: &&IpConfig| ip.address.addr().is_ipv4() == is_v4;
    let gateway: Option<IpAddr> = route.gw.or_else(|| ips.iter().filter(own).find_map(|ip| ip.gateway));
    let hop = NextHop { gateway, ..NextHop::link(index) };
    let new = Route::new(route.dst.trunc(), hop);
    Route {
        protocol: RouteProtocol::BOOT,
        table: route.table.map_or(Table::MAIN, Table),
        scope: route.scope.filter(|_| is_v4).map_or(new.scope, Scope),
        metric: route.priority.unwrap_or_default(),
        mtu: route.mtu,
        advmss: route.advmss,
        ..new
    }
}
