//! The kernel's IPVS as [`Ipvs`].

use std::collections::BTreeSet;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::libc;

use super::entry::*;
use super::uapi::*;
use super::{CommitError, Error, Ipvs, outcome, wire};
use crate::genl;
use crate::netlink::{self, ATTEMPTS, Netlink, ReadError};

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
    /// [`Error::Absent`] when the kernel has no IPVS, [`Error::Netlink`] when there is no socket to be had.
    pub fn open() -> Result<Self, Error> {
        let mut netlink = Netlink::open(NETLINK_GENERIC)
            .map_err(|source| netlink::Error::Io { context: OPENING, source })?;
        let family = match genl::family_id(&mut netlink, IPVS_GENL_NAME) {
            Err(ReadError::Refused(libc::ENOENT)) => return Err(Error::Absent),
            other => other.map_err(|error| error.explained(OPENING, 1))?,
        };
        Ok(Self { netlink, family })
    }

    /// Asks and collects what `decode` makes of the answer.
    fn read<T>(
        &mut self,
        context: &'static str,
        request: &genl::Command,
        flags: u16,
        decode: impl Fn(&[u8]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<T>, Error> {
        Ok(self.try_read(request, flags, decode).map_err(|error| error.explained(context, ATTEMPTS))?)
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
        Err(netlink::Error::Unstable { context, attempts: ATTEMPTS }.into())
    }

    fn try_read<T>(
        &mut self,
        request: &genl::Command,
        flags: u16,
        decode: impl Fn(&[u8]) -> Result<Option<T>, &'static str>,
    ) -> Result<Vec<T>, ReadError> {
        self.netlink.read(&request.clone().message(self.family), flags, decode)
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
            Err(error) => Err(error.explained(OBSERVING_SERVICES, ATTEMPTS).into()),
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
    let nothing = netlink::Error::Malformed { context, what: "an answer without content" };
    Ok(found.into_iter().next().ok_or(nothing)?)
}
