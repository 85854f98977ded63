//! Every name that cni-bridge-agent owns: sysctls in the kernel (docs/kernel-ownership.md says the same, and a test
//! compares the two), keys in the configuration of the network, files on the node, a condition at the API server.

/// Sysctls that are set to 1 where they exist, so that packets between two pods on one bridge pass the forward hook,
/// as NetworkPolicy and virtual addresses need it.
pub const SYSCTLS: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

/// The plugin: its type in configurations, its name in the folder of plugins.
pub const PLUGIN: &str = "cni-bridge";

/// What runtimes call for every container beside the network's plugin. Installed where there is none, as kube-router does;
/// never in the place of another.
pub const LOOPBACK: &str = "loopback";

/// Part of every version of the plugin (what it says of itself when nobody calls it), and of no plugin of others. So an
/// old one of ours is known.
pub const PLUGIN_MARK: &[u8] = b"CNI bridge plugin cni-bridge ";

/// What is added to the name of a plugin of others that gave way (`--install-as bridge`).
pub const REPLACED_SUFFIX: &str = ".upstream";

/// How drafts of files begin. They are in the folder of the file; whatever reads that folder passes them over.
pub const DRAFT_PREFIX: &str = ".cni-bridge-agent.";

/// Where the configuration is written unless a flag says otherwise: kube-router's place.
pub const CONF_FILE: &str = "/etc/cni/net.d/10-kuberouter.conflist";

/// The bridge, as kube-router's.
pub const BRIDGE: &str = "kube-bridge";

/// Name of a network whose configuration is made here: that of kube-router's manifests. Addresses are reserved by it, so
/// on a node that has lost its configuration those of running pods are known again. One that has a name keeps it.
pub const NETWORK: &str = "mynet";

/// The same of a file with one plugin, as kube-router's used to be.
pub const SINGLE_NETWORK: &str = "kubernetes";

/// The condition of the node that is set to False.
pub const CONDITION: &str = "NetworkUnavailable";

/// Its reason.
pub const CONDITION_REASON: &str = "CniBridgeIsReady";

/// Field manager of the node's status.
pub const FIELD_MANAGER: &str = "cni-bridge-agent";
