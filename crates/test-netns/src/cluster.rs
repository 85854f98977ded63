//! A cluster made of namespaces.
//!
//! ```text
//!   x/a  y/a        x/b  y/b          pods: one namespace each, /32 and /128 addresses on eth0
//!    │    │          │    │           veth0… (routed), or ports of the bridge cbr0
//!   ┌┴────┴┐        ┌┴────┴┐
//!   │  n1  │        │  n2  │          nodes: forwarding on, routes to the other nodes' pods
//!   └──┬───┘        └──┬───┘
//!      └──── core ─────┴──── outside  core: a bridge; outside: the nodes' default gateway
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;

use crate::batch::{Settled, in_parallel, put};
use crate::namespace::{Namespace, set_sysctl};
use crate::outcome::{Family, Protocol};
use crate::server::Servers;
use crate::topology::{Attachment, ClusterSpec, NodeSpec, PodSpec};

/// The MAC address of every node's side towards its pods (Calico uses the same one).
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
const BRIDGE: &str = "cbr0";
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
const OUTSIDE: &str = "outside";
const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 254));
const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0xfe));

/// A machine of the cluster.
#[derive(Clone, Debug)]
pub struct Host {
    /// The pod's or node's name, or `outside`.
    pub name: String,
    /// The node of a pod; `None` for nodes and the outside host.
    pub node: Option<String>,
    /// All addresses; probes by name go to the first of the family.
    pub addresses: Vec<IpAddr>,
    /// Its network.
    pub namespace: Namespace,
    link: String,
}

impl Host {
    /// The first address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(*a) == family)
    }

    /// For a pod: the name of its link on the node.
    #[must_use]
    pub fn node_link(&self) -> &str {
        &self.link
    }
}

/// Something with a name that can be probed from and to: a host, or one address of the outside host.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint<'a> {
    pub host: &'a Host,
    pub addresses: Vec<IpAddr>,
}

impl Endpoint<'_> {
    pub(crate) fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(*a) == family)
    }
}

/// A running cluster. Dropping it, or ending the process in any way, removes it.
#[derive(Debug)]
pub struct Cluster {
    attachment: Attachment,
    nodes: Vec<NodeSpec>,
    serves: Vec<(Protocol, u16)>,
    hosts: BTreeMap<String, Host>,
    /// Pods in the order in which they were asked for: the order of a matrix.
    order: Vec<String>,
    next_link: u32,
    pub(crate) servers: Servers,
    // Held, not read: the switch between the nodes.
    _core: Namespace,
}

impl ClusterSpec {
    /// Makes the cluster and starts its servers. Addresses can be used at once.
    ///
    /// # Errors
    /// When the specification contradicts itself, or a command or the kernel refuses.
    pub fn build(mut self) -> Result<Cluster> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let last = u8::try_from(index + 2).context("too many nodes")?;
            if !node.addresses.iter().any(IpAddr::is_ipv4) {
                node.addresses.push(IpAddr::V4(Ipv4Addr::new(172, 18, 0, last)));
            }
            if !node.addresses.iter().any(IpAddr::is_ipv6) {
                node.addresses.push(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, last.into())));
            }
        }
        let core = Namespace::new("core")?;
        core.run(|| prepare(false))??;
        let mut cluster = Cluster {
            attachment: self.attachment,
            nodes: self.nodes,
            serves: self.serves,
            hosts: BTreeMap::new(),
            order: Vec::new(),
            next_link: 0,
            servers: Servers::start()?,
            _core: core,
        };
        cluster.add_underlay(&self.outside)?;
        cluster.add_pods(self.pods)?;
        Ok(cluster)
    }
}

impl Cluster {
    /// A host by name: pod, node, or `outside`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| format!("no host {name:?} in this cluster"))
    }

    /// The namespace of a host, for commands: `cluster.namespace("n1")?.nft("…")`.
    ///
    /// # Errors
    /// When there is no host of that name.
    pub fn namespace(&self, name: &str) -> Result<&Namespace> {
        self.host(name).map(|host| &host.namespace)
    }

    /// Names of the pods, in the order in which they were added.
    #[must_use]
    pub fn pods(&self) -> &[String] {
        &self.order
    }

    /// Names of the nodes, in the order in which they were added.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// A host, or one address of the outside host, by name.
    pub(crate) fn endpoint(&self, name: &str) -> Result<Endpoint<'_>> {
        if let Some(host) = self.hosts.get(name) {
            return Ok(Endpoint { host, addresses: host.addresses.clone() });
        }
        let outside = self.host(OUTSIDE)?;
        match name.parse::<IpAddr>() {
            Ok(address) if outside.addresses.contains(&address) => {
                Ok(Endpoint { host: outside, addresses: vec![address] })
            }
            _ => bail!("no pod, node or outside address {name:?} in this cluster"),
        }
    }

    /// Makes a host serve one more port, on all its addresses.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(&self, host: &str, protocol: Protocol, port: u16) -> Result<()> {
        let host = self.host(host)?;
        self.servers.serve(&host.name, &host.namespace, &host.addresses, &[(protocol, port)])
    }

    /// Adds one pod to the running cluster.
    ///
    /// # Errors
    /// When its name or an address is taken, or its node is unknown.
    pub fn add_pod(&mut self, pod: PodSpec) -> Result<()> {
        self.add_pods(vec![pod])
    }

    /// Removes a pod with its link, routes and servers. Its addresses may be used again at once.
    ///
    /// # Errors
    /// When there is no such pod, or `ip` fails.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let host = self.host(name)?;
        let Some(node) = host.node.clone() else { bail!("{name} is not a pod") };
        let (link, addresses) = (host.link.clone(), host.addresses.clone());
        // The link first: the namespace itself goes later, when the kernel gets to it.
        let mut lines = format!("link del {link}\n");
        let mut neighbour_lines = String::new();
        let spec = self.node(&node)?;
        for address in addresses.iter().filter(|_| self.attachment == Attachment::Bridge) {
            // By way of the bridge, routes and neighbour entries outlive the pod's link.
            put(&mut lines, format_args!("route del {address} dev {BRIDGE}"));
            put(&mut lines, format_args!("neigh flush to {address} dev {BRIDGE}"));
            put(&mut neighbour_lines, format_args!("neigh flush to {address} dev eth0"));
            if !covered(spec, *address) {
                put(&mut neighbour_lines, format_args!("route flush exact {address}"));
            }
        }
        self.namespace(&node)?.ip(&lines)?;
        let neighbours = self.hosts.values().filter(|h| h.node.as_ref() == Some(&node) && h.name != name);
        for neighbour in neighbours.filter(|_| !neighbour_lines.is_empty()) {
            neighbour.namespace.ip(&neighbour_lines)?;
        }
        let node = self.node(&node)?.clone();
        for address in addresses.iter().filter(|a| !covered(&node, **a)) {
            for other in self.nodes.iter().filter(|other| other.name != node.name) {
                self.namespace(&other.name)?.ip(&format!("route del {address}\n"))?;
            }
            self.namespace(OUTSIDE)?.ip(&format!("route del {address}\n"))?;
        }
        self.servers.stop_host(name);
        self.hosts.remove(name);
        self.order.retain(|pod| pod != name);
        Ok(())
    }

    fn node(&self, name: &str) -> Result<&NodeSpec> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name:?}"))
    }

    /// Nodes, the core and the outside host, and everything between them.
    fn add_underlay(&mut self, extra: &[IpAddr]) -> Result<()> {
        let mut core = String::from("link add core0 type bridge mcast_snooping 0\nlink set core0 up\n");
        let mut outside_addresses = vec![OUTSIDE_V4, OUTSIDE_V6];
        outside_addresses.extend(extra);
        let mut hosts: Vec<(String, Vec<IpAddr>)> =
            self.nodes.iter().map(|node| (node.name.clone(), node.addresses.clone())).collect();
        hosts.push((OUTSIDE.into(), outside_addresses));
        let (mut setups, mut settled) = (Vec::new(), Settled::default());
        for (index, (name, addresses)) in hosts.into_iter().enumerate() {
            let namespace = Namespace::new(name.as_str())?;
            let is_node = name != OUTSIDE;
            namespace.run(|| prepare(is_node))??;
            let path = namespace.path();
            put(
                &mut core,
                format_args!("link add port{index} type veth peer name eth0 netns {}", path.display()),
            );
            put(&mut core, format_args!("link set port{index} master core0 up"));
            settled = settled.link(&format!("port{index}"));
            let ready = Settled::default().link("eth0").addresses(&addresses);
            setups.push((namespace.clone(), self.underlay_lines(&name, &addresses), ready));
            let host = Host { name: name.clone(), node: None, addresses, namespace, link: String::new() };
            ensure!(self.hosts.insert(name.clone(), host).is_none(), "two hosts are named {name}");
        }
        self._core.ip(&core)?;
        self._core.run(no_bridge_netfilter)??;
        in_parallel(&setups)?;
        settled.after("", &self._core)?;
        for node in &self.nodes {
            self.namespace(&node.name)?.run(no_bridge_netfilter)??;
        }
        let outside = self.host(OUTSIDE)?;
        self.servers.serve(OUTSIDE, &outside.namespace, &outside.addresses, &self.serves)
    }

    /// The `ip` lines of a node or of the outside host, without pods.
    fn underlay_lines(&self, name: &str, addresses: &[IpAddr]) -> String {
        let mut lines = String::from("link set lo up\nlink set eth0 up\n");
        for address in addresses {
            let in_underlay = self.nodes.iter().any(|n| n.addresses.contains(address))
                || [OUTSIDE_V4, OUTSIDE_V6].contains(address);
            let length = match (in_underlay, address) {
                (true, IpAddr::V4(_)) => 16,
                (true, IpAddr::V6(_)) => 64,
                (false, IpAddr::V4(_)) => 32,
                (false, IpAddr::V6(_)) => 128,
            };
            put(&mut lines, format_args!("addr add {address}/{length} dev eth0{}", nodad(*address)));
        }
        for other in self.nodes.iter().filter(|other| other.name != name) {
            for cidr in &other.pod_cidrs {
                put(&mut lines, format_args!("route add {cidr} via {}", via(other, cidr.addr())));
            }
        }
        let Some(node) = self.nodes.iter().find(|node| node.name == name) else { return lines };
        put(&mut lines, format_args!("route add 0.0.0.0/0 via {OUTSIDE_V4}"));
        put(&mut lines, format_args!("route add ::/0 via {OUTSIDE_V6}"));
        if self.attachment == Attachment::Bridge {
            put(
                &mut lines,
                format_args!("link add {BRIDGE} address {GATEWAY_MAC} type bridge mcast_snooping 0"),
            );
            put(&mut lines, format_args!("link set {BRIDGE} up"));
            for family in [Family::V4, Family::V6] {
                let gateway = gateway(node, family);
                let length = if family == Family::V4 { 32 } else { 128 };
                put(&mut lines, format_args!("addr add {gateway}/{length} dev {BRIDGE}{}", nodad(gateway)));
            }
        }
        lines
    }

    fn add_pods(&mut self, pods: Vec<PodSpec>) -> Result<()> {
        let mut per_host: BTreeMap<String, String> = BTreeMap::new();
        let mut fresh = Vec::new();
        for pod in &pods {
            let node = self.node(&pod.node)?.clone();
            ensure!(!self.hosts.contains_key(&pod.name), "two hosts are named {}", pod.name);
            for address in &pod.addresses {
                let taken = self.hosts.values().find(|host| host.addresses.contains(address));
                ensure!(taken.is_none(), "{address} of {} is taken", pod.name);
                ensure!(*address != gateway(&node, Family::of(*address)), "{address} is the node's gateway");
            }
            let namespace = Namespace::new(pod.name.as_str())?;
            namespace.run(|| prepare(false))??;
            let link = format!("veth{}", self.next_link);
            self.next_link += 1;
            let lines = per_host.entry(node.name.clone()).or_default();
            self.node_lines(lines, &link, &namespace, pod);
            for address in pod.addresses.iter().filter(|a| !covered(&node, **a)) {
                let others = self.nodes.iter().filter(|other| other.name != node.name);
                for other in others.map(|other| other.name.as_str()).chain([OUTSIDE]) {
                    let lines = per_host.entry(other.into()).or_default();
                    put(lines, format_args!("route add {address} via {}", via(&node, *address)));
                }
            }
            let host = Host {
                name: pod.name.clone(),
                node: Some(node.name),
                addresses: pod.addresses.clone(),
                namespace,
                link,
            };
            fresh.push(pod.name.clone());
            self.hosts.insert(pod.name.clone(), host);
        }
        let mut setups = Vec::new();
        for (name, lines) in per_host {
            setups.push((self.namespace(&name)?.clone(), lines, Settled::default()));
        }
        in_parallel(&setups)?;
        let mut setups = Vec::new();
        for name in &fresh {
            let host = self.host(name)?;
            let ready = Settled::default().link("eth0").addresses(&host.addresses);
            setups.push((host.namespace.clone(), self.pod_lines(host)?, ready));
        }
        in_parallel(&setups)?;
        self.settle_nodes(&fresh)?;
        for (name, pod) in fresh.iter().zip(&pods) {
            let host = self.host(name)?;
            let serves: Vec<_> = self.serves.iter().chain(&pod.serves).copied().collect();
            self.servers.serve(name, &host.namespace, &host.addresses, &serves)?;
        }
        if self.attachment == Attachment::Bridge {
            self.reach_earlier_pods(&fresh)?;
        }
        self.order.extend(fresh);
        Ok(())
    }

    /// The node's half of a pod's link.
    fn node_lines(&self, lines: &mut String, link: &str, namespace: &Namespace, pod: &PodSpec) {
        let path = namespace.path();
        let (mac, device) = match self.attachment {
            Attachment::Routed => (format!(" address {GATEWAY_MAC}"), link),
            Attachment::Bridge => (String::new(), BRIDGE),
        };
        put(lines, format_args!("link add {link}{mac} type veth peer name eth0 netns {}", path.display()));
        if self.attachment == Attachment::Bridge {
            put(lines, format_args!("link set {link} master {BRIDGE}"));
        }
        put(lines, format_args!("link set {link} up"));
        for address in &pod.addresses {
            let scope = if address.is_ipv4() { " scope link" } else { "" };
            put(lines, format_args!("route add {address} dev {device}{scope}"));
        }
    }

    /// The pod's half: addresses, the gateway with a fixed neighbour entry, the way to its neighbours.
    fn pod_lines(&self, pod: &Host) -> Result<String> {
        let node = self.node(pod.node.as_deref().unwrap_or_default())?;
        let mut lines = String::from("link set lo up\nlink set eth0 up\n");
        for address in &pod.addresses {
            let length = if address.is_ipv4() { 32 } else { 128 };
            put(&mut lines, format_args!("addr add {address}/{length} dev eth0{}", nodad(*address)));
        }
        for family in [Family::V4, Family::V6] {
            if pod.address(family).is_none() {
                continue;
            }
            let gateway = match (family, self.attachment) {
                (Family::V4, Attachment::Routed) => GATEWAY_V4,
                (Family::V6, Attachment::Routed) => GATEWAY_V6,
                (_, Attachment::Bridge) => gateway(node, family),
            };
            let everything = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
            if self.attachment == Attachment::Routed {
                put(
                    &mut lines,
                    format_args!("neigh add {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent"),
                );
            }
            if gateway != GATEWAY_V6 {
                put(&mut lines, format_args!("route add {gateway} dev eth0"));
            }
            put(&mut lines, format_args!("route add {everything} via {gateway} dev eth0"));
        }
        if self.attachment == Attachment::Bridge {
            for cidr in node.pod_cidrs.iter().filter(|c| pod.address(Family::of(c.addr())).is_some()) {
                put(&mut lines, format_args!("route add {cidr} dev eth0"));
            }
            let neighbours = self.hosts.values().filter(|h| h.node == pod.node && h.name != pod.name);
            for address in neighbours.flat_map(|h| &h.addresses).filter(|a| !covered(node, **a)) {
                if pod.address(Family::of(*address)).is_some() {
                    put(&mut lines, format_args!("route add {address} dev eth0"));
                }
            }
        }
        Ok(lines)
    }

    /// Waits until the nodes' sides of new pods' links work.
    fn settle_nodes(&self, fresh: &[String]) -> Result<()> {
        for node in &self.nodes {
            let on_node = fresh.iter().filter_map(|name| self.hosts.get(name));
            let on_node: Vec<&Host> = on_node.filter(|host| host.node.as_ref() == Some(&node.name)).collect();
            let mut settled =
                on_node.iter().fold(Settled::default(), |settled, host| settled.link(&host.link));
            if self.attachment == Attachment::Bridge && !on_node.is_empty() {
                // A bridge is ready when its first port is.
                settled = settled.link(BRIDGE).addresses(&[gateway(node, Family::V6)]);
            }
            settled.after("", self.namespace(&node.name)?)?;
        }
        Ok(())
    }

    /// Pods that were there before learn that the new ones are on their own bridge.
    fn reach_earlier_pods(&self, fresh: &[String]) -> Result<()> {
        for name in &self.order {
            let pod = self.host(name)?;
            let node = self.node(pod.node.as_deref().unwrap_or_default())?;
            let mut lines = String::new();
            for new in fresh.iter().filter_map(|name| self.hosts.get(name)).filter(|h| h.node == pod.node) {
                for address in new.addresses.iter().filter(|a| !covered(node, **a)) {
                    put(&mut lines, format_args!("route replace {address} dev eth0"));
                }
            }
            if !lines.is_empty() {
                pod.namespace.ip(&lines)?;
            }
        }
        Ok(())
    }
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn covered(node: &NodeSpec, address: IpAddr) -> bool {
    node.pod_cidrs.iter().any(|cidr| cidr.contains(&address))
}

/// The node's own address of the family in question.
fn via(node: &NodeSpec, family_of: IpAddr) -> IpAddr {
    let same = |a: &&IpAddr| Family::of(**a) == Family::of(family_of);
    node.addresses.iter().find(same).copied().unwrap_or(family_of)
}

/// The bridge's address: the first one of the node's pod CIDR, as the `bridge` CNI plugin does.
fn gateway(node: &NodeSpec, family: Family) -> IpAddr {
    let cidr = node.pod_cidrs.iter().find(|cidr| Family::of(cidr.addr()) == family);
    match (cidr, family) {
        (Some(IpNet::V4(cidr)), _) => IpAddr::V4(Ipv4Addr::from_bits(cidr.network().to_bits() + 1)),
        (Some(IpNet::V6(cidr)), _) => IpAddr::V6(Ipv6Addr::from_bits(cidr.network().to_bits() + 1)),
        (None, Family::V4) => GATEWAY_V4,
        (None, Family::V6) => GATEWAY_V6,
    }
}

/// Sysctls of a fresh namespace, before it has links (`default` applies to the links that come).
fn prepare(is_node: bool) -> Result<()> {
    // Addresses must be usable at once, and nothing may wait for routers.
    for scope in ["all", "default"] {
        set_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        set_sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
    }
    set_sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    // Many, but none that a server may have: who asks for a port until somebody listens there can be given that
    // very port as its own, and then talks to itself and keeps the server from listening.
    set_sysctl("net/ipv4/ip_local_port_range", "20501 65000")?;
    // KERNEL: net/ipv4/icmp.c limits errors to one per second and peer; a matrix asks for more at once.
    set_sysctl("net/ipv4/icmp_ratelimit", "0")?;
    set_sysctl("net/ipv6/icmp/ratelimit", "0")?;
    // Per namespace since Linux 6.15; before, the machine's own value holds (1000 per second).
    let _ = set_sysctl("net/ipv4/icmp_msgs_per_sec", "1000000");
    let _ = set_sysctl("net/ipv4/icmp_msgs_burst", "1000000");
    if is_node {
        set_sysctl("net/ipv4/ip_forward", "1")?;
        set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Bridged packets stay out of the IP hooks until somebody asks for it. Without br_netfilter there is
/// nothing to switch off.
fn no_bridge_netfilter() -> Result<()> {
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"] {
        if std::path::Path::new("/proc/sys/net/bridge").join(key).exists() {
            set_sysctl(&format!("net/bridge/{key}"), "0")?;
        }
    }
    Ok(())
}
