//! The loop's body: takes what the Node says, brings plugin, configuration and sysctls to what they should be, and
//! then says so in the node's status.
//!
//! All of it is looked at in each sync: it is two files, two sysctls and the links of a node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common_informer::object::{Batch, Change, Family, Kind, Object, ObjectKey, ObjectRef};
use common_informer::problem::{Complaint, Problems};
use ipnet::IpNet;
use kernel_netlink::route::Rtnetlink;
use kernel_netlink::sysctl::{Name, State as SysctlState, Sysctls};
use node_runtime::metrics::CommonMetrics;
use node_runtime::{Cause, Controller, Degradation, SyncError, SyncReport};
use serde::Serialize;

use crate::apply::conf_file::{self, Found};
use crate::apply::file::FileError;
use crate::apply::link::{self, LinkMtu};
use crate::apply::plugin::{self, Installed};
use crate::apply::status::NodeStatus;
use crate::args::Files;
use crate::metrics::Metrics;
use crate::model::json::Json;
use crate::model::node::{self, Facts, family};
use crate::model::problem::{Problem, Reason};
use crate::owned::LOOPBACK;
use crate::plan::condition::{Attempts, Step};
use crate::plan::conf::{self, Desired, Unusable};
use crate::plan::mtu::{self, Wanted};
use crate::plan::{PlanConfig, folder};
use crate::state;

/// After so long a status that the API server did not take is sent again.
const STATUS_AGAIN: Duration = Duration::from_secs(15);

/// What the agent needs of its surroundings.
pub struct Surroundings<K, S> {
    /// The kernel's links and addresses.
    pub kernel: K,
    /// The node's status; `None` is never written.
    pub status: Option<S>,
    /// The bridge sysctls; `None` leaves them alone.
    pub sysctls: Option<Sysctls>,
    /// Metrics to keep, with those that every daemon has.
    pub metrics: Option<(Metrics, CommonMetrics)>,
    /// Where the Node comes from, for `/state`.
    pub informer: Option<common_informer::Status>,
}

/// Why not all is in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such Node.
    #[error("there is no Node {0}; is --node-name right?")]
    NoNode(String),
    /// The Node cannot be read.
    #[error("Node {0} cannot be read: {1}")]
    Unreadable(String, String),
    /// Nothing to give addresses out of.
    #[error(
        "Node {0} has no pod CIDR: kube-controller-manager gives them out with --allocate-node-cidrs and \
         --cluster-cidr, or annotate the Node with {POD_CIDRS}",
        POD_CIDRS = node::POD_CIDRS
    )]
    NoPodCidr(String),
    /// The file holds something that must not be overwritten.
    #[error(
        "{} is left as it is, because {why}; mend it, or move it away, and the agent writes a new one",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it holds.
        why: Unusable,
    },
    /// The plugin is not there, and without it no configuration may be.
    #[error("installing the plugin: {0}")]
    Plugin(#[source] FileError),
    /// The configuration.
    #[error("the configuration: {0}")]
    Conf(#[source] FileError),
}

/// This node's Node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Unreadable(String),
    Node(Facts),
}

/// The agent of one node.
pub struct Agent<K, S> {
    name: String,
    config: PlanConfig,
    files: Files,
    plugin: PathBuf,
    surroundings: Surroundings<K, S>,
    known: Known,
    synced: bool,
    problems: Problems<Problem>,
    seen: Seen,
    attempts: Attempts,
}

/// What the last sync found.
#[derive(Default)]
struct Seen {
    /// Plugin and configuration are in place.
    in_place: bool,
    conf: Option<Json>,
    /// The last configuration that was in place. If the file is lost it comes back with all that others wrote into it,
    /// above all the network's name, by which addresses are reserved.
    last: Option<Json>,
    taken_instead: Option<String>,
    link: Option<LinkMtu>,
    /// Why the MTU is not what it should be.
    mtu_problem: Option<String>,
    /// Addresses that keep the bridge from being the gateway of pods.
    gateways_of_before: Vec<IpNet>,
    sysctls: Vec<(&'static str, SysctlState)>,
    status_error: Option<String>,
}

impl<K: Rtnetlink, S: NodeStatus> Agent<K, S> {
    /// An agent that has touched nothing yet. `plugin` is the file that is installed.
    pub fn new(
        name: &str,
        config: PlanConfig,
        files: Files,
        plugin: PathBuf,
        surroundings: Surroundings<K, S>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            config,
            files,
            plugin,
            surroundings,
            known: Known::Nothing,
            synced: false,
            problems: Problems::default(),
            seen: Seen::default(),
            attempts: Attempts::default(),
        }
    }

    /// The configuration that should be in the file, and the one that is.
    ///
    /// # Errors
    /// [`Error`]: what is in the file must stay.
    pub fn planned(&mut self) -> Result<(Option<Json>, Json), Error> {
        let path = self.files.conf.clone();
        let unusable = |why| Error::Unusable { path: path.clone(), why };
        let found = match conf_file::read(&path).map_err(Error::Conf)? {
            Found::Nothing => None,
            Found::Conf(conf) => Some(conf),
            Found::Unusable(why) => return Err(unusable(why)),
        };
        self.seen.conf.clone_from(&found);
        let facts = match &self.known {
            Known::Nothing => return Err(Error::NoNode(self.name.clone())),
            Known::Unreadable(why) => return Err(Error::Unreadable(self.name.clone(), why.clone())),
            Known::Node(facts) => facts.clone(),
        };
        // What was there stays if the Node has none, or none that can be read.
        if facts.pod_cidrs.is_empty() && !facts.in_part {
            return Err(Error::NoPodCidr(self.name.clone()));
        }
        let desired = Desired { mtu: self.mtu(&facts), pod_cidrs: facts.pod_cidrs, in_part: facts.in_part };
        let base = found.as_ref().or(self.seen.last.as_ref());
        let planned = conf::merge(base, &desired, &self.config).map_err(unusable)?;
        match conf::ours(&planned, &self.config.plugin_type) {
            Some(ours) if !ours.subnets.is_empty() => Ok((found, planned)),
            _ => Err(Error::NoPodCidr(self.name.clone())),
        }
    }

    /// What is wrong with the Node and with what was planned, for people.
    pub fn complaints(&self) -> Vec<String> {
        let problems = match &self.known {
            Known::Node(facts) => facts.problems.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        problems.into_iter().chain(self.seen.mtu_problem.clone()).collect()
    }

    /// The MTU of pods; `None` leaves what is there.
    fn mtu(&mut self, facts: &Facts) -> Option<u32> {
        let pods: Vec<Family> = facts.pod_cidrs.iter().map(family).collect();
        self.seen.mtu_problem = None;
        let mtu = match self.config.mtu {
            Wanted::Untouched => None,
            Wanted::Given(mtu) => Some(mtu),
            Wanted::OfTheLink(overlay) => {
                let found = link::smallest_mtu(&mut self.surroundings.kernel, &facts.internal);
                let mtu = found.map_err(|error| error.to_string()).and_then(|found| {
                    let mtu = mtu::of_link(found.mtu, overlay, &pods, &facts.internal);
                    self.seen.link = Some(found);
                    mtu
                });
                mtu.map_err(|problem| self.seen.mtu_problem = Some(problem)).ok()
            }
        };
        if let Some(problem) = mtu::complaint(mtu, &pods) {
            self.seen.mtu_problem = Some(problem);
        }
        mtu
    }

    /// ORDER: the plugin first. A runtime takes the network for ready as soon as there is a configuration.
    fn put_in_place(&mut self, report: &mut Report) -> Result<(), Error> {
        self.seen.in_place = false;
        let installed = self.install(report);
        if !plugin::is_there(&self.files.bin_dir, &self.config.plugin_type) {
            return installed.map_err(Error::Plugin);
        }
        let (found, planned) = self.planned()?;
        if found.as_ref() != Some(&planned) {
            conf_file::write(&self.files.conf, &planned).map_err(Error::Conf)?;
            report.count("conf_written");
            tracing::info!(file = %self.files.conf.display(), new = found.is_none(), "configuration written");
        }
        self.seen.last = Some(planned.clone());
        self.seen.conf = Some(planned);
        self.seen.in_place = true;
        // An older version does its work meanwhile.
        installed.map_err(Error::Plugin)
    }

    fn install(&self, report: &mut Report) -> Result<(), FileError> {
        let mut result = Ok(());
        let folder = &self.files.bin_dir;
        let asked = self.files.names.iter().map(|name| (name.as_str(), false));
        for (name, only_if_missing) in asked.chain([(LOOPBACK, true)]) {
            let installed = if only_if_missing {
                plugin::install_if_missing(&self.plugin, folder, name)
            } else {
                plugin::install(&self.plugin, folder, name)
            };
            match installed {
                Ok(Installed::AsItWas) => {}
                Ok(how) => {
                    report.count("plugin_installed");
                    let replaced = how == Installed::InPlaceOfAnother;
                    tracing::info!(name, folder = %folder.display(), replaced, "plugin installed");
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    fn look_at_folder(&mut self) {
        let ours = self.files.conf.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let names = conf_file::names(&self.files.conf);
        let taken = folder::taken_instead(ours, names.iter().map(String::as_str)).map(str::to_owned);
        if taken != self.seen.taken_instead
            && let Some(other) = &taken
        {
            tracing::warn!(file = other, "the runtime takes another configuration than ours");
        }
        self.seen.taken_instead = taken;
    }

    /// Where the node's IPv4 CIDR is another than before, and `forceAddress` is not what the user wants.
    fn look_at_bridge(&mut self) {
        self.seen.gateways_of_before.clear();
        let Known::Node(facts) = &self.known else { return };
        let ours = self.seen.conf.as_ref().and_then(|conf| conf::ours(conf, &self.config.plugin_type));
        if facts.in_part || !ours.is_some_and(|ours| ours.keeps_gateway) {
            return;
        }
        let kernel = &mut self.surroundings.kernel;
        match link::gateways_of_before(kernel, crate::owned::BRIDGE, &facts.pod_cidrs) {
            Ok(found) => self.seen.gateways_of_before = found,
            Err(error) => tracing::warn!(%error, "the bridge cannot be looked at"),
        }
    }

    fn ensure_sysctls(&mut self, report: &mut Report) {
        let Some(sysctls) = &self.surroundings.sysctls else { return };
        let named = crate::owned::SYSCTLS.into_iter().filter_map(|text| Some((text, Name::parse(text)?)));
        self.seen.sysctls = named.map(|(text, name)| (text, sysctls.ensure(&name, "1"))).collect();
        let changed = |(_, state): &&(_, SysctlState)| matches!(state, SysctlState::Changed(_));
        self.seen.sysctls.iter().filter(changed).for_each(|_| report.count("sysctl_set"));
    }

    /// Says that the network is there, if it is and the Node says otherwise.
    fn tell(&mut self, now: Instant, report: &mut Report) {
        self.seen.status_error = None;
        let Some(status) = &mut self.surroundings.status else { return };
        let Known::Node(facts) = &mut self.known else { return };
        if !self.seen.in_place || self.seen.taken_instead.is_some() {
            return;
        }
        match self.attempts.step(facts.network_unavailable, now) {
            Step::Stay => {}
            Step::Wait(until) => report.wake(until),
            Step::Write => match status.set_available() {
                Ok(()) => {
                    tracing::info!(before = ?facts.network_unavailable, "the node's network is told to be there");
                    self.attempts.written(now);
                    facts.network_unavailable = Some(false);
                    report.count("condition_set");
                }
                Err(error) => {
                    self.seen.status_error = Some(error.to_string());
                    report.wake(now + STATUS_AGAIN);
                }
            },
        }
    }

    fn note_problems(&mut self) {
        let object = ObjectRef {
            kind: Kind::Node,
            key: ObjectKey { namespace: "".into(), name: self.name.as_str().into() },
        };
        let list = match &self.known {
            Known::Nothing => Vec::new(),
            Known::Unreadable(why) => vec![Problem::new(Reason::Node, why.clone())],
            Known::Node(facts) => facts.problems.clone(),
        };
        let problems = (!list.is_empty()).then_some((object, list));
        self.problems.update(problems.into_iter().collect::<BTreeMap<_, _>>());
    }

    fn degradations(&self) -> Vec<Degradation> {
        let seen = &self.seen;
        let mut degraded = Vec::new();
        let mut tell = |reason, message| degraded.push(Degradation { reason, message });
        if let Some(other) = &seen.taken_instead {
            let file = self.files.conf.with_file_name(other);
            let why =
                "sorts before ours, so the runtime takes it; remove it if this node is to use cni-bridge";
            tell("conf_shadowed", format!("{} {why}", file.display()));
        }
        if let Some(why) = &seen.mtu_problem {
            tell("mtu", format!("MTU of pods: {why}"));
        }
        if let Some(before) = seen.gateways_of_before.first() {
            let bridge = crate::owned::BRIDGE;
            let why = format!("{bridge} still has {before}, of no CIDR of this Node: new pods do not start");
            let what = format!(
                "drain the node; if the first new pod does not remove it: `ip address del {before} dev {bridge}`"
            );
            tell("gateway_of_before", format!("{why}; {what}"));
        }
        let off = seen.sysctls.iter().find_map(|(name, state)| sysctl_problem(name, state));
        if let Some(why) = off {
            tell(
                "bridge_not_filtered",
                format!("packets between pods on the bridge are not filtered: {why}"),
            );
        }
        if seen.conf.as_ref().is_some_and(|conf| conf::maps_ports_twice(conf, &self.config.plugin_type)) {
            let what = "a plugin of the list and cni-bridge both look after host ports";
            tell("host_ports_twice", format!("{what}: take `portMappings` from one of them"));
        }
        if let Some(why) = &seen.status_error {
            tell("status_not_written", format!("the condition NetworkUnavailable of the Node: {why}"));
        }
        if self.attempts.is_contested() {
            let who = "kube-controller-manager with --configure-cloud-routes does";
            tell("status_contested", format!("somebody keeps setting NetworkUnavailable; {who}"));
        }
        let source = self.surroundings.informer.iter().flat_map(|source| source.snapshot().complaints());
        let complaints = self.problems.complaint().into_iter().chain(source);
        degraded.extend(complaints.map(|Complaint { reason, message }| Degradation { reason, message }));
        degraded
    }
}

fn sysctl_problem(name: &str, state: &SysctlState) -> Option<String> {
    match state {
        SysctlState::On | SysctlState::Changed(_) => None,
        SysctlState::Missing => Some(format!("{name} does not exist; load the kernel module br_netfilter")),
        SysctlState::Stuck { reason, .. } => Some(format!("{name}: {reason}")),
    }
}

impl<K: Rtnetlink, S: NodeStatus> Controller for Agent<K, S> {
    type Message = Batch;

    fn receive(&mut self, batch: Batch) {
        for change in batch.changes {
            if *change.object_ref().key.name != *self.name {
                continue;
            }
            self.known = match change {
                Change::Applied(Object::Node(node)) => Known::Node(node::read(&node)),
                Change::Applied(_) => continue,
                Change::Excluded { reason, .. } => Known::Unreadable(reason),
                Change::Deleted(_) => Known::Nothing,
            };
        }
        self.synced |= batch.synced;
    }

    fn is_synced(&self) -> bool {
        self.synced
    }

    fn sync(&mut self, _: Cause, now: Instant) -> Result<SyncReport, SyncError> {
        let mut report = Report::default();
        self.ensure_sysctls(&mut report);
        let result = self.put_in_place(&mut report);
        self.look_at_folder();
        self.look_at_bridge();
        self.tell(now, &mut report);
        self.note_problems();
        let report = SyncReport {
            kernel_ops: report.ops.into_iter().collect(),
            wake_at: report.wake_at,
            degraded: self.degradations(),
        };
        result.map(|()| report.clone()).map_err(|error| SyncError { error: Box::new(error), partial: report })
    }

    fn measure(&mut self) {
        let Some((metrics, common)) = &self.surroundings.metrics else { return };
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let ours = self.seen.conf.as_ref().and_then(|conf| conf::ours(conf, &self.config.plugin_type));
        metrics.in_place.set(i64::from(self.seen.in_place && self.seen.taken_instead.is_none()));
        let mtu = ours.and_then(|ours| ours.mtu).unwrap_or_default();
        metrics.mtu.set(i64::try_from(mtu).unwrap_or(i64::MAX));
        let facts = match &self.known {
            Known::Node(facts) => Some(facts),
            _ => None,
        };
        for (of, word) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let cidrs = facts.iter().flat_map(|facts| &facts.pod_cidrs);
            let count = cidrs.filter(|cidr| family(cidr) == of).count();
            metrics.pod_cidrs.with_label_values(&[word]).set(gauge(count));
        }
        for (name, state) in &self.seen.sysctls {
            let family = if name.ends_with("ip6tables") { "ipv6" } else { "ipv4" };
            let value = match state {
                SysctlState::On | SysctlState::Changed(_) => 1,
                SysctlState::Stuck { .. } => 0,
                SysctlState::Missing => -1,
            };
            metrics.bridge_nf_call.with_label_values(&[family]).set(value);
        }
        common.objects.with_label_values(&["Node"]).set(i64::from(facts.is_some()));
        common.show_excluded(self.problems.reasons());
    }

    fn state(&self) -> impl Serialize {
        let facts = match &self.known {
            Known::Node(facts) => Some(facts),
            _ => None,
        };
        state::State {
            in_place: self.seen.in_place,
            source: self.surroundings.informer.as_ref().map(common_informer::Status::snapshot),
            node: facts.map(state::Node::of),
            problems: self.problems.iter().flat_map(|(_, list)| list).map(ToString::to_string).collect(),
            conf_file: self.files.conf.clone(),
            taken_instead: self.seen.taken_instead.clone(),
            conf: self.seen.conf.clone(),
            link: self.seen.link.clone().map(|found| (found.link, found.mtu)),
            plugin: self.plugin.clone(),
            installed_as: self.files.names.iter().map(|name| self.files.bin_dir.join(name)).collect(),
            sysctls: self.seen.sysctls.iter().map(|(name, state)| (*name, format!("{state:?}"))).collect(),
        }
    }
}

#[derive(Default)]
struct Report {
    ops: BTreeMap<&'static str, u64>,
    wake_at: Option<Instant>,
}

impl Report {
    fn count(&mut self, op: &'static str) {
        *self.ops.entry(op).or_default() += 1;
    }

    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}
