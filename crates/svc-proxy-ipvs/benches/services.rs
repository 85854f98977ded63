//! `make bench-services`: what it costs to serve many Services: the first sync, a change, a connection, memory.
//!
//! Everything happens in network namespaces of its own, as root. It takes a kernel with IPVS, which
//! `make bench-services` brings along; without one, only the program's own part is measured, on a kernel that takes
//! everything and keeps nothing. Other numbers of Services are taken as arguments, and `--sync`, `--connections` or
//! `--memory` where not all is to be measured: `e2e/vm/run bench-services -- --connections 2000`.

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on ends in a panic")]

#[path = "services/cluster.rs"]
mod cluster;
#[path = "services/data.rs"]
mod data;
#[path = "services/kernel.rs"]
mod kernel;
#[path = "services/memory.rs"]
mod memory;
#[path = "services/node.rs"]
mod node;
#[path = "services/proxy.rs"]
mod proxy;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use node_runtime::Cause;
use test_netns::Namespace;
use test_netns::cost::{Cost, measure, median};

use kernel::{Accepting, Sent};
use node::Cold;
use proxy::Row;

/// Numbers of Services.
const SIZES: [usize; 3] = [1_000, 5_000, 20_000];

/// What to measure, where not all of it is.
const SECTIONS: [&str; 3] = ["--sync", "--connections", "--memory"];

/// How often all of them are synced: an emulated kernel takes minutes for the most.
fn rounds(services: usize) -> usize {
    match services {
        0..=1_000 => 5,
        1_001..=5_000 => 3,
        _ => 1,
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    // `cargo test` builds and starts benches with this flag.
    if words.iter().any(|word| word == "--test") {
        return Ok(());
    }
    if words.iter().any(|word| word == memory::SERVE) {
        return memory::serve(words.into_iter().filter(|word| word != memory::SERVE).collect());
    }
    let mut sizes: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    if sizes.is_empty() {
        sizes.extend(SIZES);
    }
    let most = sizes.iter().copied().max().unwrap_or_default();
    let mut missed = Missed::default();
    let is_named = |section: &str| words.iter().any(|word| word == section);
    let wants = |section: &str| !SECTIONS.into_iter().any(is_named) || is_named(section);
    let has_ipvs = node::has_ipvs();
    if !has_ipvs {
        println!("No IPVS in this kernel: only our own part.");
    }
    if wants("--sync") && has_ipvs {
        syncs(&sizes, &mut missed)?;
    } else if wants("--sync") {
        without_kernel(&sizes, &mut missed);
    }
    if wants("--connections") && has_ipvs {
        connections(most, &mut missed)?;
    }
    if wants("--memory") && has_ipvs {
        node::node()?.run(|| weigh(env!("CARGO_BIN_EXE_svc-proxy-ipvs"), &sizes, &mut missed))??;
    } else if wants("--memory") {
        weigh(&std::env::current_exe()?.to_string_lossy(), &sizes, &mut missed)?;
    }
    missed.print();
    Ok(())
}

/// Bars that do not hold.
#[derive(Default)]
struct Missed(Vec<String>);

impl Missed {
    fn unless(&mut self, met: bool, bar: impl FnOnce() -> String) {
        if !met {
            self.0.push(bar());
        }
    }

    fn print(&self) {
        println!();
        if self.0.is_empty() {
            println!("All bars are met.");
        }
        self.0.iter().for_each(|bar| println!("MISSED: {bar}"));
    }
}

/// The first sync against `ipvsadm -R`, in turns; then changes.
///
/// Each in a namespace of its own. KERNEL: in one where destinations were deleted within the last minute, each that is
/// added is looked for among them, one by one (`ip_vs_trash_get_dest()`, net/netfilter/ipvs/ip_vs_ctl.c).
fn syncs(sizes: &[usize], missed: &mut Missed) -> Result<()> {
    // Kept, as the kernel takes a namespace apart in the background.
    let mut nodes = Vec::new();
    // Loads what is loaded at first use.
    fresh(&mut nodes)?.run(|| synced(10, false))??;
    let mut rows = Vec::new();
    println!("## First sync\n");
    println!(
        "| Services | all | own CPU | table | IPVS | routes | ipvsadm -R | all : ipvsadm | IPVS : ipvsadm |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for &services in sizes {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=rounds(services) {
            let synced = fresh(&mut nodes)?.run(|| synced(services, round == rounds(services)))??;
            ours.push((synced.cost, synced.sent));
            rows.extend(synced.changes.into_iter().map(|row| (services, row)));
            theirs.push(fresh(&mut nodes)?.run(|| -> Result<_> {
                let time = node::restore(&synced.commands)?;
                ensure!(
                    node::entries()? == synced.entries,
                    "ipvsadm made something else of {services} Services"
                );
                node::clear()?;
                Ok(time)
            })??);
        }
        first_sync(services, &mut ours, &mut theirs, missed);
    }
    println!("\n## Changes\n");
    changes(&rows, missed);
    Ok(())
}

fn fresh(nodes: &mut Vec<Namespace>) -> Result<&Namespace> {
    nodes.push(node::node()?);
    nodes.last().context("a node")
}

/// A first sync, what it made, and what changes cost after it.
struct Synced {
    cost: Cost,
    sent: Sent,
    commands: String,
    entries: usize,
    changes: Vec<Row>,
}

/// Serves so many Services in the namespace of the calling thread, for as long as it is measured.
fn synced(services: usize, with_changes: bool) -> Result<Synced> {
    let Cold { cost, sent, mut proxy } = node::cold_sync(cluster::changes(services))?;
    let (commands, entries) = (node::commands(&proxy), node::entries()?);
    let changes = if with_changes { proxy::changes(&mut proxy, services) } else { Vec::new() };
    drop(proxy);
    node::clear()?;
    Ok(Synced { cost, sent, commands, entries, changes })
}

fn first_sync(services: usize, ours: &mut [(Cost, Sent)], theirs: &mut [Duration], missed: &mut Missed) {
    let mut pick = |field: fn(&(Cost, Sent)) -> Duration| {
        ours.sort_by_key(field);
        field(&ours[ours.len() / 2])
    };
    let (all, own) = (pick(|(cost, _)| cost.wall), pick(|(cost, _)| cost.own));
    let (table, ipvs, routes) = (
        pick(|(_, sent)| sent.table.time),
        pick(|(_, sent)| sent.ipvs.time),
        pick(|(_, sent)| sent.routes.time),
    );
    theirs.sort();
    let ipvsadm = theirs[theirs.len() / 2];
    let ratio = |time: Duration| time.as_secs_f64() / ipvsadm.as_secs_f64();
    println!(
        "| {services} | {all:.2?} | {own:.2?} | {table:.2?} | {ipvs:.2?} | {routes:.2?} | {ipvsadm:.2?} | {:.2} | {:.2} |",
        ratio(all),
        ratio(ipvs)
    );
    missed.unless(ratio(all) <= 0.5, || format!("{services} Services: first sync ≤ 0.5 × ipvsadm -R"));
}

fn changes(rows: &[(usize, Row)], missed: &mut Missed) {
    println!(
        "| Services | change | all | own CPU | messages: table + IPVS + routes |\n|---|---|---|---|---|"
    );
    for (services, Row { change, cost, sent }) in rows {
        println!(
            "| {services} | {change} | {:.3?} | {:.3?} | {} + {} + {} |",
            cost.wall, cost.own, sent.table.messages, sent.ipvs.messages, sent.routes.messages
        );
        if *change == proxy::ONE_ENDPOINT {
            missed.unless(cost.own <= Duration::from_millis(1), || {
                format!("{services} Services: one endpoint ≤ 1 ms of our own CPU")
            });
            missed
                .unless(sent.messages() <= 10, || format!("{services} Services: one endpoint ≤ 10 messages"));
        }
    }
}

fn connections(most: usize, missed: &mut Missed) -> Result<()> {
    println!("\n## Connections: cost of both ends and all between\n");
    println!("| Services | without a Service | through one | ratio |\n|---|---|---|---|");
    let mut ratios = Vec::new();
    // Few, many, few again: whatever drifts shows between the two that should be equal.
    for services in [10, most, 10] {
        let data::Connections { services, direct, served } = data::connections(services)?;
        let ratio = served.as_secs_f64() / direct.as_secs_f64();
        println!("| {services} | {direct:.1?} | {served:.1?} | {ratio:.2} |");
        ratios.push(ratio);
    }
    let [first, many, last] = ratios[..] else { return Ok(()) };
    let growth = many / f64::midpoint(first, last);
    println!("\nThrough one of {most} Services against one of ten: {growth:.2}");
    missed
        .unless(growth <= 1.1, || format!("a connection costs the same at 10 and {most} Services (± 10 %)"));
    Ok(())
}

/// Memory of a program, by the number of Services.
fn weigh(program: &str, sizes: &[usize], missed: &mut Missed) -> Result<()> {
    println!("\n## Memory: RSS of the program\n");
    println!("| Services | ready | after 2,000 changes | most at any time |\n|---|---|---|---|");
    for &services in [10].iter().chain(sizes) {
        let memory = memory::weigh(program, services)?;
        println!(
            "| {services} | {:.1} MB | {:.1} MB | {:.1} MB |",
            memory.ready as f64 / 1e6,
            memory.later as f64 / 1e6,
            memory.peak as f64 / 1e6
        );
        let most = memory.ready.max(memory.later);
        missed.unless(most <= 40_000_000, || format!("{services} Services: RSS ≤ 40 MB"));
    }
    Ok(())
}

/// First sync and changes on a kernel that takes everything.
fn without_kernel(sizes: &[usize], missed: &mut Missed) {
    let accepting = || proxy::proxy(Accepting::default(), Accepting::default(), Accepting::default());
    let mut rows = Vec::new();
    for &services in sizes {
        let all = cluster::changes(services);
        let mut proxy = accepting();
        let (mut costs, before) = (Vec::new(), Sent::so_far());
        for _ in 0..rounds(services) {
            let changes = all.clone();
            proxy = accepting();
            costs.push(measure(|| proxy::sync(&mut proxy, Cause::Start, changes, Instant::now())));
        }
        let mut sent = Sent::since(before);
        for talk in [&mut sent.table, &mut sent.ipvs, &mut sent.routes] {
            talk.messages /= rounds(services);
        }
        rows.push((services, Row { change: "first sync", cost: median(&mut costs), sent }));
        rows.extend(proxy::changes(&mut proxy, services).into_iter().map(|row| (services, row)));
    }
    changes(&rows, missed);
}
