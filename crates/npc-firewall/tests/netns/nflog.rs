//! What the kernel logs to an NFLOG group: just enough of nfnetlink_log to read prefixes and packets.
//!
//! KERNEL: include/uapi/linux/netfilter/nfnetlink_log.h

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use test_netns::Namespace;

const NFNL_SUBSYS_ULOG: u16 = 4 << 8;
const NFULNL_MSG_PACKET: u16 = NFNL_SUBSYS_ULOG;
const NFULNL_MSG_CONFIG: u16 = NFNL_SUBSYS_ULOG | 1;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
/// Bytes of a netlink message header and of nfgenmsg.
const HEADERS: usize = 20;

/// A listener to one group in one namespace.
pub(crate) struct Nflog {
    socket: Socket,
    waiting: VecDeque<Logged>,
}

/// A packet that was logged.
#[derive(Debug)]
pub(crate) struct Logged {
    pub(crate) prefix: String,
    /// From its IP header on.
    pub(crate) packet: Vec<u8>,
}

impl Nflog {
    /// Listens. Fails if somebody else does.
    pub(crate) fn bind(namespace: &Namespace, group: u16) -> Self {
        let open = || {
            let protocol = Protocol::from(libc::NETLINK_NETFILTER);
            Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))
        };
        let mut socket = namespace.run(open).expect("entered").expect("a netlink socket");
        let copy = [&u32::MAX.to_be_bytes()[..], &[NFULNL_COPY_PACKET, 0]].concat();
        for (kind, value) in [(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND][..]), (NFULA_CFG_MODE, &copy)] {
            socket.write_all(&config(group, kind, value)).expect("sent");
            let mut answer = [0; 4096];
            let length = socket.read(&mut answer).expect("an answer");
            assert_eq!(answer[16..length.min(20)], [0; 4], "the kernel refuses to log to group {group}");
        }
        Self { socket, waiting: VecDeque::new() }
    }

    /// The next packet; `None` if there is none for so long. The kernel holds packets back for a second.
    pub(crate) fn next(&mut self, patience: Duration) -> Option<Logged> {
        let end = Instant::now() + patience;
        while self.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).expect("set");
            let mut buffer = vec![0; 1 << 16];
            match self.socket.read(&mut buffer) {
                Ok(length) => self.waiting.extend(messages(&buffer[..length])),
                // KERNEL: signal(7): so it ends when the process has been stopped, also without a handler.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        self.waiting.pop_front()
    }
}

fn config(group: u16, kind: u16, value: &[u8]) -> Vec<u8> {
    let mut body = vec![libc::AF_UNSPEC as u8, 0];
    body.extend(group.to_be_bytes());
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(NFULNL_MSG_CONFIG.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn messages(mut bytes: &[u8]) -> Vec<Logged> {
    let mut found = Vec::new();
    while bytes.len() >= HEADERS {
        let length = u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        if kind == NFULNL_MSG_PACKET {
            found.push(logged(&bytes[HEADERS..length]));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn logged(mut attributes: &[u8]) -> Logged {
    let mut logged = Logged { prefix: String::new(), packet: Vec::new() };
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let value = &attributes[4..length];
        match u16::from_ne_bytes([attributes[2], attributes[3]]) {
            NFULA_PREFIX => {
                logged.prefix = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
            NFULA_PAYLOAD => logged.packet = value.to_vec(),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    logged
}
