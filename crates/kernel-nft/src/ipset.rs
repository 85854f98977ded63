//! ipsets, as far as cleaning up after others takes it: which there are, and the removal of one. They are of the
//! same family of netlink as nf_tables, and rules of iptables use them.

use std::io;
use std::time::{Duration, Instant};

use nix::libc;

use crate::netlink::{DumpError, Netlink};
use crate::transaction::Error;
use crate::wire::uapi::*;
use crate::wire::{Message, Writer};

const LISTING: &str = "listing ipsets";
/// Between two attempts to remove a set that is still in use.
const PAUSE: Duration = Duration::from_millis(10);

/// A conversation with the kernel's ipsets in one network namespace.
pub struct Ipsets {
    netlink: Netlink,
}

/// Why a set is not removed.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// A rule or another set uses it.
    #[error("a rule or another set still uses it")]
    InUse,
    /// The kernel refused.
    #[error("removing it: {0}")]
    Refused(io::Error),
}

impl Ipsets {
    /// Opens a conversation in the network namespace of the calling thread; it stays there.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()? })
    }

    /// Names of all sets, in order. None where the kernel has no ipsets.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn list(&mut self) -> Result<Vec<String>, Error> {
        let mut writer = Writer::with_capacity(32);
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let start = writer.message(IPSET_CMD_LIST, flags, self.netlink.next_sequence(), 0, 0);
        writer.number(IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL);
        writer.number(IPSET_ATTR_FLAGS, IPSET_FLAG_LIST_SETNAME);
        writer.end_message(start);
        let mut names = Vec::new();
        let result = self.netlink.request(writer.bytes(), true, |message| names.extend(name(message)));
        let failed = |source| Error::Io { context: LISTING, source };
        match result {
            Ok(()) => {}
            // KERNEL: nfnetlink_rcv_msg(): there is no such subsystem, and no module for it.
            Err(DumpError::Refused(libc::EINVAL)) => return Ok(Vec::new()),
            Err(DumpError::Refused(errno)) => return Err(failed(io::Error::from_raw_os_error(errno))),
            Err(DumpError::Io(source)) => return Err(failed(source)),
            Err(DumpError::Malformed(what)) => return Err(Error::Malformed { context: LISTING, what }),
            Err(DumpError::Interrupted) => return Err(Error::Unstable { attempts: 1 }),
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Removes a set and what is in it; false if there is none.
    ///
    /// KERNEL: what a rule used is let go some time after the transaction that removed the rule
    /// (`nf_tables_trans_destroy_work()`), so a set that is in use is tried again for as long as `patience`.
    ///
    /// # Errors
    /// [`DestroyError`]
    pub fn destroy(&mut self, set: &str, patience: Duration) -> Result<bool, DestroyError> {
        let until = Instant::now() + patience;
        loop {
            match self.try_destroy(set) {
                Ok(()) => return Ok(true),
                Err(DumpError::Refused(libc::ENOENT)) => return Ok(false),
                Err(DumpError::Refused(IPSET_ERR_BUSY)) if Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                Err(DumpError::Refused(IPSET_ERR_BUSY)) => return Err(DestroyError::InUse),
                Err(DumpError::Refused(errno)) => {
                    return Err(DestroyError::Refused(io::Error::from_raw_os_error(errno)));
                }
                Err(DumpError::Io(source)) => return Err(DestroyError::Refused(source)),
                Err(DumpError::Malformed(what)) => {
                    return Err(DestroyError::Refused(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
                Err(DumpError::Interrupted) => {
                    return Err(DestroyError::Refused(io::ErrorKind::Interrupted.into()));
                }
            }
        }
    }

    fn try_destroy(&mut self, set: &str) -> Result<(), DumpError> {
        let mut writer = Writer::with_capacity(64);
        // KERNEL: flag_exist(): with EXCL a set that is not there is told, else it counts as removed.
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL;
        let start = writer.message(IPSET_CMD_DESTROY, flags, self.netlink.next_sequence(), 0, 0);
        writer.number(IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL);
        // KERNEL: without a name ip_set_destroy() removes all sets, so the attribute is always there; a name that is
        // empty or too long is refused.
        writer.text(IPSET_ATTR_SETNAME, set);
        writer.end_message(start);
        if writer.take_overflow() {
            return Err(DumpError::Malformed("a name longer than a netlink attribute can be"));
        }
        self.netlink.request(writer.bytes(), false, |_| {})
    }
}

fn name(message: &Message<'_>) -> Option<String> {
    Some(message.attributes().find(IPSET_ATTR_SETNAME)?.text().into_owned())
}
