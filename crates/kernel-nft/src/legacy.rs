//! Tables of the older iptables (`iptables-legacy`), which are no tables of nf_tables and not seen by it.

use std::io;

use crate::expr::IpVersion;

/// Names of the older tables that are in use in the network namespace of the calling thread. None where the kernel
/// has no such tables.
///
/// # Errors
/// When they cannot be read: the kernel lets only root.
pub fn tables(version: IpVersion) -> io::Result<Vec<String>> {
    // KERNEL: /proc/net is that of the process; only thread-self is the thread that may have moved.
    let path = match version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
