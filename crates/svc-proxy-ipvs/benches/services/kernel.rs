//! The kernel with a clock on it, and one that takes everything and keeps nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kernel_netlink::route::{self, Rtnetlink};
use kernel_netlink::{ipvs, ipvs::Ipvs};
use kernel_nft::{CommitError, Counter, Error, Family, Name, Nftables, Observed, Transaction};
use test_netns::cost::in_kernel;

thread_local! {
    /// What this thread has sent.
    static SENT: Cell<Sent> = const { Cell::new(Sent { table: Talk::NONE, ipvs: Talk::NONE, routes: Talk::NONE }) };
}

/// What was sent, by what it is for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// Steps of transactions, with their begin and end. A list of elements counts as one, though a long one takes
    /// several messages.
    pub(crate) table: Talk,
    /// Commands for IPVS.
    pub(crate) ipvs: Talk,
    /// Commands for links and routes.
    pub(crate) routes: Talk,
}

/// Netlink messages, and the time until all were answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Talk {
    pub(crate) messages: usize,
    pub(crate) time: Duration,
}

impl Talk {
    const NONE: Self = Self { messages: 0, time: Duration::ZERO };

    fn since(self, before: Self) -> Self {
        Self { messages: self.messages - before.messages, time: self.time - before.time }
    }

    /// Does what is a conversation of so many messages.
    fn add<T>(messages: usize, part: impl FnOnce(&mut Sent) -> &mut Self, talk: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = in_kernel(talk);
        let mut sent = SENT.get();
        let part = part(&mut sent);
        part.messages += messages;
        part.time += start.elapsed();
        SENT.set(sent);
        result
    }
}

impl Sent {
    /// All so far.
    pub(crate) fn so_far() -> Self {
        SENT.get()
    }

    /// What was sent since.
    pub(crate) fn since(before: Self) -> Self {
        let now = Self::so_far();
        Self {
            table: now.table.since(before.table),
            ipvs: now.ipvs.since(before.ipvs),
            routes: now.routes.since(before.routes),
        }
    }

    /// All messages.
    pub(crate) fn messages(self) -> usize {
        self.table.messages + self.ipvs.messages + self.routes.messages
    }
}

/// A conversation with a clock on it.
pub(crate) struct Clocked<T>(pub(crate) T);

impl<T: Ipvs> Ipvs for Clocked<T> {
    fn observe_services(&mut self) -> Result<Vec<ipvs::ServiceState>, ipvs::Error> {
        in_kernel(|| self.0.observe_services())
    }

    fn observe_service(&mut self, key: &ipvs::ServiceKey) -> Result<Option<ipvs::ServiceState>, ipvs::Error> {
        in_kernel(|| self.0.observe_service(key))
    }

    fn observe_destinations(
        &mut self,
        service: &ipvs::ServiceKey,
    ) -> Result<Vec<ipvs::DestinationState>, ipvs::Error> {
        in_kernel(|| self.0.observe_destinations(service))
    }

    fn observe_timeouts(&mut self) -> Result<ipvs::Timeouts, ipvs::Error> {
        in_kernel(|| self.0.observe_timeouts())
    }

    fn info(&mut self) -> Result<ipvs::Info, ipvs::Error> {
        in_kernel(|| self.0.info())
    }

    fn commit(&mut self, commands: &[ipvs::Command]) -> Result<(), ipvs::CommitError> {
        Talk::add(commands.len(), |sent| &mut sent.ipvs, || self.0.commit(commands))
    }
}

impl<T: Rtnetlink> Rtnetlink for Clocked<T> {
    fn observe_links(&mut self) -> Result<Vec<route::Link>, route::Error> {
        in_kernel(|| self.0.observe_links())
    }

    fn observe_link(&mut self, name: &route::LinkName) -> Result<Option<route::Link>, route::Error> {
        in_kernel(|| self.0.observe_link(name))
    }

    fn observe_addresses(&mut self) -> Result<Vec<route::Address>, route::Error> {
        in_kernel(|| self.0.observe_addresses())
    }

    fn observe_routes(&mut self, filter: &route::RouteFilter) -> Result<Vec<route::Route>, route::Error> {
        in_kernel(|| self.0.observe_routes(filter))
    }

    fn observe_rules(&mut self, family: route::Family) -> Result<Vec<route::Rule>, route::Error> {
        in_kernel(|| self.0.observe_rules(family))
    }

    fn commit(&mut self, commands: &[route::Command]) -> Result<(), route::CommitError> {
        Talk::add(commands.len(), |sent| &mut sent.routes, || self.0.commit(commands))
    }
}

impl<T: Nftables> Nftables for Clocked<T> {
    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error> {
        in_kernel(|| self.0.observe(family, table))
    }

    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        in_kernel(|| self.0.observe_counters(family, table))
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError> {
        Talk::add(transaction.ops.len() + 2, |sent| &mut sent.table, || self.0.commit(transaction))
    }

    fn portid(&self) -> u32 {
        self.0.portid()
    }
}

/// A kernel that takes everything and keeps nothing but links: what is left is the program's own cost.
#[derive(Default)]
pub(crate) struct Accepting(route::Fake);

impl Ipvs for Accepting {
    fn observe_services(&mut self) -> Result<Vec<ipvs::ServiceState>, ipvs::Error> {
        Ok(Vec::new())
    }

    fn observe_service(&mut self, _: &ipvs::ServiceKey) -> Result<Option<ipvs::ServiceState>, ipvs::Error> {
        Ok(None)
    }

    fn observe_destinations(
        &mut self,
        _: &ipvs::ServiceKey,
    ) -> Result<Vec<ipvs::DestinationState>, ipvs::Error> {
        Ok(Vec::new())
    }

    fn observe_timeouts(&mut self) -> Result<ipvs::Timeouts, ipvs::Error> {
        Ok(ipvs::Timeouts::default())
    }

    fn info(&mut self) -> Result<ipvs::Info, ipvs::Error> {
        Ok(ipvs::Info { version: (1, 2, 1), connection_buckets: 4096 })
    }

    fn commit(&mut self, _: &[ipvs::Command]) -> Result<(), ipvs::CommitError> {
        Ok(())
    }
}

impl Rtnetlink for Accepting {
    fn observe_links(&mut self) -> Result<Vec<route::Link>, route::Error> {
        self.0.observe_links()
    }

    fn observe_link(&mut self, name: &route::LinkName) -> Result<Option<route::Link>, route::Error> {
        self.0.observe_link(name)
    }

    fn observe_addresses(&mut self) -> Result<Vec<route::Address>, route::Error> {
        self.0.observe_addresses()
    }

    fn observe_routes(&mut self, _: &route::RouteFilter) -> Result<Vec<route::Route>, route::Error> {
        Ok(Vec::new())
    }

    fn observe_rules(&mut self, family: route::Family) -> Result<Vec<route::Rule>, route::Error> {
        self.0.observe_rules(family)
    }

    fn commit(&mut self, commands: &[route::Command]) -> Result<(), route::CommitError> {
        let is_link = |command: &route::Command| {
            matches!(command, route::Command::AddLink(_) | route::Command::SetLink(..))
        };
        if commands.iter().any(is_link) { self.0.commit(commands) } else { Ok(()) }
    }
}

impl Nftables for Accepting {
    fn observe(&mut self, _: Family, _: &str) -> Result<Option<Observed>, Error> {
        Ok(None)
    }

    fn observe_counters(&mut self, _: Family, _: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        Ok(BTreeMap::new())
    }

    fn commit(&mut self, _: &Transaction<'_>) -> Result<(), CommitError> {
        Ok(())
    }

    fn portid(&self) -> u32 {
        1
    }
}
