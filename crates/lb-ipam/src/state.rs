//! The page `/state`, and the sizes that metrics show as well.

use std::collections::BTreeMap;
use std::net::IpAddr;

use common_informer::object::{Family, Str};
use serde::Serialize;

use crate::plan::PlanConfig;

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Not known yet.
    Undecided,
    /// Somebody else leads, or nobody.
    Standby,
    /// It leads.
    Leader,
}

/// The family in labels of metrics.
pub(crate) fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Pools by number and name, families that they have, and how many addresses.
pub(crate) fn sizes(config: &PlanConfig) -> impl Iterator<Item = ((usize, Str), Family, u128)> {
    config.pools.iter().flat_map(|(index, pool)| {
        [Family::V4, Family::V6].into_iter().filter_map(move |family| {
            let ranges = pool.ranges.iter().filter(|range| range.family() == family);
            let size = ranges.fold(0u128, |sum, range| sum.saturating_add(range.size()));
            (size > 0).then(|| ((index, pool.name.clone()), family, size))
        })
    })
}

/// The page `/state`.
#[derive(Serialize)]
pub(crate) struct State {
    pub(crate) role: Role,
    /// What was read, and what could not be.
    pub(crate) source: Option<common_informer::Snapshot>,
    /// Addresses that two Services had.
    pub(crate) conflicts: u64,
    /// Services whose status is not yet as planned.
    pub(crate) unwritten: Vec<String>,
    pub(crate) pools: Vec<PoolState>,
    pub(crate) services: Vec<ServiceState>,
    /// Statuses that the API server does not take.
    pub(crate) refused: BTreeMap<String, String>,
}

/// A pool and one of its families.
#[derive(Serialize)]
pub(crate) struct PoolState {
    pub(crate) name: String,
    pub(crate) family: String,
    /// As text: more than a number of JSON can be.
    pub(crate) addresses: String,
    pub(crate) used: usize,
}

/// A Service of ours.
#[derive(Serialize)]
pub(crate) struct ServiceState {
    pub(crate) service: String,
    /// What it has by the plan.
    pub(crate) addresses: Vec<IpAddr>,
    /// What its status says.
    pub(crate) shown: Vec<IpAddr>,
    pub(crate) problems: Vec<String>,
}
