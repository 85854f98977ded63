//! The kernel's links, addresses, routes and rules as [`Rtnetlink`].

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::command::Command;
use super::entry::*;
use super::link::*;
use super::{CommitError, Error, Rtnetlink, wire};
use crate::commit::outcome;
use crate::family::Family;
use crate::netlink::{ATTEMPTS, Netlink, ReadError};

const OPENING: &str = "opening rtnetlink";
const OBSERVING_LINKS: &str = "reading links";
const OBSERVING_ADDRESSES: &str = "reading addresses";
const OBSERVING_ROUTES: &str = "reading routes";
const OBSERVING_RULES: &str = "reading rules";

/// A conversation with rtnetlink in one network namespace. Anybody may read; changes take `CAP_NET_ADMIN` in the
/// user namespace that the network namespace belongs to.
pub struct Socket {
    netlink: Netlink,
}

impl Socket {
    /// Opens a conversation in the network namespace of the calling thread; it stays there.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no socket to be had.
    pub fn open() -> Result<Self, Error> {
        let netlink =
            Netlink::open(NETLINK_ROUTE).map_err(|source| Error::Io { context: OPENING, source })?;
        netlink.filter_dumps();
        Ok(Self { netlink })
    }

    /// What the kernel calls this socket, for [`Monitor::ignore`](super::Monitor::ignore).
    pub const fn port(&self) -> u32 {
        self.netlink.port()
    }
}

impl Rtnetlink for Socket {
    fn observe_links(&mut self) -> Result<Vec<Link>, Error> {
        let found = self.netlink.read(&wire::get_links(), NLM_F_DUMP, wire::read_link);
        found.map_err(|error| error.explained(OBSERVING_LINKS, ATTEMPTS))
    }

    fn observe_link(&mut self, name: &LinkName) -> Result<Option<Link>, Error> {
        match self.netlink.read(&wire::get_link(name), 0, wire::read_link) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(ReadError::Refused(libc::ENODEV)) => Ok(None),
            Err(error) => Err(error.explained(OBSERVING_LINKS, ATTEMPTS)),
        }
    }

    fn observe_addresses(&mut self) -> Result<Vec<Address>, Error> {
        let found = self.netlink.read(&wire::get_addresses(), NLM_F_DUMP, wire::read_address);
        found.map_err(|error| error.explained(OBSERVING_ADDRESSES, ATTEMPTS))
    }

    fn observe_routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            if filter.family.is_some_and(|wanted| wanted != family) {
                continue;
            }
            // KERNEL: a kernel without IPv6 answers a question about it with everything it has, and one that does
            // not know filters answers with all tables.
            let decode = |body: &[u8]| {
                let route = wire::read_route(body)?;
                Ok(route.filter(|route| route.family() == family && filter.admits(route)))
            };
            match self.netlink.read(&wire::get_routes(family, filter), NLM_F_DUMP, decode) {
                Ok(found) => routes.extend(found),
                // KERNEL: there is no such table.
                Err(ReadError::Refused(libc::ENOENT)) if filter.table.is_some() => {}
                Err(error) => return Err(error.explained(OBSERVING_ROUTES, ATTEMPTS)),
            }
        }
        Ok(routes)
    }

    fn observe_rules(&mut self, family: Family) -> Result<Vec<Rule>, Error> {
        let decode = |body: &[u8]| Ok(wire::read_rule(body)?.filter(|rule| rule.family == family));
        match self.netlink.read(&wire::get_rules(family), NLM_F_DUMP, decode) {
            Ok(found) => Ok(found),
            // KERNEL: no rules of a family that there is not.
            Err(ReadError::Refused(libc::EAFNOSUPPORT)) => Ok(Vec::new()),
            Err(error) => Err(error.explained(OBSERVING_RULES, ATTEMPTS)),
        }
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        let answers = self.netlink.batch(commands.iter().map(wire::command)).map_err(CommitError::Io)?;
        outcome(commands, answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies of the answer to a question for routes, before anything is sorted out here.
    fn told(filter: RouteFilter) -> usize {
        let mut socket = Socket::open().unwrap();
        let everything = |_: &[u8]| Ok(Some(()));
        socket.netlink.read(&wire::get_routes(Family::Ipv4, &filter), NLM_F_DUMP, everything).unwrap().len()
    }

    #[test]
    fn the_kernel_tells_no_routes_but_those_asked_for() {
        // Of a number that nobody has, and of a table whose routes are all the kernel's own.
        let nobody = Some(RouteProtocol(251));
        assert_eq!(told(RouteFilter { protocol: nobody, ..RouteFilter::default() }), 0);
        let [all, local] =
            [None, Some(Table::LOCAL)].map(|table| RouteFilter { table, ..RouteFilter::default() });
        assert!(told(local) <= told(all));
    }
}
