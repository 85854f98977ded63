//! The kernel's IPVS as [`Ipvs`].

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::libc;

use super::entry::*;
use super::uapi::*;
use super::{CommitError, Error, Ipvs, outcome, wire};
use crate::genl;
use crate::netlink::{Netlink, ReadError};

/// How often something is read again because it changed meanwhile.
const ATTEMPTS: u32 = 20;
const OPENING: &str = "opening IPVS";
const OBSERVING_SERVICES: &str = "reading IPVS services";
const OBSERVING_DESTINATIONS: &str = "reading IPVS destinations";
const OBSERVING_SETTINGS: &str = "reading IPVS settings";

/// A conversation with IPVS in one network namespace.
///
/// It takes `CAP_NET_ADMIN` in the first user namespace (`GENL_ADMIN_PERM`): root of a user namespace, even with
/// a network namespace of its own, is refused with `EPERM`.
pub struct Socket {
    netlink: Netlink,
    family: u16,
}

impl Socket {
    /// Opens a conversation in the network namespace of the calling thread; it stays there. The kernel loads
    /// IPVS if it isn't there yet.
    ///
    /// # Errors
    /// [`Error::Absent`] when the kernel has no IPVS, [`Error::Io`] when there is no socket to be had.
    pub fn open() -> Result<Self, Error> {
        let mut netlink =
            Netlink::open(NETLINK_GENERIC).map_err(|source| Error::Io { context: OPENING, source })?;
        let family = match genl::family_id(&mut netlink, IPVS_GENL_NAME) {
            Err(ReadError::Refused(libc::ENOENT)) => return Err(Error::Absent),
            other => other.map_err(|error| explained(error, OPENING, 1))?,
        };
        Ok(Self { netlink, family })
    }

    /// Asks and collects what `decode` makes of the answer; again if it was interrupted.
    fn read<T>(
        &mut self,
        context: &'static str,
        request: &genl::Command,
        flags: u16,
        decode: impl Fn(&[u8]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<T>, Error> {
        self.try_read(request, flags, decode).map_err(|error| explained(error, context, ATTEMPTS))
    }

    /// Dumps; again if something was met twice.
    ///
    /// KERNEL: a dump goes on behind as many entries as it has passed (`ip_vs_genl_dump_services`), and says
    /// nothing if some were added or removed in front of these meanwhile, for services in any network namespace.
    /// Those added show as entries met twice; those removed, which hide others, don't show.
    fn read_distinct<T, K: Ord>(
        &mut self,
        context: &'static str,
        request: &genl::Command,
        decode: impl Fn(&[u8]) -> Result<Option<T>, &'static str>,
        key: impl Fn(&T) -> K,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..ATTEMPTS {
            let found = self.read(context, request, NLM_F_DUMP, &decode)?;
            if found.iter().map(&key).collect::<BTreeSet<_>>().len() == found.len() {
                return Ok(found);
            }
        }
        Err(Error::Unstable { context, attempts: ATTEMPTS })
    }

    fn try_read<T>(
        &mut self,
        request: &genl::Command,
        flags: u16,
        decode: impl Fn(&[u8]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<T>, ReadError> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let message = request.clone().message(self.family);
            let outcome = self.netlink.request(message, flags, |body| {
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
}

impl Ipvs for Socket {
    fn observe_services(&mut self) -> Result<Vec<ServiceState>, Error> {
        let request = wire::get_services();
        self.read_distinct(OBSERVING_SERVICES, &request, wire::service, |state| state.service.key)
    }

    fn observe_service(&mut self, key: &ServiceKey) -> Result<Option<ServiceState>, Error> {
        match self.try_read(&wire::get_service(key), 0, wire::service) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(ReadError::Refused(libc::ESRCH)) => Ok(None),
            Err(error) => Err(explained(error, OBSERVING_SERVICES, ATTEMPTS)),
        }
    }

    fn observe_destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>, Error> {
        let request = wire::get_destinations(service);
        let family = service.family();
        let decode = |body: &[u8]| wire::destination(body, family);
        self.read_distinct(OBSERVING_DESTINATIONS, &request, decode, |state| state.destination.key)
    }

    fn observe_timeouts(&mut self) -> Result<Timeouts, Error> {
        let found = self.read(OBSERVING_SETTINGS, &wire::get_config(), 0, wire::timeouts)?;
        one(found, OBSERVING_SETTINGS)
    }

    fn info(&mut self) -> Result<Info, Error> {
        let found = self.read(OBSERVING_SETTINGS, &wire::get_info(), 0, wire::info)?;
        one(found, OBSERVING_SETTINGS)
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        let family = self.family;
        let messages = commands.iter().map(|command| (wire::command(command).message(family), 0));
        let answers = self.netlink.batch(messages).map_err(CommitError::Io)?;
        outcome(commands, answers)
    }
}

fn one<T>(found: Vec<T>, context: &'static str) -> Result<T, Error> {
    found.into_iter().next().ok_or(Error::Malformed { context, what: "an answer without content" })
}

fn explained(error: ReadError, context: &'static str, attempts: u32) -> Error {
    match error {
        ReadError::Interrupted => Error::Unstable { context, attempts },
        ReadError::Refused(errno) => Error::Io { context, source: io::Error::from_raw_os_error(errno) },
        ReadError::Malformed(what) => Error::Malformed { context, what },
        ReadError::Io(source) => Error::Io { context, source },
    }
}
