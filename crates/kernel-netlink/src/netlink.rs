//! One netlink socket: reads dumps, sends batches, tells answers by sequence number.
//!
//! ```text
//!  datagram = nlmsghdr │ body │ nlmsghdr │ body │ …      ≤ 256 messages, ACK asked for on the last
//!  answers  = one NLMSG_ERROR for each message refused, one for the last message in any case
//! ```
//!
//! KERNEL: `netlink_rcv_skb()` (net/netlink/af_netlink.c) works inside `sendto()`, carries on after a message
//! that is refused, and answers refusals without being asked: when `sendto()` returns, all answers wait in the
//! socket. So they are read without blocking until there are no more.

mod datagram;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSerializable};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use datagram::{Batch, Messages, append, error_number, read_answer, reason};

/// Larger than any datagram of a dump (the kernel stops at 32 KiB).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Room for the answers to a batch in which every message is refused: each is charged about 1 KiB, and at the
/// default of 208 KiB some are lost.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
/// A dump goes on inside each `recv()`; only a kernel in trouble lets us wait.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;
/// How often something is read again because it changed meanwhile.
pub(crate) const ATTEMPTS: u32 = 20;

/// Why a request was not answered in full.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// What was dumped changed meanwhile (`NLM_F_DUMP_INTR`, `EINTR`), or parts were lost. Ask again.
    Interrupted,
    /// The kernel refused with this (positive) `errno`.
    Refused(i32),
    /// An answer that is none.
    Malformed(&'static str),
    /// The socket failed; open another.
    Io(io::Error),
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Entries changed during each of many attempts to read them. A retry can help.
    #[error("{context}: interrupted in each of {attempts} attempts")]
    Unstable {
        /// What was tried.
        context: &'static str,
        /// How often.
        attempts: u32,
    },
    /// The kernel answered something that is no valid message.
    #[error("{context}: malformed answer of the kernel: {what}")]
    Malformed {
        /// What was tried.
        context: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The socket failed, or the kernel refused. Open another socket.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ReadError {
    /// With what was tried, and how often.
    pub(crate) fn explained(self, context: &'static str, attempts: u32) -> Error {
        match self {
            Self::Interrupted => Error::Unstable { context, attempts },
            Self::Refused(errno) => Error::Io { context, source: io::Error::from_raw_os_error(errno) },
            Self::Malformed(what) => Error::Malformed { context, what },
            Self::Io(source) => Error::Io { context, source },
        }
    }
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Index of each message refused, with its positive `errno`; in order.
    pub(crate) refused: Vec<(usize, i32)>,
    /// What the kernel says of some of these, by the index of the message.
    pub(crate) reasons: BTreeMap<usize, String>,
    /// Answers were lost: messages that are not in `refused` may have been refused too.
    pub(crate) lost: bool,
}

/// See the module.
pub(crate) struct Netlink {
    socket: RawSocket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket in the network namespace of the calling thread, where it stays.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = RawSocket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        // Without it each refusal carries the whole refused message back.
        socket.set_cap_ack(true)?;
        // Words for refusals; a kernel before 4.12 has none.
        let _ = socket.set_ext_ack(true);
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECONDS))?;
        // Worth having, not needed (it takes CAP_NET_ADMIN in the first user namespace): without it only the
        // first refusals of a batch are told, which is noticed.
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_QUEUE);
        Ok(Self { socket, port, sequence: 1, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// What the kernel calls this socket: the notifications of its changes carry it.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// Asks to be told what a group is told.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        self.socket.add_membership(group)
    }

    /// Hands over what has been told since the last call, as type, port of the socket that caused it, and body,
    /// without waiting. True if something was lost, or is no message.
    pub(crate) fn drain_events(&mut self, mut each: impl FnMut(u16, u32, &[u8])) -> io::Result<bool> {
        let mut lost = false;
        loop {
            match self.receive(false) {
                Ok(None) => return Ok(lost),
                Ok(Some(datagram)) => {
                    for message in Messages::new(datagram) {
                        match message {
                            Ok(message) => {
                                each(message.message_type(), message.port_number(), message.payload());
                            }
                            Err(_) => lost = true,
                        }
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks the kernel to keep to the filters in requests, where it knows how (`NETLINK_GET_STRICT_CHK`, Linux
    /// 4.20): without, a dump is of everything.
    pub(crate) fn filter_dumps(&self) {
        let _ = self.socket.set_netlink_get_strict_chk(true);
    }

    /// Sends one request and hands the body of each message of the answer to `each`, to the end of the dump
    /// (with [`NLM_F_DUMP`] in `flags`) or to the acknowledgement (without).
    ///
    /// An answer is read to its end whatever `each` says, so that the conversation can go on; the first
    /// complaint of `each` is what comes back.
    pub(crate) fn request(
        &mut self,
        message: impl NetlinkSerializable,
        flags: u16,
        mut each: impl FnMut(&[u8]) -> Result<(), &'static str>,
    ) -> Result<(), ReadError> {
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let sequence = self.take_sequence();
        let mut request = Vec::with_capacity(128);
        // KERNEL: a dump ends with NLMSG_DONE; a single answer has an end only if it is acknowledged.
        let end = if dump { 0 } else { NLM_F_ACK };
        append(&mut request, message, NLM_F_REQUEST | flags | end, sequence);
        self.send(&request).map_err(ReadError::Io)?;
        let mut outcome = Ok(());
        loop {
            match self.receive(true) {
                Ok(Some(datagram)) => {
                    let end = read_answer(datagram, sequence, &mut outcome, &mut each);
                    if let Some(end) = end {
                        return outcome.and(end);
                    }
                }
                Ok(None) => {}
                // KERNEL: netlink_dump() waits until there is room, so the end of a dump is never lost.
                Err(error) if dump && error.raw_os_error() == Some(libc::ENOBUFS) => {
                    outcome = outcome.and(Err(ReadError::Interrupted));
                }
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
    }

    /// As [`Netlink::request`], and collects what `decode` makes of the answer; asks again if it was interrupted,
    /// [`ATTEMPTS`] times in all.
    pub(crate) fn read<M: NetlinkSerializable + Clone, T>(
        &mut self,
        message: &M,
        flags: u16,
        decode: impl Fn(&[u8]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<T>, ReadError> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let outcome = self.request(message.clone(), flags, |body| {
                found.extend(decode(body)?);
                Ok(())
            });
            match outcome {
                Ok(()) => return Ok(found),
                Err(ReadError::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ReadError::Interrupted)
    }

    /// Sends messages (each with its flags beside `NLM_F_REQUEST`), as few datagrams as there may be, in order.
    /// Nothing is atomic: what is not refused is done.
    ///
    /// # Errors
    /// When the socket fails: messages after that were not sent.
    pub(crate) fn batch<M: NetlinkSerializable>(
        &mut self,
        messages: impl IntoIterator<Item = (M, u16)>,
    ) -> io::Result<Answers> {
        let mut answers = Answers::default();
        let mut messages = messages.into_iter().peekable();
        let mut done = 0;
        while messages.peek().is_some() {
            let mut batch = Batch::new(self.sequence);
            while batch.has_room() {
                let Some((message, flags)) = messages.next() else { break };
                let sequence = self.take_sequence();
                batch.add(message, flags, sequence);
            }
            batch.ask_for_end();
            self.send(&batch.bytes)?;
            self.collect(&batch, done, &mut answers)?;
            done += batch.count;
        }
        Ok(answers)
    }

    /// Reads the answers to a batch whose first message is number `done` of all.
    fn collect(&mut self, batch: &Batch, done: usize, answers: &mut Answers) -> io::Result<()> {
        let mut confirmed = false;
        loop {
            let datagram = match self.receive(false) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    answers.lost = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in Messages::new(datagram).map_while(Result::ok) {
                let Some(errno) = error_number(&message) else { continue };
                let index = message.sequence_number().wrapping_sub(batch.first) as usize;
                // What is left of an earlier conversation has other numbers.
                if index >= batch.count {
                    continue;
                }
                confirmed |= index + 1 == batch.count;
                if errno != 0 {
                    answers.refused.push((done + index, errno));
                    answers.reasons.extend(reason(&message).map(|reason| (done + index, reason)));
                }
            }
        }
        answers.lost |= !confirmed;
        Ok(())
    }

    fn take_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        sequence
    }

    /// Sends the whole buffer as one datagram.
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::WriteZero, "datagram sent in part"))
        }
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
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_generic::constants::{CTRL_ATTR_FAMILY_ID, CTRL_CMD_GETFAMILY, GENL_ID_CTRL};
    use netlink_sys::protocols::NETLINK_GENERIC;

    use super::*;
    use crate::attribute::{Attribute, Value};
    use crate::genl::{Command, family_id};

    /// Asks for families that there are not (by number: no module is looked for), but for `known` of them.
    fn ask(netlink: &mut Netlink, messages: usize, known: &[usize]) -> Answers {
        let asked = (0..messages).map(|at| {
            let number = if known.contains(&at) { GENL_ID_CTRL } else { u16::MAX };
            let attributes = vec![Attribute::new(CTRL_ATTR_FAMILY_ID, Value::U16(number))];
            let command = Command { command: CTRL_CMD_GETFAMILY, version: 2, attributes };
            (command.message(GENL_ID_CTRL), 0)
        });
        netlink.batch(asked).unwrap()
    }

    #[test]
    fn refused_messages_of_several_datagrams_are_named() {
        let mut netlink = Netlink::open(NETLINK_GENERIC).unwrap();
        let known = [0, 255, 256, 299];
        let answers = ask(&mut netlink, 300, &known);
        let refused: Vec<_> =
            (0..300).filter(|at| !known.contains(at)).map(|at| (at, libc::ENOENT)).collect();
        assert_eq!(answers, Answers { refused, ..Answers::default() });
    }

    #[test]
    fn lost_answers_are_noticed_and_the_conversation_goes_on() {
        let mut netlink = Netlink::open(NETLINK_GENERIC).unwrap();
        setsockopt(&netlink.socket.as_fd(), sockopt::RcvBuf, &8192).unwrap();
        let answers = ask(&mut netlink, 200, &[]);
        assert!(answers.lost);
        assert!(answers.refused.len() < 200, "nothing was lost");
        let refused = vec![(0, libc::ENOENT)];
        assert_eq!(ask(&mut netlink, 1, &[]), Answers { refused, ..Answers::default() });
        assert_eq!(family_id(&mut netlink, "nlctrl").unwrap(), GENL_ID_CTRL);
    }
}
