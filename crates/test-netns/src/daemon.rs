//! A program of ours that stays on a node: its process, its log, its admin port.

#![allow(clippy::expect_used, clippy::panic, reason = "a program that does not do what it must ends a test")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Namespace;

/// Bound of every wait: far above what anything takes, since the machine may be busy, and is emulated.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(15);

/// The program on a node. Dropping it kills it, and shows its log if the test fails; what it put into the kernel
/// stays.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    namespace: Namespace,
    log: PathBuf,
    admin_port: u16,
}

/// Waits until something holds.
///
/// # Panics
/// If it never does, with `what` and what there is to be `shown`.
pub fn until(
    patience: Duration,
    what: &str,
    shown: impl FnOnce() -> String,
    mut holds: impl FnMut() -> bool,
) {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() >= deadline {
            panic!("not within {patience:?}: {what}\n{}", shown());
        }
        std::thread::sleep(PAUSE);
    }
}

impl Daemon {
    /// Starts a command line in the namespace of a node. Its log goes to a new file in `logs`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(namespace: &Namespace, words: &[impl AsRef<str>], logs: &Path, admin_port: u16) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = logs.join(format!("{}-{number}.log", namespace.label()));
        let (program, arguments) = words.split_first().expect("a command line");
        let mut command = namespace.daemon(program.as_ref());
        command.args(arguments.iter().map(AsRef::as_ref)).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).expect("a log"));
        let child = command.spawn().expect("nsenter and setpriv");
        Self { child, namespace: namespace.clone(), log, admin_port }
    }

    /// The node's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether all that it was told at its start is in force.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// Status and body of a page of the admin port; `None` while nobody listens.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_from(self.admin_port, path)
    }

    /// The same of another port.
    ///
    /// # Panics
    /// If the node's namespace cannot be entered.
    #[must_use]
    pub fn get_from(&self, port: u16, path: &str) -> Option<(u16, String)> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.namespace.run(ask).expect("the node's namespace").ok()?;
        let status = answer.split_whitespace().nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    }

    /// The sum of a metric over its labels that contain `label`.
    ///
    /// # Panics
    /// If nobody listens.
    #[must_use]
    pub fn metric(&self, name: &str, label: &str) -> u64 {
        let (_, page) = self.get("/metrics").expect("metrics");
        let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let own = series.split('{').next() == Some(name) && series.contains(label);
            own.then(|| value.parse::<f64>().ok())?
        });
        values.sum::<f64>() as u64
    }

    /// The page `/state`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn state(&self) -> Value {
        let (status, body) = self.get("/state").expect("state");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(PAUSE);
        }
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If there is nothing to kill.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// If it has ended before, or does not end.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("signalled");
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.log.display(), self.log());
        }
    }
}
