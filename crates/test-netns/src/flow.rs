//! A connection that is kept, to see whether it lives on.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cluster::Cluster;
use crate::conn::{Conn, failed};
use crate::outcome::{Family, Outcome, Protocol};

/// A connection (TCP), or a socket that keeps its port or echo identifier, so that conntrack sees one flow.
#[derive(Debug)]
pub struct Flow {
    conn: Conn,
    protocol: Protocol,
    opened: Outcome,
    count: u64,
}

impl Cluster {
    /// Opens a connection and keeps it. Whether it came to be is in [`Flow::opened`].
    ///
    /// # Errors
    /// When `from` is unknown or the first packet can't be sent.
    pub fn connect(
        &self,
        from: &str,
        to: IpAddr,
        protocol: Protocol,
        port: u16,
        timeout: Duration,
    ) -> Result<Flow> {
        let (namespace, source) = self.origin(from, Family::of(to))?;
        let target = SocketAddr::new(to, port);
        let conn = namespace
            .run(|| Conn::open(protocol, source, target))?
            .map_err(|outcome| anyhow::anyhow!("{from} to {target}: {outcome}"))?;
        let mut flow = Flow { conn, protocol, opened: Outcome::TimedOut, count: 0 };
        flow.opened = flow.first_answer(timeout);
        Ok(flow)
    }
}

impl Flow {
    /// How the connection began.
    #[must_use]
    pub fn opened(&self) -> &Outcome {
        &self.opened
    }

    /// Sends something and waits for its answer: `Connected` as long as the flow lives in both directions.
    /// After a `Refused` the flow is dead.
    pub fn exchange(&mut self, timeout: Duration) -> Outcome {
        if self.protocol != Protocol::Tcp {
            if let Err(error) = self.conn.send() {
                return self.conn.error().unwrap_or_else(|| failed(&error));
            }
            return self.first_answer(timeout);
        }
        self.count += 1;
        let line = format!("{}\n", self.count);
        if let Err(error) = self.conn.write_line(line.as_bytes()) {
            return self.conn.error().unwrap_or_else(|| failed(&error));
        }
        let deadline = Instant::now() + timeout;
        let (mut buffer, mut text) = ([0; 2048], Vec::new());
        while self.wait(deadline) {
            match self.conn.read_some(&mut buffer) {
                Ok(0) => return Outcome::Refused,
                Ok(length) => text.extend(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return self.conn.error().unwrap_or_else(|| failed(&error)),
            }
            if text.ends_with(line.as_bytes()) {
                return self.opened.clone();
            }
        }
        Outcome::TimedOut
    }

    fn first_answer(&mut self, timeout: Duration) -> Outcome {
        let deadline = Instant::now() + timeout;
        while self.wait(deadline) {
            if let Some(outcome) = self.conn.outcome() {
                return outcome;
            }
        }
        self.conn.fallback().unwrap_or(Outcome::TimedOut)
    }

    /// False when the time is over.
    fn wait(&self, deadline: Instant) -> bool {
        ready(&self.conn, PollFlags::POLLIN, deadline)
    }
}

/// Waits for a socket; false when the time is over.
pub(crate) fn ready(conn: &Conn, what: PollFlags, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // Rounded up, or the last millisecond would be spent spinning.
        let milliseconds = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut sockets = [PollFd::new(conn.as_fd(), what)];
        match poll(&mut sockets, PollTimeout::from(milliseconds)) {
            Ok(0) | Err(_) => {}
            Ok(_) => return true,
        }
    }
}
