//! One attempt to reach a server, over one non-blocking socket.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt::Ipv4RecvErr,
    sockopt::Ipv6RecvErr,
};
use socket2::{Domain, Socket, Type};

use crate::outcome::{Answer, Family, Icmp, Outcome, Protocol};
use crate::sctp;
use crate::server::{raw_sctp, sctp_part};

/// Source ports of UDP and SCTP probes are used once: one used again would go on with the tracked connection of an
/// earlier probe, which may still be allowed. Those that the kernel chooses for UDP repeat once in some thousand.
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 40_000;

fn next_port() -> u16 {
    FIRST_PORT + (NEXT_PORT.fetch_add(1, Ordering::Relaxed) % u32::from(PORTS)) as u16
}

/// An open socket towards a server.
#[derive(Debug)]
pub(crate) struct Conn {
    target: SocketAddr,
    socket: Kind,
    sent: u16,
}

#[derive(Debug)]
enum Kind {
    Tcp(Socket),
    Udp(UdpSocket),
    Sctp { socket: UdpSocket, port: u16, aborted: bool },
    Icmp(UdpSocket),
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Kind::Tcp(socket) => socket.as_fd(),
            Kind::Udp(socket) | Kind::Sctp { socket, .. } | Kind::Icmp(socket) => socket.as_fd(),
        }
    }
}

impl Conn {
    /// Makes the socket in the calling thread's namespace and sends the first packet. `source` is the
    /// address to bind, if the kernel shall not choose.
    ///
    /// # Errors
    /// The outcome, where that is known at once.
    pub(crate) fn open(
        protocol: Protocol,
        source: Option<IpAddr>,
        target: SocketAddr,
    ) -> Result<Self, Outcome> {
        let made = match protocol {
            Protocol::Tcp => tcp(source, target),
            Protocol::Udp => udp(source, target).map(Kind::Udp),
            Protocol::Icmp => ping(source, target).map(Kind::Icmp),
            Protocol::Sctp => raw(source, target),
        };
        let mut conn = Self { target, socket: made.map_err(|error| failed(&error))?, sent: 0 };
        if let Err(error) = conn.send() {
            return Err(conn.icmp_error().map_or_else(|| failed(&error), Outcome::Unreachable));
        }
        Ok(conn)
    }

    /// Sends the first packet, or sends it again. TCP does that itself.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        self.sent = self.sent.wrapping_add(1);
        match &self.socket {
            Kind::Tcp(_) => Ok(()),
            Kind::Udp(socket) => socket.send(&self.sent.to_be_bytes()).map(drop),
            Kind::Icmp(socket) => {
                let kind = if self.target.is_ipv4() { 8 } else { 128 };
                let [high, low] = self.sent.to_be_bytes();
                // KERNEL: net/ipv4/ping.c fills in identifier and checksum.
                socket.send(&[kind, 0, 0, 0, 0, 0, high, low, 0, 0, 0, 0]).map(drop)
            }
            Kind::Sctp { socket, port, .. } => {
                let tag = u32::from(*port) << 16 | 1;
                socket.send(&sctp::init(*port, self.target.port(), tag)).map(drop)
            }
        }
    }

    /// TCP: whether the handshake is done. To be asked when the socket is writable.
    pub(crate) fn handshake(&self) -> Option<Outcome> {
        let Kind::Tcp(socket) = &self.socket else { return None };
        if let Some(outcome) = self.error() {
            return Some(outcome);
        }
        let answer = || Answer { server: String::new(), seen_source: None };
        socket.peer_addr().ok().map(|_| Outcome::Connected(answer()))
    }

    /// What has come back so far. To be asked when the socket has something to say; `None`: go on waiting.
    pub(crate) fn outcome(&mut self) -> Option<Outcome> {
        if let Some(outcome) = self.error() {
            return Some(outcome);
        }
        let mut buffer = [0; 2048];
        loop {
            let received = match &mut self.socket {
                Kind::Tcp(socket) => socket.read(&mut buffer),
                Kind::Udp(socket) | Kind::Sctp { socket, .. } | Kind::Icmp(socket) => {
                    socket.recv(&mut buffer)
                }
            };
            let length = match received {
                // A server that closes without a word.
                Ok(0) if matches!(self.socket, Kind::Tcp(_)) => return Some(Outcome::Refused),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) if matches!(self.socket, Kind::Sctp { .. }) => continue,
                Err(error) => return Some(failed(&error)),
            };
            if let Some(outcome) = self.judge(&buffer[..length]) {
                return Some(outcome);
            }
        }
    }

    /// What to say when nothing better has come: an ABORT counts only then, because a kernel with SCTP of its
    /// own aborts what our raw server accepts a moment later.
    pub(crate) fn fallback(&self) -> Option<Outcome> {
        matches!(self.socket, Kind::Sctp { aborted: true, .. }).then_some(Outcome::Refused)
    }

    fn judge(&mut self, bytes: &[u8]) -> Option<Outcome> {
        match &mut self.socket {
            Kind::Tcp(_) | Kind::Udp(_) => Some(Outcome::Connected(answer(&String::from_utf8_lossy(bytes)))),
            Kind::Icmp(_) => {
                let reply = if self.target.is_ipv4() { 0 } else { 129 };
                (bytes.first() == Some(&reply)).then(|| Outcome::Connected(answer("")))
            }
            Kind::Sctp { port, aborted, .. } => {
                let packet = sctp::parse(sctp_part(bytes, self.target.ip()))?;
                if (packet.source_port, packet.destination_port) != (self.target.port(), *port) {
                    return None;
                }
                match packet.chunk {
                    sctp::Chunk::InitAck { text } => Some(Outcome::Connected(answer(&text))),
                    sctp::Chunk::Abort => {
                        *aborted = true;
                        None
                    }
                    sctp::Chunk::Init { .. } => None,
                }
            }
        }
    }

    /// TCP: sends a line on an established connection.
    pub(crate) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            Kind::Tcp(socket) => socket.write_all(line),
            _ => self.send(),
        }
    }

    /// Reads what is there. To be asked when readable.
    pub(crate) fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket {
            Kind::Tcp(socket) => socket.read(buffer),
            Kind::Udp(socket) | Kind::Sctp { socket, .. } | Kind::Icmp(socket) => socket.recv(buffer),
        }
    }

    /// The ICMP error or socket error that is pending.
    pub(crate) fn error(&self) -> Option<Outcome> {
        if let Some(icmp) = self.icmp_error() {
            return Some(Outcome::Unreachable(icmp));
        }
        let pending = match &self.socket {
            Kind::Tcp(socket) => socket.take_error(),
            // Raw sockets hear of errors of their neighbours as well; theirs is in the error queue.
            Kind::Sctp { socket, .. } => socket.take_error().map(|_| None),
            Kind::Udp(socket) | Kind::Icmp(socket) => socket.take_error(),
        };
        pending.ok().flatten().map(|error| failed(&error))
    }

    /// Takes ICMP errors off the error queue until one is about this socket's packets.
    fn icmp_error(&self) -> Option<Icmp> {
        let mut original = [0; 512];
        let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        loop {
            let mut parts = [IoSliceMut::new(&mut original)];
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message =
                recvmsg::<SockaddrStorage>(self.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags);
            let message = message.ok()?;
            let length = message.bytes;
            let icmp = message.cmsgs().ok()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4RecvErr(error, _) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP => {
                    Some(Icmp { family: Family::V4, kind: error.ee_type, code: error.ee_code })
                }
                ControlMessageOwned::Ipv6RecvErr(error, _) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 => {
                    Some(Icmp { family: Family::V6, kind: error.ee_type, code: error.ee_code })
                }
                _ => None,
            });
            if icmp.is_some() && self.is_about_us(&original[..length]) {
                return icmp;
            }
        }
    }

    /// Whether a packet that an ICMP error quotes (from its transport header on) is this socket's.
    fn is_about_us(&self, quoted: &[u8]) -> bool {
        match &self.socket {
            Kind::Sctp { port, .. } => {
                let ports = [port.to_be_bytes(), self.target.port().to_be_bytes()].concat();
                quoted.get(..4) == Some(&ports[..])
            }
            // KERNEL: the others are looked up by their ports or their echo identifier.
            _ => true,
        }
    }
}

fn tcp(source: Option<IpAddr>, target: SocketAddr) -> io::Result<Kind> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Closing resets: no TIME_WAIT, so a hammer doesn't run out of ports.
    socket.set_linger(Some(Duration::ZERO))?;
    report_icmp(&socket, target)?;
    if let Some(source) = source {
        // The port is chosen at connect(), where all 4-tuples count, not only free ports.
        setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(Kind::Tcp(socket)),
    }
}

fn udp(source: Option<IpAddr>, target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = datagram(target, None)?;
    let source = source.unwrap_or_else(|| any(target));
    let bind = || socket.bind(&SocketAddr::new(source, next_port()).into());
    let in_use =
        |done: &io::Result<()>| done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    (0..PORTS).map(|_| bind()).find(|done| !in_use(done)).unwrap_or_else(bind)?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

fn ping(source: Option<IpAddr>, target: SocketAddr) -> io::Result<UdpSocket> {
    let v4 = target.is_ipv4();
    let socket =
        datagram(target, Some(if v4 { socket2::Protocol::ICMPV4 } else { socket2::Protocol::ICMPV6 }))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&SocketAddr::new(target.ip(), 0).into())?;
    Ok(socket.into())
}

fn datagram(target: SocketAddr, protocol: Option<socket2::Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, protocol)?;
    socket.set_nonblocking(true)?;
    report_icmp(&socket, target)?;
    Ok(socket)
}

fn any(target: SocketAddr) -> IpAddr {
    if target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }
}

fn raw(source: Option<IpAddr>, target: SocketAddr) -> io::Result<Kind> {
    let socket = raw_sctp(source.unwrap_or_else(|| any(target)))
        .map_err(|error| io::Error::other(error.to_string()))?;
    report_icmp(&socket, target)?;
    socket.connect(SocketAddr::new(target.ip(), 0))?;
    Ok(Kind::Sctp { socket, port: next_port(), aborted: false })
}

/// KERNEL: with IP_RECVERR (ip(7)) every ICMP error is reported at once and with its type and code.
fn report_icmp(socket: &impl AsFd, target: SocketAddr) -> io::Result<()> {
    let set = if target.is_ipv4() {
        setsockopt(socket, Ipv4RecvErr, &true)
    } else {
        setsockopt(socket, Ipv6RecvErr, &true)
    };
    set.map_err(io::Error::from)
}

/// What an errno says that no ICMP error explains.
pub(crate) fn failed(error: &io::Error) -> Outcome {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE) => Outcome::Refused,
        Some(errno) => Outcome::Failed(errno),
        None => Outcome::Failed(Errno::UnknownErrno),
    }
}

/// Reads the servers' line: `<host> <peer address>`.
fn answer(text: &str) -> Answer {
    let line = text.lines().next().unwrap_or_default();
    let (server, source) = line.split_once(' ').unwrap_or((line, ""));
    Answer { server: server.into(), seen_source: source.parse().ok() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::namespace::Namespace;

    #[test]
    fn no_udp_probe_goes_on_with_the_connection_of_another() {
        let namespace = Namespace::new("ports").expect("a namespace (root is needed)");
        namespace.output("ip", &["link", "set", "lo", "up"], "").expect("the loopback up");
        let target = SocketAddr::from(([127, 0, 0, 1], 9));
        let ports = |source| -> HashSet<u16> {
            let open =
                |_| udp(source, target).and_then(|socket| socket.local_addr()).expect("a socket").port();
            (0..1_000).map(open).collect()
        };
        let (chosen, bound) = namespace.run(|| (ports(None), ports(Some(target.ip())))).expect("inside");
        assert_eq!((chosen.len(), bound.len(), chosen.intersection(&bound).count()), (1_000, 1_000, 0));
    }
}
