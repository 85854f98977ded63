//! The bridge as the gateway of its containers: its addresses, and that the node forwards.
//!
//! A node whose pod CIDR is another now has a bridge with the gateway of the one before, which is in the way of the
//! new one: a bridge has one of IPv4, as the reference's. It is removed when it is known to be of no use any more:
//!
//! - this program gave it to the bridge, in this boot, for this network (a note beside the reservations),
//! - no address of its CIDR is reserved, and every port of the bridge is of this network: no pod has one.
//!
//! All of it is looked at and done under the lock of the reservations, so that nobody gets an address meanwhile. Any
//! other address is somebody's who put it there, and stays.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel_netlink::route::{Address, Command, Link, LinkChange, LinkKind, Rtnetlink, Socket};
use kernel_netlink::sysctl::{Name, Sysctls};
use nix::libc;

use crate::conf::NetConf;
use crate::ipam::allocate::io;
use crate::ipam::{IpamConf, Store};
use crate::link::{commit, ensure_sysctl, is_of_network, new_address};
use crate::owned;
use crate::spec::CniError;

/// Gives a bridge the addresses of gateways.
///
/// # Errors
/// When it has another address that is in the way; in the words of the reference.
pub fn ensure(
    socket: &mut Socket,
    conf: &NetConf,
    ipam: Option<&IpamConf>,
    link: &Link,
    gateways: &[IpNet],
) -> Result<(), CniError> {
    if gateways.is_empty() {
        return Ok(());
    }
    let all = socket.observe_addresses().map_err(|error| failed(&error.to_string()))?;
    let mut own: Vec<Address> = all
        .into_iter()
        .filter(|address| address.link == link.index && !is_link_local(address.address.addr()))
        .collect();
    for gateway in gateways {
        if own.iter().all(|address| address.address != *gateway) {
            add(socket, conf, ipam, link, &own, *gateway)?;
            own.push(Address::new(link.index, *gateway));
        }
    }
    Ok(())
}

fn failed(words: &str) -> CniError {
    CniError::other(format!("failed to set bridge addr: {words}"))
}

/// Gives the link, which has `own`, another address.
fn add(
    socket: &mut Socket,
    conf: &NetConf,
    ipam: Option<&IpamConf>,
    link: &Link,
    own: &[Address],
    gateway: IpNet,
) -> Result<(), CniError> {
    let name = &link.name;
    let store = ipam.map(|ipam| Store::open(&ipam.data_dir, &conf.name)).transpose().map_err(io)?;
    let mut commands = Vec::new();
    for address in own.iter().filter(|address| is_in_the_way(address.address, gateway)) {
        let goes = conf.force_address
            || store
                .as_ref()
                .map_or(Ok(false), |store| is_of_no_use(socket, conf, store, link, address.address))?;
        if !goes {
            return Err(failed(&format!("\"{name}\" already has an IP address different from {gateway}")));
        }
        commands.push(Command::DeleteAddress(*address));
    }
    // ORDER: noted first. A note of an address that was never given means nothing.
    store.iter().try_for_each(|store| store.note_gateway(name, gateway)).map_err(io)?;
    commands.push(Command::AddAddress(new_address(link.index, gateway, conf)));
    // So that it does not become that of one of its ports.
    if let Some(mac) = link.mac.filter(|_| link.kind == LinkKind::Bridge) {
        commands.push(Command::SetLink(link.index, LinkChange { mac: Some(mac), ..LinkChange::default() }));
    }
    match commit(socket, &commands) {
        // Another call was faster.
        Err(refused) if refused.errno != libc::EEXIST && refused.errno != libc::EADDRNOTAVAIL => {
            Err(failed(&format!("could not add IP address to \"{name}\": {}", refused.words)))
        }
        _ => Ok(()),
    }
}

/// Of IPv6 a bridge may have several addresses, of networks that have nothing in common.
fn is_in_the_way(address: IpNet, gateway: IpNet) -> bool {
    let is_v4 = gateway.addr().is_ipv4();
    let apart = !address.contains(&gateway.addr()) && !gateway.contains(&address.addr());
    address.addr().is_ipv4() == is_v4 && (is_v4 || !apart)
}

/// Whether an address of the bridge was the gateway of a CIDR that no pod is in any more.
fn is_of_no_use(
    socket: &mut Socket,
    conf: &NetConf,
    store: &Store,
    bridge: &Link,
    address: IpNet,
) -> Result<bool, CniError> {
    let noted = store.has_noted_gateway(&bridge.name, address).map_err(io)?;
    if !noted || store.reserved().map_err(io)?.iter().any(|ip| address.contains(ip)) {
        return Ok(false);
    }
    let all = socket.observe_links().map_err(|error| failed(&error.to_string()))?;
    let mut ports = all.iter().filter(|port| port.master == Some(bridge.index));
    Ok(ports.all(|port| is_of_network(port, &conf.name)))
}

/// fe80::/10, which every device has.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Lets the node forward packets of a version.
///
/// # Errors
/// When it does not, and cannot be told to.
pub fn enable_forwarding(is_v4: bool) -> Result<(), CniError> {
    let name = if is_v4 { owned::SYSCTLS[0] } else { owned::SYSCTLS[1] };
    if has_sysctl(name, "1") {
        return Ok(());
    }
    if !is_v4 {
        keep_router_advertisements();
    }
    ensure_sysctl(name, "1").map_err(|error| CniError::other(format!("failed to enable forwarding: {error}")))
}

fn has_sysctl(name: &str, value: &str) -> bool {
    let found = Name::of(name.split('/')).map(|name| Sysctls::default().read(&name));
    matches!(found, Some(Ok(Some(found))) if found.trim() == value)
}

/// KERNEL: a machine that forwards IPv6 ignores router advertisements unless `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst); one whose default route comes by them would lose it.
fn keep_router_advertisements() {
    let sysctls = Sysctls::default();
    let is =
        |name: &Name, value: &str| matches!(sysctls.read(name), Ok(Some(found)) if found.trim() == value);
    if !Name::of(owned::SYSCTLS[1].split('/')).is_some_and(|forwarding| is(&forwarding, "0")) {
        return;
    }
    let devices = Name::of(["net", "ipv6", "conf"]).map(|folder| sysctls.list(&folder).unwrap_or_default());
    // On the ports of bridges there is nobody to be heeded.
    let others = |device: &String| {
        !["all", "default"].contains(&device.as_str()) && !device.starts_with(owned::LINK_PREFIX)
    };
    for device in devices.unwrap_or_default().into_iter().filter(others) {
        let Some(name) = Name::of(["net", "ipv6", "conf", &device, "accept_ra"]) else { continue };
        if is(&name, "1") {
            // Best effort: most nodes have no routes from there.
            let _ = sysctls.ensure(&name, "2");
        }
    }
}
