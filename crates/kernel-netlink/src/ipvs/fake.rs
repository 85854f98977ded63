//! IPVS in memory, for tests of what is built on this crate.
//!
//! It refuses what the kernel refuses, with the same `errno`; the contract suite of this crate runs on both.
//! Beyond that it can be told to refuse a command, to lose answers, and that packets had passed.
//!
//! ```
//! use kernel_netlink::ipvs::{Fake, Ipvs};
//! let fake = Fake::new();
//! let mut ours = fake.clone();     // clones are conversations with the same kernel
//! let mut stranger = fake.clone();
//! # let _ = (&mut ours as &mut dyn Ipvs, &mut stranger as &mut dyn Ipvs);
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc;

use super::entry::*;
use super::{CommitError, Error, Ipvs};
use crate::script::Script;

/// Schedulers of Linux 6.1.
const SCHEDULERS: [&str; 14] =
    ["dh", "fo", "lblc", "lblcr", "lc", "mh", "nq", "ovf", "rr", "sed", "sh", "twos", "wlc", "wrr"];
/// Timers tick that often in a second in Debian's kernels (`CONFIG_HZ`).
const HZ: u32 = 250;

/// A kernel in memory, with IPVS in one network namespace. Clones are the same kernel.
///
/// LIMIT: of the addresses of destinations it knows only those that no node takes for a neighbour's (multicast,
/// broadcast, none); the kernel also knows the broadcast addresses of its networks.
#[derive(Clone, Default)]
pub struct Fake {
    kernel: Arc<Mutex<Kernel>>,
}

#[derive(Default)]
struct Kernel {
    model: Model,
    script: Script<Command>,
}

#[derive(Default)]
struct Model {
    services: BTreeMap<ServiceKey, Entry>,
    timeouts: Timeouts,
}

struct Entry {
    state: ServiceState,
    destinations: BTreeMap<DestinationKey, DestinationState>,
}

impl Fake {
    /// A kernel without services, with the timeouts that kernels start with.
    pub fn new() -> Self {
        let timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
        let model = Model { timeouts, ..Model::default() };
        Self { kernel: Arc::new(Mutex::new(Kernel { model, ..Kernel::default() })) }
    }

    /// Lets the next `times` commands that `applies` picks (or all of them, with `None`) be refused.
    pub fn refuse(
        &self,
        applies: impl Fn(&Command) -> bool + Send + 'static,
        errno: i32,
        times: Option<usize>,
    ) {
        self.kernel().script.refuse(applies, errno, times);
    }

    /// Ends all refusals asked for by [`Fake::refuse`].
    pub fn refuse_nothing(&self) {
        self.kernel().script.refuse_nothing();
    }

    /// Lets the next commit be carried out and end with [`CommitError::Unconfirmed`].
    pub fn lose_next_answers(&self) {
        self.kernel().script.lose_next_answers();
    }

    /// Commands tried, by anybody.
    pub fn commands(&self) -> usize {
        self.kernel().script.commands()
    }

    /// Sets what has passed a service; false if there is none.
    pub fn pass(&self, service: &ServiceKey, stats: Stats) -> bool {
        let mut kernel = self.kernel();
        kernel.model.services.get_mut(service).map(|entry| entry.state.stats = stats).is_some()
    }

    /// Sets the connections of a destination, as (active, inactive); false if there is none.
    pub fn connect(&self, service: &ServiceKey, key: &DestinationKey, connections: (u32, u32)) -> bool {
        let mut kernel = self.kernel();
        let entry = kernel.model.services.get_mut(service);
        match entry.and_then(|entry| entry.destinations.get_mut(key)) {
            Some(state) => {
                (state.active_connections, state.inactive_connections) = connections;
                true
            }
            None => false,
        }
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        // A test that panicked elsewhere leaves whole commands only.
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    /// Carries out one command; `Err` is the errno. The order of the checks is that of `ip_vs_genl_set_cmd`.
    fn carry_out(&mut self, command: &Command) -> Result<(), i32> {
        match command {
            Command::AddService(service) => {
                if self.services.contains_key(&service.key) {
                    return Err(libc::EEXIST);
                }
                let service = accepted(service)?;
                let state = ServiceState { service, stats: Stats::default() };
                self.services.insert(service.key, Entry { state, destinations: BTreeMap::new() });
            }
            Command::SetService(service) => {
                let entry = self.services.get_mut(&service.key).ok_or(libc::ESRCH)?;
                entry.state.service = accepted(service)?;
            }
            Command::DeleteService(key) => {
                self.services.remove(key).ok_or(libc::ESRCH)?;
            }
            Command::AddDestination(service, to) => self.entry(service)?.add(service, to)?,
            Command::SetDestination(service, to) => self.entry(service)?.set(service, to)?,
            Command::DeleteDestination(service, key) => {
                self.entry(service)?.destinations.remove(key).ok_or(libc::ENOENT)?;
            }
            Command::Zero(key) => self.entry(key)?.zero(),
            Command::ZeroAll => self.services.values_mut().for_each(Entry::zero),
            Command::SetTimeouts(timeouts) => self.set_timeouts(timeouts)?,
        }
        Ok(())
    }

    fn entry(&mut self, service: &ServiceKey) -> Result<&mut Entry, i32> {
        self.services.get_mut(service).ok_or(libc::ESRCH)
    }

    /// `ip_vs_set_timeout`.
    fn set_timeouts(&mut self, wanted: &Timeouts) -> Result<(), i32> {
        let longest = i32::MAX.unsigned_abs() / HZ;
        if [wanted.tcp, wanted.tcp_fin, wanted.udp].into_iter().any(|timeout| timeout > longest) {
            return Err(libc::EINVAL);
        }
        let have = &mut self.timeouts;
        for (have, wanted) in
            [(&mut have.tcp, wanted.tcp), (&mut have.tcp_fin, wanted.tcp_fin), (&mut have.udp, wanted.udp)]
        {
            if wanted != 0 {
                *have = wanted;
            }
        }
        Ok(())
    }
}

impl Entry {
    fn add(&mut self, service: &ServiceKey, to: &Destination) -> Result<(), i32> {
        reachable(service, to)?;
        within_limits(to)?;
        if self.destinations.contains_key(&to.key) {
            return Err(libc::EEXIST);
        }
        if !is_for_one_host(to.key.address) {
            return Err(libc::EINVAL);
        }
        let state = DestinationState {
            destination: *to,
            active_connections: 0,
            inactive_connections: 0,
            persistent_connections: 0,
            stats: Stats::default(),
        };
        self.destinations.insert(to.key, state);
        Ok(())
    }

    fn set(&mut self, service: &ServiceKey, to: &Destination) -> Result<(), i32> {
        reachable(service, to)?;
        within_limits(to)?;
        self.destinations.get_mut(&to.key).ok_or(libc::ENOENT)?.destination = *to;
        Ok(())
    }

    fn zero(&mut self) {
        self.state.stats = Stats::default();
        self.destinations.values_mut().for_each(|state| state.stats = Stats::default());
    }
}

/// The service as it would be read back, if the kernel takes it (`ip_vs_add_service`, `ip_vs_edit_service`).
fn accepted(service: &Service) -> Result<Service, i32> {
    if !SCHEDULERS.contains(&service.scheduler.as_str()) && service.scheduler.as_str() != "none" {
        return Err(libc::ENOENT);
    }
    let mut service = *service;
    let family = service.key.family();
    if let Some(persistence) = &mut service.persistence {
        persistence.netmask = match (family, persistence.netmask) {
            (Family::Ipv6, Netmask::Prefix(0)) => return Err(libc::EINVAL),
            (Family::Ipv6, Netmask::Mask(_)) => Netmask::Prefix(family.bits()),
            (_, Netmask::Prefix(bits)) => Netmask::Prefix(bits.min(family.bits())),
            (Family::Ipv4, Netmask::Mask(mask)) => Netmask::of_mask(mask),
        };
    }
    Ok(service)
}

/// Only through a tunnel is a destination of another family than its service.
fn reachable(service: &ServiceKey, to: &Destination) -> Result<(), i32> {
    let same = Family::of(to.key.address) == service.family();
    if same || matches!(to.forward, Forward::Tunnel(_)) { Ok(()) } else { Err(libc::EINVAL) }
}

fn within_limits(to: &Destination) -> Result<(), i32> {
    let weight = i32::try_from(to.weight).is_ok();
    if weight && to.lower_threshold <= to.upper_threshold { Ok(()) } else { Err(libc::ERANGE) }
}

/// `ip_vs_new_dest`: of type unicast, and link-local only if it is our own.
fn is_for_one_host(address: IpAddr) -> bool {
    let of_many = address.is_multicast() || address.is_unspecified();
    let special = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !of_many && !special
}

impl Ipvs for Fake {
    fn observe_services(&mut self) -> Result<Vec<ServiceState>, Error> {
        Ok(self.kernel().model.services.values().map(|entry| entry.state).collect())
    }

    fn observe_service(&mut self, key: &ServiceKey) -> Result<Option<ServiceState>, Error> {
        Ok(self.kernel().model.services.get(key).map(|entry| entry.state))
    }

    fn observe_destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>, Error> {
        let kernel = self.kernel();
        let entry = kernel.model.services.get(service);
        Ok(entry.map(|entry| entry.destinations.values().copied().collect()).unwrap_or_default())
    }

    fn observe_timeouts(&mut self) -> Result<Timeouts, Error> {
        Ok(self.kernel().model.timeouts)
    }

    fn info(&mut self) -> Result<Info, Error> {
        Ok(Info { version: (1, 2, 1), connection_buckets: 4096 })
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        let Kernel { model, script } = &mut *self.kernel();
        script.commit(commands, |command| model.carry_out(command))
    }
}
