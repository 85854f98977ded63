//! One anonymous network namespace.
//!
//! A short-lived thread unshares its network namespace and opens it; from then on the open file is the only
//! thing that keeps the namespace alive. Nothing has a name in the file system, so tests can't collide, and
//! the kernel takes the namespace (and every link, rule and connection in it) away when the last holder of
//! the file is gone: at drop, at a panic, and equally when the test process gets SIGKILL.
//!
//! Others enter through `/proc/<pid of the test>/fd/<n>` ([`Namespace::path`]).

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives as long as this handle, its clones, and the processes started in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    label: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// Makes an empty namespace, its loopback down. `label` is used in error messages only.
    ///
    /// # Errors
    /// When the caller lacks `CAP_SYS_ADMIN`, or the kernel has no room for another namespace.
    pub fn new(label: impl Into<Arc<str>>) -> Result<Self> {
        let label = label.into();
        let file = on_own_thread(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET): root is needed")?;
            // KERNEL: /proc/self is the process; only thread-self is the thread that has just moved.
            File::open("/proc/thread-self/ns/net").context("open the new namespace")
        })
        .with_context(|| format!("make namespace {label}"))?;
        Ok(Self { label, file: Arc::new(file) })
    }

    /// What the maker called it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path that other processes can open while this process holds the namespace:
    /// `nsenter --net=PATH`, `ip link … netns PATH`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs `work` inside, on a thread of its own, and returns what it returned. Sockets made there stay in
    /// the namespace for good, whichever thread uses them later; `/proc/sys/net` is the namespace's own.
    /// A panic of `work` continues in the caller.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| self.enter().map(|()| work()))
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter namespace {}", self.label))
    }

    /// A command that will run `program` inside; add arguments, then spawn it from anywhere. The child's
    /// process id is that of `program` itself, as nsenter replaces itself.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// As [`command`](Self::command), for programs that stay: the kernel kills the child when its parent
    /// dies, however that happens.
    ///
    /// KERNEL: "parent" is the *thread* that spawned it (prctl(2), `PR_SET_PDEATHSIG`): spawn it from the
    /// test's own thread, not from a short-lived one.
    #[must_use]
    pub fn daemon(&self, program: &str) -> Command {
        let mut command = self.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    }

    /// Runs a command inside with `input` on its standard input and returns its standard output.
    ///
    /// # Errors
    /// When it can't be started or fails; the message holds its standard error.
    pub fn output(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {program}"))?;
            if let Some(mut stdin) = child.stdin.take() {
                // A program that ends without reading everything says why on its standard error.
                let _ = stdin.write_all(input.as_bytes());
            }
            let done = child.wait_with_output()?;
            if !done.status.success() {
                let error = String::from_utf8_lossy(&done.stderr);
                bail!("{program} {} in {}: {}", arguments.join(" "), self.label, error.trim());
            }
            Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        })?
    }

    /// Loads nftables rules (`nft -f -`).
    ///
    /// # Errors
    /// When nft refuses them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.output("nft", &["-f", "-"], rules).map(drop)
    }

    /// Runs lines of `ip` commands in one process (`ip -batch -`).
    ///
    /// # Errors
    /// At the first line that fails; the message names it.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.output("ip", &["-batch", "-"], lines).map(drop).with_context(|| format!("lines were:\n{lines}"))
    }

    /// Sets a sysctl of the namespace, e.g. `("net/ipv4/ip_forward", "1")`. Slashes, not dots, so that link
    /// names with dots need no quoting.
    ///
    /// # Errors
    /// When the kernel has no such sysctl or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| set_sysctl(key, value))?
    }
}

/// Writes a sysctl of the calling thread's namespace.
pub(crate) fn set_sysctl(key: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("sysctl {key}={value}"))
}

/// Threads that change their namespace must not be anybody else's, so each such piece of work gets one.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
