//! The kernel's tracked connections as [`Conntrack`].

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::{Connection, Conntrack, Error, Family, Protocol, wire};
use crate::netlink::{Netlink, ReadError};

/// How often the table is gone through because it, or an answer, was torn.
const ATTEMPTS: u32 = 5;
const OPENING: &str = "opening connection tracking";
const OBSERVING: &str = "reading tracked connections";
const DELETING: &str = "ending tracked connections";

/// A conversation with connection tracking in one network namespace. It takes `CAP_NET_ADMIN` in the user
/// namespace that the network namespace belongs to.
pub struct Socket {
    netlink: Netlink,
}

impl Socket {
    /// Opens a conversation in the network namespace of the calling thread; it stays there.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no socket to be had.
    pub fn open() -> Result<Self, Error> {
        let netlink = Netlink::open(NETLINK_NETFILTER);
        Ok(Self { netlink: netlink.map_err(|source| Error::Io { context: OPENING, source })? })
    }

    /// Those of a family and protocol that are picked. The dump may have been interrupted: `false`.
    fn pick(
        &mut self,
        family: Family,
        protocol: Protocol,
        is_stale: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<(Vec<Connection>, bool), Error> {
        let mut picked = Vec::new();
        let outcome = self.netlink.request(wire::get(family, protocol), NLM_F_DUMP, |body| {
            let found = wire::connection(body)?;
            // KERNEL: older ones answer with more than was asked for.
            let asked = |found: &Connection| {
                found.protocol == protocol && Family::of(found.original.source) == family
            };
            picked.extend(found.filter(|found| asked(found) && is_stale(found)));
            Ok(())
        });
        match outcome {
            Ok(()) => Ok((picked, true)),
            Err(ReadError::Interrupted) => Ok((picked, false)),
            Err(error) => Err(error.explained(OBSERVING, 1)),
        }
    }

    fn delete_of_family(
        &mut self,
        family: Family,
        protocol: Protocol,
        is_stale: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<usize, Error> {
        let mut ended = 0;
        for _ in 0..ATTEMPTS {
            let (picked, read) = self.pick(family, protocol, is_stale)?;
            let (count, told) = self.end(&picked)?;
            ended += count;
            if read && told {
                return Ok(ended);
            }
        }
        Err(Error::Unstable { context: OBSERVING, attempts: ATTEMPTS })
    }

    /// How many were there to end, and whether that is known for all of them.
    fn end(&mut self, connections: &[Connection]) -> Result<(usize, bool), Error> {
        let failed = |source| Error::Io { context: DELETING, source };
        let messages = connections.iter().map(|connection| (wire::delete(connection), 0));
        let answers = self.netlink.batch(messages).map_err(failed)?;
        let mut gone = 0;
        for (_, errno) in &answers.refused {
            match *errno {
                // It has ended by itself, or another has taken its place.
                libc::ENOENT => gone += 1,
                errno => return Err(failed(io::Error::from_raw_os_error(errno))),
            }
        }
        Ok((connections.len() - gone, !answers.lost))
    }
}

impl Conntrack for Socket {
    fn delete_where(
        &mut self,
        protocol: Protocol,
        is_stale: &mut dyn FnMut(&Connection) -> bool,
    ) -> Result<usize, Error> {
        let mut ended = 0;
        for family in [Family::Ipv4, Family::Ipv6] {
            ended += self.delete_of_family(family, protocol, is_stale)?;
        }
        Ok(ended)
    }
}
