//! One layout on one node: client, router and server, each in a namespace of its own.
//!
//! ```text
//!  client ──veth── router ──veth── server
//!  a peer          the node        the pod in the middle of the node's list
//!  CPU 0           hook forward    CPU 1
//! ```
//!
//! The other pods of the node exist in the rules only; no packet needs them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common_informer::object::{Batch, Change};
use kernel_nft::{Socket, TableFlags};
use node_runtime::{Cause, Controller};
use npc_firewall::apply::Marks;
use npc_firewall::controller::{Firewall, Surroundings};
use npc_firewall::plan::PlanConfig;
use test_netns::Namespace;

use super::kube_router;
use super::scenario::{CLOSED_PORT, NODE, Scenario, TCP_PORT, UDP_PORT};

const CLIENT_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 254);
const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Whose rules are in the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One conntrack rule, no firewall: what every node with kube-proxy pays anyway.
    Conntrack,
    /// Planned and committed by npc-firewall.
    Ours,
    /// kube-router, iptables and ipset.
    KubeRouterIptables,
    /// kube-router, nftables.
    KubeRouterNftables,
}

impl Layout {
    /// All, in the order of the report.
    pub(crate) const ALL: [Self; 4] =
        [Self::Conntrack, Self::Ours, Self::KubeRouterNftables, Self::KubeRouterIptables];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Conntrack => "conntrack only",
            Self::Ours => "npc-firewall",
            Self::KubeRouterIptables => "kube-router, iptables",
            Self::KubeRouterNftables => "kube-router, nftables",
        }
    }
}

/// The namespaces of a layout, with rules in force and servers listening.
pub(crate) struct Lane {
    /// Whose rules.
    pub(crate) layout: Layout,
    /// For which node.
    pub(crate) scenario: Scenario,
    /// Where load comes from.
    pub(crate) client: Namespace,
    /// Where it goes.
    pub(crate) server: Namespace,
    /// Listens on the open TCP port.
    pub(crate) tcp: TcpListener,
    /// Bound to the open UDP port.
    pub(crate) udp: UdpSocket,
    /// Sources used so far by packets of new flows.
    pub(crate) flows: u64,
    router: Namespace,
    closed: TcpListener,
}

impl Lane {
    /// Makes the namespaces and loads the rules.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses links or rules.
    pub(crate) fn new(layout: Layout, scenario: Scenario) -> Result<Self> {
        let name = |part: &str| format!("{part} of {} with {} pods", layout.name(), scenario.pods);
        let client = Namespace::new(name("client"))?;
        let router = Namespace::new(name("router"))?;
        let server = Namespace::new(name("server"))?;
        connect(&scenario, &client, &router, &server)?;
        load(layout, &scenario, &router).with_context(|| name("rules"))?;
        let pod = scenario.target();
        let (tcp, udp, closed) = server.run(|| -> Result<_> {
            let listen = |port| TcpListener::bind((pod, port)).context("listen");
            let udp = UdpSocket::bind((pod, UDP_PORT)).context("bind")?;
            // Nobody reads what UDP workloads send; a small queue keeps the memory of it in the cache.
            socket2::SockRef::from(&udp).set_recv_buffer_size(16 * 1024)?;
            Ok((listen(TCP_PORT)?, udp, listen(CLOSED_PORT)?))
        })??;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        let lane = Self { layout, scenario, client, server, tcp, udp, flows: 0, router, closed };
        lane.check()?;
        Ok(lane)
    }

    /// Where TCP load goes.
    pub(crate) fn tcp_address(&self) -> SocketAddr {
        (self.scenario.target(), TCP_PORT).into()
    }

    /// Where UDP load goes.
    pub(crate) fn udp_address(&self) -> SocketAddr {
        (self.scenario.target(), UDP_PORT).into()
    }

    /// The rules judge: the open port is open, and the other is closed by every layout that is a firewall.
    fn check(&self) -> Result<()> {
        let pod = self.scenario.target();
        let reaches = |port| -> Result<bool> {
            let timeout = Duration::from_secs(1);
            let connect = move || TcpStream::connect_timeout(&(pod, port).into(), timeout).is_ok();
            self.client.run(connect)
        };
        ensure!(reaches(TCP_PORT)?, "{}: the open port is closed", self.router.label());
        // Taken from the queue, so that the load finds it empty.
        let (accepted, _) = accept(&self.tcp)?;
        drop(accepted);
        let closed = reaches(CLOSED_PORT)?;
        ensure!(
            closed == (self.layout == Layout::Conntrack),
            "{}: the closed port {} is {}",
            self.router.label(),
            self.closed.local_addr()?,
            if closed { "open" } else { "closed" }
        );
        Ok(())
    }
}

fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let limit = Instant::now() + Duration::from_secs(2);
    loop {
        match listener.accept() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < limit => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other.context("accept"),
        }
    }
}

/// Two links, with fixed neighbours: no ARP in the middle of a measurement.
fn connect(scenario: &Scenario, client: &Namespace, router: &Namespace, server: &Namespace) -> Result<()> {
    let (peer, pod) = (scenario.client(), scenario.target());
    router.ip(&format!(
        "link add c0 address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {}\n\
         link add s0 address 02:00:00:00:00:03 type veth peer name eth0 address 02:00:00:00:00:04 netns {}\n\
         addr add {CLIENT_GATEWAY}/24 dev c0\naddr add {POD_GATEWAY}/32 dev s0\n\
         link set c0 up\nlink set s0 up\nroute add {pod}/32 dev s0\n\
         neigh add {peer} lladdr 02:00:00:00:00:02 dev c0 nud permanent\n\
         neigh add {pod} lladdr 02:00:00:00:00:04 dev s0 nud permanent",
        client.path().display(),
        server.path().display(),
    ))?;
    client.ip(&format!(
        "addr add {peer}/24 dev eth0\nlink set eth0 up\nroute add default via {CLIENT_GATEWAY}\n\
         neigh add {CLIENT_GATEWAY} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
    ))?;
    server.ip(&format!(
        "addr add {pod}/32 dev eth0\nlink set eth0 up\nroute add {POD_GATEWAY} dev eth0\n\
         route add default via {POD_GATEWAY}\n\
         neigh add {POD_GATEWAY} lladdr 02:00:00:00:00:03 dev eth0 nud permanent"
    ))?;
    router.sysctl("net/ipv4/ip_forward", "1")?;
    client.sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
    for scope in ["all", "c0", "s0"] {
        router.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    for namespace in [server, client] {
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        namespace.sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
    }
    Ok(())
}

fn load(layout: Layout, scenario: &Scenario, router: &Namespace) -> Result<()> {
    match layout {
        Layout::Conntrack => router.nft(
            "table inet conntrack_only { chain forward { type filter hook forward priority filter - 5; \
             ct state established,related accept; }; }",
        )?,
        Layout::Ours => enforce(scenario, router)?,
        Layout::KubeRouterIptables => {
            router.output("ipset", &["restore"], &kube_router::ipsets(scenario))?;
            router.output("iptables-restore", &[], &kube_router::iptables(scenario))?;
        }
        Layout::KubeRouterNftables => router.nft(&kube_router::nftables(scenario))?,
    }
    // The connections of new UDP flows must be gone when the next slot begins: the table is bounded.
    router.sysctl("net/netfilter/nf_conntrack_udp_timeout", "1")
}

struct NoMarks;

impl Marks for NoMarks {
    fn clear(&mut self, _: u32, _: u32) -> std::io::Result<()> {
        Ok(())
    }
}

/// The firewall itself, for as long as one sync takes; its table stays.
fn enforce(scenario: &Scenario, router: &Namespace) -> Result<()> {
    let changes = scenario.objects()?.into_iter().map(Change::Applied).collect();
    router.run(move || -> Result<()> {
        let surroundings = Surroundings {
            nft: Socket::open()?,
            marks: Box::new(NoMarks),
            sysctls: None,
            watch: None,
            metrics: None,
            informer: None,
        };
        let mut firewall = Firewall::new(NODE, PlanConfig::default(), TableFlags::default(), surroundings);
        firewall.receive(Batch { changes, synced: true });
        match firewall.sync(Cause::Start, Instant::now()) {
            Ok(_) => Ok(()),
            Err(failed) => bail!("{}", failed.error),
        }
    })?
}
