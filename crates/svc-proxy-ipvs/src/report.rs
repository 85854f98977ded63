//! What a sync did and what the controller tells of itself.

use std::collections::BTreeMap;

use common_informer::problem::Complaint;
use kernel_netlink::ipvs::Command;
use kernel_netlink::sysctl::State as SysctlState;
use kernel_nft::Op;
use node_runtime::{Degradation, SyncReport};
use serde::Serialize;

use crate::error::Error;

pub(crate) fn count(ops: &[Op], report: &mut SyncReport) {
    for op in ops {
        let (word, count) = op.word();
        report.count(word, count);
    }
}

pub(crate) fn count_ipvs(commands: &[Command], report: &mut SyncReport) {
    for command in commands {
        let word = match command {
            Command::AddService(_) => "add_service",
            Command::SetService(_) => "set_service",
            Command::DeleteService(_) => "delete_service",
            Command::AddDestination(..) => "add_destination",
            Command::SetDestination(..) => "set_destination",
            Command::DeleteDestination(..) => "delete_destination",
            Command::Zero(_) | Command::ZeroAll => "zero",
            Command::SetTimeouts(_) => "set_timeouts",
        };
        report.count(word, 1);
    }
}

/// What failed in a sync that went on.
#[derive(Default)]
pub(crate) struct Failures {
    first: Option<Error>,
}

impl Failures {
    pub(crate) fn note(&mut self, error: Error) {
        tracing::warn!(error = &error as &dyn std::error::Error, "part of the sync failed");
        self.first.get_or_insert(error);
    }

    pub(crate) fn outcome(self) -> Result<(), Error> {
        self.first.map_or(Ok(()), Err)
    }
}

/// The page `/state`.
#[derive(Serialize)]
pub(crate) struct State {
    /// The kernel holds what is wanted, as far as is known.
    pub(crate) in_force: bool,
    /// What was read, and what could not be.
    pub(crate) source: Option<common_informer::Snapshot>,
    pub(crate) services: usize,
    pub(crate) endpoint_slices: usize,
    pub(crate) virtual_services: usize,
    pub(crate) virtual_addresses: usize,
    pub(crate) draining: Vec<String>,
    pub(crate) repairs: u64,
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) excluded: Vec<Excluded>,
    pub(crate) sysctls: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
pub(crate) struct Excluded {
    pub(crate) object: String,
    pub(crate) problems: Vec<(&'static str, String)>,
}

pub(crate) fn told(complaint: Complaint) -> Degradation {
    let Complaint { reason, message } = complaint;
    Degradation { reason, message }
}

pub(crate) fn describe(state: &SysctlState) -> String {
    match state {
        SysctlState::On | SysctlState::Changed(_) => "is set".to_owned(),
        SysctlState::Missing => "does not exist; is the kernel module loaded?".to_owned(),
        SysctlState::Stuck { value, reason } => {
            format!("is {}: {reason}", value.as_deref().unwrap_or("not readable"))
        }
    }
}
