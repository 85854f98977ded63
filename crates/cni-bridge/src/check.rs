//! CHECK: whether all is as ADD has left it.

use kernel_netlink::route::{Link, LinkIndex, LinkKind, LinkName, RouteFilter, Rtnetlink, Socket, Table};
use serde_json::Value;

use crate::conf::{self, NetConf};
use crate::ipam::allocate::io;
use crate::ipam::{Owner, Store};
use crate::spec::{Call, CniError, Interface, IpConfig, Outcome, Route};
use crate::{link, pod};

/// Checks an attachment.
///
/// # Errors
/// What is not as it was, in the words of the reference.
pub fn run(conf: &NetConf, value: &Value, call: &Call) -> Result<(), CniError> {
    let namespace = pod::open(&call.netns)?;
    reservation(value, &conf.name, call)?;
    let previous = conf.previous.as_ref().ok_or_else(|| CniError::other("Required prevResult missing"))?;
    let outcome = Outcome::from_json(previous)?;
    let mut socket = link::open()?;
    let bridge = bridge(&mut socket, conf, &outcome)?;
    let named = |interface: &&Interface| interface.name == call.ifname && interface.sandbox == call.netns;
    let Some(listed) = outcome.interfaces.iter().find(named) else {
        let words = format!("Sandbox in prevResult doesn't match configured netns: {}", call.netns);
        return Err(CniError::other(words));
    };
    let container = pod::run(&namespace, || {
        let mut socket = link::open()?;
        let found = container(&mut socket, listed)?;
        addresses(&mut socket, &found, &outcome.ips)?;
        routes(&mut socket, found.index, &outcome)?;
        Ok(found)
    })?;
    host_end(&mut socket, &outcome, call, &bridge, &container)
}

/// The reservation, as `host-local` checks it.
///
/// # Errors
/// When the container has none.
pub fn reservation(value: &Value, network: &str, call: &Call) -> Result<(), CniError> {
    let Some(folder) = conf::data_dir(value) else { return Ok(()) };
    let owner = Owner::new(&call.container_id, &call.ifname);
    let found = Store::open(&folder, network).and_then(|store| store.addresses(&owner)).map_err(io)?;
    if found.is_empty() {
        let container = &call.container_id;
        return Err(CniError::other(format!(
            "host-local: Failed to find address added by container {container}"
        )));
    }
    Ok(())
}

fn lookup(socket: &mut Socket, name: &str) -> Result<Link, CniError> {
    let found = LinkName::new(name).map(|name| link::find(socket, &name)).transpose()?.flatten();
    found.ok_or_else(|| CniError::other(format!("Interface name {name} not found")))
}

fn same_mac(listed: &Interface, found: &Link) -> bool {
    let mac = found.mac.map(|mac| mac.to_string()).unwrap_or_default();
    listed.mac.is_empty() || listed.mac.eq_ignore_ascii_case(&mac)
}

fn bridge(socket: &mut Socket, conf: &NetConf, outcome: &Outcome) -> Result<Link, CniError> {
    let name = conf.bridge.as_str();
    let missing = || CniError::other(format!("CNI created bridge {name} in host namespace was not found"));
    let listed = outcome.interfaces.iter().find(|interface| interface.name == name).ok_or_else(missing)?;
    if !listed.sandbox.is_empty() {
        return Err(CniError::other(format!("Interface {name} should not be in sandbox")));
    }
    let found = lookup(socket, name)?;
    if found.kind != LinkKind::Bridge {
        return Err(CniError::other(format!("Interface {name} does not have link type of bridge")));
    }
    if !same_mac(listed, &found) {
        return Err(CniError::other(format!("Bridge interface {name} Mac doesn't match: {}", listed.mac)));
    }
    if found.promiscuous != conf.promiscuous {
        return Err(CniError::other(format!(
            "Bridge interface {name} configured Promisc Mode {} doesn't match current state: {}",
            conf.promiscuous, found.promiscuous
        )));
    }
    Ok(found)
}

fn container(socket: &mut Socket, listed: &Interface) -> Result<Link, CniError> {
    let found = lookup(socket, &listed.name)?;
    if found.kind != LinkKind::Veth {
        return Err(CniError::other(format!("Error: Container interface {} not of type veth", listed.name)));
    }
    if !same_mac(listed, &found) {
        let mac = found.mac.map(|mac| mac.to_string()).unwrap_or_default();
        return Err(CniError::other(format!(
            "Interface {} Mac {} doesn't match container Mac: {mac}",
            listed.name, listed.mac
        )));
    }
    Ok(found)
}

/// The host's end: the peer of the container's, and a port of the bridge.
fn host_end(
    socket: &mut Socket,
    outcome: &Outcome,
    call: &Call,
    bridge: &Link,
    container: &Link,
) -> Result<(), CniError> {
    for listed in outcome.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        if listed.name == bridge.name.as_str() || listed.name == call.ifname {
            continue;
        }
        let found = lookup(socket, &listed.name)?;
        let paired = found.peer == Some(container.index) && container.peer == Some(found.index);
        if found.kind != LinkKind::Veth || !paired || found.master != Some(bridge.index) {
            // Not what was made for this container.
            continue;
        }
        if !same_mac(listed, &found) {
            let words = format!("Interface {} Mac doesn't match: {} not found", listed.name, listed.mac);
            return Err(CniError::other(words));
        }
        return Ok(());
    }
    Err(CniError::other(format!("CNI veth created for bridge {} was not found", bridge.name)))
}

fn addresses(socket: &mut Socket, link: &Link, ips: &[IpConfig]) -> Result<(), CniError> {
    let found = pod::observe(socket, link.index)?;
    for ip in ips {
        if !found.iter().any(|address| address.address == ip.address) {
            return Err(CniError::other(format!(
                "Failed to match addr {} on interface {}",
                ip.address, link.name
            )));
        }
    }
    Ok(())
}

fn routes(socket: &mut Socket, link: LinkIndex, outcome: &Outcome) -> Result<(), CniError> {
    let found =
        socket.observe_routes(&RouteFilter::default()).map_err(|error| CniError::other(error.to_string()))?;
    let has = |route: &Route| {
        found.iter().any(|found| {
            found.destination == route.dst.trunc()
                && found.table == route.table.map_or(Table::MAIN, Table)
                && found.next_hops.iter().any(|hop| {
                    hop.link == Some(link) && route.gw.is_none_or(|gateway| hop.gateway == Some(gateway))
                })
        })
    };
    match outcome.routes.iter().find(|route| !has(route)) {
        None => Ok(()),
        Some(route) => {
            Err(CniError::other(format!("Expected Route {} not found in routing table", route.dst)))
        }
    }
}
