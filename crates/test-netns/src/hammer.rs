//! Connections without pause while the rules change, to find the one that should not have been.
//!
//! Each thread opens one connection after another. An attempt is judged only if the expectation was the same
//! from before its first packet until after its last; those that a change overlaps are counted apart.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::PollFlags;

use crate::cluster::Cluster;
use crate::conn::Conn;
use crate::flow::ready;
use crate::outcome::{Family, Outcome, Protocol};

/// How many wrong outcomes a report keeps whole.
const KEPT: usize = 20;

/// What every attempt should find at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// That it connects.
    Connected,
    /// That it doesn't, in whatever way.
    Blocked,
    /// Anything: attempts are counted, not judged.
    Anything,
}

impl Expect {
    fn code(self) -> u64 {
        match self {
            Self::Anything => 0,
            Self::Connected => 1,
            Self::Blocked => 2,
        }
    }

    fn from_code(code: u64) -> Self {
        match code & 3 {
            1 => Self::Connected,
            2 => Self::Blocked,
            _ => Self::Anything,
        }
    }
}

/// What to hammer.
#[derive(Clone, Debug)]
pub struct HammerSpec {
    /// From where: pod, node, `outside`, or an address of the outside host.
    pub from: String,
    /// To where.
    pub to: IpAddr,
    /// How; TCP attempts end with the handshake.
    pub protocol: Protocol,
    /// Which port.
    pub port: u16,
    /// Threads that do so side by side.
    pub threads: usize,
    /// How long an attempt may take: short, if packets are dropped and not refused.
    pub patience: Duration,
    /// The hammer stops by itself after so many attempts …
    pub most_attempts: u64,
    /// … or after so long.
    pub most_time: Duration,
}

impl HammerSpec {
    /// One thread of TCP, attempts of at most 200 ms, a million attempts, ten minutes.
    #[must_use]
    pub fn tcp(from: impl Into<String>, to: IpAddr, port: u16) -> Self {
        Self {
            from: from.into(),
            to,
            protocol: Protocol::Tcp,
            port,
            threads: 1,
            patience: Duration::from_millis(200),
            most_attempts: 1_000_000,
            most_time: Duration::from_secs(600),
        }
    }
}

/// An attempt that did not find what was expected.
#[derive(Clone, Debug)]
pub struct Surprise {
    /// When it began, since the start of the hammer.
    pub began: Duration,
    /// When its outcome was known.
    pub ended: Duration,
    /// What was expected all that time.
    pub expected: Expect,
    /// What it found.
    pub outcome: Outcome,
}

/// What a hammer has found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Attempts that connected.
    pub connected: u64,
    /// Attempts that were refused by RST or "administratively prohibited".
    pub rejected: u64,
    /// Attempts that timed out.
    pub timed_out: u64,
    /// All others: ICMP errors of other kinds, local errors.
    pub other: u64,
    /// Attempts, among those above, during which the expectation changed.
    pub unjudged: u64,
    /// Judged attempts that connected but should have been blocked.
    pub leaks: u64,
    /// Judged attempts that should have connected but did not.
    pub wrong_refusals: u64,
    /// The first of the wrong ones.
    pub surprises: Vec<Surprise>,
}

impl Report {
    /// All attempts.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.connected + self.rejected + self.timed_out + self.other
    }

    fn count(&mut self, outcome: Outcome, expected: Option<Expect>, began: Duration, ended: Duration) {
        match &outcome {
            Outcome::Connected(_) => self.connected += 1,
            Outcome::TimedOut => self.timed_out += 1,
            rejected if rejected.is_rejected() => self.rejected += 1,
            _ => self.other += 1,
        }
        let Some(expected) = expected else {
            self.unjudged += 1;
            return;
        };
        match (expected, outcome.is_connected()) {
            (Expect::Blocked, true) => self.leaks += 1,
            (Expect::Connected, false) => self.wrong_refusals += 1,
            _ => return,
        }
        if self.surprises.len() < KEPT {
            self.surprises.push(Surprise { began, ended, expected, outcome });
        }
    }
}

/// A running hammer. Dropping it stops it.
#[derive(Debug)]
pub struct Hammer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    /// The expectation's code in the lowest two bits, above it a number that every change raises.
    expected: AtomicU64,
    attempts: AtomicU64,
    report: Mutex<Report>,
    start: Instant,
}

impl Cluster {
    /// Starts to hammer.
    ///
    /// # Errors
    /// When `from` is unknown, or no thread can be started.
    pub fn hammer(&self, spec: &HammerSpec, expected: Expect) -> Result<Hammer> {
        let (namespace, source) = self.origin(&spec.from, Family::of(spec.to))?;
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            expected: AtomicU64::new(expected.code()),
            attempts: AtomicU64::new(0),
            report: Mutex::new(Report::default()),
            start: Instant::now(),
        });
        let mut hammer = Hammer { shared: Arc::clone(&shared), threads: Vec::new() };
        for number in 0..spec.threads.max(1) {
            let (namespace, spec, shared) = (namespace.clone(), spec.clone(), Arc::clone(&shared));
            let work = move || {
                namespace.enter()?;
                shared.strike(&spec, source);
                Ok(())
            };
            let thread = std::thread::Builder::new().name(format!("hammer-{number}")).spawn(work);
            hammer.threads.push(thread.context("start a thread")?);
        }
        Ok(hammer)
    }
}

impl Hammer {
    /// Changes what is expected from now on. Before rules get tighter or wider, expect
    /// [`Expect::Anything`]; once they must be in force, expect the new result.
    pub fn expect(&self, expected: Expect) {
        let next = |old: u64| Some(((old | 3) + 1) | expected.code());
        // The closure never declines.
        let _ = self.shared.expected.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    /// What has been found so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more attempts have been made; false if that takes longer than `most`.
    #[must_use]
    pub fn wait_for(&self, more: u64, most: Duration) -> bool {
        let goal = self.report().attempts() + more;
        let deadline = Instant::now() + most;
        while Instant::now() < deadline {
            if self.report().attempts() >= goal {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Stops and reports.
    ///
    /// # Errors
    /// When a thread could not enter its namespace.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(done) => done?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(self.report())
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // Nobody is left to hear of its error.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn strike(&self, spec: &HammerSpec, source: Option<IpAddr>) {
        let target = SocketAddr::new(spec.to, spec.port);
        while !self.stopping.load(Ordering::SeqCst)
            && self.start.elapsed() < spec.most_time
            && self.attempts.fetch_add(1, Ordering::Relaxed) < spec.most_attempts
        {
            let before = self.expected.load(Ordering::SeqCst);
            let began = self.start.elapsed();
            let outcome = attempt(spec, source, target);
            let after = self.expected.load(Ordering::SeqCst);
            let expected = (before == after).then(|| Expect::from_code(before));
            let ended = self.start.elapsed();
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            report.count(outcome, expected, began, ended);
        }
    }
}

fn attempt(spec: &HammerSpec, source: Option<IpAddr>, target: SocketAddr) -> Outcome {
    let mut conn = match Conn::open(spec.protocol, source, target) {
        Ok(conn) => conn,
        Err(outcome) => return outcome,
    };
    let deadline = Instant::now() + spec.patience;
    let tcp = spec.protocol == Protocol::Tcp;
    while ready(&conn, if tcp { PollFlags::POLLOUT } else { PollFlags::POLLIN }, deadline) {
        let outcome = if tcp { conn.handshake() } else { conn.outcome() };
        if let Some(outcome) = outcome {
            return outcome;
        }
    }
    conn.fallback().unwrap_or(Outcome::TimedOut)
}
