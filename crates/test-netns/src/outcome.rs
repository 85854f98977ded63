//! What is probed, and what a probe can find.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use nix::errno::Errno;

/// A protocol that the clusters' servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// A handshake, then the server's greeting.
    Tcp,
    /// A datagram and its answer; sent again while nothing comes back.
    Udp,
    /// INIT and INIT-ACK in raw IP packets, so that kernels without SCTP sockets can be tested as well.
    Sctp,
    /// Echo request and reply; ICMPv6 for IPv6. The port is not used.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
    }
}

impl FromStr for Protocol {
    type Err = anyhow::Error;

    /// Reads the names that the Kubernetes API uses, plus `ICMP`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            "ICMP" => Ok(Self::Icmp),
            other => anyhow::bail!("unknown protocol {other:?}"),
        }
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// An ICMP or ICMPv6 error that answered a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// ICMP or ICMPv6.
    pub family: Family,
    /// The message's type (RFC 792, RFC 4443).
    pub kind: u8,
    /// The message's code.
    pub code: u8,
}

impl Icmp {
    /// "Administratively prohibited": what a firewall answers.
    #[must_use]
    pub fn is_admin_prohibited(self) -> bool {
        match self.family {
            Family::V4 => self.kind == 3 && matches!(self.code, 9 | 10 | 13),
            Family::V6 => self.kind == 1 && self.code == 1,
        }
    }

    /// "Port unreachable": nobody listens (or a firewall says so).
    #[must_use]
    pub fn is_port_unreachable(self) -> bool {
        match self.family {
            Family::V4 => self.kind == 3 && self.code == 3,
            Family::V6 => self.kind == 1 && self.code == 4,
        }
    }
}

impl fmt::Display for Icmp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_admin_prohibited() {
            return out.write_str("administratively prohibited");
        }
        if self.is_port_unreachable() {
            return out.write_str("port unreachable");
        }
        let name = if self.family == Family::V4 { "ICMP" } else { "ICMPv6" };
        write!(out, "{name} type {} code {}", self.kind, self.code)
    }
}

/// What a server said of itself and of the prober.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The host that answered; empty for ICMP echo, which the kernel answers.
    pub server: String,
    /// The prober's address as the server saw it (translation shows here); `None` for ICMP echo.
    pub seen_source: Option<IpAddr>,
}

/// The end of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered.
    Connected(Answer),
    /// TCP RST, SCTP ABORT.
    Refused,
    /// An ICMP error came back.
    Unreachable(Icmp),
    /// The prober's own kernel refused: no route, or `EPERM` from a rule in its output path.
    Failed(Errno),
    /// Nothing came back, or (TCP) the handshake was done but no byte followed.
    TimedOut,
}

impl Outcome {
    /// Whether the server answered.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected(_))
    }

    /// Whether somebody said no: RST, ABORT, or "administratively prohibited".
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        match self {
            Self::Refused => true,
            Self::Unreachable(icmp) => icmp.is_admin_prohibited(),
            _ => false,
        }
    }

    /// One character for tables: `.` connected, `X` rejected, `T` timed out, `U` another ICMP error, `E` a
    /// local error.
    #[must_use]
    pub fn symbol(&self) -> char {
        match self {
            Self::Connected(_) => '.',
            _ if self.is_rejected() => 'X',
            Self::TimedOut => 'T',
            Self::Unreachable(_) => 'U',
            Self::Refused | Self::Failed(_) => 'E',
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected(answer) => match answer.seen_source {
                Some(source) => write!(out, "connected to {} as {source}", answer.server),
                None => out.write_str("connected"),
            },
            Self::Refused => out.write_str("refused"),
            Self::Unreachable(icmp) => write!(out, "unreachable: {icmp}"),
            Self::Failed(errno) => write!(out, "failed: {errno}"),
            Self::TimedOut => out.write_str("timed out"),
        }
    }
}
