//! DEL: removes what is found of an attachment, be it nothing. It reads of the configuration only what it needs, so
//! that it does its work also when the rest is no longer valid.
//!
//! ORDER: rules, then links, then the reservation. As long as an address is reserved it is nobody else's, so that
//! nothing is taken from the container that gets it next; and a DEL that was stopped finds it again.

use std::net::IpAddr;
use std::path::Path;

use kernel_netlink::Protocol;
use kernel_netlink::conntrack::{self, Connection, Conntrack};
use kernel_netlink::namespace::Namespace;
use kernel_netlink::route::LinkName;
use kernel_nft::{Family, Nftables, Socket as Nft};
use serde_json::Value;

use crate::conf;
use crate::ipam::allocate::io;
use crate::ipam::{Owner, Store};
use crate::spec::{Call, CniError};
use crate::{link, masquerade, owned, pod, portmap, table};

/// Detaches a container.
///
/// # Errors
/// When something is there and cannot be removed; the rest was.
pub fn run(conf: &Value, call: &Call) -> Result<(), CniError> {
    let owner = Owner::new(&call.container_id, &call.ifname);
    let name = conf::name(conf);
    let host_ports = conf::has_host_ports(conf);
    let folder = conf::data_dir(conf);
    let mut addresses = conf::previous_addresses(conf);
    if let Some(folder) = &folder {
        let store = Store::open(folder, name).map_err(io)?;
        let reserved = store.addresses(&owner).map_err(io)?;
        // What the runtime remembers may be somebody else's by now.
        addresses.retain(|ip| matches!(store.owner(*ip), Ok(None)));
        addresses.extend(reserved);
    }
    // Without nf_tables there are no rules.
    let mut nft = if addresses.is_empty() { None } else { Nft::open().ok() };
    let removed = nft.as_mut().map_or(Ok(false), |nft| remove_rules(nft, &addresses, host_ports));
    // To read all tracked connections takes 20 ms on a large node.
    let udp = conf::has_udp_ports(conf) || removed.as_ref().is_ok_and(|udp| *udp);
    let mut result = removed.map(drop).and(delete_links(name, call, &owner));
    // KERNEL: closing the socket waits until what was removed can be freed (`nft_rcv_nl_event()`), 10 ms and more;
    // that time has passed while the links went.
    drop(nft);
    if udp && !addresses.is_empty() {
        forget_udp_flows(&mut |connection| addresses.contains(&connection.reply.source));
    }
    if let Some(folder) = &folder {
        let released = Store::open(folder, name).and_then(|store| store.release(&owner)).map_err(io);
        result = result.and(released.map(drop));
    }
    result
}

/// Removes what the table has for addresses. The whole table is read only if ports of the node may lead to them. True
/// if one of UDP did.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_rules(
    nft: &mut impl Nftables,
    addresses: &[IpAddr],
    host_ports: bool,
) -> Result<bool, CniError> {
    let mut keys = table::present(nft, addresses.iter().map(|ip| masquerade::key(*ip)))?;
    let mut chains = Vec::new();
    if host_ports {
        let failed =
            |error| CniError::other(format!("reading nftables table inet {}: {error}", owned::TABLE));
        if let Some(seen) = nft.observe(Family::Inet, owned::TABLE).map_err(failed)? {
            keys.extend(portmap::keys_of(&seen.ruleset, |ip| addresses.contains(&ip)));
            chains = table::unused_chains(&seen.ruleset, &keys);
        }
    }
    table::remove(nft, &keys, &chains)?;
    Ok(keys.iter().any(|(map, version, key)| portmap::is_udp(*map, *version, key)))
}

/// Removes the links: the host's end by its name, and what the container has where the reference made it.
fn delete_links(network: &str, call: &Call, owner: &Owner) -> Result<(), CniError> {
    let ours = link::delete_of(&mut link::open()?, network, owner);
    let (Ok(namespace), Some(interface)) =
        (Namespace::open(Path::new(&call.netns)), LinkName::new(&call.ifname))
    else {
        // It is gone, with all that was in it.
        return ours;
    };
    if pod::check_is_other(&namespace).is_err() {
        return ours;
    }
    let theirs = pod::run(&namespace, || {
        let mut socket = link::open()?;
        match link::find(&mut socket, &interface)? {
            Some(found) => link::delete(&mut socket, &found),
            None => Ok(()),
        }
    });
    ours.and(theirs)
}

/// Ends tracked connections of UDP that `is_stale` picks: their packets go where the first one went, whatever leads
/// where by now. Best effort: they expire.
pub fn forget_udp_flows(is_stale: &mut dyn FnMut(&Connection) -> bool) {
    if let Ok(mut conntrack) = conntrack::Socket::open() {
        let _ = conntrack.delete_where(Protocol::UDP, is_stale);
    }
}
