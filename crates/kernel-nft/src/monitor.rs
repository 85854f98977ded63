//! Notices that somebody else changed our table.
//!
//! The kernel tells members of `NFNLGRP_NFTABLES` of every change of every table in the network namespace:
//! one message for each object, then one (`NEWGEN`) that names the process. Each carries the port of the
//! socket that made the change, by which our own are left out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netlink::Netlink;
use crate::ruleset::Family;
use crate::wire::decode;
use crate::wire::uapi::*;

/// That a table was changed by another socket, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Id of the thread that made the change, where the kernel told; for a process of one thread its pid.
    pub pid: Option<u32>,
    /// Name of that thread (`comm`), where the kernel told.
    pub process: Option<String>,
    /// True if messages were lost, so that the table may have been changed or not.
    pub perhaps: bool,
}

/// A membership in `NFNLGRP_NFTABLES`, in the network namespace of the thread that opened it.
pub struct Monitor {
    netlink: Netlink,
    watch: Watch,
}

/// What is watched, and what has been seen of a transaction that is not complete.
struct Watch {
    family: Family,
    table: String,
    ignored: Vec<u32>,
    /// Objects of the table have been named, `NEWGEN` has not come yet.
    touched: bool,
}

impl Monitor {
    /// Starts watching a table. Changes made by the sockets with the ports `ignored` are not told
    /// ([`Nftables::portid`](crate::Nftables::portid)).
    ///
    /// # Errors
    /// [`io::Error`] when there is no socket to be had.
    pub fn open(family: Family, table: &str, ignored: &[u32]) -> io::Result<Self> {
        let mut netlink = Netlink::open()?;
        netlink.join(NFNLGRP_NFTABLES)?;
        let watch = Watch { family, table: table.to_owned(), ignored: ignored.to_vec(), touched: false };
        Ok(Self { netlink, watch })
    }

    /// Leaves out one more socket from now on.
    pub fn ignore(&mut self, portid: u32) {
        self.watch.ignored.push(portid);
    }

    /// What has happened since the last call, without waiting. Several changes become one: the last.
    ///
    /// # Errors
    /// [`io::Error`] when the socket fails.
    pub fn poll(&mut self) -> io::Result<Option<Change>> {
        let Self { netlink, watch } = self;
        let mut change = None;
        let lost = netlink.drain_events(|message| {
            if let Some(found) = watch.see(message) {
                change = Some(found);
            }
        })?;
        if lost {
            watch.touched = false;
            return Ok(Some(Change { perhaps: true, ..Change::default() }));
        }
        Ok(change)
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

impl Monitor {
    /// Calls `changed` for each change by others, on a thread of its own, for as long as the process lives. After
    /// each there is a pause: two programs that each want the table otherwise shall not take the whole machine.
    ///
    /// What cannot be watched is logged; whoever relies on it has to look now and then anyway.
    pub fn spawn(
        family: Family,
        table: &'static str,
        ignored: &[u32],
        pause: Duration,
        changed: impl Fn() + Send + 'static,
    ) {
        let ignored = ignored.to_vec();
        let watch = move || {
            let mut monitor = match Self::open(family, table, &ignored) {
                Ok(monitor) => monitor,
                Err(error) => {
                    tracing::error!(table, error = %error, "changes of the table by others are noticed only by the periodic audit");
                    return;
                }
            };
            loop {
                match monitor.wait(None) {
                    Ok(Some(change)) => {
                        tracing::info!(
                            table,
                            pid = change.pid,
                            process = change.process,
                            "the nftables table was changed by another process"
                        );
                        changed();
                        std::thread::sleep(pause);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(table, error = %error, "watching the nftables table failed; reading it again");
                        changed();
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("nft-monitor".into()).spawn(watch) {
            tracing::error!(table, error = %error, "no thread to watch the nftables table; only the periodic audit does");
        }
    }
}

impl Watch {
    fn see(&mut self, message: &crate::wire::Message<'_>) -> Option<Change> {
        if self.ignored.contains(&message.portid) {
            return None;
        }
        if message.kind == NFT_MSG_NEWGEN {
            let generation = decode::generation(message);
            return std::mem::take(&mut self.touched).then(|| Change {
                pid: generation.as_ref().and_then(|generation| generation.pid),
                process: generation.and_then(|generation| generation.process),
                perhaps: false,
            });
        }
        if message.kind >> 8 == NFNL_SUBSYS_NFTABLES
            && message.family() == Some(self.family.number())
            && decode::table_name(message).is_some_and(|name| name == self.table)
        {
            self.touched = true;
        }
        None
    }
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
