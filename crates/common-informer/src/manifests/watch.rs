//! Notifications that something in a tree of directories has changed.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// An inotify instance with a watch on each directory of a tree.
pub(super) struct Watch {
    inotify: AsyncFd<Descriptor>,
    directories: HashSet<WatchDescriptor>,
    /// The directory that holds the root, and the root's name in it: the root itself may be a symbolic link
    /// that is swapped.
    parent: Option<(PathBuf, OsString)>,
    parent_watch: Option<WatchDescriptor>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Everything that may change what a look finds. MODIFY only prolongs the wait for the writer to finish.
fn interest() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_ONLYDIR
}

impl Watch {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let parent = match (root.parent(), root.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
                Some((PathBuf::from("."), name.to_owned()))
            }
            (Some(parent), Some(name)) => Some((parent.to_owned(), name.to_owned())),
            _ => None,
        };
        #[allow(
            deprecated,
            reason = "its successor is unsafe; a Descriptor has one descriptor as long as it lives"
        )]
        let inotify = AsyncFd::new(Descriptor(inotify))?;
        Ok(Self { inotify, directories: HashSet::new(), parent, parent_watch: None })
    }

    /// Begins a look: from here on, changes of the root's place are noticed.
    pub(super) fn root(&mut self) {
        let Some((path, _)) = &self.parent else { return };
        // MASK_ADD: the parent may, through a symbolic link, be a directory of the tree too.
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::from_bits_retain(nix::libc::IN_MASK_ADD);
        // Without it, a swap of the root is noticed by the next audit.
        self.parent_watch = self.inotify.get_ref().0.add_watch(path.as_path(), mask).ok();
    }

    /// Watches one directory of the tree.
    pub(super) fn directory(&self, path: &Path) -> io::Result<WatchDescriptor> {
        Ok(self.inotify.get_ref().0.add_watch(path, interest())?)
    }

    /// Ends a look: of the tree these directories are watched, and no others.
    pub(super) fn keep(&mut self, directories: HashSet<WatchDescriptor>) {
        for stale in self.directories.difference(&directories) {
            if Some(*stale) != self.parent_watch {
                // It fails if the directory is gone, and the watch with it.
                let _ = self.inotify.get_ref().0.rm_watch(*stale);
            }
        }
        self.directories = directories;
    }

    /// Returns when something in the tree has changed since the last time. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            match ready.get_inner().0.read_events() {
                Ok(events) if events.iter().any(|event| self.matters(event)) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Nothing that can happen to an inotify descriptor; audits go on.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            return false;
        }
        let of_parent = Some(event.wd) == self.parent_watch && !self.directories.contains(&event.wd);
        let root = self.parent.as_ref().map(|(_, name)| name.as_os_str());
        !of_parent || event.name.as_deref() == root
    }
}
