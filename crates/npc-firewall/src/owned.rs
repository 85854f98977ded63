//! Every name and number that npc-firewall owns in the kernel. docs/kernel-ownership.md says the same, and a
//! test compares the two.

/// The nftables table, family `inet`.
pub const TABLE: &str = "npc_firewall";

/// Comment of the table; tells which program wrote it.
pub const TABLE_COMMENT: &str = "npc-firewall";

/// Priority of the base chains: `filter - 5`, after connection tracking and DNAT, before SNAT, so that both
/// addresses of a packet are those of pods.
pub const PRIORITY: i32 = -5;

/// Bits of the connection mark that hold the generation of the rules under which a connection was allowed
/// (`--mark-mask`).
pub const MARK_MASK: u32 = 0x00ff_0000;

/// NFLOG group of refused packets (`--nflog-group`), as kube-router's.
pub const NFLOG_GROUP: u16 = 100;

/// Sysctls that are set to 1 where they exist, so that packets between two pods on one Linux bridge pass the
/// forward hook.
pub const SYSCTLS: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
