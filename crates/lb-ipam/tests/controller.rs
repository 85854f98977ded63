//! The controller on an API server of few lines: what it writes, when it does not, and what it says of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common_informer::object::Batch;
use lb_ipam::apply::WriteError;
use lb_ipam::apply::service::{Note, ServiceStatus};
use lb_ipam::controller::{Allocator, Message};
use lb_ipam::plan::writes::{StatusChange, Write};
use node_runtime::{Cause, Controller as _, SyncError, SyncReport};
use support::objects::{changes, config, deleted};

#[derive(Default)]
struct Server {
    shown: BTreeMap<String, Vec<String>>,
    writes: usize,
    refusals: VecDeque<WriteError>,
    notes: Vec<Note>,
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<Server>>);

impl ServiceStatus for Api {
    fn commit(&mut self, writes: &[Write]) -> Vec<Result<(), WriteError>> {
        let mut server = self.0.lock().unwrap();
        let answer = |write: &Write| {
            server.writes += 1;
            if let Some(error) = server.refusals.pop_front() {
                return Err(error);
            }
            match &write.change {
                StatusChange::Show { ips, .. } => {
                    let ips = ips.iter().map(IpAddr::to_string).collect();
                    server.shown.insert(write.key.to_string(), ips);
                }
                StatusChange::Withdraw => {}
            }
            Ok(())
        };
        writes.iter().map(answer).collect()
    }

    fn tell(&mut self, note: Note) {
        self.0.lock().unwrap().notes.push(note);
    }
}

struct Rig {
    allocator: Allocator<Api>,
    api: Api,
    now: Instant,
}

fn service(name: &str, status: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{namespace: x, name: {name}}}, \
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}{status}}}\n---\n"
    )
}

fn showing(name: &str, ip: &str) -> String {
    service(name, &format!(", status: {{loadBalancer: {{ingress: [{{ip: {ip}}}]}}}}"))
}

impl Rig {
    fn new(once: bool) -> Self {
        let api = Api::default();
        let allocator = Allocator::new(config(&["192.0.2.0/29"]), once, api.clone(), None);
        Self { allocator, api, now: Instant::now() }
    }

    fn leading() -> Self {
        let mut rig = Self::new(false);
        rig.allocator.receive(Message::Lead(None));
        rig
    }

    fn objects(&mut self, yaml: &str) {
        self.allocator.receive(Message::Objects(Batch { changes: changes(yaml), synced: true }));
    }

    fn sync(&mut self, cause: Cause) -> Result<SyncReport, SyncError> {
        self.now += Duration::from_secs(1);
        self.allocator.sync(cause, self.now)
    }

    fn shown(&self, name: &str) -> String {
        self.api.0.lock().unwrap().shown.get(name).map(|ips| ips.join(",")).unwrap_or_default()
    }

    fn writes(&self) -> usize {
        std::mem::take(&mut self.api.0.lock().unwrap().writes)
    }

    fn refuse(&self, errors: impl IntoIterator<Item = WriteError>) {
        self.api.0.lock().unwrap().refusals.extend(errors);
    }

    fn reasons(&self) -> Vec<&'static str> {
        let notes = std::mem::take(&mut self.api.0.lock().unwrap().notes);
        notes.iter().map(|note| note.problem.reason.as_str()).collect()
    }
}

#[test]
fn nothing_is_written_before_this_process_leads_and_all_services_are_known() {
    let mut rig = Rig::new(false);
    assert!(!rig.allocator.is_synced(), "it is not known who leads");
    rig.allocator.receive(Message::Stand);
    assert!(rig.allocator.is_synced(), "a standby is ready");
    rig.sync(Cause::Start).unwrap();
    rig.allocator.receive(Message::Lead(None));
    rig.allocator.receive(Message::Objects(Batch { changes: changes(&service("a", "")), synced: false }));
    rig.sync(Cause::Change).unwrap();
    assert_eq!(rig.writes(), 0);
    rig.objects("");
    rig.sync(Cause::Change).unwrap();
    assert_eq!((rig.writes(), rig.shown("x/a")), (1, "192.0.2.1".into()));
}

#[test]
fn a_new_term_forgets_what_the_last_one_knew() {
    let mut rig = Rig::leading();
    rig.objects(&service("a", ""));
    rig.sync(Cause::Start).unwrap();
    rig.allocator.receive(Message::Stand);
    rig.sync(Cause::Periodic).unwrap();
    // Another leader gave `a` another address, and its first one to `b`.
    rig.allocator.receive(Message::Lead(None));
    rig.objects(&(showing("a", "192.0.2.2") + &showing("b", "192.0.2.1")));
    rig.writes();
    rig.sync(Cause::Change).unwrap();
    assert_eq!(rig.writes(), 0);
}

#[test]
fn a_term_that_follows_another_at_once_begins_with_nothing_as_well() {
    let mut rig = Rig::leading();
    rig.objects(&service("a", ""));
    rig.sync(Cause::Start).unwrap();
    // `a` went while another process led, and `b` got its address there.
    rig.allocator.receive(Message::Lead(None));
    rig.objects(&showing("b", "192.0.2.1"));
    rig.writes();
    rig.sync(Cause::Change).unwrap();
    assert_eq!((rig.writes(), rig.reasons().len()), (0, 0));
    assert_eq!(rig.allocator.planner().iter().count(), 1);
}

#[test]
fn an_event_that_is_older_than_the_last_write_changes_no_address() {
    let mut rig = Rig::leading();
    rig.objects(&service("a", ""));
    rig.sync(Cause::Start).unwrap();
    rig.objects(&service("a", ""));
    rig.sync(Cause::Change).unwrap();
    rig.objects(&showing("a", "192.0.2.1"));
    rig.sync(Cause::Change).unwrap();
    assert_eq!(rig.shown("x/a"), "192.0.2.1");
    rig.writes();
    rig.sync(Cause::Periodic).unwrap();
    assert_eq!(rig.writes(), 0);
}

#[test]
fn a_write_that_fails_costs_only_itself_and_is_tried_again() {
    let mut rig = Rig::leading();
    rig.objects(&(service("a", "") + &service("b", "")));
    rig.refuse([WriteError::Conflict("modified".into())]);
    let error = rig.sync(Cause::Start).unwrap_err();
    assert!(error.error.to_string().contains("x/a"), "{}", error.error);
    assert_eq!((rig.shown("x/a"), rig.shown("x/b")), (String::new(), "192.0.2.2".into()));
    rig.sync(Cause::Retry).unwrap();
    assert_eq!(rig.shown("x/a"), "192.0.2.1");
}

#[test]
fn a_write_that_is_refused_for_good_is_told_and_left_until_the_audit() {
    let mut rig = Rig::leading();
    rig.objects(&service("a", ""));
    rig.refuse([WriteError::Refused("invalid".into())]);
    let report = rig.sync(Cause::Start).unwrap();
    assert!(report.degraded.iter().any(|degraded| degraded.message.contains("x/a")), "{report:?}");
    assert_eq!(rig.reasons(), ["StatusRefused"]);
    rig.writes();
    rig.objects(&service("b", ""));
    rig.sync(Cause::Change).unwrap();
    assert_eq!(rig.writes(), 1, "b alone");
    rig.refuse([WriteError::Refused("invalid".into())]);
    rig.sync(Cause::Periodic).unwrap();
    assert_eq!((rig.writes(), rig.reasons().len()), (1, 0), "tried, and not told again");
    let report = rig.sync(Cause::Periodic).unwrap();
    assert_eq!((rig.shown("x/a"), report.degraded.len()), ("192.0.2.1".into(), 0));
}

#[test]
fn losing_the_lease_ends_a_sync_at_once() {
    let mut rig = Rig::leading();
    let all: String = (1..=6).map(|n| service(&format!("s{n}"), "")).collect();
    rig.objects(&all);
    rig.refuse(vec![WriteError::NotLeading; 6]);
    let error = rig.sync(Cause::Start).unwrap_err();
    assert!(error.error.to_string().contains("no longer leads"), "{}", error.error);
    assert_eq!(rig.writes(), 6);
    rig.allocator.receive(Message::Stand);
    rig.sync(Cause::Retry).unwrap();
    assert_eq!(rig.writes(), 0);
}

#[test]
fn a_status_that_somebody_overwrites_is_mended_but_not_for_ever() {
    let mut rig = Rig::leading();
    for _ in 0..20 {
        rig.objects(
            &showing("a", "203.0.113.9").replace("spec: {", "spec: {loadBalancerClass: kube-router, "),
        );
        rig.sync(Cause::Change).unwrap();
    }
    assert_eq!(rig.writes(), 5);
    let report = rig.sync(Cause::Change).unwrap();
    assert!(report.wake_at.is_some());
    assert!(report.degraded.iter().any(|degraded| degraded.message.contains("x/a")), "{report:?}");
    rig.now += Duration::from_secs(60);
    let report = rig.sync(Cause::Timer).unwrap();
    assert_eq!((rig.writes(), report.degraded.len()), (1, 0), "in peace again");
}

#[test]
fn a_problem_is_told_once_and_again_only_after_it_was_over() {
    let mut rig = Rig::leading();
    let all: String = (1..=7).map(|n| service(&format!("s{n}"), "")).collect();
    rig.objects(&all);
    rig.sync(Cause::Start).unwrap();
    assert_eq!(rig.reasons(), ["NoAddressFree"]);
    rig.objects(&(service("s7", "") + &showing("s1", "192.0.2.1")));
    rig.sync(Cause::Periodic).unwrap();
    assert_eq!(rig.reasons(), [""; 0]);
    let changes = vec![deleted("x/s1")];
    rig.allocator.receive(Message::Objects(Batch { changes, synced: true }));
    rig.sync(Cause::Change).unwrap();
    assert_eq!(rig.shown("x/s7"), "192.0.2.1");
    rig.objects(&service("s8", ""));
    rig.sync(Cause::Change).unwrap();
    assert_eq!(rig.reasons(), ["NoAddressFree"]);
    let state = serde_json::to_value(rig.allocator.state()).unwrap();
    assert_eq!((&state["role"], &state["pools"][0]["used"]), (&"leader".into(), &6.into()), "{state}");
}

#[test]
fn once_fails_if_a_status_is_not_as_planned() {
    let mut rig = Rig::new(true);
    rig.allocator.receive(Message::Lead(None));
    rig.objects(&service("a", ""));
    rig.refuse([WriteError::Refused("invalid".into())]);
    assert!(rig.sync(Cause::Start).unwrap_err().error.to_string().contains("x/a"));
}
