//! GC: forgets attachments that the runtime does not list (specification 1.1.0).

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel_netlink::route::Rtnetlink;
use kernel_nft::{Family, Nftables, Ruleset, Socket as Nft};
use serde_json::Value;

use crate::conf;
use crate::ipam::allocate::io;
use crate::ipam::conf::IpamConf;
use crate::ipam::{Owner, Store};
use crate::spec::CniError;
use crate::table::{Map, VERSIONS};
use crate::{link, masquerade, owned, portmap, table};

/// Forgets all attachments of the network but those listed.
///
/// # Errors
/// The first thing that could not be removed; the rest was.
pub fn run(conf: &Value) -> Result<(), CniError> {
    let valid = conf::valid_attachments(conf)?;
    let links = links(conf::name(conf), &valid);
    let rules = rules(conf, &valid);
    links.and(rules).and(reservations(conf))
}

/// Releases the reservations.
///
/// # Errors
/// When they cannot be read or removed.
pub fn reservations(conf: &Value) -> Result<(), CniError> {
    let valid = conf::valid_attachments(conf)?;
    let Some(folder) = conf::data_dir(conf) else { return Ok(()) };
    let store = Store::open(&folder, conf::name(conf)).map_err(io)?;
    store.release_others(|owner| is_valid(&valid, owner)).map(drop).map_err(io)
}

/// Reservations of the reference of old do not say which interface has them.
fn is_valid(valid: &[Owner], owner: &Owner) -> bool {
    valid.iter().any(|valid| {
        valid.container == owner.container
            && (owner.interface.is_none() || valid.interface == owner.interface)
    })
}

fn links(network: &str, valid: &[Owner]) -> Result<(), CniError> {
    let mut socket = link::open()?;
    let valid: Result<BTreeSet<_>, _> =
        valid.iter().map(|owner| link::host_link_name(network, owner)).collect();
    let valid = valid?;
    let all = socket.observe_links().map_err(|error| CniError::other(error.to_string()))?;
    let mut result = Ok(());
    for stray in
        all.iter().filter(|found| link::is_of_network(found, network) && !valid.contains(&found.name))
    {
        result = result.and(link::delete(&mut socket, stray));
    }
    result
}

fn rules(conf: &Value, valid: &[Owner]) -> Result<(), CniError> {
    let Some(folder) = conf::data_dir(conf) else { return Ok(()) };
    let Ok(mut nft) = Nft::open() else { return Ok(()) };
    let failed = |error| CniError::other(format!("reading nftables table inet {}: {error}", owned::TABLE));
    let Some(seen) = nft.observe(Family::Inet, owned::TABLE).map_err(failed)? else { return Ok(()) };
    // Addresses of this network: those reserved, and, as reservations may be lost, those in its ranges.
    let store = Store::open(&folder, conf::name(conf)).map_err(io)?;
    let ranges = IpamConf::parse(conf, &[]).ok().flatten();
    let mut kept = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for ip in store.reserved().map_err(io)? {
        let owner = store.owner(ip).map_err(io)?;
        if owner.is_some_and(|owner| is_valid(valid, &owner)) {
            kept.insert(ip)
        } else {
            gone.insert(ip)
        };
    }
    let ours = |ip: IpAddr| {
        let in_range = |conf: &IpamConf| conf.sets.iter().any(|set| set.range_of(ip).is_some());
        !kept.contains(&ip) && (gone.contains(&ip) || ranges.as_ref().is_some_and(in_range))
    };
    let mut keys = portmap::keys_of(&seen.ruleset, ours);
    keys.extend(masqueraded(&seen.ruleset).into_iter().filter(|ip| ours(*ip)).map(masquerade::key));
    table::remove(&mut nft, &keys, &table::unused_chains(&seen.ruleset, &keys))
}

fn masqueraded(table: &Ruleset) -> Vec<IpAddr> {
    let of = |version| {
        let set = table.sets.get(&Map::Masquerade.name(version));
        let keys = set.into_iter().flat_map(|set| set.elements.keys());
        keys.filter_map(move |key| portmap::address(version, key.as_bytes()))
    };
    VERSIONS.into_iter().flat_map(of).collect()
}
