//! The only kernel I/O: IPVS, the table, the routes of virtual addresses, sysctls, connection tracking.

pub mod address;
pub mod health;

use std::io;
use std::net::IpAddr;

use kernel_netlink::ipvs::Protocol;

/// Forgets tracked connections.
pub trait Connections {
    /// Forgets those of `protocol` that were opened to one of the addresses and ports, and says how many.
    ///
    /// # Errors
    /// When connection tracking cannot be read or written.
    fn forget(&mut self, protocol: Protocol, to: &[(IpAddr, u16)]) -> io::Result<usize>;
}
