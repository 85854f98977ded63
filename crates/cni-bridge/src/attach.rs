//! ADD, as steps.
//!
//! ```text
//!   reserve addresses ─► bridge ─► veth ─► port ─► container ─► gateway ─► masquerade ─► host ports ─► settle
//!        ▲ released         │        ▲ deleted                     │            ▲ removed     ▲ removed
//!                           └ stays, as it is shared ──────────────┘
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use kernel_netlink::Protocol;
use kernel_netlink::namespace::Namespace;
use kernel_netlink::route::{Link, LinkName, Rtnetlink, Socket};
use kernel_nft::Socket as Nft;

use crate::conf::NetConf;
use crate::ipam::allocate::io;
use crate::ipam::range::{address, number};
use crate::ipam::{IpamConf, Owner, Store, allocate, resolv};
use crate::portmap::HostPort;
use crate::spec::{Call, CniError, Dns, Interface, IpConfig, Outcome, Route, Version};
use crate::steps::{Step, nothing};
use crate::{detach, gateway, link, masquerade, owned, pod, portmap, table};

/// What an ADD works on, and what it has made so far.
pub struct Attachment {
    conf: NetConf,
    ipam: Option<IpamConf>,
    owner: Owner,
    netns: String,
    namespace: Namespace,
    /// The host's own.
    own: Namespace,
    interface: LinkName,
    host_ports: Vec<HostPort>,
    socket: Socket,
    bridge: Option<Link>,
    container: Option<Link>,
    /// A conversation in the container's namespace.
    inside: Option<Socket>,
    vlan_gateway: Option<Link>,
    /// Whether the reservations are of this call, so that undoing may release them.
    reserved: bool,
    /// Whether the veth is of this call.
    has_veth: bool,
    outcome: Outcome,
}

/// The steps of ADD, in order.
pub const STEPS: [Step<Attachment>; 9] = [
    Step { name: "reserve addresses", run: reserve, undo: release },
    Step { name: "make the bridge", run: make_bridge, undo: nothing },
    Step { name: "make the veth", run: make_veth, undo: delete_veth },
    Step { name: "set up the port", run: set_up_port, undo: nothing },
    Step { name: "configure the container", run: configure_container, undo: nothing },
    Step { name: "be the gateway", run: be_gateway, undo: nothing },
    Step { name: "masquerade", run: add_masquerade, undo: remove_rules },
    Step { name: "lead host ports", run: add_host_ports, undo: remove_rules },
    Step { name: "settle", run: settle, undo: nothing },
];

impl Attachment {
    /// Everything that can be looked at before anything is made.
    ///
    /// # Errors
    /// What is not valid, or not there.
    pub fn new(conf: NetConf, ipam: Option<IpamConf>, call: &Call) -> Result<Self, CniError> {
        conf.check_together(ipam.is_some())?;
        let host_ports = HostPort::parse_all(&conf.port_mappings)?;
        let namespace = pod::open(&call.netns)?;
        let own = pod::check_is_other(&namespace)?;
        // The result of these versions is an address.
        if ipam.is_none() && conf.version < Version::V0_3_0 {
            return Err(CniError::other("cannot convert: no valid IP addresses"));
        }
        let interface = LinkName::new(&call.ifname)
            .ok_or_else(|| CniError::other(format!("{:?} cannot be the name of a device", call.ifname)))?;
        Ok(Self {
            conf,
            ipam,
            owner: Owner::new(&call.container_id, &call.ifname),
            netns: call.netns.clone(),
            namespace,
            own,
            interface,
            host_ports,
            socket: link::open()?,
            bridge: None,
            container: None,
            inside: None,
            vlan_gateway: None,
            reserved: false,
            has_veth: false,
            outcome: Outcome::default(),
        })
    }

    /// What was made.
    pub fn into_outcome(self) -> Outcome {
        self.outcome
    }

    fn bridge(&self) -> Result<&Link, CniError> {
        self.bridge.as_ref().ok_or_else(|| CniError::other("there is no bridge yet"))
    }

    fn addresses(&self) -> Vec<IpNet> {
        self.outcome.ips.iter().map(|ip| ip.address).collect()
    }
}

fn reserve(work: &mut Attachment) -> Result<(), CniError> {
    let Some(ipam) = &work.ipam else { return Ok(()) };
    let store = Store::open(&ipam.data_dir, &work.conf.name).map_err(io)?;
    let given = allocate(&store, ipam, &work.owner)?;
    work.reserved = true;
    drop(store);
    if given.is_empty() {
        return Err(CniError::other("IPAM plugin returned missing IP config"));
    }
    work.outcome = outcome(ipam, given.iter().map(|given| (given.address, given.gateway)))?;
    for ip in &mut work.outcome.ips {
        // Bridge, host, container.
        ip.interface = Some(2);
        if ip.gateway.is_none() && work.conf.is_gateway {
            ip.gateway = Some(first_of(ip.address));
        }
    }
    if work.conf.is_default_gateway {
        add_default_routes(&mut work.outcome);
    }
    Ok(())
}

/// What `host-local` says of addresses that it gave out.
///
/// # Errors
/// When `resolvConf` cannot be read.
pub fn outcome(ipam: &IpamConf, given: impl Iterator<Item = (IpNet, IpAddr)>) -> Result<Outcome, CniError> {
    let ips = given.map(|(address, gateway)| IpConfig { interface: None, address, gateway: Some(gateway) });
    let dns = ipam.resolv_conf.as_deref().map_or_else(|| Ok(Dns::default()), resolv::read)?;
    Ok(Outcome { interfaces: Vec::new(), ips: ips.collect(), routes: ipam.routes.clone(), dns })
}

fn first_of(network: IpNet) -> IpAddr {
    address(number(network.network()) + 1, network.network())
}

/// A default route of each family that has none with a gateway.
fn add_default_routes(outcome: &mut Outcome) {
    for index in 0..outcome.ips.len() {
        let ip = &outcome.ips[index];
        let everything = match ip.address {
            IpNet::V4(_) => IpNet::from(ipnet::Ipv4Net::default()),
            IpNet::V6(_) => IpNet::from(ipnet::Ipv6Net::default()),
        };
        let gateway = ip.gateway;
        if !outcome.routes.iter().any(|route| route.gw.is_some() && route.dst == everything) {
            outcome.routes.push(Route::new(everything, gateway));
        }
    }
}

fn release(work: &mut Attachment) {
    let Some(ipam) = work.ipam.as_ref().filter(|_| work.reserved) else { return };
    // What cannot be released now is by the DEL that follows a failed ADD, or by GC.
    if let Ok(store) = Store::open(&ipam.data_dir, &work.conf.name) {
        let _ = store.release(&work.owner);
    }
}

fn make_bridge(work: &mut Attachment) -> Result<(), CniError> {
    work.bridge = Some(link::ensure_bridge(&mut work.socket, &work.conf)?);
    Ok(())
}

fn make_veth(work: &mut Attachment) -> Result<(), CniError> {
    let bridge = work.bridge()?.index;
    link::add_veth(&mut work.socket, &work.conf, bridge, &work.owner, &work.interface, &work.namespace)?;
    work.has_veth = true;
    Ok(())
}

fn delete_veth(work: &mut Attachment) {
    if work.has_veth {
        let _ = link::delete_of(&mut work.socket, &work.conf.name, &work.owner);
    }
}

fn set_up_port(work: &mut Attachment) -> Result<(), CniError> {
    let name = link::host_link_name(&work.conf.name, &work.owner)?;
    let gone = || CniError::other(format!("failed to lookup \"{name}\""));
    let host = link::find(&mut work.socket, &name)?.ok_or_else(gone)?;
    let mac = if work.conf.mac_spoof_check {
        pod::find(&work.namespace, &work.interface)?.and_then(|link| link.mac)
    } else {
        None
    };
    link::set_port(&mut work.socket, &work.conf, &host, link::alias(&work.conf.name, &work.owner), mac)
}

fn configure_container(work: &mut Attachment) -> Result<(), CniError> {
    let (made, inside) =
        pod::configure(&work.namespace, &work.own, &work.conf, &work.interface, &work.outcome)?;
    work.container = Some(made);
    work.inside = Some(inside);
    Ok(())
}

fn be_gateway(work: &mut Attachment) -> Result<(), CniError> {
    if !work.conf.is_gateway {
        return Ok(());
    }
    let bridge = work.bridge()?.clone();
    let at = match work.conf.vlan {
        Some(vlan) if !work.outcome.ips.is_empty() => {
            let gateway = link::ensure_vlan_gateway(&mut work.socket, &work.conf, &bridge, vlan)?;
            work.vlan_gateway.insert(gateway).clone()
        }
        _ => bridge,
    };
    let mut gateways = Vec::new();
    for ip in &work.outcome.ips {
        let Some(gateway) = ip.gateway else { continue };
        gateways.push(
            IpNet::new(gateway, ip.address.prefix_len())
                .map_err(|_| CniError::other(format!("the gateway {gateway} is of another family")))?,
        );
    }
    gateway::ensure(&mut work.socket, &work.conf, work.ipam.as_ref(), &at, &gateways)?;
    for is_v4 in [true, false] {
        if work.outcome.ips.iter().any(|ip| ip.address.addr().is_ipv4() == is_v4) {
            gateway::enable_forwarding(is_v4)?;
        }
    }
    Ok(())
}

fn add_masquerade(work: &mut Attachment) -> Result<(), CniError> {
    if !work.conf.masquerade {
        return Ok(());
    }
    let elements: Vec<_> = work.addresses().into_iter().map(masquerade::element).collect();
    add_elements(work, &elements)
}

fn add_host_ports(work: &mut Attachment) -> Result<(), CniError> {
    let elements = portmap::elements(&work.host_ports, &work.addresses());
    if elements.is_empty() {
        return Ok(());
    }
    // The node's own packets to 127.0.0.1 reach containers from there; nobody else's do (`table`).
    let localnet = owned::SYSCTLS[2].replace("BRIDGE", work.conf.bridge.as_str());
    link::ensure_sysctl(&localnet, "1").map_err(CniError::other)?;
    add_elements(work, &elements)?;
    forget_udp_flows(work)
}

/// Ends what came to the ports of the node before they led anywhere.
fn forget_udp_flows(work: &mut Attachment) -> Result<(), CniError> {
    let udp = |port: &&HostPort| port.protocol == Protocol::UDP;
    let ports: Vec<u16> = work.host_ports.iter().filter(udp).map(|port| port.host_port).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let own = work.socket.observe_addresses().map_err(|error| CniError::other(error.to_string()))?;
    let own: Vec<IpAddr> = own.iter().map(|address| address.address.addr()).collect();
    detach::forget_udp_flows(&mut |connection| {
        ports.contains(&connection.original.destination_port)
            && own.contains(&connection.original.destination)
    });
    Ok(())
}

fn add_elements(work: &Attachment, elements: &[table::Element]) -> Result<(), CniError> {
    if elements.is_empty() {
        return Ok(());
    }
    let mut nft = Nft::open().map_err(|error| CniError::other(format!("opening nf_tables: {error}")))?;
    let alive = |ip: IpAddr| {
        // Of another network nothing is known here.
        let in_ranges = |ipam: &&IpamConf| ipam.sets.iter().any(|set| set.range_of(ip).is_some());
        let Some(ipam) = work.ipam.as_ref().filter(in_ranges) else { return true };
        let store = Store::open(&ipam.data_dir, &work.conf.name);
        store.and_then(|store| store.owner(ip)).is_ok_and(|owner| owner.is_some())
    };
    table::add(&mut nft, elements, &alive)
}

fn remove_rules(work: &mut Attachment) {
    if work.reserved {
        let addresses: Vec<_> = work.addresses().iter().map(IpNet::addr).collect();
        if let Ok(mut nft) = Nft::open() {
            let _ = detach::remove_rules(&mut nft, &addresses, !work.host_ports.is_empty());
        }
    }
}

fn settle(work: &mut Attachment) -> Result<(), CniError> {
    let name = link::host_link_name(&work.conf.name, &work.owner)?;
    let is_to_run = !work.conf.disable_container_interface;
    let host = link::settle(&mut work.socket, &name, is_to_run)?;
    if let (Some(inside), Some(container), true) = (&mut work.inside, &work.container, is_to_run) {
        pod::announce(inside, container);
    }
    // The bridge may have another address than before: that of its first port, if it was not made here.
    let bridge = link::find(&mut work.socket, &work.conf.bridge)?;
    let gone = || CniError::other(format!("could not lookup \"{}\": Link not found", work.conf.bridge));
    let bridge = bridge.ok_or_else(gone)?;
    let listed = |link: &Link, sandbox: &str| Interface {
        name: link.name.to_string(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: sandbox.to_owned(),
    };
    work.outcome.interfaces = vec![listed(&bridge, ""), listed(&host, "")];
    work.outcome.interfaces.extend(work.container.iter().map(|link| listed(link, &work.netns)));
    work.outcome.interfaces.extend(work.vlan_gateway.iter().map(|link| listed(link, "")));
    if !work.conf.dns.is_empty() {
        work.outcome.dns = work.conf.dns.clone();
    }
    Ok(())
}
