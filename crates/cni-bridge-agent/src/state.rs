//! The page `/state`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::model::json::Json;
use crate::model::node::Facts;

#[derive(Serialize)]
pub(crate) struct State {
    /// Plugin and configuration are in place.
    pub(crate) in_place: bool,
    /// What was read, and what could not be.
    pub(crate) source: Option<common_informer::Snapshot>,
    pub(crate) node: Option<Node>,
    pub(crate) problems: Vec<String>,
    pub(crate) conf_file: PathBuf,
    /// The name of the file that the runtime takes instead.
    pub(crate) taken_instead: Option<String>,
    /// What is in the file.
    pub(crate) conf: Option<Json>,
    /// The link whose MTU counts, and that.
    pub(crate) link: Option<(String, u32)>,
    /// What is installed.
    pub(crate) plugin: PathBuf,
    pub(crate) installed_as: Vec<PathBuf>,
    pub(crate) sysctls: BTreeMap<&'static str, String>,
}

/// What the Node says.
#[derive(Serialize)]
pub(crate) struct Node {
    pod_cidrs: Vec<String>,
    pod_cidrs_from: &'static str,
    internal_addresses: Vec<IpAddr>,
    network_unavailable: Option<bool>,
}

impl Node {
    pub(crate) fn of(facts: &Facts) -> Self {
        Self {
            pod_cidrs: facts.pod_cidrs.iter().map(ToString::to_string).collect(),
            pod_cidrs_from: facts.source.as_str(),
            internal_addresses: facts.internal.clone(),
            network_unavailable: facts.network_unavailable,
        }
    }
}
