//! Tracked connections: ends those that lead where nobody answers any more.
//!
//! A datagram that belongs to a tracked connection goes where the first one went, whatever Services have become
//! since. TCP notices; a UDP client that keeps its port sends into the void for as long as it goes on. So when a
//! UDP endpoint goes, or a virtual address gets its first one, what is tracked for it is removed.
//!
//! ```text
//!   original   client:port ──► destination:port      what the client sent to: a virtual address, a node port
//!   reply      source:port ──► …                     who answers: the endpoint, where addresses were translated
//! ```

mod fake;
#[cfg(test)]
mod fuzz;
mod socket;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

pub use fake::Fake;
pub use socket::Socket;

pub use crate::family::{Family, Protocol};
pub use crate::netlink::Error;

/// Where the packets of one direction come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// From.
    pub source_port: u16,
    /// To.
    pub destination_port: u16,
}

/// A tracked connection of a protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// Its protocol.
    pub protocol: Protocol,
    /// The direction of its first packet.
    pub original: Tuple,
    /// The direction of the answers.
    pub reply: Tuple,
    /// Connections in other zones are other connections; 0 unless somebody made zones.
    pub zone: u16,
    /// What tells it from a later one with the same tuples, where the kernel told. KERNEL: nearly always: it is a
    /// hash of the tuple and of where the connection is in memory (`nf_ct_get_id()`).
    pub id: Option<u32>,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple { source, destination, source_port, destination_port } = self.original;
        write!(f, "{} {source} {source_port} to {destination} {destination_port}", self.protocol)
    }
}

/// Connections to be ended, by what their first packet was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stale {
    /// Its destination: a virtual address. `None` is any address: for node ports.
    pub destination: Option<IpAddr>,
    /// Its destination port.
    pub port: u16,
    /// Who answers: an endpoint that is gone. `None` is whoever.
    pub endpoint: Option<IpAddr>,
}

/// A place that holds tracked connections: the kernel ([`Socket`]) or a model of it ([`Fake`]). One contract suite
/// runs on both.
pub trait Conntrack {
    /// Looks at every connection of a protocol, IPv4 and IPv6, once, and ends those that `is_stale` picks. Returns
    /// how many there were to end; one that ends by itself meanwhile is not counted.
    ///
    /// A connection that is looked at while the table is being resized may be missed.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked or refuses; some may have been ended.
    fn delete_where(
        &mut self,
        protocol: Protocol,
        is_stale: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<usize, Error>;
}

/// Ends the connections of a protocol that any of `stale` describes, in one pass whose cost does not depend on how
/// many these are. Returns how many there were to end. Nothing to look for asks nothing.
///
/// # Errors
/// As [`Conntrack::delete_where`].
///
/// ```
/// use kernel_netlink::conntrack::{Conntrack, Fake, Protocol, Stale, delete};
/// let mut conntrack = Fake::new();
/// let gone = Stale { destination: "10.96.0.10".parse().ok(), port: 53, endpoint: "10.244.1.7".parse().ok() };
/// assert_eq!(delete(&mut conntrack, Protocol::UDP, &[gone]).ok(), Some(0));
/// ```
pub fn delete(conntrack: &mut dyn Conntrack, protocol: Protocol, stale: &[Stale]) -> Result<usize, Error> {
    if stale.is_empty() {
        return Ok(0);
    }
    let wanted = Wanted::new(stale);
    conntrack.delete_where(protocol, &mut |connection| wanted.holds(connection))
}

/// [`Stale`]s by where packets went to.
struct Wanted(BTreeMap<(u16, Option<IpAddr>), Answering>);

/// Whose connections are to be ended.
#[derive(Default)]
struct Answering {
    whoever: bool,
    endpoints: BTreeSet<IpAddr>,
}

impl Wanted {
    fn new(stale: &[Stale]) -> Self {
        let mut wanted: BTreeMap<_, Answering> = BTreeMap::new();
        for stale in stale {
            let answering = wanted.entry((stale.port, stale.destination)).or_default();
            match stale.endpoint {
                Some(endpoint) => {
                    answering.endpoints.insert(endpoint);
                }
                None => answering.whoever = true,
            }
        }
        Self(wanted)
    }

    fn holds(&self, connection: &Connection) -> bool {
        let Tuple { destination, destination_port, .. } = connection.original;
        [Some(destination), None].into_iter().any(|destination| {
            let answering = self.0.get(&(destination_port, destination));
            answering.is_some_and(|answering| {
                answering.whoever || answering.endpoints.contains(&connection.reply.source)
            })
        })
    }
}
