//! Every name and number that cni-bridge owns in the kernel. docs/kernel-ownership.md says the same, and a test
//! compares the two.

/// The nftables table, family `inet`. It has no owner: calls are short.
pub const TABLE: &str = "cni_bridge";

/// Comment of the table; tells which program wrote it.
pub const TABLE_COMMENT: &str = "cni-bridge";

/// Priority of the base chain that masquerades, at postrouting: `srcnat`.
pub const SOURCE_PRIORITY: i32 = 100;

/// Priority of the base chains that lead host ports to containers, at prerouting and output: `dstnat`.
pub const DESTINATION_PRIORITY: i32 = -100;

/// Priority of the base chain that keeps packets to 127.0.0.0/8 off the node, at prerouting: `raw`, before anything
/// is translated.
pub const LOOPBACK_PRIORITY: i32 = -300;

/// How the host's ends of veths are named: this and eleven digits.
pub const LINK_PREFIX: &str = "veth";

/// How the alias of a link of ours begins; then network, container and interface.
pub const ALIAS_PREFIX: &str = "cni-bridge";

/// Sysctls that are set to 1 when a bridge is a gateway, or leads host ports to containers.
pub const SYSCTLS: [&str; 3] =
    ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/BRIDGE/route_localnet"];

/// Sysctls of a bridge that was made here that are set to 0: who announces routes on it is a container, and nobody
/// else has its link-local address, which is of its random Ethernet address.
pub const BRIDGE_SYSCTLS: [&str; 2] = ["net/ipv6/conf/BRIDGE/accept_ra", "net/ipv6/conf/BRIDGE/accept_dad"];
