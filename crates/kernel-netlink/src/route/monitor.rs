//! Notices that links, addresses, routes or rules have changed.
//!
//! KERNEL: IPv4 routes that go because their link goes down or away, or because their source does, are not told
//! (`fib_sync_down_dev()` and `fib_sync_down_addr()`, net/ipv4/fib_semantics.c, only flush). Who watches routes
//! watches links and addresses too.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::entry::{Address, Route, RouteFilter, Rule};
use super::link::Link;
use super::uapi::*;
use super::wire;
use crate::netlink::Netlink;

/// What is to be told; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Links.
    pub links: bool,
    /// Addresses of both families.
    pub addresses: bool,
    /// Routes that the filter admits.
    pub routes: Option<RouteFilter>,
    /// Rules of both families.
    pub rules: bool,
}

/// One thing that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is new or has changed.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// An address is new or has changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new or has been replaced. KERNEL: the one that it replaced is not told.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A rule is new.
    Rule(Rule),
    /// A rule is gone.
    RuleGone(Rule),
}

/// What has happened since somebody last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// In order. What was told twice is there twice.
    pub events: Vec<Event>,
    /// True if messages were lost, or could not be read: anything may have changed.
    pub perhaps_more: bool,
}

/// A membership in the groups of rtnetlink, in the network namespace of the thread that opened it.
pub struct Monitor {
    netlink: Netlink,
    routes: RouteFilter,
    ignored: Vec<u32>,
}

impl Monitor {
    /// Starts watching.
    ///
    /// # Errors
    /// [`io::Error`] when there is no socket to be had.
    pub fn open(watch: Watch) -> io::Result<Self> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        for (wanted, groups) in [
            (watch.links, &[RTNLGRP_LINK][..]),
            (watch.addresses, &[RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR]),
            (watch.routes.is_some(), &[RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE]),
            (watch.rules, &[RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE]),
        ] {
            for group in groups.iter().filter(|_| wanted) {
                netlink.join(*group)?;
            }
        }
        Ok(Self { netlink, routes: watch.routes.unwrap_or_default(), ignored: Vec::new() })
    }

    /// Leaves out the changes of one more socket from now on ([`Socket::port`](super::Socket::port)).
    ///
    /// KERNEL: that IPv6 addresses and, in older kernels, links were changed is told without the name of the
    /// socket, and so are routes that come and go with these: such changes are told all the same.
    pub fn ignore(&mut self, port: u32) {
        self.ignored.push(port);
    }

    /// What has happened since the last call, without waiting; `None` if nothing.
    ///
    /// # Errors
    /// [`io::Error`] when the socket fails.
    pub fn poll(&mut self) -> io::Result<Option<Change>> {
        let Self { netlink, routes, ignored } = self;
        let mut change = Change::default();
        let mut unread = false;
        let lost = netlink.drain_events(|kind, port, body| {
            // Port 0 is the kernel's own.
            if port != 0 && ignored.contains(&port) {
                return;
            }
            match read_event(kind, body) {
                Ok(Some(Event::Route(route) | Event::RouteGone(route))) if !routes.admits(&route) => {}
                Ok(event) => change.events.extend(event),
                Err(_) => unread = true,
            }
        })?;
        change.perhaps_more = lost || unread;
        Ok((change != Change::default()).then_some(change))
    }

    /// Waits for a change; without a timeout for ever. `None` after the timeout.
    ///
    /// # Errors
    /// [`io::Error`] when the socket fails.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Change>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(change) = self.poll()? {
                return Ok(Some(change));
            }
            let remaining = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let remaining = deadline.saturating_duration_since(Instant::now());
                    if remaining.is_zero() {
                        return Ok(None);
                    }
                    // Rounded up, or the last part of a millisecond would be spent spinning.
                    PollTimeout::try_from(remaining + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
                }
            };
            match poll(&mut [PollFd::new(self.netlink.as_fd(), PollFlags::POLLIN)], remaining) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The event in a message; `None` if it is about something else.
pub(super) fn read_event(kind: u16, body: &[u8]) -> Result<Option<Event>, &'static str> {
    Ok(match kind {
        RTM_NEWLINK => wire::read_link(body)?.map(Event::Link),
        RTM_DELLINK => wire::read_link(body)?.map(Event::LinkGone),
        RTM_NEWADDR => wire::read_address(body)?.map(Event::Address),
        RTM_DELADDR => wire::read_address(body)?.map(Event::AddressGone),
        RTM_NEWROUTE => wire::read_route(body)?.map(Event::Route),
        RTM_DELROUTE => wire::read_route(body)?.map(Event::RouteGone),
        RTM_NEWRULE => wire::read_rule(body)?.map(Event::Rule),
        RTM_DELRULE => wire::read_rule(body)?.map(Event::RuleGone),
        _ => None,
    })
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.netlink.as_fd().as_raw_fd()
    }
}
