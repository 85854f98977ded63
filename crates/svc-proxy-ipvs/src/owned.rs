//! Every name and number that svc-proxy-ipvs owns in the kernel. docs/kernel-ownership.md says the same, and a
//! test compares the two.

/// The nftables table, family `inet`.
pub const TABLE: &str = "svc_proxy_ipvs";

/// Comment of the table; tells which program wrote it.
pub const TABLE_COMMENT: &str = "svc-proxy-ipvs";

/// Priority of the chain `input`: `filter - 5`. IPVS is at 98.
pub const INPUT_PRIORITY: i32 = -5;

/// Priority of the chain `output`: after translation of destinations (-100) and before IPVS, which takes packets
/// of this node at -98.
pub const OUTPUT_PRIORITY: i32 = -99;

/// Priority of the chain `forward`: `filter - 5`.
pub const FORWARD_PRIORITY: i32 = -5;

/// Priority of the chains `prerouting` and `output-nat`: `dstnat`.
pub const DSTNAT_PRIORITY: i32 = -100;

/// Priority of the chain `postrouting`: `srcnat`.
pub const SRCNAT_PRIORITY: i32 = 100;

/// Priority of the chain `dsr-raw`, before connection tracking: `raw`.
pub const RAW_PRIORITY: i32 = -300;

/// Priority of the chain `dsr-mark` at prerouting: after everybody else's, since IPVS compares whole marks.
pub const MARK_PRIORITY: i32 = -90;

/// Priority of the chain `dsr-output` (type `route`): after translation of destinations (-100), so that only what
/// still goes to a virtual address is marked, and before IPVS (-98).
pub const MARK_OUTPUT_PRIORITY: i32 = -99;

/// Priority of the chain `dsr-sent` at output: before translation, which asks for a route again.
pub const UNMARK_PRIORITY: i32 = -150;

/// Marks of packets to fronts that are served by direct return, and to other fronts of their addresses: the bits of
/// [`MARK_MASK`]. The others are the number of the front; 0 for fronts that IPVS knows by their address.
pub const MARK: u32 = 0x4d00_0000;

/// Bits of [`MARK`] that are the same in all of our marks. The whole mark is written.
pub const MARK_MASK: u32 = 0xff00_0000;

/// Preference of the ip rules that lead marked packets to [`MARK_TABLE`].
pub const MARK_RULE: u32 = 32764;

/// The routing table by which marked packets are this node's.
pub const MARK_TABLE: u32 = 78;

/// The devices of tunnels in the network namespaces of pods that are served by direct return; kube-router's names.
pub const TUNNELS: [&str; 2] = ["kube-tunnel-if", "kube-tunnel-v6"];

/// The device that routes of virtual addresses point to. It has no addresses.
pub const DEVICE: &str = "kube-dummy-if";

/// kube-proxy's device in its mode ipvs: its addresses are virtual ones too. It is not ours.
pub const KUBE_PROXY_DEVICE: &str = "kube-ipvs0";

/// Protocol number of the routes of virtual addresses, which are in the table `local`, and of the routes and rules
/// of marked packets.
pub const ROUTE_PROTOCOL: u8 = 44;

/// Sysctls that are set, and to what. Those of IPVS exist once its module is loaded.
///
/// - `vs/conntrack`: source translation and connection tracking see packets of IPVS.
/// - `vs/expire_nodest_conn`: connections to a destination that is gone end at once, and are no black hole.
/// - `vs/expire_quiescent_template`: clients with affinity leave a destination that is drained.
/// - `arp_ignore`, `arp_announce`: virtual addresses are neither answered for nor used as a source on the LAN.
pub const SYSCTLS: [(&str, &str); 7] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
];

/// Sysctls that are set where they exist: packets between two pods on one bridge pass IPVS in both directions.
pub const BRIDGE_SYSCTLS: [(&str, &str); 2] =
    [("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")];

/// Sysctls that are set while something is served by direct return, and set back when that is over.
///
/// - `vs/pmtu_disc`: 0 where UDP is served so. What is too large for the tunnel is fragmented; the sender cannot be
///   told to send less by a node that has no address of the front.
/// - `vs/sloppy_tcp`: 1 where the scheduler is `mh`. Connections that come by another node from one packet to the
///   next are taken on in the middle, and the hash leads them to the same endpoint.
pub const DIRECT_SYSCTLS: [&str; 2] = ["net/ipv4/vs/pmtu_disc", "net/ipv4/vs/sloppy_tcp"];
