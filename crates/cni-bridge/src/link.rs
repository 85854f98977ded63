//! Links in the host's namespace: the bridge, and the host's ends of veths.

use std::fs::File;
use std::io::{self, Read};
use std::thread::sleep;
use std::time::Duration;

use ipnet::IpNet;
use kernel_netlink::namespace::Namespace;
use kernel_netlink::route::{
    Address, AddressFlags, Bridge, Command, CommitError, Forwarding, Link, LinkChange, LinkIndex, LinkKind,
    LinkName, MacAddress, NewLink, NewLinkKind, Peer, PortChange, PortVlans, Rtnetlink, Socket,
};
use kernel_netlink::sysctl::{Name, Sysctls};
use nix::libc;
use sha2::{Digest, Sha256};

use crate::conf::NetConf;
use crate::ipam::Owner;
use crate::owned;
use crate::spec::CniError;

/// KERNEL: `IFALIASZ` is 256.
const ALIAS_LIMIT: usize = 255;
/// Of numbers in names: 32 of them.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
const NETWORK_DIGITS: usize = 4;
const ATTACHMENT_DIGITS: usize = 7;
/// How long a port may take until it forwards, milliseconds each time.
const WAITS: [u64; 12] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// What the kernel refused.
#[derive(Debug)]
pub struct Refused {
    /// `errno`, if it was an answer.
    pub errno: i32,
    /// In words, as the reference's language has them.
    pub words: String,
}

/// Carries out commands; gives the first refusal.
///
/// # Errors
/// [`Refused`]
pub fn commit(socket: &mut Socket, commands: &[Command]) -> Result<(), Refused> {
    match socket.commit(commands) {
        Ok(()) => Ok(()),
        Err(CommitError::Refused(refusals)) => {
            let first = refusals.into_iter().next();
            let errno = first.as_ref().map_or(0, |refusal| refusal.errno);
            let reason = first.and_then(|refusal| refusal.reason).map(|reason| format!(" ({reason})"));
            Err(Refused { errno, words: words(errno) + &reason.unwrap_or_default() })
        }
        Err(error) => Err(Refused { errno: 0, words: error.to_string() }),
    }
}

/// `errno` in words: in lower case and without its number.
pub fn words(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().collect::<String>() + letters.as_str())
}

/// Opens rtnetlink.
///
/// # Errors
/// When there is no socket to be had.
pub fn open() -> Result<Socket, CniError> {
    Socket::open().map_err(|error| CniError::other(error.to_string()))
}

/// The link with a name.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find(socket: &mut Socket, name: &LinkName) -> Result<Option<Link>, CniError> {
    socket.observe_link(name).map_err(|error| CniError::other(format!("looking up {name}: {error}")))
}

/// The name of the host's end of an attachment's veth: the same each time, so that it is found without notes. Seven
/// digits for container and interface, after four for the network.
///
/// # Errors
/// Never: fifteen letters and digits are a name.
pub fn host_link_name(network: &str, owner: &Owner) -> Result<LinkName, CniError> {
    let interface = owner.interface.as_deref().unwrap_or_default();
    let attachment = digits(&format!("{}\n{interface}", owner.container), ATTACHMENT_DIGITS);
    let name = format!("{}{attachment}", host_link_prefix(network));
    LinkName::new(&name).ok_or_else(|| CniError::other(format!("{name} is no name of a device")))
}

/// How the names of all links of a network begin.
pub fn host_link_prefix(network: &str) -> String {
    format!("{}{}", owned::LINK_PREFIX, digits(network, NETWORK_DIGITS))
}

fn digits(text: &str, count: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let number = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    (0..count).map(|place| char::from(DIGITS[(number >> (5 * place)) as usize % DIGITS.len()])).collect()
}

/// What is told of a link to people, and to GC: whose it is.
pub fn alias(network: &str, owner: &Owner) -> String {
    let interface = owner.interface.as_deref().unwrap_or_default();
    let mut alias = format!("{} {network} {} {interface}", owned::ALIAS_PREFIX, owner.container);
    // All of it is ASCII: `spec::call` takes no other names.
    alias.truncate(ALIAS_LIMIT);
    alias
}

/// Whether a link of the host belongs to a network: by its alias, or, if its maker was stopped before it could write
/// that, by its name.
pub fn is_of_network(link: &Link, network: &str) -> bool {
    if link.kind != LinkKind::Veth || !link.name.as_str().starts_with(owned::LINK_PREFIX) {
        return false;
    }
    match &link.alias {
        Some(alias) => alias.starts_with(&format!("{} {network} ", owned::ALIAS_PREFIX)),
        None => link.name.as_str().starts_with(&host_link_prefix(network)) && link.name.as_str().len() == 15,
    }
}

/// Makes the bridge, or takes the one that is there.
///
/// # Errors
/// When it cannot be made, or something else has the name; in the words of the reference.
pub fn ensure_bridge(socket: &mut Socket, conf: &NetConf) -> Result<Link, CniError> {
    let name = &conf.bridge;
    let failed = |words: String| CniError::other(format!("failed to create bridge \"{name}\": {words}"));
    let mut found = find(socket, name)?;
    let made = found.is_none();
    if made {
        let filtering = (conf.vlan.is_some() || !conf.trunk.is_empty()).then_some(true);
        let kind = NewLinkKind::Bridge(Bridge { vlan_filtering: filtering, multicast_snooping: None });
        // With an address of its own it does not take those of its ports, which come and go.
        let mac = Some(random_mac().map_err(|error| failed(error.to_string()))?);
        let new = NewLink { mtu: conf.mtu, mac, ..NewLink::new(name.clone(), kind) };
        match commit(socket, &[Command::AddLink(new)]) {
            Err(refused) if refused.errno != libc::EEXIST => {
                return Err(failed(format!("could not add \"{name}\": {}", refused.words)));
            }
            _ => found = find(socket, name)?,
        }
    }
    let link = found.ok_or_else(|| failed(format!("could not lookup \"{name}\": Link not found")))?;
    if link.kind != LinkKind::Bridge {
        return Err(failed(format!("\"{name}\" already exists but is not a bridge")));
    }
    if (conf.vlan.is_some() || !conf.trunk.is_empty()) && link.vlan_filtering == Some(false) {
        filter_vlans(socket, &link).map_err(failed)?;
    }
    if made {
        // Whether they can be set or not: without IPv6 there is no such thing. ORDER: before it is up. KERNEL: as long
        // as its link-local address is looked for elsewhere, 1 to 2 seconds, it asks for no neighbour on behalf of
        // others (`ndisc_send_ns()`): the first pod could not be reached.
        for sysctl in owned::BRIDGE_SYSCTLS {
            try_sysctl(&sysctl.replace("BRIDGE", name.as_str()), "0");
        }
    }
    let promiscuous = (conf.promiscuous && !link.promiscuous).then_some(true);
    if !link.up || promiscuous.is_some() {
        let change = LinkChange { up: Some(true), promiscuous, ..LinkChange::default() };
        commit(socket, &[Command::SetLink(link.index, change)]).map_err(|refused| failed(refused.words))?;
    }
    Ok(link)
}

/// Has a bridge that was made without VLANs tell them apart: otherwise the kernel takes the VLANs of a port, and every
/// other port has its frames all the same. Its pods notice nothing: their ports are in VLAN 1, as the bridge itself.
/// What else is a port may carry tags that would be dropped from then on; that is not for us to decide.
fn filter_vlans(socket: &mut Socket, bridge: &Link) -> Result<(), String> {
    let name = &bridge.name;
    let all = socket.observe_links().map_err(|error| error.to_string())?;
    let is_pods =
        |port: &&Link| port.kind == LinkKind::Veth && port.name.as_str().starts_with(owned::LINK_PREFIX);
    if let Some(port) = all.iter().find(|port| port.master == Some(bridge.index) && !is_pods(port)) {
        return Err(format!(
            "\"{name}\" does not tell VLANs apart, and {} may need that it does not; if not: ip link set {name} type \
             bridge vlan_filtering 1",
            port.name
        ));
    }
    commit(socket, &[Command::FilterVlans(bridge.index, true)])
        .map_err(|refused| format!("\"{name}\" does not tell VLANs apart: {}", refused.words))
}

fn random_mac() -> io::Result<MacAddress> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    // Of one device, and not from a registry.
    bytes[0] = bytes[0] & 0xfe | 0x02;
    Ok(MacAddress(bytes))
}

/// Sets a sysctl of the calling thread's namespace if it has another value; its name has slashes.
///
/// # Errors
/// In words, if it is there and has another value still.
pub fn ensure_sysctl(name: &str, value: &str) -> Result<(), String> {
    use kernel_netlink::sysctl::State;
    let name = Name::of(name.split('/')).ok_or_else(|| format!("{name} is no sysctl"))?;
    match Sysctls::default().ensure(&name, value) {
        State::Stuck { reason, .. } => Err(format!("{name}: {reason}")),
        State::On | State::Changed(_) | State::Missing => Ok(()),
    }
}

/// Sets a sysctl of the calling thread's namespace, if it can be; its name has slashes.
pub fn try_sysctl(name: &str, value: &str) {
    if let Some(name) = Name::of(name.split('/')) {
        let _ = Sysctls::default().write(&name, value);
    }
}

/// Makes the veth: this end a port of the bridge and up, the other in the container.
///
/// # Errors
/// When the container has an interface of the name already, or it cannot be made.
pub fn add_veth(
    socket: &mut Socket,
    conf: &NetConf,
    bridge: LinkIndex,
    owner: &Owner,
    interface: &LinkName,
    namespace: &Namespace,
) -> Result<(), CniError> {
    let name = host_link_name(&conf.name, owner)?;
    let peer = Peer {
        mac: conf.mac,
        mtu: conf.mtu,
        namespace: Some(namespace.clone()),
        ..Peer::new(interface.clone())
    };
    let kind = NewLinkKind::Veth(peer);
    let new = NewLink { up: true, mtu: conf.mtu, master: Some(bridge), ..NewLink::new(name.clone(), kind) };
    let command = [Command::AddLink(new)];
    let refused = match commit(socket, &command) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let failed = |words: String| CniError::other(format!("failed to make veth pair: {words}"));
    if refused.errno != libc::EEXIST {
        return Err(failed(refused.words));
    }
    let taken = crate::pod::find(namespace, interface)?.is_some();
    if taken {
        return Err(failed(format!("container interface name provided ({interface}) already exists")));
    }
    // Left by an ADD for the same container that was stopped, in another namespace.
    delete_of(socket, &conf.name, owner)?;
    commit(socket, &command).map_err(|refused| failed(refused.words))
}

/// Makes the host's end what the configuration says of ports.
///
/// # Errors
/// When the kernel refuses, or cannot do it.
pub fn set_port(
    socket: &mut Socket,
    conf: &NetConf,
    link: &Link,
    alias: String,
    container: Option<MacAddress>,
) -> Result<(), CniError> {
    let port = link.index;
    let name = &link.name;
    let failed = |what: &str, words: String| CniError::other(format!("failed to {what} for {name}: {words}"));
    let alias = LinkChange { alias: Some(alias), ..LinkChange::default() };
    commit(socket, &[Command::SetLink(port, alias)])
        .map_err(|refused| failed("set the alias", refused.words))?;
    let change = PortChange {
        hairpin: conf.hairpin.then_some(true),
        isolated: conf.port_isolation.then_some(true),
        locked: None,
    };
    if change != PortChange::default() {
        commit(socket, &[Command::SetPort(port, change)])
            .map_err(|refused| failed("setup hairpin mode or port isolation", refused.words))?;
    }
    let vlans = vlan_commands(conf, port);
    commit(socket, &vlans).map_err(|refused| {
        CniError::other(format!("failed to setup vlan tag on interface \"{name}\": {}", refused.words))
    })?;
    if let (true, Some(mac)) = (conf.mac_spoof_check, container) {
        // The port takes frames from the container's address alone. It goes with the port, and needs no rules.
        let lock = PortChange { locked: Some(true), ..PortChange::default() };
        let commands = [Command::AddForwarding(Forwarding { port, mac }), Command::SetPort(port, lock)];
        commit(socket, &commands).map_err(|refused| failed("lock the port (macspoofchk)", refused.words))?;
        if !find(socket, name)?.and_then(|link| link.port).is_some_and(|port| port.locked) {
            return Err(failed("lock the port (macspoofchk)", "the kernel is older than Linux 5.18".into()));
        }
    }
    Ok(())
}

/// The VLANs of a port.
fn vlan_commands(conf: &NetConf, port: LinkIndex) -> Vec<Command> {
    let mut commands = Vec::new();
    if conf.vlan.is_none() && conf.trunk.is_empty() {
        return commands;
    }
    if !conf.preserve_default_vlan {
        commands.push(Command::DeleteVlans(PortVlans { port, first: 1, last: 1, access: false }));
    }
    commands.extend(
        conf.vlan.map(|vlan| Command::AddVlans(PortVlans { port, first: vlan, last: vlan, access: true })),
    );
    let trunk = conf.trunk.iter().map(|range| {
        Command::AddVlans(PortVlans { port, first: range.first, last: range.last, access: false })
    });
    commands.extend(trunk);
    commands
}

/// The device that has the gateways of a VLAN: `BRIDGE.VLAN`, whose other end is a port of the VLAN.
///
/// # Errors
/// When it cannot be made.
pub fn ensure_vlan_gateway(
    socket: &mut Socket,
    conf: &NetConf,
    bridge: &Link,
    vlan: u16,
) -> Result<Link, CniError> {
    let failed = |words: String| CniError::other(format!("failed to create vlan interface: {words}"));
    let text = format!("{}.{vlan}", bridge.name);
    let name = LinkName::new(&text).ok_or_else(|| failed(format!("{text:?} is too long for a device")))?;
    if find(socket, &name)?.is_none() {
        let owner = Owner::new(bridge.name.as_str(), &text);
        let port = host_link_name("", &owner)?;
        let kind = NewLinkKind::Veth(Peer { mtu: conf.mtu, ..Peer::new(name.clone()) });
        let new = NewLink {
            up: true,
            mtu: conf.mtu,
            master: Some(bridge.index),
            ..NewLink::new(port.clone(), kind)
        };
        match commit(socket, &[Command::AddLink(new)]) {
            Err(refused) if refused.errno != libc::EEXIST => return Err(failed(refused.words)),
            _ => {}
        }
        let port = find(socket, &port)?.ok_or_else(|| failed(format!("{port} is gone")))?;
        commit(socket, &vlan_commands(conf, port.index)).map_err(|refused| failed(refused.words))?;
    }
    let link = find(socket, &name)?.ok_or_else(|| failed(format!("{name} is gone")))?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    commit(socket, &[Command::SetLink(link.index, up)]).map_err(|refused| failed(refused.words))?;
    Ok(link)
}

/// An address as containers and gateways have it.
pub fn new_address(link: LinkIndex, address: IpNet, conf: &NetConf) -> Address {
    let mut new = Address::new(link, address);
    match address {
        IpNet::V4(v4) if v4.prefix_len() < 31 => new.broadcast = Some(v4.broadcast()),
        IpNet::V4(_) => {}
        IpNet::V6(_) if conf.duplicate_address_detection => {}
        // Addresses are given out once: nobody has to wait a second for an answer that does not come.
        IpNet::V6(_) => new.flags = new.flags.union(AddressFlags::NO_DAD),
    }
    new
}

/// Waits until the host's end forwards packets, and gives it as it is then.
///
/// # Errors
/// When it does not, or is gone.
pub fn settle(socket: &mut Socket, name: &LinkName, is_to_run: bool) -> Result<Link, CniError> {
    for wait in WAITS {
        sleep(Duration::from_millis(wait));
        let link =
            find(socket, name)?.ok_or_else(|| CniError::other(format!("failed to lookup \"{name}\"")))?;
        if link.running || !is_to_run {
            return Ok(link);
        }
    }
    Err(CniError::other(format!("bridge port in error state: {name} does not run")))
}

/// Removes the host's end of an attachment's veth, and with it the other, if it is there.
///
/// # Errors
/// When it is there and cannot be removed, or is another's.
pub fn delete_of(socket: &mut Socket, network: &str, owner: &Owner) -> Result<(), CniError> {
    let Some(link) = find(socket, &host_link_name(network, owner)?)? else { return Ok(()) };
    let others = link.alias.as_ref().is_some_and(|found| *found != alias(network, owner));
    if others || link.kind != LinkKind::Veth {
        // LIMIT: of a thousand attachments of a network, two have one name in one of 70,000 clusters.
        return Err(CniError::other(format!("the device {} is another's: {:?}", link.name, link.alias)));
    }
    delete(socket, &link)
}

/// Removes a link, and with it its other end.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn delete(socket: &mut Socket, link: &Link) -> Result<(), CniError> {
    match commit(socket, &[Command::DeleteLink(link.index)]) {
        Ok(()) => Ok(()),
        // The namespace of its other end was faster.
        Err(refused) if refused.errno == libc::ENODEV => Ok(()),
        Err(refused) => {
            Err(CniError::other(format!("failed to delete \"{}\": {}", link.name, refused.words)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_fifteen_letters_and_begin_by_the_network() {
        let (a, b) = (Owner::new("a", "eth0"), Owner::new("a", "eth1"));
        let names =
            [("n", &a), ("n", &b), ("m", &a)].map(|(network, owner)| host_link_name(network, owner).unwrap());
        assert!(names.iter().all(|name| name.as_str().len() == 15));
        assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
        assert!(names[1].as_str().starts_with(&host_link_prefix("n")));
        assert!(!names[2].as_str().starts_with(&host_link_prefix("n")));
    }

    #[test]
    fn errors_are_worded_as_the_references_language_has_them() {
        assert_eq!(words(libc::EOPNOTSUPP), "operation not supported");
        assert_eq!(words(libc::EEXIST), "file exists");
    }
}
