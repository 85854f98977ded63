//! One netlink socket of the netfilter family: sends a buffer as one datagram, reads answers and dumps.
//!
//! KERNEL: the kernel works inside `sendto()`: when it returns, all answers to a batch wait in the socket.
//! So they are read without blocking until there are no more; a failed batch has no last answer to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::wire::uapi::*;
use crate::wire::{Attributes, HEADER, Message, Messages};

/// Larger than any datagram of a dump (the kernel stops at 32 KiB) and than any answer to a batch.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Room for the answers to a batch in which every message is refused, as far as anyone will read them.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
/// Send buffer that every socket has at least (net.core.wmem_default is 208 KiB nearly everywhere).
const SEND_QUEUE: usize = 128 * 1024;
/// A dump goes on inside each `recv()`; only a kernel in trouble lets us wait.
const DUMP_TIMEOUT_SECONDS: i64 = 10;

/// An answer to one message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) sequence: u32,
    /// Positive; 0 is an acknowledgement.
    pub(crate) errno: i32,
    /// Where in the message the offending attribute is.
    pub(crate) offset: Option<u32>,
}

/// Why a dump gave nothing.
#[derive(Debug)]
pub(crate) enum DumpError {
    /// The ruleset (`NLM_F_DUMP_INTR`, `EINTR`) or the order of a set changed meanwhile.
    Interrupted,
    /// The kernel refused with this (positive) `errno`.
    Refused(i32),
    /// An answer that is no message.
    Malformed(&'static str),
    Io(io::Error),
}

/// See the module.
pub(crate) struct Netlink {
    socket: RawSocket,
    portid: u32,
    sequence: u32,
    send_queue: usize,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket in the network namespace of the calling thread, where it stays.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = RawSocket::new(NETLINK_NETFILTER)?;
        let address = socket.bind_auto()?;
        // Without CAP_ACK each refusal carries the whole refused message back.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(DUMP_TIMEOUT_SECONDS))?;
        // Worth having, not needed: without it only the first refusals of a batch are told.
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_QUEUE);
        Ok(Self {
            socket,
            portid: address.port_number(),
            sequence: 1,
            send_queue: SEND_QUEUE,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Port that the kernel knows this socket by.
    pub(crate) fn portid(&self) -> u32 {
        self.portid
    }

    /// Makes the socket a member of a multicast group.
    pub(crate) fn join(&mut self, group: u32) -> io::Result<()> {
        self.socket.add_membership(group)
    }

    /// Takes `count` sequence numbers and returns the first.
    pub(crate) fn take_sequences(&mut self, count: u32) -> u32 {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// The sequence number that will be taken next.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.sequence
    }

    /// Sends the whole buffer as one datagram.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.send_queue {
            // The kernel doubles the value and wants some of it for itself.
            if setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &bytes.len()).is_err() {
                setsockopt(&self.socket.as_fd(), sockopt::SndBuf, &bytes.len())?;
            }
            self.send_queue = bytes.len();
        }
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "datagram sent in part"));
        }
        Ok(())
    }

    /// Reads the next datagram; `None` if none waits.
    fn receive(&mut self, wait: bool) -> io::Result<Option<&[u8]>> {
        let flags = libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, flags) {
                Ok((len, _)) if len > self.buffer.len() => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "datagram larger than the buffer",
                    ));
                }
                // Only the kernel is port 0; anybody may send to our port.
                Ok((_, address)) if address.port_number() != 0 => {}
                Ok(_) => return Ok(Some(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !wait => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads all answers that wait, without blocking. The flag is true if some were lost (`ENOBUFS`).
    pub(crate) fn drain_answers(&mut self) -> io::Result<(Vec<Answer>, bool)> {
        let mut answers = Vec::new();
        let mut lost = false;
        loop {
            match self.receive(false) {
                Ok(None) => return Ok((answers, lost)),
                Ok(Some(datagram)) => {
                    for message in Messages::new(datagram).map_while(Result::ok) {
                        answers.extend(answer(&message));
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request written with sequence number [`Self::next_sequence`] and hands each message of the
    /// answer to `each`, to the end of the dump (or the acknowledgement, or the one message if `!dump`).
    pub(crate) fn request(
        &mut self,
        request: &[u8],
        dump: bool,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), DumpError> {
        let sequence = self.take_sequences(1);
        self.send(request).map_err(DumpError::Io)?;
        let mut outcome = Ok(());
        loop {
            let datagram = match self.receive(true) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => continue,
                // Multicast groups are joined by other sockets: what is lost here is of this dump.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(DumpError::Interrupted);
                }
                Err(error) => return Err(DumpError::Io(error)),
            };
            for message in Messages::new(datagram) {
                let message = match message {
                    Ok(message) => message,
                    Err(what) => {
                        outcome = Err(DumpError::Malformed(what));
                        break;
                    }
                };
                if message.sequence != sequence {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 && dump {
                    outcome = Err(DumpError::Interrupted);
                }
                match message.kind {
                    NLMSG_DONE => return outcome.and(finished(&message)),
                    NLMSG_ERROR => return outcome.and(finished(&message)),
                    _ => each(&message),
                }
                if !dump {
                    return outcome;
                }
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads the next multicast datagrams without blocking and hands over each message.
impl Netlink {
    /// True if the kernel dropped messages because this socket was too slow.
    pub(crate) fn drain_events(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut lost = false;
        loop {
            match self.receive(false) {
                Ok(None) => return Ok(lost),
                Ok(Some(datagram)) => {
                    for message in Messages::new(datagram).map_while(Result::ok) {
                        each(&message);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// The end of a dump: a number that is 0 or a negative errno.
fn finished(message: &Message<'_>) -> Result<(), DumpError> {
    match errno(message) {
        Some(0) => Ok(()),
        // KERNEL: nf_tables dumps end so when the generation changed under them.
        Some(libc::EINTR) => Err(DumpError::Interrupted),
        Some(errno) => Err(DumpError::Refused(errno)),
        None => Err(DumpError::Malformed("an end of a dump without a result")),
    }
}

fn errno(message: &Message<'_>) -> Option<i32> {
    let code = i32::from_ne_bytes(*message.body.first_chunk()?);
    Some(code.checked_neg().unwrap_or(i32::MAX))
}

/// `NLMSG_ERROR`: errno, header of the message answered, attributes of the extended answer.
fn answer(message: &Message<'_>) -> Option<Answer> {
    if message.kind != NLMSG_ERROR {
        return None;
    }
    let errno = errno(message)?;
    let mut offset = None;
    if message.flags & NLM_F_ACK_TLVS != 0 {
        // NETLINK_CAP_ACK: only the header of the refused message comes back; without, all of it.
        let header = message.body.get(4..8)?;
        let quoted = match message.flags & NLM_F_CAPPED {
            0 => u32::from_ne_bytes(*header.first_chunk()?) as usize,
            _ => HEADER,
        };
        let attributes = message.body.get(4 + quoted.next_multiple_of(4)..).unwrap_or_default();
        // The offset is a number of the host.
        offset = Attributes::new(attributes)
            .find(NLMSGERR_ATTR_OFFS)
            .and_then(|attribute| attribute.data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)));
    }
    Some(Answer { sequence: message.sequence, errno, offset })
}
