//! Many probes at once.
//!
//! One thread visits the namespaces, opens every socket there, and then waits for all of them together: a
//! thousand probes that time out take as long as one.
//!
//! Time passes for a probe only while that thread has its turns, and silence counts only once the servers have had
//! theirs: a busy machine makes probes slow, not wrong.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cluster::Cluster;
use crate::conn::Conn;
use crate::namespace::{Namespace, on_own_thread};
use crate::outcome::{Family, Outcome, Protocol};
use crate::server::Servers;

/// How long a probe waits for an answer unless told otherwise. Below TCP's first SYN retransmission (1 s),
/// which is why TCP probes open a second connection when the first stays silent.
pub const TIMEOUT: Duration = Duration::from_millis(700);
/// A silent probe is tried again at these fractions of its timeout.
const RETRY_AT: [f64; 2] = [0.25, 0.55];
/// An ABORT is believed after this long without an INIT-ACK (see `Conn::fallback`).
const ABORT_GRACE: Duration = Duration::from_millis(60);
/// Sockets in flight at once, at most. Each probe may have three.
const WAVE: usize = 2_500;
/// Between two looks at what is due, in milliseconds; and how much of the time between two looks counts.
const LOOK: u8 = 10;
const TURN: Duration = Duration::from_millis(2 * LOOK as u64);
const SOCKETS_PER_PROBE: usize = 4;
/// How many times as slow as usual the machine is: an emulated one sets it. Every wait of a probe is so much
/// longer, and fewer probes go at once.
const SLOWNESS: &str = "TEST_NETNS_SLOWNESS";

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// A pod, a node, `outside`, or the text of one of the outside host's addresses.
    pub from: String,
    /// Where to.
    pub to: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// Which port; not used by ICMP.
    pub port: u16,
}

struct Attempt<'a> {
    index: usize,
    namespace: &'a Namespace,
    protocol: Protocol,
    source: Option<IpAddr>,
    target: SocketAddr,
    conns: Vec<Conn>,
    retries: usize,
}

impl Cluster {
    /// The first address of a family of a pod, a node, or the outside host.
    ///
    /// # Errors
    /// When there is no such host, or it has no such address.
    pub fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        self.endpoint(name)?.address(family).with_context(|| format!("{name} has no {family:?} address"))
    }

    /// Tries one thing.
    ///
    /// # Errors
    /// When `from` is unknown. That nothing answers is an outcome, not an error.
    pub fn probe(&self, from: &str, to: IpAddr, protocol: Protocol, port: u16) -> Result<Outcome> {
        let probe = Probe { from: from.into(), to, protocol, port };
        let outcome = self.probe_all(&[probe], TIMEOUT)?.pop();
        outcome.context("one probe has one outcome")
    }

    /// Tries many things at the same time; outcomes are in the order of the probes.
    ///
    /// # Errors
    /// When a `from` is unknown, or the process has no file descriptors left.
    pub fn probe_all(&self, probes: &[Probe], timeout: Duration) -> Result<Vec<Outcome>> {
        let mut attempts = Vec::with_capacity(probes.len());
        for (index, probe) in probes.iter().enumerate() {
            let (namespace, source) = self.origin(&probe.from, Family::of(probe.to))?;
            let target = SocketAddr::new(probe.to, probe.port);
            let protocol = probe.protocol;
            let conns = Vec::new();
            attempts.push(Attempt { index, namespace, protocol, source, target, conns, retries: 0 });
        }
        let slowness = slowness()?;
        // Neighbours in the list share a visit.
        attempts.sort_by_key(|attempt| attempt.namespace.path());
        let mut outcomes = vec![Outcome::TimedOut; probes.len()];
        on_own_thread(|| -> Result<()> {
            let patience = Patience { timeout: timeout * slowness, grace: ABORT_GRACE * slowness };
            for wave in attempts.chunks_mut(WAVE / slowness as usize) {
                run(wave, &mut outcomes, patience, &self.servers)?;
            }
            Ok(())
        })?;
        Ok(outcomes)
    }

    /// The namespace to probe from, and the address to bind. Nodes let the kernel choose, as their address
    /// towards a pod may be the bridge's.
    pub(crate) fn origin(&self, from: &str, family: Family) -> Result<(&Namespace, Option<IpAddr>)> {
        let endpoint = self.endpoint(from)?;
        let is_node = self.nodes().any(|node| node == from);
        let source = if is_node { None } else { endpoint.address(family) };
        Ok((&endpoint.host.namespace, source))
    }
}

/// How long to wait for an answer, and for a better one than an ABORT.
#[derive(Clone, Copy)]
struct Patience {
    timeout: Duration,
    grace: Duration,
}

/// The value of [`SLOWNESS`].
fn slowness() -> Result<u32> {
    let Some(text) = std::env::var_os(SLOWNESS) else { return Ok(1) };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=20).contains(number));
    number.with_context(|| format!("{SLOWNESS} is a whole number from 1 to 20, not {text:?}"))
}

fn run(
    wave: &mut [Attempt<'_>],
    outcomes: &mut [Outcome],
    patience: Patience,
    servers: &Servers,
) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    let mut open: Vec<usize> = Vec::with_capacity(wave.len());
    let mut inside: Option<&Namespace> = None;
    for (slot, attempt) in wave.iter_mut().enumerate() {
        if inside.is_none_or(|namespace| namespace.path() != attempt.namespace.path()) {
            attempt.namespace.enter()?;
            inside = Some(attempt.namespace);
        }
        match attempt.open(&epoll, slot)? {
            Some(outcome) => outcomes[attempt.index] = outcome,
            None => open.push(slot),
        }
    }
    let (mut age, mut looked) = (Duration::ZERO, Instant::now());
    while !open.is_empty() {
        take_answers(&epoll, LOOK, wave, outcomes);
        let now = Instant::now();
        age += now.duration_since(looked).min(TURN);
        looked = now;
        if open.iter().any(|slot| wave[*slot].is_due(age, patience)) {
            servers.settle();
            take_answers(&epoll, 0, wave, outcomes);
        }
        let mut error = None;
        open.retain(|slot| {
            let attempt = &mut wave[*slot];
            match attempt.tick(&epoll, *slot, age, patience) {
                Ok(Some(outcome)) => {
                    outcomes[attempt.index] = outcome;
                    attempt.conns.clear();
                }
                Ok(None) => {}
                Err(problem) => error = Some(problem),
            }
            !attempt.conns.is_empty()
        });
        if let Some(error) = error {
            return Err(error);
        }
    }
    Ok(())
}

/// Takes what has been answered, after waiting for it for so many milliseconds.
fn take_answers(epoll: &Epoll, wait: u8, wave: &mut [Attempt<'_>], outcomes: &mut [Outcome]) {
    let mut events = [EpollEvent::empty(); 512];
    let mut wait = EpollTimeout::from(wait);
    loop {
        let ready = epoll.wait(&mut events, wait).unwrap_or(0);
        for event in &events[..ready] {
            let token = event.data() as usize;
            let attempt = &mut wave[token / SOCKETS_PER_PROBE];
            let Some(conn) = attempt.conns.get_mut(token % SOCKETS_PER_PROBE) else { continue };
            if let Some(outcome) = conn.outcome() {
                outcomes[attempt.index] = outcome;
                attempt.conns.clear();
            }
        }
        if ready < events.len() {
            return;
        }
        wait = EpollTimeout::ZERO;
    }
}

impl Attempt<'_> {
    /// Whether its time is over, or what it was told counts for lack of anything better.
    fn is_due(&self, age: Duration, patience: Patience) -> bool {
        let is_told = || age >= patience.grace && self.conns.iter().any(|conn| conn.fallback().is_some());
        !self.conns.is_empty() && (age >= patience.timeout || is_told())
    }

    /// Opens a (further) socket; the thread must be inside. `Some`: the outcome is known already.
    fn open(&mut self, epoll: &Epoll, slot: usize) -> Result<Option<Outcome>> {
        let conn = match Conn::open(self.protocol, self.source, self.target) {
            Ok(conn) => conn,
            Err(outcome) => return Ok(Some(outcome)),
        };
        let token = slot * SOCKETS_PER_PROBE + self.conns.len();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token as u64);
        epoll.add(conn.as_fd(), event).context("epoll add")?;
        self.conns.push(conn);
        Ok(None)
    }

    /// What is to be done as time goes by.
    fn tick(
        &mut self,
        epoll: &Epoll,
        slot: usize,
        age: Duration,
        patience: Patience,
    ) -> Result<Option<Outcome>> {
        if self.conns.is_empty() {
            return Ok(None);
        }
        if self.is_due(age, patience) {
            let fallback = self.conns.iter().find_map(Conn::fallback);
            return Ok(Some(fallback.unwrap_or(Outcome::TimedOut)));
        }
        if RETRY_AT.get(self.retries).is_none_or(|at| age < patience.timeout.mul_f64(*at)) {
            return Ok(None);
        }
        self.retries += 1;
        if self.protocol == Protocol::Tcp {
            self.namespace.enter()?;
            return self.open(epoll, slot);
        }
        let sent = self.conns.first_mut().map(Conn::send);
        // An error that is pending shows up as an event.
        Ok(sent.and_then(Result::err).map(|_| None).unwrap_or_default())
    }
}
