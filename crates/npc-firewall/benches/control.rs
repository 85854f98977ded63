//! `make bench-firewall-control`: what a change costs, from the object to the commit, on a real kernel.
//!
//! Wall time, CPU of this program and CPU of the transactions and dumps are told apart; writing and reading the
//! messages is in the latter. The same changes are measured on a small and on large nodes in one run, so the ratios hold on a noisy machine.
//! Memory is that of the real binary, fed by a stand-in for the API server. Needs root; everything happens in
//! a network namespace of its own.

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on ends in a panic")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common_informer::object::{Batch, Change, Object};
use kernel_nft::{
    CommitError, Counter, Error, Family, Name, Nftables, Observed, Socket, TableFlags, Transaction,
};
use node_runtime::{Cause, Controller};
use npc_firewall::apply::Marks;
use npc_firewall::controller::{Firewall, Surroundings};
use npc_firewall::plan::PlanConfig;
use test_netns::cost::{Cost, in_kernel, measure, median};

use support::cluster::Cluster;
use support::memory;

const ROUNDS: usize = 41;

struct NoMarks;

impl Marks for NoMarks {
    fn clear(&mut self, _: u32, _: u32) -> std::io::Result<()> {
        Ok(())
    }
}

/// The kernel's nf_tables, with a clock on it.
struct Timed(Socket);

impl Nftables for Timed {
    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error> {
        in_kernel(|| self.0.observe(family, table))
    }

    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        in_kernel(|| self.0.observe_counters(family, table))
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError> {
        in_kernel(|| self.0.commit(transaction))
    }

    fn portid(&self) -> u32 {
        self.0.portid()
    }
}

fn firewall() -> Firewall<Timed> {
    let surroundings = Surroundings {
        nft: Timed(Socket::open().expect("netlink socket")),
        marks: Box::new(NoMarks),
        sysctls: None,
        watch: None,
        metrics: None,
        informer: None,
    };
    Firewall::new("n1", PlanConfig::default(), TableFlags::default(), surroundings)
}

fn sync(firewall: &mut Firewall<Timed>, cause: Cause, changes: Vec<Change>) {
    firewall.receive(Batch { changes, synced: true });
    if let Err(error) = firewall.sync(cause, Instant::now()) {
        panic!("sync failed: {}", error.error);
    }
}

fn applied(object: Object) -> Vec<Change> {
    vec![Change::Applied(object)]
}

fn remove_table() {
    let table = ["delete", "table", "inet", "npc_firewall"];
    // There may be none.
    std::process::Command::new("nft").args(table).output().expect("nft");
}

/// One row for each change, on a cluster of this size.
fn rows(pods: usize, policies: usize) -> Vec<(&'static str, Cost)> {
    let cluster = Cluster::new(pods, policies);
    let all: Vec<_> = cluster.objects().into_iter().map(Change::Applied).collect();
    let mut cold = Vec::new();
    for _ in 0..5 {
        remove_table();
        let changes = all.clone();
        let mut fresh = firewall();
        cold.push(measure(|| sync(&mut fresh, Cause::Start, changes)));
    }
    let mut firewall = firewall();
    sync(&mut firewall, Cause::Start, all);
    let mut rows = vec![("cold sync", median(&mut cold))];
    let mut row = |name, mut change: Box<dyn FnMut(usize) -> Vec<Change>>| {
        let mut costs: Vec<_> = (0..ROUNDS)
            .map(|round| {
                let changes = change(round);
                measure(|| sync(&mut firewall, Cause::Change, changes))
            })
            .collect();
        rows.push((name, median(&mut costs)));
    };
    row("one local pod added", Box::new(|round| applied(cluster.extra_pod(round, "n1"))));
    row("one remote pod added", Box::new(|round| applied(cluster.extra_pod(1000 + round, "n2"))));
    row("one policy changed", Box::new(|round| applied(cluster.policy(0, 8000 + round as i64))));
    row("one namespace relabelled", Box::new(|round| applied(cluster.namespace(0, round % 2 == 0))));
    let changes = cluster.objects().into_iter().map(Change::Applied).collect();
    let mut fresh = self::firewall();
    let restart = measure(|| sync(&mut fresh, Cause::Start, changes));
    rows.push(("restart: adopt the table", restart));
    rows
}

fn main() {
    // `cargo test` builds and starts benches with this flag.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare: this needs root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "ip link set lo up");
    let mut missed = Vec::new();
    println!(
        "## Cost of a change (median of {ROUNDS}; own = CPU of npc-firewall, kernel = CPU of transactions and dumps)\n"
    );
    println!("| local pods / policies | change | wall | own | kernel |\n|---|---|---|---|---|");
    for (pods, policies) in [(110, 11), (2_000, 200), (8_000, 800), (8_000, 10_000)] {
        for (change, cost) in rows(pods, policies) {
            println!(
                "| {pods} / {policies} | {change} | {:.3?} | {:.3?} | {:.3?} |",
                cost.wall, cost.own, cost.kernel
            );
            let bars: &[(bool, &str)] = match (change, policies) {
                ("cold sync", 800) => &[(cost.wall <= Duration::from_millis(500), "cold sync ≤ 0.5 s")],
                ("one local pod added", _) => &[
                    (cost.own <= Duration::from_millis(1), "one pod ≤ 1 ms of our own CPU"),
                    (cost.wall <= Duration::from_millis(5), "one pod ≤ 5 ms to commit"),
                ],
                _ => &[],
            };
            let failed = bars.iter().filter(|(met, _)| !met);
            missed.extend(failed.map(|(_, bar)| format!("{pods} / {policies}: {bar}")));
        }
    }
    // The binary would adopt it, and hold its thousands of chains.
    remove_table();
    println!("\n## Memory of the binary (110 local pods, 100 policies)\n");
    println!("| pods in the cache | RSS after start | RSS after 2,000 changes |\n|---|---|---|");
    for pods in [1_000, 15_000, 100_000] {
        let memory = memory::weigh(env!("CARGO_BIN_EXE_npc-firewall"), pods);
        println!("| {pods} | {:.1} MB | {:.1} MB |", memory.ready as f64 / 1e6, memory.later as f64 / 1e6);
        if pods == 15_000 && memory.later > 25_000_000 {
            missed.push("RSS ≤ 25 MB at 15,000 pods".into());
        }
    }
    println!();
    if missed.is_empty() {
        println!("All bars are met.");
    }
    for bar in &missed {
        println!("MISSED: {bar}");
    }
}
