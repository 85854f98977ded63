//! The datagrams of a conversation: many messages written into one, answers read out of one.

use netlink_packet_core::{
    DoneBuffer, Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use nix::libc;

use super::ReadError;
use crate::attribute::find;

/// Messages in one datagram: enough to make the system call cheap, few enough for the answers to fit into
/// [`RECEIVE_QUEUE`](super::RECEIVE_QUEUE) many times.
const BATCH_MESSAGES: usize = 256;
/// Bytes in one datagram: below the send buffer that every socket has (net.core.wmem_default is 208 KiB nearly
/// everywhere).
const BATCH_BYTES: usize = 96 * 1024;
/// Bytes of `struct nlmsgerr`: `errno` and a header.
const NLMSGERR: usize = 20;
/// include/uapi/linux/netlink.h
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One datagram of messages, being written.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
    /// Sequence number of the first message.
    pub(super) first: u32,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    /// An empty one whose first message will have this sequence number.
    pub(super) const fn new(first: u32) -> Self {
        Self { bytes: Vec::new(), count: 0, first, last: 0 }
    }

    pub(super) fn has_room(&self) -> bool {
        self.count < BATCH_MESSAGES && self.bytes.len() < BATCH_BYTES
    }

    pub(super) fn add(&mut self, message: impl NetlinkSerializable, flags: u16, sequence: u32) {
        self.last = self.bytes.len();
        append(&mut self.bytes, message, NLM_F_REQUEST | flags, sequence);
        self.count += 1;
    }

    /// Has the kernel answer the last message in any case.
    pub(super) fn ask_for_end(&mut self) {
        if self.count > 0 {
            let mut last = NetlinkBuffer::new(&mut self.bytes[self.last..]);
            let flags = last.flags();
            last.set_flags(flags | NLM_F_ACK);
        }
    }
}

/// Writes a message behind others.
pub(super) fn append(bytes: &mut Vec<u8>, message: impl NetlinkSerializable, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + aligned(message.buffer_len()), 0);
    let end = start + message.buffer_len();
    message.emit(&mut bytes[start..end]);
}

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(NLMSG_ALIGNTO as usize)
}

/// Hands over the bodies that answer request `sequence`; `Some` is the end of the answer.
pub(super) fn read_answer(
    datagram: &[u8],
    sequence: u32,
    outcome: &mut Result<(), ReadError>,
    each: &mut impl FnMut(&[u8]) -> Result<(), &'static str>,
) -> Option<Result<(), ReadError>> {
    let mut complain = |error| {
        if outcome.is_ok() {
            *outcome = Err(error);
        }
    };
    for message in Messages::new(datagram) {
        let message = match message {
            Ok(message) => message,
            Err(what) => {
                complain(ReadError::Malformed(what));
                break;
            }
        };
        if message.sequence_number() != sequence {
            continue;
        }
        if message.flags() & NLM_F_DUMP_INTR != 0 {
            complain(ReadError::Interrupted);
        }
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                return Some(match error_number(&message) {
                    Some(0) => Ok(()),
                    Some(libc::EINTR) => Err(ReadError::Interrupted),
                    Some(errno) => Err(ReadError::Refused(errno)),
                    None => Err(ReadError::Malformed("an end of an answer without a result")),
                });
            }
            _ => {
                if let Err(what) = each(message.payload()) {
                    complain(ReadError::Malformed(what));
                }
            }
        }
    }
    None
}

/// The positive `errno` in an answer or at the end of a dump; 0 is success. `None` for any other message.
pub(super) fn error_number(message: &NetlinkBuffer<&[u8]>) -> Option<i32> {
    let payload = message.payload();
    let code = match message.message_type() {
        NLMSG_ERROR => ErrorBuffer::new_checked(payload).ok()?.code().map_or(0, Into::into),
        // KERNEL: a dump may end without a number.
        NLMSG_DONE if payload.is_empty() => 0,
        NLMSG_DONE => DoneBuffer::new_checked(payload).ok()?.code(),
        _ => return None,
    };
    Some(i32::checked_neg(code).unwrap_or(i32::MAX))
}

/// What the kernel says in words of a message that it refused.
///
/// KERNEL: attributes follow the header of the message refused, which comes without its body (`NETLINK_CAP_ACK`).
pub(super) fn reason(message: &NetlinkBuffer<&[u8]>) -> Option<String> {
    if message.message_type() != NLMSG_ERROR || message.flags() & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let words = find(message.payload().get(NLMSGERR..)?, NLMSGERR_ATTR_MSG)?;
    let words = words.split(|byte| *byte == 0).next()?;
    (!words.is_empty()).then(|| String::from_utf8_lossy(words).into_owned())
}

/// Splits a datagram into messages. Ends, with an error, at the first that is cut or too short.
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<NetlinkBuffer<&'a [u8]>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Ok(message) = NetlinkBuffer::new_checked(self.rest) else {
            self.rest = &[];
            return Some(Err("a message that is longer than its datagram, or has no header"));
        };
        self.rest = self.rest.get(aligned(message.length() as usize)..).unwrap_or_default();
        Some(Ok(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::attribute::{Attribute, Value};
    use crate::genl::Command;

    fn batch(messages: usize) -> Batch {
        let mut batch = Batch::new(7);
        for at in 0..messages {
            let attributes = vec![Attribute::new(1, Value::Text("x".repeat(at)))];
            let command = Command { command: 1, version: 1, attributes };
            batch.add(command.message(20), 0, 7 + at as u32);
        }
        batch.ask_for_end();
        batch
    }

    #[test]
    fn only_the_last_message_of_a_batch_asks_for_an_acknowledgement() {
        let batch = batch(9);
        let messages: Vec<_> = Messages::new(&batch.bytes).map(Result::unwrap).collect();
        assert_eq!(messages.len(), 9);
        for (at, message) in messages.iter().enumerate() {
            assert_eq!(message.sequence_number(), 7 + at as u32);
            assert_eq!(message.message_type(), 20);
            assert_eq!(message.flags() & NLM_F_ACK != 0, at == 8);
        }
    }

    /// A message of a dump as the kernel writes it.
    fn answer(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    /// Reads datagrams as the answer to request 7: bodies, and what came of it if it has ended.
    fn read_all(datagrams: &[Vec<u8>]) -> (Vec<Vec<u8>>, Option<Result<(), ReadError>>) {
        let (mut bodies, mut outcome) = (Vec::new(), Ok(()));
        for datagram in datagrams {
            let end = read_answer(datagram, 7, &mut outcome, &mut |body| {
                bodies.push(body.to_vec());
                if body == b"bad!" { Err("bad") } else { Ok(()) }
            });
            if let Some(end) = end {
                return (bodies, Some(outcome.and(end)));
            }
        }
        (bodies, None)
    }

    #[test]
    fn an_answer_ends_with_its_own_end_and_leaves_others_alone() {
        let stale = [answer(20, 0, 6, b"old!"), answer(NLMSG_DONE, 0, 6, &[])].concat();
        let first = [answer(20, 0, 7, b"1..."), answer(20, 0, 7, b"2...")].concat();
        let (bodies, end) = read_all(&[stale.clone(), first.clone()]);
        assert_eq!((bodies.len(), end.is_none()), (2, true));
        let (bodies, end) = read_all(&[stale, first, answer(NLMSG_DONE, 0, 7, &0i32.to_ne_bytes())]);
        assert_eq!(bodies, [b"1...", b"2..."]);
        assert!(matches!(end, Some(Ok(()))));
    }

    #[test]
    fn an_answer_that_was_interrupted_refused_or_bad_is_read_to_its_end() {
        let done = answer(NLMSG_DONE, 0, 7, &0i32.to_ne_bytes());
        let refused = answer(NLMSG_DONE, 0, 7, &(-libc::EBUSY).to_ne_bytes());
        let changed = answer(NLMSG_DONE, 0, 7, &(-libc::EINTR).to_ne_bytes());
        let entry = answer(20, 0, 7, b"1...");
        let torn = answer(20, NLM_F_DUMP_INTR, 7, b"1...");
        let ends = |datagrams: &[&Vec<u8>]| {
            let datagrams: Vec<_> = datagrams.iter().map(|datagram| (*datagram).clone()).collect();
            read_all(&datagrams)
        };
        assert!(
            matches!(ends(&[&torn, &done]), (bodies, Some(Err(ReadError::Interrupted))) if bodies.len() == 1)
        );
        assert!(matches!(ends(&[&entry, &changed]), (_, Some(Err(ReadError::Interrupted)))));
        assert!(matches!(ends(&[&entry, &refused]), (_, Some(Err(ReadError::Refused(libc::EBUSY))))));
        let bad = answer(20, 0, 7, b"bad!");
        assert!(matches!(
            ends(&[&bad, &entry, &done]),
            (bodies, Some(Err(ReadError::Malformed("bad")))) if bodies.len() == 2
        ));
    }

    /// Everything that reads datagrams.
    fn read(bytes: &[u8]) {
        for message in Messages::new(bytes).map_while(Result::ok) {
            error_number(&message);
            reason(&message);
        }
        let mut outcome = Ok(());
        read_answer(bytes, 7, &mut outcome, &mut |_| Ok(()));
    }

    proptest! {
        #[test]
        fn fuzz_damaged_datagrams(
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = batch(5).bytes;
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            read(&bytes[..end.index(bytes.len())]);
            read(&bytes);
        }

        #[test]
        fn fuzz_any_answer(kind in 0..5u16, flags: u16, body in vec(any::<u8>(), 0..40)) {
            read(&answer(kind, flags, 7, &body));
        }
    }
}
