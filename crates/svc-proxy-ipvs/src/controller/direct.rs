//! Direct return, as part of a sync.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common_informer::object::{Kind, ObjectRef};
use kernel_netlink::ipvs::Ipvs;
use kernel_netlink::route::Rtnetlink;
use kernel_netlink::sysctl::Sysctls;
use kernel_nft::{Nftables, Op};
use node_runtime::{Cause, SyncReport};

use super::Proxy;
use crate::apply::dsr::pod::{Pods, Wanted};
use crate::apply::dsr::{self, Paths};
use crate::apply::sysctl;
use crate::args::Config;
use crate::error::Error;
use crate::model::problem::{Problem, Reason};
use crate::plan::planner::{DirectNeeds, DirectPod};
use crate::plan::rules;
use crate::report::Failures;

/// What is known of direct return on this node.
pub(super) struct Direct {
    /// The record of marks in the kernel was read.
    adopted: bool,
    /// What marked packets are led by, as far as is known.
    needs: Option<DirectNeeds>,
    /// Endpoints on this node.
    endpoints: BTreeMap<IpAddr, DirectPod>,
    paths: Paths,
    pods: Pods,
    /// What stands against direct return, by endpoint: of the way to it, and in it.
    against: [BTreeMap<IpAddr, String>; 2],
    /// When there is more to do in pods.
    pub(super) wake_at: Option<Instant>,
    pub(super) sysctls: sysctl::Found,
}

impl Direct {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            adopted: false,
            needs: None,
            endpoints: BTreeMap::new(),
            paths: Paths::default(),
            pods: Pods::new(config.netns_dirs.clone(), Sysctls::new(&config.sysctl_root)),
            against: [BTreeMap::new(), BTreeMap::new()],
            wake_at: None,
            sysctls: Vec::new(),
        }
    }
}

impl<V: Ipvs, R: Rtnetlink, N: Nftables> Proxy<V, R, N> {
    /// Reads the record of marks in the kernel, once. ORDER: before anything is planned, or fronts would get other
    /// marks than their connections have.
    pub(super) fn adopt_marks(&mut self) -> Result<(), Error> {
        if self.direct.adopted {
            return Ok(());
        }
        let found = self.table.read()?;
        let marks: Vec<_> =
            found.observed.iter().flat_map(|observed| rules::marks(&observed.ruleset)).collect();
        if !marks.is_empty() {
            self.direct.pods.expect_leftovers();
        }
        self.planner.adopt_marks(marks);
        self.direct.adopted = true;
        Ok(())
    }

    /// Looks at the way to endpoints on this node when there are others, or everything is looked at. What that
    /// changes in the table is added to `table`.
    pub(super) fn look_at_paths(&mut self, observe: bool, table: &mut Vec<Op>) -> Result<(), Error> {
        let endpoints = self.planner.direct_pods();
        let same = self.direct.endpoints.keys().eq(endpoints.keys());
        self.direct.endpoints = endpoints;
        if same && (!observe || self.direct.endpoints.is_empty()) {
            return Ok(());
        }
        let pods = self.direct.endpoints.keys();
        self.direct.paths = dsr::paths(self.vips.netlink(), pods, self.planner.addresses())?;
        if let Some(mtu) = self.direct.paths.mtu {
            table.extend(self.planner.set_mtu(mtu));
        }
        Ok(())
    }

    /// Leads marked packets to IPVS as long as there are any. ORDER: before routes of virtual addresses go, since
    /// an address may have been one of those.
    pub(super) fn lead_marked(&mut self, observe: bool, report: &mut SyncReport, failures: &mut Failures) {
        let needs = self.planner.direct_needs();
        if !observe && self.direct.needs == Some(needs) {
            return;
        }
        self.direct.needs = None;
        let led = dsr::leading(self.vips.netlink(), &needs)
            .and_then(|leading| Ok((leading.was_led, dsr::lead(self.vips.netlink(), &leading)?)));
        match led {
            Ok((was_led, changes)) => {
                report.count("change_rule", changes);
                self.direct.needs = Some(needs);
                if let Some(sysctls) = &self.rest.sysctls
                    && (needs.families.contains(&true) || was_led)
                {
                    self.direct.sysctls = dsr::ensure_sysctls(sysctls, &needs);
                }
            }
            Err(error) => failures.note(error),
        }
    }

    /// Gives endpoints on this node their virtual addresses. ORDER: before IPVS sends them packets. What fails is
    /// a problem of their Services and is tried again; nobody else waits for it.
    pub(super) fn set_up_pods(&mut self, cause: Cause, now: Instant, report: &mut SyncReport) {
        let direct = &mut self.direct;
        if let Some(sysctls) = &self.rest.sysctls {
            direct.against[0] = dsr::let_replies_in(sysctls, &direct.paths);
        }
        let endpoints = direct.endpoints.iter();
        let wanted: Wanted = endpoints.map(|(pod, endpoint)| (*pod, endpoint.vips.clone())).collect();
        let drain = self.config.drain;
        let linger = if drain.graceful { drain.period } else { Duration::ZERO };
        let audit = matches!(cause, Cause::Start | Cause::Periodic);
        let outcome = direct.pods.ensure(&wanted, audit, now, linger);
        report.count("change_pod", outcome.changes);
        direct.against[1] = outcome.failures;
        direct.wake_at = outcome.wake_at;
    }

    /// What stands against direct return, by Service.
    pub(super) fn direct_problems(&self) -> Vec<(ObjectRef, Problem)> {
        let mut problems = Vec::new();
        for (pod, why) in self.direct.against.iter().flatten() {
            let Some(endpoint) = self.direct.endpoints.get(pod) else { continue };
            for service in &endpoint.services {
                let object = ObjectRef { kind: Kind::Service, key: service.clone() };
                let message = format!("kube-router.io/service.dsr: endpoint {pod}: {why}");
                problems.push((object, Problem::new(Reason::EndpointNotSetUp, message)));
            }
        }
        problems
    }
}
