//! A container's own loopback, as the reference's `loopback`. Runtimes call a plugin of this name for every container
//! (containerd until 2.0, CRI-O), whatever the network.

use ipnet::IpNet;
use kernel_netlink::route::{Address, Command, Link, LinkChange, LinkName, Socket};
use serde_json::Value;

use crate::spec::{Call, CniError, Interface, IpConfig, Outcome, Verb, Version};
use crate::{link, pod};

/// Serves one call.
///
/// # Errors
/// In the words of the reference.
pub fn run(call: &Call, conf: &Value, version: Version) -> Result<String, CniError> {
    match call.verb {
        Verb::Add => {
            let addresses = in_container(call, |socket, lo| {
                set(socket, &lo, true)?;
                pod::observe(socket, lo.index)
            })?;
            match conf.get("prevResult").filter(|previous| !previous.is_null()) {
                Some(previous) => Outcome::from_json(previous)?.to_json(version),
                None => outcome(call, addresses).to_json(version),
            }
        }
        // The reference, too, takes a namespace that cannot be opened for one that is gone.
        Verb::Del if call.netns.is_empty() || pod::open(&call.netns).is_err() => Ok(String::new()),
        Verb::Del => in_container(call, |socket, lo| set(socket, &lo, false)).map(|()| String::new()),
        Verb::Check => in_container(call, |_, lo| {
            if lo.up { Ok(String::new()) } else { Err(CniError::other("loopback interface is down")) }
        }),
        Verb::Gc | Verb::Status | Verb::Version => Ok(String::new()),
    }
}

fn in_container<T: Send>(
    call: &Call,
    work: impl FnOnce(&mut Socket, Link) -> Result<T, CniError> + Send,
) -> Result<T, CniError> {
    let namespace = pod::open(&call.netns)?;
    pod::check_is_other(&namespace)?;
    pod::run(&namespace, || {
        let mut socket = link::open()?;
        let missing = || CniError::other("Link not found");
        let name = LinkName::new("lo").ok_or_else(missing)?;
        let lo = link::find(&mut socket, &name)?.ok_or_else(missing)?;
        work(&mut socket, lo)
    })
}

fn set(socket: &mut Socket, lo: &Link, up: bool) -> Result<(), CniError> {
    let change = LinkChange { up: Some(up), ..LinkChange::default() };
    link::commit(socket, &[Command::SetLink(lo.index, change)])
        .map_err(|refused| CniError::other(format!("failed to set \"lo\" up or down: {}", refused.words)))
}

fn outcome(call: &Call, addresses: Vec<Address>) -> Outcome {
    let lo = Interface { name: "lo".into(), mac: "00:00:00:00:00:00".into(), sandbox: call.netns.clone() };
    let loopback = addresses.into_iter().map(|address| address.address).filter(|ip| ip.addr().is_loopback());
    let (v4, v6): (Vec<IpNet>, _) = loopback.partition(|ip| ip.addr().is_ipv4());
    let ips = v4.into_iter().chain(v6);
    let ips = ips.map(|address| IpConfig { interface: Some(0), address, gateway: None }).collect();
    Outcome { interfaces: vec![lo], ips, ..Outcome::default() }
}
