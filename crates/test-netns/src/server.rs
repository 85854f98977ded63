//! The servers of all hosts of a cluster, on one thread.
//!
//! A socket stays in the namespace where it was made, so a visiting thread makes them and one thread with an
//! epoll serves them all. Every answer begins with `<host> <peer address>`:
//!
//! - TCP: that line at once, then everything is sent back as it comes.
//! - UDP: that line and the datagram after it.
//! - SCTP: in a parameter of INIT-ACK; ABORT for ports that aren't served.
//!
//! Whoever takes silence for an answer asks first whether the thread has had its turn: on a busy machine it may
//! have to wait for longer than anybody waits for an answer.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::namespace::Namespace;
use crate::outcome::Protocol;
use crate::sctp;

/// The token of the event that ends the thread.
const STOP: u64 = u64::MAX;
/// The token of the event that asks whether all is answered.
const ASKED: u64 = u64::MAX - 1;
/// A thread that takes longer has ended.
const LONGEST_TURN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Servers {
    shared: Arc<Shared>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    stopping: AtomicBool,
    sockets: Mutex<Sockets>,
    /// Counts how often somebody has asked, and how many of them have been told.
    asked: EventFd,
    asks: AtomicU64,
    told: Mutex<u64>,
    telling: Condvar,
}

#[derive(Debug, Default)]
struct Sockets {
    next: u64,
    by_token: HashMap<u64, Served>,
}

#[derive(Debug)]
struct Served {
    host: Arc<str>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Listener(TcpListener),
    Stream(TcpStream),
    Udp(UdpSocket),
    /// A raw socket; see [`raw_sctp`].
    Sctp {
        socket: UdpSocket,
        ports: HashSet<u16>,
    },
}

impl Kind {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Listener(socket) => socket.as_fd(),
            Self::Stream(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Sctp { socket, .. } => socket.as_fd(),
        }
    }
}

impl Servers {
    pub(crate) fn start() -> Result<Self> {
        raise_file_limit();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("eventfd")?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP)).context("epoll add")?;
        let asked = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("eventfd")?;
        epoll.add(&asked, EpollEvent::new(EpollFlags::EPOLLIN, ASKED)).context("epoll add")?;
        let shared = Arc::new(Shared {
            epoll,
            stopping: AtomicBool::new(false),
            sockets: Mutex::default(),
            asked,
            asks: AtomicU64::new(0),
            told: Mutex::new(0),
            telling: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("pod-servers".into())
            .spawn(move || for_thread.serve())
            .context("start the servers' thread")?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Opens the ports of one host.
    pub(crate) fn serve(
        &self,
        host: &str,
        namespace: &Namespace,
        addresses: &[IpAddr],
        ports: &[(Protocol, u16)],
    ) -> Result<()> {
        let name: Arc<str> = host.into();
        let kinds =
            namespace.run(|| open(addresses, ports))?.with_context(|| format!("servers of {host}"))?;
        let mut sockets = self.shared.lock();
        for kind in kinds {
            self.shared.add(&mut sockets, Served { host: Arc::clone(&name), kind })?;
        }
        Ok(())
    }

    /// Waits until all is answered that has arrived by now.
    pub(crate) fn settle(&self) {
        // ORDER: counted before it is asked, so that whoever asks later cannot be told instead.
        let number = self.shared.asks.fetch_add(1, Ordering::SeqCst) + 1;
        if self.shared.asked.write(1).is_ok() {
            let told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
            // It ends with what it was told in vain only if the thread has ended.
            let _ = self.shared.telling.wait_timeout_while(told, LONGEST_TURN, |told| *told < number);
        }
    }

    /// Closes every socket of one host.
    pub(crate) fn stop_host(&self, host: &str) {
        // KERNEL: closing the only descriptor of a file takes it out of the epoll.
        self.shared.lock().by_token.retain(|_, served| &*served.host != host);
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let woken = self.stop.write(1).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            // A panic of that thread has been printed already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, sockets: &mut Sockets, served: Served) -> Result<()> {
        let token = sockets.next;
        sockets.next += 1;
        self.epoll.add(served.kind.fd(), EpollEvent::new(EpollFlags::EPOLLIN, token)).context("epoll add")?;
        sockets.by_token.insert(token, served);
        Ok(())
    }

    fn serve(&self) {
        let mut events = [EpollEvent::empty(); 256];
        while !self.stopping.load(Ordering::Relaxed) {
            let Ok(ready) = self.epoll.wait(&mut events, EpollTimeout::NONE) else { continue };
            let mut sockets = self.lock();
            for event in &events[..ready] {
                self.turn(&mut sockets, event.data());
            }
            drop(sockets);
            // A full batch may have left others out.
            if ready < events.len() && events[..ready].iter().any(|event| event.data() == ASKED) {
                let asks = self.asked.read().unwrap_or(0);
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) += asks;
                self.telling.notify_all();
            }
        }
    }

    fn turn(&self, sockets: &mut Sockets, token: u64) {
        let mut accepted = Vec::new();
        let Some(served) = sockets.by_token.get_mut(&token) else { return };
        let host = Arc::clone(&served.host);
        let lives = match &mut served.kind {
            Kind::Listener(listener) => {
                accept_all(&host, listener, &mut accepted);
                true
            }
            Kind::Stream(stream) => echo(stream),
            Kind::Udp(socket) => {
                answer_datagrams(&host, socket);
                true
            }
            Kind::Sctp { socket, ports } => {
                answer_inits(&host, socket, ports);
                true
            }
        };
        if !lives {
            sockets.by_token.remove(&token);
        }
        for stream in accepted {
            // Without room for it the connection is closed, which the prober sees.
            let _ = self.add(sockets, Served { host: Arc::clone(&host), kind: Kind::Stream(stream) });
        }
    }
}

/// Makes the sockets; runs inside the namespace. UDP and SCTP get one socket per address, so that answers
/// leave from the address that was asked.
fn open(addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for (protocol, port) in ports {
        match protocol {
            Protocol::Tcp => kinds.push(Kind::Listener(listen(*port)?)),
            Protocol::Udp => {
                for address in addresses {
                    let socket = UdpSocket::bind((*address, *port))
                        .with_context(|| format!("bind UDP {address} port {port}"))?;
                    socket.set_nonblocking(true)?;
                    kinds.push(Kind::Udp(socket));
                }
            }
            // The kernel answers echo requests.
            Protocol::Sctp | Protocol::Icmp => {}
        }
    }
    let sctp_ports: HashSet<u16> =
        ports.iter().filter(|(protocol, _)| *protocol == Protocol::Sctp).map(|(_, port)| *port).collect();
    for address in addresses.iter().filter(|_| !sctp_ports.is_empty()) {
        let socket = raw_sctp(*address)?;
        kinds.push(Kind::Sctp { socket, ports: sctp_ports.clone() });
    }
    Ok(kinds)
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&any.into()).with_context(|| format!("bind TCP port {port}"))?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A raw socket that gets every SCTP packet to `address`.
///
/// It travels as an `UdpSocket`, whose safe `recv_from` and `send_to` are the plain system calls and right
/// for any socket with IP addresses.
pub(crate) fn raw_sctp(address: IpAddr) -> Result<UdpSocket> {
    let here = SocketAddr::new(address, 0);
    let protocol = socket2::Protocol::from(nix::libc::IPPROTO_SCTP);
    let socket = Socket::new(Domain::for_address(here), Type::RAW, Some(protocol)).context("raw socket")?;
    socket.bind(&here.into()).with_context(|| format!("bind raw SCTP {address}"))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn accept_all(host: &str, listener: &TcpListener, accepted: &mut Vec<TcpStream>) {
    loop {
        match listener.accept() {
            Ok((mut stream, peer)) => {
                let line = format!("{host} {}\n", peer.ip().to_canonical());
                let good = stream.set_nonblocking(true).and_then(|()| stream.write_all(line.as_bytes()));
                accepted.extend(good.is_ok().then_some(stream));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}

/// Sends back what came; false when the connection is over.
fn echo(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 2048];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        // A peer that reads nothing loses its bytes: the buffers hold far more than a probe sends.
        Ok(length) => stream.write(&buffer[..length]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn answer_datagrams(host: &str, socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                let mut answer = format!("{host} {}\n", peer.ip()).into_bytes();
                answer.extend(&buffer[..length]);
                let _ = socket.send_to(&answer, peer);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            // An ICMP error of an earlier answer: it has been taken off the socket by this call.
            Err(_) => {}
        }
    }
}

fn answer_inits(host: &str, socket: &UdpSocket, ports: &HashSet<u16>) {
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => continue,
        };
        let Some(packet) = sctp::parse(sctp_part(&buffer[..length], peer.ip())) else { continue };
        let sctp::Chunk::Init { tag } = packet.chunk else { continue };
        let (from, to) = (packet.destination_port, packet.source_port);
        let answer = if ports.contains(&from) {
            sctp::init_ack(from, to, tag, &format!("{host} {}\n", peer.ip()))
        } else {
            sctp::abort(from, to, tag)
        };
        let _ = socket.send_to(&answer, SocketAddr::new(peer.ip(), 0));
    }
}

/// KERNEL: raw IPv4 sockets deliver the IP header as well, raw IPv6 sockets don't (raw(7), RFC 3542 §3).
pub(crate) fn sctp_part(bytes: &[u8], peer: IpAddr) -> &[u8] {
    let header = match (peer, bytes.first()) {
        (IpAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    bytes.get(header..).unwrap_or_default()
}

/// A cluster has a few hundred sockets and a matrix some thousands; the usual soft limit is 1024.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Where it isn't allowed, opening too many sockets says so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
