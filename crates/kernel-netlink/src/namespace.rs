//! Network namespaces: handles that keep one alive, and work done in one.
//!
//! KERNEL: the namespace belongs to the thread (`setns(2)`), and a socket belongs for ever to the namespace in
//! which it was opened. So nothing here moves a thread that anybody else uses: work in another namespace is done
//! on a thread of its own, which ends with it. A pool's thread that comes back from foreign work in the foreign
//! namespace (an error on the way back is enough) would do everybody's work there from then on. A short-lived program
//! of one thread may visit a namespace with it ([`Namespace::visit`]): to start another takes as long as the work.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

/// `NSFS_MAGIC` of include/uapi/linux/magic.h: the file system of namespaces.
const NSFS: FsType = FsType(0x6e73_6673);

/// Why there is no such namespace, or nothing could be done in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened; with `NotFound` the namespace (or the process) is gone.
    #[error("opening network namespace {}: {source}", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no namespace: what is left of a mount that is gone, for example.
    #[error("{} is no namespace", .0.display())]
    NotANamespace(PathBuf),
    /// The namespace cannot be entered: it takes `CAP_SYS_ADMIN`, and that it is a *network* namespace.
    #[error("entering network namespace {namespace}: {source}")]
    Enter {
        /// Which.
        namespace: Namespace,
        /// What the system said.
        source: io::Error,
    },
    /// No thread is to be had.
    #[error("starting a thread for network namespace {namespace}: {source}")]
    Thread {
        /// Which.
        namespace: Namespace,
        /// What the system said.
        source: io::Error,
    },
}

/// A network namespace, kept alive. Clones are the same namespace; two are equal if they are handles of one.
#[derive(Clone)]
pub struct Namespace {
    file: Arc<File>,
    /// Device and number of its file: the same for all handles of a living namespace.
    identity: (u64, u64),
}

impl Namespace {
    /// The namespace at a path, as a CNI runtime hands it over (`/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::NotANamespace`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let system = fstatfs(&file).map_err(|errno| failed(errno.into()))?;
        if system.filesystem_type() != NSFS {
            return Err(Error::NotANamespace(path.to_owned()));
        }
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { file: Arc::new(file), identity: (metadata.dev(), metadata.ino()) })
    }

    /// The namespace of a process, as numbered in the `/proc` of this mount namespace.
    ///
    /// # Errors
    /// As [`Namespace::open`].
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// As [`Namespace::open`].
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Its number, which `ip netns identify` and `lsns` show (`net:[NUMBER]`).
    pub const fn inode(&self) -> u64 {
        self.identity.1
    }

    /// Does some work in it on the calling thread, which is in `home`, its own namespace, again afterwards, also when
    /// the work panics. Sockets opened by the work stay in the namespace.
    ///
    /// # Errors
    /// [`Error::Enter`]: of this namespace, and the work was not begun; or of `home`, and the thread is where it was not
    /// before. Its program should end then.
    pub fn visit<T>(&self, home: &Self, work: impl FnOnce() -> T) -> Result<T, Error> {
        self.enter()?;
        let back = Back(Some(home));
        let result = work();
        back.go()?;
        Ok(result)
    }

    fn enter(&self) -> Result<(), Error> {
        let entered = setns(&*self.file, CloneFlags::CLONE_NEWNET);
        entered.map_err(|errno| Error::Enter { namespace: self.clone(), source: errno.into() })
    }

    /// Does some work in it, on a thread of its own, and waits for the result. Sockets opened by the work (a
    /// [`route::Socket`](crate::route::Socket), …) stay in the namespace and can be brought out as the result.
    ///
    /// A panic of the work goes on in the caller.
    ///
    /// # Errors
    /// [`Error::Enter`], [`Error::Thread`]; the work was not begun then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, || {
                setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            let thread = thread.map_err(|source| Error::Thread { namespace: self.clone(), source })?;
            match thread.join() {
                Ok(Ok(result)) => Ok(result),
                Ok(Err(source)) => {
                    let source: nix::errno::Errno = source;
                    Err(Error::Enter { namespace: self.clone(), source: source.into() })
                }
                Err(panic) => resume_unwind(panic),
            }
        })
    }
}

/// The way home of a thread.
struct Back<'a>(Option<&'a Namespace>);

impl Back<'_> {
    fn go(mut self) -> Result<(), Error> {
        self.0.take().map_or(Ok(()), Namespace::enter)
    }
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        // The work panicked, and the panic says more than that there is no way back either.
        let _ = self.0.take().map(Namespace::enter);
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Namespace {}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
