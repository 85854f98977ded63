//! Virtual services, as part of a sync: what is found, what is changed, what is drained.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kernel_netlink::conntrack::{self, Stale};
use kernel_netlink::ipvs::{
    self, Command, CommitError, Ipvs, Protocol, Refusal, ServiceKey, ServiceState, Timeouts,
};
use kernel_netlink::route::Rtnetlink;
use kernel_nft::Nftables;
use node_runtime::SyncReport;

use super::{ATTEMPTS, Proxy};
use crate::error::Error;
use crate::owned;
use crate::plan::steps::{Held, end_drains, steps};
use crate::report::{self, Failures};

/// Virtual services whose commands are sent at once: enough to make system calls cheap, few enough that the
/// commands for twenty thousand Services are never in memory together.
const BATCH: usize = 512;
/// Between two looks at the connections of what is drained.
const DRAIN_POLL: Duration = Duration::from_secs(2);

impl<V: Ipvs, R: Rtnetlink, N: Nftables> Proxy<V, R, N> {
    /// Reads all virtual services that are wanted or ours. `record` are those that our table had.
    pub(super) fn observe_services(&mut self, record: &BTreeSet<ServiceKey>) -> Result<(), Error> {
        let found = self.ipvs.observe_services()?;
        let mut before = std::mem::take(&mut self.held);
        for ServiceState { service, .. } in found {
            let key = service.key;
            let wanted = self.planner.virtual_service(&key).cloned();
            if wanted.is_some() || before.contains_key(&key) || record.contains(&key) || self.is_ours(&key) {
                let destinations = self.ipvs.observe_destinations(&key)?;
                let mut held =
                    Held::found(service, destinations.into_iter().map(|state| state.destination).collect());
                if let Some(before) = before.remove(&key) {
                    held.resume(before);
                }
                held.share(wanted);
                self.held.insert(held);
            }
        }
        self.pending.extend(self.planner.virtual_keys());
        self.pending.extend(self.held.keys());
        Ok(())
    }

    /// Whether a virtual service can only be ours, by its address or mark.
    fn is_ours(&self, key: &ServiceKey) -> bool {
        let (address, port) = match key {
            ServiceKey::Address { address, port, .. } => (address, port),
            ServiceKey::Mark { mark, .. } => return mark.get() & owned::MARK_MASK == owned::MARK,
        };
        let admission = self.world.admission();
        !admission.is_excluded(*address)
            && (admission.is_ours(*address)
                || self.vips.held().any(|ip| ip == *address)
                || (self.config.node_ports.contains(port) && self.planner.addresses().own.contains(address)))
    }

    /// Brings the pending virtual services to what is wanted, but for removals of whole services, which it gives.
    pub(super) fn commit_services(
        &mut self,
        now: Instant,
        report: &mut SyncReport,
        failures: &mut Failures,
    ) -> Vec<Command> {
        let mut removals = Vec::new();
        let mut keys = std::mem::take(&mut self.pending).into_iter();
        loop {
            let some: Vec<_> = keys.by_ref().take(BATCH).collect();
            if some.is_empty() {
                return removals;
            }
            if !self.commit_some(some, now, &mut removals, report, failures) {
                self.pending.extend(keys);
                return removals;
            }
        }
    }

    /// Brings some virtual services to what is wanted. False if the conversation with the kernel failed.
    fn commit_some(
        &mut self,
        mut keys: Vec<ServiceKey>,
        now: Instant,
        removals: &mut Vec<Command>,
        report: &mut SyncReport,
        failures: &mut Failures,
    ) -> bool {
        for attempt in 1..=ATTEMPTS {
            let (mut commands, mut owners, mut after) = (Vec::new(), Vec::new(), Vec::new());
            for key in keys.drain(..) {
                let wanted = self.planner.virtual_service(&key);
                let drain = self.planner.drain(&key, self.config.drain);
                let steps = steps(wanted, self.held.get(&key), drain, now);
                owners.extend(steps.commands.iter().map(|_| key));
                commands.extend(steps.commands);
                removals.extend(steps.removals);
                after.push((key, steps.held));
            }
            let refusals = match self.commit_ipvs(&commands, report) {
                Ok(refusals) => refusals,
                Err(error) => {
                    self.pending.extend(after.into_iter().map(|(key, _)| key));
                    failures.note(error);
                    return false;
                }
            };
            let failed: BTreeMap<_, _> = refusals
                .iter()
                .filter_map(|refusal| Some((*owners.get(refusal.command)?, refusal)))
                .collect();
            for (key, held) in after {
                if !failed.contains_key(&key) {
                    self.refused.remove(&key);
                }
                // Of those that failed the drains that began with it are gone on with, once they are read again.
                self.set_held(key, held);
            }
            self.note_new_udp(&commands);
            for (key, refusal) in failed {
                self.pending.insert(key);
                match self.observe_one(key) {
                    Ok(()) if attempt < ATTEMPTS && refusal.is_retryable() => keys.push(key),
                    Ok(()) => {
                        // It costs its Service; all that is well with the others is well with the sync.
                        self.refused.insert(key, refusal.to_string());
                    }
                    Err(error) => failures.note(error),
                }
            }
            if keys.is_empty() {
                break;
            }
            keys.iter().for_each(|key| {
                self.pending.remove(key);
            });
        }
        true
    }

    /// Carries out commands; gives those that were refused.
    fn commit_ipvs(&mut self, commands: &[Command], report: &mut SyncReport) -> Result<Vec<Refusal>, Error> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let refusals = match self.ipvs.commit(commands) {
            Ok(()) => Vec::new(),
            Err(CommitError::Refused(refusals)) => refusals,
            Err(error) => return Err(Error::CommitIpvs(error)),
        };
        report::count_ipvs(commands, report);
        Ok(refusals)
    }

    fn set_held(&mut self, key: ServiceKey, held: Option<Held>) {
        let drains = held.as_ref().is_some_and(|held| !held.draining.is_empty());
        if drains {
            self.draining.insert(key);
        } else {
            self.draining.remove(&key);
        }
        // One that is not wanted is held until it is removed.
        if let Some(held) = held {
            self.held.insert(held);
        }
    }

    fn observe_one(&mut self, key: ServiceKey) -> Result<(), Error> {
        let before = self.held.remove(&key);
        if let Some(state) = self.ipvs.observe_service(&key)? {
            let destinations = self.ipvs.observe_destinations(&key)?;
            let mut held =
                Held::found(state.service, destinations.into_iter().map(|state| state.destination).collect());
            if let Some(before) = before {
                held.resume(before);
            }
            self.held.insert(held);
        }
        Ok(())
    }

    fn note_new_udp(&mut self, commands: &[Command]) {
        self.new_udp.extend(commands.iter().filter_map(|command| match command {
            Command::AddService(ipvs::Service {
                key: ServiceKey::Address { protocol: Protocol::UDP, address, port },
                ..
            }) => Some(Stale { destination: Some(*address), port: *port, endpoint: None }),
            _ => None,
        }));
    }

    /// Forgets tracked UDP flows that went to an address before it was served: they would go on as they began.
    ///
    /// ORDER: when the addresses are there, or a packet in between would begin such a flow anew.
    pub(super) fn forget_stale(&mut self, failures: &mut Failures) {
        match conntrack::delete(&mut *self.rest.connections, Protocol::UDP, &self.new_udp) {
            Ok(count) => {
                self.new_udp = Vec::new();
                if count > 0 {
                    tracing::info!(count, "stale UDP flows to new Services forgotten");
                }
            }
            Err(error) => failures
                .note(Error::Route { what: "forgetting stale UDP flows (conntrack)", source: error.into() }),
        }
    }

    pub(super) fn remove_services(
        &mut self,
        removals: &[Command],
        report: &mut SyncReport,
        failures: &mut Failures,
    ) {
        let refusals = match self.commit_ipvs(removals, report) {
            Ok(refusals) => refusals,
            Err(error) => return failures.note(error),
        };
        for (number, command) in removals.iter().enumerate() {
            let Command::DeleteService(key) = command else { continue };
            let refusal = refusals.iter().find(|refusal| refusal.command == number);
            // One that is gone already is refused as well.
            if let Some(refusal) = refusal.filter(|refusal| !refusal.is_retryable()) {
                self.pending.insert(*key);
                self.refused.insert(*key, refusal.to_string());
            } else {
                self.held.remove(key);
                self.draining.remove(key);
                self.refused.remove(key);
            }
        }
    }

    /// Removes what has no connections left or no time.
    pub(super) fn look_after_drains(
        &mut self,
        now: Instant,
        report: &mut SyncReport,
        failures: &mut Failures,
    ) {
        if self.draining.is_empty() {
            self.next_drain_check = None;
            return;
        }
        if self.next_drain_check.is_some_and(|at| now < at) {
            return;
        }
        let is_first = self.next_drain_check.is_none();
        self.next_drain_check = Some(now + DRAIN_POLL);
        if is_first {
            // Connections that have just been made are not seen to be gone.
            return;
        }
        let mut commands = Vec::new();
        for key in self.draining.clone() {
            let found = match self.ipvs.observe_destinations(&key) {
                Ok(found) => found,
                Err(error) => return failures.note(error.into()),
            };
            let Some(mut held) = self.held.remove(&key) else { continue };
            commands.extend(end_drains(&mut held, &found, now));
            if held.draining.is_empty() {
                self.draining.remove(&key);
            }
            self.held.insert(held);
        }
        match self.commit_ipvs(&commands, report) {
            // One that is gone already is what is wanted.
            Ok(refusals) => refusals
                .into_iter()
                .filter(|refusal| !refusal.is_retryable())
                .for_each(|refusal| failures.note(Error::CommitIpvs(CommitError::Refused(vec![refusal])))),
            Err(error) => failures.note(error),
        }
        if self.draining.is_empty() {
            self.next_drain_check = None;
        }
    }

    pub(super) fn ensure_timeouts(&mut self, report: &mut SyncReport) -> Result<(), Error> {
        let wanted = self.config.timeouts;
        if wanted == Timeouts::default() {
            return Ok(());
        }
        let found = self.ipvs.observe_timeouts()?;
        let is = |wanted: u32, found: u32| wanted == 0 || wanted == found;
        if is(wanted.tcp, found.tcp) && is(wanted.tcp_fin, found.tcp_fin) && is(wanted.udp, found.udp) {
            return Ok(());
        }
        self.ipvs.commit(&[Command::SetTimeouts(wanted)]).map_err(Error::CommitIpvs)?;
        report.count("set_timeouts", 1);
        Ok(())
    }
}
