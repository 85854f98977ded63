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

/// The device that routes of virtual addresses point to. It has no addresses.
pub const DEVICE: &str = "kube-dummy-if";

/// Protocol number of the routes of virtual addresses, which are in the table `local`.
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
