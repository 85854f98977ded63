//! Gives a container one address of each set.

use std::net::IpAddr;

use ipnet::IpNet;

use super::conf::IpamConf;
use super::range::{Range, RangeSet};
use super::store::{Owner, Store};
use crate::spec::{CniError, Code};

/// An address that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The address, with the length of its network.
    pub address: IpNet,
    /// The network's gateway.
    pub gateway: IpAddr,
}

/// Reserves one address of each set for an interface. When it fails, it leaves nothing reserved.
///
/// # Errors
/// In the words of the reference: nothing is free, what is asked for is taken, or the interface has addresses.
pub fn allocate(store: &Store, conf: &IpamConf, owner: &Owner) -> Result<Vec<Allocation>, CniError> {
    let mut asked = conf.asked.clone();
    let mut given: Vec<Allocation> = Vec::new();
    let has = store.known_addresses(owner).map_err(io)?;
    let result = conf.sets.iter().enumerate().try_for_each(|(index, set)| {
        if let Some(ip) = has.iter().find(|ip| set.range_of(**ip).is_some()) {
            let container = &owner.container;
            return Err(CniError::other(format!(
                "failed to allocate for range {index}: {ip} has been allocated to {container}, duplicate \
                 allocation is not allowed"
            )));
        }
        let wanted = asked.iter().position(|ip| set.range_of(*ip).is_some()).map(|place| asked.remove(place));
        let (range, ip) = from_set(store, index, set, wanted, owner)
            .map_err(|error| error.context(format!("failed to allocate for range {index}")))?;
        let address = IpNet::new(ip, range.subnet.prefix_len()).unwrap_or_else(|_| ip.into());
        given.push(Allocation { address, gateway: range.gateway });
        Ok(())
    });
    let result = result.and_then(|()| match asked.as_slice() {
        [] => Ok(()),
        _ => Err(CniError::other(format!("failed to allocate all requested IPs: {}", joined(&asked)))),
    });
    match result {
        Ok(()) => Ok(given),
        Err(error) => {
            // What the interface had before is not ours to release; then nothing was reserved either.
            if has.is_empty() {
                store.release(owner).map_err(io)?;
            }
            Err(error)
        }
    }
}

fn from_set<'a>(
    store: &Store,
    index: usize,
    set: &'a RangeSet,
    wanted: Option<IpAddr>,
    owner: &Owner,
) -> Result<(&'a Range, IpAddr), CniError> {
    if let Some(ip) = wanted
        && let Some(range) = set.range_of(ip)
    {
        if ip == range.gateway {
            return Err(CniError::other(format!("requested ip {ip} is subnet's gateway")));
        }
        if !store.reserve(ip, owner).map_err(io)? {
            return Err(CniError::other(format!(
                "requested IP address {ip} is not available in range set {set}"
            )));
        }
        return Ok((range, ip));
    }
    let found = store.reserve_first(set.after(store.last(index)), owner).map_err(io)?;
    let Some((range, ip)) = found else {
        return Err(CniError::other(format!("no IP addresses available in range set: {set}")));
    };
    store.set_last(index, ip).map_err(io)?;
    Ok((range, ip))
}

/// Why reservations cannot be kept.
pub fn io(error: super::store::StoreError) -> CniError {
    CniError::new(Code::Io, error.to_string())
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn conf(ipam: Value, asked: &[&str]) -> IpamConf {
        let asked: Vec<_> = asked.iter().map(|ip| (*ip).to_owned()).collect();
        IpamConf::parse(&json!({ "ipam": ipam }), &asked).unwrap().unwrap()
    }

    fn addresses(given: &[Allocation]) -> Vec<String> {
        given.iter().map(|allocation| allocation.address.to_string()).collect()
    }

    #[test]
    fn a_released_address_is_given_out_again_only_when_all_others_were() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        let conf = conf(json!({"type": "host-local", "subnet": "10.1.2.0/29"}), &[]);
        let mut seen = Vec::new();
        for number in 0..6 {
            let owner = Owner::new(&format!("c{number}"), "eth0");
            seen.extend(addresses(&allocate(&store, &conf, &owner).unwrap()));
            store.release(&owner).unwrap();
        }
        assert_eq!(
            seen,
            ["10.1.2.2/29", "10.1.2.3/29", "10.1.2.4/29", "10.1.2.5/29", "10.1.2.6/29", "10.1.2.2/29"]
        );
    }

    #[test]
    fn one_address_of_each_set_and_what_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/125", "rangeEnd": "fd00::2"}]]});
        let both = allocate(&store, &conf(ipam.clone(), &[]), &Owner::new("a", "eth0")).unwrap();
        assert_eq!(addresses(&both), ["10.1.2.2/24", "fd00::2/125"]);
        let error = allocate(&store, &conf(ipam, &[]), &Owner::new("b", "eth0")).unwrap_err();
        assert_eq!(
            error.message,
            "failed to allocate for range 1: no IP addresses available in range set: fd00::1-fd00::2"
        );
        assert_eq!(store.reserved().unwrap().len(), 2);
    }

    #[test]
    fn asked_for_addresses_are_given_or_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        let ipam = json!({"type": "host-local", "subnet": "10.1.2.0/24"});
        let asked =
            |ips: &[&str], id: &str| allocate(&store, &conf(ipam.clone(), ips), &Owner::new(id, "eth0"));
        assert_eq!(addresses(&asked(&["10.1.2.88"], "a").unwrap()), ["10.1.2.88/24"]);
        for (ips, words) in [
            (
                &["10.1.2.88"][..],
                "failed to allocate for range 0: requested IP address 10.1.2.88 is not available in range set 10.1.2.1-10.1.2.254",
            ),
            (&["10.1.2.1"], "failed to allocate for range 0: requested ip 10.1.2.1 is subnet's gateway"),
            (&["10.9.9.9"], "failed to allocate all requested IPs: 10.9.9.9"),
        ] {
            assert_eq!(asked(ips, "b").unwrap_err().message, words);
            assert_eq!(store.reserved().unwrap().len(), 1);
        }
        let again = asked(&[], "a").unwrap_err().message;
        assert_eq!(
            again,
            "failed to allocate for range 0: 10.1.2.88 has been allocated to a, duplicate allocation is not allowed"
        );
        assert_eq!(store.reserved().unwrap().len(), 1);
    }
}
