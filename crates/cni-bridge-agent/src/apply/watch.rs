//! Notices that somebody else has touched the configuration, the plugin, or a link that matters.
//!
//! One thread for as long as the process lives. What is told wakes the loop, which looks at everything: so the echo of
//! our own writes is left out only where it is easy (drafts), and a folder that is gone is found by the next audit.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use kernel_netlink::route::{
    Address, Change, Event, LinkIndex, LinkKind, Monitor, Rtnetlink, Scope, Socket, Watch,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::owned::DRAFT_PREFIX;

/// Between two wake-ups: what is written in pieces is looked at once.
const PAUSE: Duration = Duration::from_millis(200);
/// A folder that was not there, or is gone, is looked for so often.
const AGAIN: u16 = 5000;

/// What is watched.
pub struct Watched {
    inotify: Inotify,
    folders: Vec<Folder>,
    monitor: Monitor,
    kernel: Socket,
    links: Links,
}

struct Folder {
    path: PathBuf,
    watch: Option<WatchDescriptor>,
}

/// What is known of links, so that what is told again wakes nobody.
struct Links {
    /// The MTU of each, so that a pod's veth that comes or goes does not matter. A node's own way may be a veth too,
    /// where the node is a container.
    mtus: HashMap<LinkIndex, u32>,
    /// KERNEL: an IPv6 address is told again when its link has a carrier, when no duplicate was found, and with each
    /// router advertisement that prolongs it.
    addresses: HashSet<(LinkIndex, IpNet)>,
}

impl Watched {
    /// Starts to watch folders, and links in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`io::Error`] when the kernel does not let us.
    pub fn open(folders: &[&Path]) -> io::Result<Self> {
        let folders = folders.iter().map(|path| Folder { path: (*path).to_owned(), watch: None });
        let watch = Watch { links: true, addresses: true, ..Watch::default() };
        // Before the links are read: what happens in between is told.
        let monitor = Monitor::open(watch)?;
        let mut kernel = Socket::open().map_err(io::Error::other)?;
        let links = Links::observe(&mut kernel)?;
        Ok(Self {
            inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
            folders: folders.collect(),
            monitor,
            kernel,
            links,
        })
    }

    /// Calls `changed` after each change, until watching fails.
    ///
    /// # Errors
    /// [`io::Error`]; from then on only audits notice changes.
    pub fn run(mut self, changed: impl Fn()) -> io::Result<()> {
        loop {
            // Before the wait: what came while nobody waited is there.
            if self.has_changed()? {
                changed();
                std::thread::sleep(PAUSE);
                continue;
            }
            let missing = self.folders.iter().any(|folder| folder.watch.is_none());
            let timeout = if missing { PollTimeout::from(AGAIN) } else { PollTimeout::NONE };
            let mut sources = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut sources, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether anything has changed since it was last asked. Does not wait.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn has_changed(&mut self) -> io::Result<bool> {
        let folders = self.watch_folders();
        let files = self.files_changed()?;
        let links = self.links_changed()?;
        Ok(folders || files || links)
    }

    /// Watches folders that are not watched. True if there is one that was not there.
    fn watch_folders(&mut self) -> bool {
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut new = false;
        for folder in self.folders.iter_mut().filter(|folder| folder.watch.is_none()) {
            folder.watch = self.inotify.add_watch(&folder.path, mask).ok();
            new |= folder.watch.is_some();
        }
        new
    }

    fn files_changed(&mut self) -> io::Result<bool> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        let gone = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DELETE_SELF;
        for event in events.iter().filter(|event| event.mask.intersects(gone)) {
            for folder in self.folders.iter_mut().filter(|folder| folder.watch == Some(event.wd)) {
                if !event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    // The watch is of the folder that was there, wherever it is now. It fails where that is gone.
                    let _ = self.inotify.rm_watch(event.wd);
                }
                folder.watch = None;
            }
        }
        Ok(events.iter().any(matters))
    }

    fn links_changed(&mut self) -> io::Result<bool> {
        let Some(change) = self.monitor.poll()? else { return Ok(false) };
        if change.perhaps_more {
            self.links = Links::observe(&mut self.kernel)?;
            return Ok(true);
        }
        Ok(self.links.matters(&change))
    }
}

/// Whether an event is about a file that somebody may read.
fn matters(event: &InotifyEvent) -> bool {
    let name = event.name.as_deref().map(|name| name.to_string_lossy());
    !name.is_some_and(|name| name.starts_with(DRAFT_PREFIX))
}

impl Links {
    fn observe(kernel: &mut impl Rtnetlink) -> io::Result<Self> {
        let links = kernel.observe_links().map_err(io::Error::other)?;
        let addresses = kernel.observe_addresses().map_err(io::Error::other)?;
        Ok(Self {
            mtus: links.iter().map(|link| (link.index, link.mtu)).collect(),
            addresses: addresses.iter().map(key).collect(),
        })
    }

    fn matters(&mut self, change: &Change) -> bool {
        let mut matters = false;
        for event in &change.events {
            matters |= match event {
                Event::Link(link) => match self.mtus.insert(link.index, link.mtu) {
                    Some(before) => before != link.mtu,
                    None => link.kind != LinkKind::Veth,
                },
                Event::LinkGone(link) => {
                    self.mtus.remove(&link.index).is_some() && link.kind != LinkKind::Veth
                }
                Event::Address(address) => {
                    self.addresses.insert(key(address)) && address.scope == Scope::UNIVERSE
                }
                Event::AddressGone(address) => {
                    self.addresses.remove(&key(address)) && address.scope == Scope::UNIVERSE
                }
                _ => false,
            };
        }
        matters
    }
}

fn key(address: &Address) -> (LinkIndex, IpNet) {
    (address.link, address.address)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn files_of_others_are_told_and_drafts_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("net.d"), folder.path().join("bin"));
        fs::create_dir(&one).unwrap();
        let watched = Watched::open(&[&one, &other]).unwrap();
        let (told, heard) = mpsc::channel();
        std::thread::spawn(move || watched.run(|| told.send(()).unwrap()));
        let next = |limit| heard.recv_timeout(Duration::from_millis(limit)).is_ok();
        assert!(next(60_000), "the folder that is there");
        fs::write(one.join(format!("{DRAFT_PREFIX}x.00")), "draft").unwrap();
        assert!(!next(600));
        fs::write(one.join("10-x.conflist"), "{}").unwrap();
        assert!(next(60_000));
        while next(600) {}
        fs::remove_file(one.join("10-x.conflist")).unwrap();
        assert!(next(60_000));
        // One that comes late is looked for.
        fs::create_dir(&other).unwrap();
        assert!(next(u64::from(AGAIN) + 60_000));
        fs::remove_dir(&other).unwrap();
        assert!(next(60_000));
        while next(600) {}
        fs::create_dir(&other).unwrap();
        assert!(next(u64::from(AGAIN) + 60_000));
    }
}
