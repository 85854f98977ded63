//! Clears stale generation marks of tracked connections.
//!
//! A firewall that lets a connection through without judging it again writes a *generation* into bits of its
//! mark (`ct mark`): "allowed under the rules of generation g". When rules get tighter it takes the next
//! generation, and each connection is judged once more. With eight bits the numbers come round after 255
//! generations; a connection that was silent all that time would then carry a number that means "allowed"
//! again. So once in each round, before a number is used again, the marks that are not of the present
//! generation are cleared here.

use std::io;

use crate::netlink::{DumpError, Netlink};
use crate::wire::decode_expr::{Kinds, by_kind};
use crate::wire::uapi::*;
use crate::wire::{Message, Writer};

/// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = (NFNL_SUBSYS_CTNETLINK << 8) | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_MARK: u16 = 8;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
/// Bytes of updates in one datagram: fits the send buffer that every socket has.
const DATAGRAM: usize = 64 * 1024;

/// What names a connection to the kernel, and its mark.
struct Connection {
    family: u8,
    /// `CTA_TUPLE_ORIG` as it was dumped.
    tuple: Vec<u8>,
    zone: Option<u16>,
}

/// Clears the bits `mask` of the mark of every connection, IPv4 and IPv6, in the network namespace of the
/// calling thread, in which they are neither 0 nor `keep`. Other bits stay. Returns how many were cleared.
///
/// A connection that gets a new mark between being read and being cleared loses it again, and is judged once
/// more: that is safe. One that the kernel skips in its dump because the table is being resized is missed;
/// that is rare, and the next round clears it.
///
/// # Errors
/// [`io::Error`] when the socket fails or the kernel refuses; some connections may then be cleared already.
pub fn clear_marks(mask: u32, keep: u32) -> io::Result<usize> {
    let mut netlink = Netlink::open()?;
    let stale = stale(&mut netlink, mask, keep & mask)?;
    let mut cleared = 0;
    let mut stale = stale.as_slice();
    while !stale.is_empty() {
        let first = netlink.next_sequence();
        let mut writer = Writer::with_capacity(DATAGRAM);
        let mut count: u32 = 0;
        while let [connection, rest @ ..] = stale
            && writer.len() < DATAGRAM - 1024
        {
            update(&mut writer, first.wrapping_add(count), connection, mask);
            count += 1;
            stale = rest;
        }
        netlink.take_sequences(count);
        netlink.send(writer.bytes())?;
        cleared += answered(&mut netlink, count as usize)?;
    }
    Ok(cleared)
}

/// Connections whose bits are of another generation.
fn stale(netlink: &mut Netlink, mask: u32, keep: u32) -> io::Result<Vec<Connection>> {
    let mut writer = Writer::with_capacity(32);
    let start = writer.message(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, netlink.next_sequence(), 0, 0);
    writer.end_message(start);
    let mut stale = Vec::new();
    let result = netlink.request(writer.bytes(), true, |message| {
        stale.extend(connection(message, |mark| mark & mask != 0 && mark & mask != keep));
    });
    match result {
        // An interrupted dump is what conntrack can do; see the contract of clear_marks.
        Ok(()) | Err(DumpError::Interrupted) => Ok(stale),
        Err(DumpError::Refused(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Err(DumpError::Malformed(what)) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
        Err(DumpError::Io(error)) => Err(error),
    }
}

/// The connection in a message, if its mark is of interest.
fn connection(message: &Message<'_>, wanted: impl Fn(u32) -> bool) -> Option<Connection> {
    let kinds: Kinds<'_, 22> = by_kind(message.attributes());
    if !wanted(kinds.u32(CTA_MARK)?) {
        return None;
    }
    Some(Connection {
        family: message.family()?,
        tuple: kinds.get(CTA_TUPLE_ORIG)?.data.to_vec(),
        zone: kinds.get(CTA_ZONE).and_then(|zone| zone.u16()),
    })
}

/// KERNEL: ctnetlink_change_mark() sets `mark = (mark & ~CTA_MARK_MASK) ^ CTA_MARK`.
fn update(writer: &mut Writer, sequence: u32, connection: &Connection, mask: u32) {
    let start = writer.message(IPCTNL_MSG_CT_NEW, NLM_F_REQUEST, sequence, connection.family, 0);
    writer.attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, &connection.tuple);
    if let Some(zone) = connection.zone {
        writer.number(CTA_ZONE, zone);
    }
    writer.number(CTA_MARK, 0u32);
    writer.number(CTA_MARK_MASK, mask);
    writer.end_message(start);
}

/// How many of the updates just sent were carried out. A connection that ended meanwhile is no error.
fn answered(netlink: &mut Netlink, sent: usize) -> io::Result<usize> {
    let (answers, _) = netlink.drain_answers()?;
    let mut gone = 0;
    for answer in answers {
        match answer.errno {
            0 => {}
            nix::libc::ENOENT => gone += 1,
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
    Ok(sent.saturating_sub(gone))
}
