//! Load through a lane for a short slot of time, and what it cost.
//!
//! Client and server are one thread each, on a CPU each, with epoll and nothing else: small next to what the
//! kernel does for them. A packet through veth is carried by the thread that sends it, up to the other end's
//! socket, so the CPU time of the two threads is all that a request costs, soft interrupts included
//! (`CONFIG_IRQ_TIME_ACCOUNTING` would take them out). Time that other processes take from the threads does
//! not count. What the kernel hands over to ksoftirqd is watched as well.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use test_netns::cost::thread_cpu;

use super::lane::Lane;
use super::scenario::{PEERS, UDP_PORT};

const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;
const SHORT_CLIENTS: usize = 32;
const KEPT_CLIENTS: usize = 16;
const CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
const KEEP: &[u8] = b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n";
const ANSWER_SIZE: usize = 200;
const DATAGRAM: [u8; 18] = [7; 18];
/// Most new flows in a slot: well below the least that conntrack tables hold.
const NEW_FLOWS: u64 = 60_000;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Connect, one request, one answer, close.
    Short,
    /// Requests on connections that stay.
    KeepAlive,
    /// Datagrams of one flow that has been answered.
    UdpEstablished,
    /// Datagrams that each start a flow.
    UdpNew,
}

impl Workload {
    /// All, in the order of the report.
    pub(crate) const ALL: [Self; 4] = [Self::Short, Self::KeepAlive, Self::UdpEstablished, Self::UdpNew];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Short => "Short TCP connections (32 at once, one request each)",
            Self::KeepAlive => "Requests on 16 kept connections",
            Self::UdpEstablished => "UDP packets of 18 bytes, one established flow",
            Self::UdpNew => "UDP packets of 18 bytes, each a new flow",
        }
    }

    /// What is counted.
    pub(crate) fn unit(self) -> &'static str {
        if matches!(self, Self::Short | Self::KeepAlive) { "request" } else { "packet" }
    }
}

/// One slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Requests answered, or packets delivered.
    pub(crate) units: u64,
    /// CPU of client and server.
    pub(crate) cpu: Duration,
    /// How long it took.
    pub(crate) wall: Duration,
    /// CPU that ksoftirqd of both CPUs took meanwhile, for whomever.
    pub(crate) ksoftirqd: Duration,
}

impl Sample {
    /// CPU per unit, in microseconds.
    pub(crate) fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.units as f64
    }

    /// Units per second.
    pub(crate) fn rate(&self) -> f64 {
        self.units as f64 / self.wall.as_secs_f64()
    }
}

/// Runs a workload for a while.
///
/// # Errors
/// When something is refused or lost that should pass.
pub(crate) fn run(lane: &mut Lane, workload: Workload, length: Duration) -> Result<Sample> {
    let softirq = ksoftirqd()?;
    let mut sample = match workload {
        Workload::Short => tcp(lane, CLOSE, SHORT_CLIENTS, length)?,
        Workload::KeepAlive => tcp(lane, KEEP, KEPT_CLIENTS, length)?,
        Workload::UdpEstablished => established_datagrams(lane, length)?,
        Workload::UdpNew => new_datagrams(lane, length)?,
    };
    ensure!(sample.units > 0, "nothing was done");
    sample.ksoftirqd = ksoftirqd()?.saturating_sub(softirq);
    Ok(sample)
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    match sched_setaffinity(Pid::from_raw(0), &set) {
        // There is no such processor: both threads share the one that there is.
        Err(Errno::EINVAL) => Ok(()),
        done => done.context("pin a thread to a CPU"),
    }
}

/// CPU time of all ksoftirqd so far.
fn ksoftirqd() -> Result<Duration> {
    let mut total = 0;
    for cpu in std::fs::read_dir("/proc")? {
        let folder = cpu?.path();
        // Kernel threads of the first CPUs have small process ids, but nothing promises that.
        let named = std::fs::read_to_string(folder.join("comm"));
        if named.is_ok_and(|name| name.starts_with("ksoftirqd/")) {
            let times = std::fs::read_to_string(folder.join("schedstat"))?;
            total += times.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(total))
}

fn tcp(lane: &Lane, request: &'static [u8], clients: usize, length: Duration) -> Result<Sample> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&lane.tcp, &stop));
        let started = Instant::now();
        let client = lane.client.run(|| Client::new(lane, request)?.run(clients, length));
        let wall = started.elapsed();
        stop.store(true, Ordering::Relaxed);
        let Ok(server) = server.join() else { bail!("the server panicked") };
        let (units, cpu) = client.flatten()?;
        Ok(Sample { units, cpu: cpu + server?, wall, ksoftirqd: Duration::ZERO })
    })
}

/// Answers requests until told to stop; returns the CPU time it took.
fn serve(listener: &TcpListener, stop: &AtomicBool) -> Result<Duration> {
    const LISTENER: u64 = u64::MAX;
    pin(SERVER_CPU)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    let before = thread_cpu();
    while !stop.load(Ordering::Relaxed) {
        let ready = wait(&epoll, &mut events)?;
        for event in &events[..ready] {
            if event.data() == LISTENER {
                accept_all(listener, &epoll, &mut connections)?;
                continue;
            }
            let Some(place) = connections.get_mut(event.data() as usize) else { continue };
            if place.as_mut().is_some_and(|stream| !answer(stream)) {
                *place = None;
            }
        }
    }
    epoll.delete(listener)?;
    Ok(thread_cpu() - before)
}

fn accept_all(listener: &TcpListener, epoll: &Epoll, connections: &mut Vec<Option<TcpStream>>) -> Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accept"),
        };
        stream.set_nonblocking(true)?;
        let place = stream.as_raw_fd() as usize;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
        if connections.len() <= place {
            connections.resize_with(place + 1, || None);
        }
        connections[place] = Some(stream);
    }
}

/// Answers one request. False if the connection is to be closed.
fn answer(stream: &mut TcpStream) -> bool {
    let mut request = [0; 256];
    match stream.read(&mut request) {
        Ok(0) => false,
        Ok(size) => stream.write_all(&[b'x'; ANSWER_SIZE]).is_ok() && &request[..size] != CLOSE,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn wait(epoll: &Epoll, events: &mut [EpollEvent]) -> Result<usize> {
    match epoll.wait(events, EpollTimeout::from(10_u8)) {
        Ok(ready) => Ok(ready),
        Err(Errno::EINTR) => Ok(0),
        Err(error) => Err(error).context("epoll"),
    }
}

/// The client's end of a connection.
struct Connection {
    socket: Socket,
    /// Not yet written, because the connection is not yet there.
    owes_request: bool,
    received: usize,
}

struct Client {
    epoll: Epoll,
    to: SockAddr,
    request: &'static [u8],
    connections: Vec<Connection>,
    done: u64,
}

impl Client {
    fn new(lane: &Lane, request: &'static [u8]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, to: lane.tcp_address().into(), request, connections: Vec::new(), done: 0 })
    }

    /// Keeps so many connections busy; returns the number of answers and the CPU time.
    fn run(mut self, clients: usize, length: Duration) -> Result<(u64, Duration)> {
        pin(CLIENT_CPU)?;
        let mut events = [EpollEvent::empty(); 64];
        let before = thread_cpu();
        let end = Instant::now() + length;
        for index in 0..clients {
            let connection = self.open(index)?;
            self.connections.push(connection);
        }
        let mut last_answer = Instant::now();
        while Instant::now() < end {
            let done = self.done;
            let ready = wait(&self.epoll, &mut events)?;
            for event in &events[..ready] {
                self.progress(event.data() as usize)?;
            }
            if self.done > done {
                last_answer = Instant::now();
            }
            ensure!(last_answer.elapsed() < Duration::from_secs(5), "no answer for five seconds");
        }
        Ok((self.done, thread_cpu() - before))
    }

    fn open(&mut self, index: usize) -> Result<Connection> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        match socket.connect(&self.to) {
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            other => other.context("connect")?,
        }
        let mut connection = Connection { socket, owes_request: true, received: 0 };
        // Mostly the handshake is over by now: this thread has carried the packets to and fro.
        self.send(&mut connection)?;
        let interest = EpollFlags::EPOLLIN
            | if connection.owes_request { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        self.epoll.add(&connection.socket, EpollEvent::new(interest, index as u64))?;
        Ok(connection)
    }

    fn send(&self, connection: &mut Connection) -> Result<()> {
        match connection.socket.send(self.request) {
            Ok(size) => ensure!(size == self.request.len(), "half a request"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("send a request"),
        }
        connection.owes_request = false;
        Ok(())
    }

    fn progress(&mut self, index: usize) -> Result<()> {
        let mut connection = self.connections.swap_remove(index);
        let kept = self.step(index, &mut connection)?;
        let next = if kept {
            connection
        } else {
            drop(connection);
            self.open(index)?
        };
        // Back to its place.
        self.connections.push(next);
        let last = self.connections.len() - 1;
        self.connections.swap(index, last);
        Ok(())
    }

    /// Goes on with a connection; false when it has ended and the next one is due.
    fn step(&mut self, index: usize, connection: &mut Connection) -> Result<bool> {
        if connection.owes_request {
            self.send(connection)?;
            if !connection.owes_request {
                let event = &mut EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
                self.epoll.modify(&connection.socket, event)?;
            }
            return Ok(true);
        }
        let mut answer = [0; 2 * ANSWER_SIZE];
        match (&connection.socket).read(&mut answer) {
            Ok(0) => {
                ensure!(connection.received == ANSWER_SIZE, "closed after {} bytes", connection.received);
                self.done += 1;
                return Ok(false);
            }
            Ok(size) => connection.received += size,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error).context("read an answer"),
        }
        if self.request == KEEP && connection.received == ANSWER_SIZE {
            self.done += 1;
            connection.received = 0;
            connection.owes_request = true;
            self.send(connection)?;
            ensure!(!connection.owes_request, "a request does not fit into an empty socket");
        }
        Ok(true)
    }
}

/// Packets that IP of the server has handed to UDP so far. Nobody reads them there.
fn delivered(lane: &Lane) -> Result<u64> {
    let text = lane.server.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { bail!("/proc/net/snmp") };
    let mut pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.find_map(|(name, value)| (name == "InDelivers").then_some(value));
    value.and_then(|value| value.parse().ok()).context("InDelivers in /proc/net/snmp")
}

/// Sends until the time is over or there is nothing more to send; counts what arrives.
fn blast(
    lane: &Lane,
    length: Duration,
    most: u64,
    mut send: impl FnMut(u64) -> std::io::Result<usize> + Send,
) -> Result<Sample> {
    const AT_ONCE: u64 = 64;
    let before = delivered(lane)?;
    let (sent, cpu, wall) = lane.client.run(|| -> Result<_> {
        pin(CLIENT_CPU)?;
        let (started, cpu) = (Instant::now(), thread_cpu());
        let mut sent = 0;
        while sent < most && started.elapsed() < length {
            for _ in 0..AT_ONCE {
                send(sent).context("send a datagram")?;
                sent += 1;
            }
        }
        Ok((sent, thread_cpu() - cpu, started.elapsed()))
    })??;
    let units = delivered(lane)? - before;
    // The kernel drops from its queue of a CPU when others keep that CPU from working it off.
    ensure!(units * 100 >= sent * 95, "{units} of {sent} packets arrived");
    Ok(Sample { units, cpu, wall, ksoftirqd: Duration::ZERO })
}

fn established_datagrams(lane: &Lane, length: Duration) -> Result<Sample> {
    let mut buffer = [0; 64];
    while lane.udp.recv_from(&mut buffer).is_ok() {}
    let to = lane.udp_address();
    let socket = lane.client.run(|| -> Result<_> {
        let socket = UdpSocket::bind((lane.scenario.client(), 0))?;
        socket.connect(to)?;
        socket.send(&DATAGRAM)?;
        Ok(socket)
    })??;
    let limit = Instant::now() + Duration::from_secs(2);
    let (_, from) = loop {
        match lane.udp.recv_from(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < limit => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => break other.context("the first datagram")?,
        }
    };
    lane.udp.send_to(&DATAGRAM, from)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.recv(&mut buffer).context("the answer to the first datagram")?;
    blast(lane, length, u64::MAX, |_| socket.send(&DATAGRAM))
}

fn new_datagrams(lane: &mut Lane, length: Duration) -> Result<Sample> {
    let raw = lane.client.run(|| -> Result<_> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.set_header_included_v4(true)?;
        Ok(socket)
    })??;
    let to: SockAddr = lane.udp_address().into();
    let scenario = lane.scenario;
    let first = lane.flows;
    let mut packet = datagram(scenario.target());
    let sample = blast(lane, length, NEW_FLOWS, |number| {
        let flow = first + number;
        let source = scenario.peer((flow / NEW_FLOWS) as usize % PEERS);
        packet[12..16].copy_from_slice(&source.octets());
        packet[20..22].copy_from_slice(&(1024 + (flow % NEW_FLOWS) as u16).to_be_bytes());
        raw.send_to(&packet, &to)
    })?;
    lane.flows += NEW_FLOWS;
    Ok(sample)
}

/// An IPv4 packet with a datagram for the open port; its source is still to be filled in. The kernel adds
/// the IP checksum, and UDP goes without (RFC 768: zero).
fn datagram(to: std::net::Ipv4Addr) -> [u8; 46] {
    let mut packet = [7; 46];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet[16..20].copy_from_slice(&to.octets());
    packet[22..24].copy_from_slice(&UDP_PORT.to_be_bytes());
    packet[24..28].copy_from_slice(&[0, 26, 0, 0]);
    packet
}
