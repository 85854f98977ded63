//! The controller on the fake kernel: start, restart, faults, strangers, and when the generation changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common_informer::intern::Interner;
use common_informer::manifests::document;
use common_informer::object::{Batch, Change, Kind, ObjectKey, ObjectRef};
use kernel_nft::{Fake, Family, Op, Ownership, Ruleset, TableFlags};
use node_runtime::{Cause, Controller, SyncError, SyncReport};
use npc_firewall::apply::Marks;
use npc_firewall::controller::{Firewall, Surroundings};
use npc_firewall::plan::{PlanConfig, base};

const OWNED: TableFlags = TableFlags { owner: true, persist: true, dormant: false };

const WORLD: &str = r"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: db, labels: {app: db}}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.0.0.2}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: web}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: db}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
";

const EVERYBODY_TO_WEB: &str = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: web}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {ports: [{port: 443}]}]}}
";

const NOBODY_TO_WEB: &str = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: web}, spec: {podSelector: {matchLabels: {app: web}}}}
";

/// What was asked of connection tracking.
#[derive(Default)]
struct Asked {
    /// Masks, and the marks that stay.
    sweeps: Vec<(u32, u32)>,
    refuses: bool,
}

#[derive(Clone, Default)]
struct Sweeps(Arc<Mutex<Asked>>);

impl Marks for Sweeps {
    fn clear(&mut self, mask: u32, keep: u32) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.refuses {
            return Err(std::io::Error::other("conntrack is away"));
        }
        state.sweeps.push((mask, keep));
        Ok(())
    }
}

struct Rig {
    firewall: Firewall<Fake>,
    kernel: Fake,
    sweeps: Sweeps,
    now: Instant,
}

fn changes(yaml: &str) -> Vec<Change> {
    let documents = document::parse(yaml, &mut Interner::new());
    documents.objects.into_iter().map(|decoded| Change::Applied(decoded.unwrap().object)).collect()
}

fn deleted(kind: Kind, name: &str) -> Vec<Change> {
    vec![Change::Deleted(ObjectRef { kind, key: ObjectKey { namespace: "shop".into(), name: name.into() } })]
}

impl Rig {
    fn with(kernel: Fake, flags: TableFlags, config: PlanConfig) -> Self {
        let sweeps = Sweeps::default();
        let surroundings = Surroundings {
            nft: kernel.clone(),
            marks: Box::new(sweeps.clone()),
            sysctls: None,
            watch: None,
            metrics: None,
            informer: None,
        };
        Self {
            firewall: Firewall::new("n1", config, flags, surroundings),
            kernel,
            sweeps,
            now: Instant::now(),
        }
    }

    fn on(kernel: Fake) -> Self {
        Self::with(kernel, OWNED, PlanConfig::default())
    }

    fn started() -> Self {
        let mut rig = Self::on(Fake::new());
        rig.sync(Cause::Start, changes(WORLD)).unwrap();
        rig
    }

    fn sync(&mut self, cause: Cause, changes: Vec<Change>) -> Result<SyncReport, SyncError> {
        self.firewall.receive(Batch { changes, synced: true });
        self.firewall.sync(cause, self.now)
    }

    fn table(&self) -> Ruleset {
        self.kernel.ruleset(Family::Inet, "npc_firewall").expect("the table")
    }

    fn generation(&self) -> u32 {
        base::generation_of(&self.table(), &PlanConfig::default()).expect("a generation")
    }

    fn in_step(&self) -> bool {
        kernel_nft::diff(self.firewall.planner().ruleset(), &self.table()).is_empty()
    }
}

fn ops(report: &SyncReport) -> Vec<&'static str> {
    report.kernel_ops.iter().map(|(word, _)| *word).collect()
}

#[test]
fn nothing_is_synced_before_the_caches_are() {
    let mut rig = Rig::on(Fake::new());
    rig.firewall.receive(Batch { changes: changes(WORLD), synced: false });
    assert!(!rig.firewall.is_synced());
    rig.firewall.receive(Batch { changes: Vec::new(), synced: true });
    assert!(rig.firewall.is_synced());
    assert_eq!(rig.kernel.attempts(), 0);
}

#[test]
fn a_new_process_adopts_an_orphaned_table_without_changing_anything_in_it() {
    let rig = Rig::started();
    let before = rig.table();
    let mut kernel = rig.kernel.clone();
    kernel.restart();
    let mut next = Rig::on(kernel);
    let report = next.sync(Cause::Start, changes(WORLD)).unwrap();
    assert_eq!(ops(&report), ["add_table"]);
    assert!(next.table() == before);
    let owner =
        kernel_nft::Nftables::observe(&mut next.kernel.clone(), Family::Inet, "npc_firewall").unwrap();
    assert_ne!(owner.unwrap().ownership, Ownership::Orphaned);
}

#[test]
fn what_changed_while_no_process_ran_is_applied_as_a_difference_under_a_new_generation() {
    let rig = Rig::started();
    let generation = rig.generation();
    let mut kernel = rig.kernel.clone();
    kernel.restart();
    let mut next = Rig::on(kernel);
    let world = changes(WORLD).into_iter().chain(changes(NOBODY_TO_WEB)).collect();
    let report = next.sync(Cause::Start, world).unwrap();
    assert!(!ops(&report).contains(&"add_chain"), "{report:?}");
    assert!(next.in_step());
    assert_ne!(next.generation(), generation);
}

#[test]
fn a_table_owned_by_a_living_process_is_left_alone_and_named_in_the_error() {
    let rig = Rig::started();
    let before = rig.table();
    let mut second = Rig::on(rig.kernel.stranger());
    let error = second.sync(Cause::Start, Vec::new()).unwrap_err();
    assert!(error.error.to_string().contains("owned by another process"), "{}", error.error);
    assert!(rig.table() == before);
}

#[test]
fn a_kernel_without_persist_gets_a_table_without_flags_and_a_flush_is_mended() {
    let mut rig = Rig::with(Fake::without_persist(), TableFlags::default(), PlanConfig::default());
    rig.sync(Cause::Start, changes(WORLD)).unwrap();
    let before = rig.table();
    rig.kernel.flush_by_stranger();
    assert!(rig.kernel.ruleset(Family::Inet, "npc_firewall").is_none());
    rig.sync(Cause::Kernel, Vec::new()).unwrap();
    assert!(rig.table() == before);
    let state = serde_json::to_value(rig.firewall.state()).unwrap();
    assert_eq!(state["repairs"], 1);
}

#[test]
fn a_change_that_changes_nothing_commits_nothing() {
    let mut rig = Rig::started();
    let commits = rig.kernel.commits();
    let report = rig.sync(Cause::Change, changes(WORLD)).unwrap();
    assert_eq!((report.kernel_op_count(), rig.kernel.commits()), (0, commits));
}

#[test]
fn allowing_more_keeps_the_generation_and_allowing_less_changes_it() {
    let mut rig = Rig::started();
    let first = rig.generation();
    rig.sync(Cause::Change, changes(EVERYBODY_TO_WEB)).unwrap();
    assert_eq!(rig.generation(), first, "more was allowed");
    rig.sync(Cause::Change, deleted(Kind::NetworkPolicy, "db")).unwrap();
    assert_eq!(rig.generation(), first, "a pod is no longer isolated");
    rig.sync(Cause::Change, changes(NOBODY_TO_WEB)).unwrap();
    let second = rig.generation();
    assert_ne!(second, first, "a policy allows less");
    assert!(rig.in_step());
    // A second one within a second waits, and is not forgotten.
    let report = rig.sync(Cause::Change, changes(WORLD)).unwrap();
    assert_eq!(rig.generation(), second);
    let until = report.wake_at.expect("a wish to be called");
    rig.now = until;
    rig.sync(Cause::Timer, Vec::new()).unwrap();
    assert_ne!(rig.generation(), second, "a pod became isolated");
}

#[test]
fn marks_are_cleared_before_the_first_table_and_before_a_generation_is_used_again() {
    let config = PlanConfig { mark_mask: 0x0003_0000, ..PlanConfig::default() };
    let mut rig = Rig::with(Fake::new(), OWNED, config);
    rig.sync(Cause::Start, changes(WORLD)).unwrap();
    assert_eq!(rig.sweeps.0.lock().unwrap().sweeps, [(0x0003_0000, 0)]);
    for round in 0..4 {
        for yaml in [EVERYBODY_TO_WEB, NOBODY_TO_WEB] {
            rig.now += Duration::from_secs(1);
            rig.sync(Cause::Change, changes(yaml)).unwrap();
        }
        assert!(rig.in_step(), "round {round}");
    }
    // Three generations, two of them free after each sweep: the first two of four changes need none.
    let sweeps = rig.sweeps.0.lock().unwrap().sweeps.clone();
    assert_eq!(sweeps, [(0x0003_0000, 0), (0x0003_0000, 0x0003_0000)]);
}

#[test]
fn rules_are_committed_although_marks_cannot_be_cleared() {
    let mut rig = Rig::on(Fake::new());
    rig.sweeps.0.lock().unwrap().refuses = true;
    let report = rig.sync(Cause::Start, changes(WORLD)).unwrap();
    assert!(rig.in_step());
    assert!(report.degraded.iter().any(|d| d.reason == "marks_not_cleared"), "{report:?}");
    rig.sync(Cause::Change, changes(NOBODY_TO_WEB)).unwrap();
    assert!(rig.in_step());
    rig.sweeps.0.lock().unwrap().refuses = false;
    rig.now += Duration::from_secs(1);
    let generation = rig.generation();
    let report = rig.sync(Cause::Timer, Vec::new()).unwrap();
    assert_ne!(rig.generation(), generation, "the change of generation was not forgotten");
    assert!(report.degraded.is_empty(), "{report:?}");
}

#[test]
fn a_first_sweep_of_marks_that_failed_is_tried_again() {
    let mut rig = Rig::on(Fake::new());
    rig.sweeps.0.lock().unwrap().refuses = true;
    rig.sync(Cause::Start, changes(WORLD)).unwrap();
    rig.sweeps.0.lock().unwrap().refuses = false;
    let report = rig.sync(Cause::Periodic, Vec::new()).unwrap();
    assert_eq!(rig.sweeps.0.lock().unwrap().sweeps, [(PlanConfig::default().mark_mask, 0)]);
    assert!(report.degraded.is_empty(), "{report:?}");
}

#[test]
fn a_tightening_in_a_sync_that_failed_counts_also_when_the_table_is_gone_then() {
    let mut rig = Rig::with(Fake::new(), TableFlags::default(), PlanConfig::default());
    rig.sync(Cause::Start, changes(WORLD)).unwrap();
    let generation = rig.generation();
    rig.kernel.refuse(|_| true, nix::libc::ENOMEM, None);
    rig.sync(Cause::Change, changes(NOBODY_TO_WEB)).unwrap_err();
    rig.kernel.refuse_nothing();
    rig.kernel.flush_by_stranger();
    rig.sync(Cause::Retry, Vec::new()).unwrap();
    assert!(rig.in_step());
    assert_ne!(rig.generation(), generation);
}

#[test]
fn what_would_change_is_told_beside_a_living_owner() {
    let rig = Rig::started();
    let mut looker = Rig::on(rig.kernel.stranger());
    looker.firewall.receive(Batch { changes: changes(WORLD), synced: true });
    assert_eq!(looker.firewall.difference().unwrap(), []);
    looker.firewall.receive(Batch { changes: changes(NOBODY_TO_WEB), synced: true });
    assert_ne!(looker.firewall.difference().unwrap(), []);
}

#[test]
fn a_transaction_refused_once_is_mended_in_the_same_sync() {
    let mut rig = Rig::started();
    rig.kernel.refuse(|op| matches!(op, Op::AddRule(..)), nix::libc::ENOMEM, Some(1));
    rig.sync(Cause::Change, changes(EVERYBODY_TO_WEB)).unwrap();
    assert!(rig.in_step());
}

#[test]
fn a_commit_of_unknown_outcome_is_looked_up() {
    for carried_out in [true, false] {
        let mut rig = Rig::started();
        rig.kernel.break_next_commit(carried_out);
        rig.sync(Cause::Change, changes(EVERYBODY_TO_WEB)).unwrap();
        assert!(rig.in_step(), "carried out: {carried_out}");
    }
}

#[test]
fn a_chain_that_the_kernel_refuses_refuses_everything_and_the_others_are_enforced() {
    let mut rig = Rig::on(Fake::new());
    let refused = |op: &Op| matches!(op, Op::AddRule(_, rule) if rule.comment.as_deref() == Some("shop/web ingress[0]"));
    rig.kernel.refuse(refused, nix::libc::EOPNOTSUPP, None);
    let report = rig.sync(Cause::Start, changes(WORLD)).unwrap();
    assert!(rig.in_step());
    assert!(report.degraded.iter().any(|d| d.reason == "excluded_objects"), "{report:?}");
    let table = rig.table();
    let chain_of = |comment: &str| {
        table.chains.values().find(|chain| chain.comment.as_deref() == Some(comment)).unwrap()
    };
    assert_eq!(chain_of("shop/web").rules.len(), 1, "only the refusal is left");
    assert!(chain_of("shop/db").rules.len() > 1);
    let state = serde_json::to_value(rig.firewall.state()).unwrap();
    assert!(state["excluded"].to_string().contains("kernel_refused"), "{state}");
    // A changed policy gets another try.
    rig.sync(Cause::Change, changes(NOBODY_TO_WEB)).unwrap();
    assert!(rig.in_step());
    let state = serde_json::to_value(rig.firewall.state()).unwrap();
    assert_eq!(state["excluded"].as_array().map(Vec::len), Some(0), "{state}");
}

#[test]
fn a_kernel_that_cannot_be_read_fails_the_sync_and_the_next_one_mends() {
    let mut rig = Rig::on(Fake::new());
    rig.kernel.break_observations(1);
    assert!(rig.sync(Cause::Start, changes(WORLD)).is_err());
    rig.sync(Cause::Retry, Vec::new()).unwrap();
    assert!(rig.in_step());
}

#[test]
fn an_element_taken_out_by_a_stranger_is_put_back_by_the_audit() {
    let mut rig = Rig::with(Fake::new(), TableFlags::default(), PlanConfig::default());
    rig.sync(Cause::Start, changes(WORLD)).unwrap();
    let before = rig.table();
    let map = before.sets["in4"].elements.iter().next().unwrap();
    let ops = [Op::DeleteElements("in4".into(), vec![map])];
    let table = "npc_firewall".into();
    let transaction =
        kernel_nft::Transaction { family: Family::Inet, table: &table, ops: &ops, generation: None };
    kernel_nft::Nftables::commit(&mut rig.kernel.stranger(), &transaction).unwrap();
    rig.sync(Cause::Periodic, Vec::new()).unwrap();
    assert!(rig.table().sets == before.sets);
    assert_ne!(rig.generation(), 1, "what was allowed meanwhile is judged again");
}

#[test]
fn an_unresolved_port_name_is_told_and_forgotten_when_a_pod_declares_it() {
    let named = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: named}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: metrics}]}]}}
";
    let pod = r"
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {nodeName: n1, containers: [{name: a, ports: [{name: metrics, containerPort: 9100}]}]}, status: {phase: Running, podIP: 10.0.0.1}}
";
    let mut rig = Rig::started();
    let report = rig.sync(Cause::Change, changes(named)).unwrap();
    assert!(report.degraded.iter().any(|d| d.message.contains("NetworkPolicy shop/named")), "{report:?}");
    let report = rig.sync(Cause::Change, changes(pod)).unwrap();
    assert!(report.degraded.is_empty(), "{report:?}");
}
