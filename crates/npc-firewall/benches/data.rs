//! `make bench-firewall-data`: what a packet through a node costs, by the rules in force and by the number of
//! pods on the node.
//!
//! Four sets of rules, three sizes: conntrack only, this firewall, and kube-router's two layouts. Each has
//! three namespaces of its own, so that short slots of load take turns: whatever else the machine does hits
//! all alike. A slot is compared with the conntrack slot of the same round and size, which ran within a
//! second of it. Client and server are our own (`load`), one thread each.
//!
//! Needs root. `BENCH_ROUNDS` (default 15) and `BENCH_SLOT_MS` (default 250) lengthen it; with `--ours` kube-router's
//! layouts are left out, and the programs that they need.

#[path = "data/kube_router.rs"]
mod kube_router;
#[path = "data/lane.rs"]
mod lane;
#[path = "data/load.rs"]
mod load;
#[path = "data/report.rs"]
mod report;
#[path = "data/scenario.rs"]
mod scenario;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use lane::{Lane, Layout};
use load::Workload;
use report::Samples;
use scenario::Scenario;
use test_netns::cost;

const SIZES: [usize; 3] = [110, 2_000, 8_000];

fn number(name: &str, default: u64, most: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => Ok(text.parse::<u64>().with_context(|| format!("{name}={text}"))?.clamp(1, most)),
        Err(_) => Ok(default),
    }
}

fn version(program: &str) -> String {
    match Command::new(program).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => format!("{program}: {error}"),
    }
}

/// The lanes of one size.
fn lanes(layouts: &[Layout], scenario: Scenario) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for layout in layouts {
        let started = Instant::now();
        lanes.push(Lane::new(*layout, scenario)?);
        eprintln!("{}, {} pods: made in {:.1?}", layout.name(), scenario.pods, started.elapsed());
    }
    Ok(lanes)
}

fn main() -> Result<()> {
    // `cargo test` builds and starts benches with this flag.
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let rounds = number("BENCH_ROUNDS", 15, 1_000)?;
    let slot = Duration::from_millis(number("BENCH_SLOT_MS", 250, 10_000)?);
    let only_ours = std::env::args().any(|arg| arg == "--ours");
    let (layouts, tools) = if only_ours {
        (&[Layout::Conntrack, Layout::Ours][..], &["nft", "ip"][..])
    } else {
        (&Layout::ALL[..], &["nft", "ip", "ipset", "iptables-restore"][..])
    };
    for tool in tools {
        if Command::new(tool).arg("--version").output().is_err() {
            bail!("{tool} is missing: apt-get install nftables iproute2 ipset iptables");
        }
    }
    let mut sizes = Vec::new();
    for pods in SIZES {
        sizes.push(lanes(layouts, Scenario { pods })?);
    }
    let mut samples = Samples::default();
    for round in 0..rounds {
        let started = Instant::now();
        for (number, workload) in Workload::ALL.into_iter().enumerate() {
            for (size, lanes) in sizes.iter_mut().enumerate() {
                // Every other round backwards, so that drift favours nobody.
                let mut order: Vec<usize> = (0..lanes.len()).collect();
                if round % 2 == 1 {
                    order.reverse();
                }
                for layout in order {
                    let lane = &mut lanes[layout];
                    let sample = load::run(lane, workload, slot).with_context(|| {
                        format!("{}, {} pods, {}", lane.layout.name(), SIZES[size], workload.name())
                    })?;
                    samples.add(number, size, layout, sample);
                }
            }
        }
        eprintln!("round {} of {rounds}: {:.1?}", round + 1, started.elapsed());
    }
    let (machine, nft) = (cost::machine()?, version("nft"));
    let iptables = if only_ours { String::new() } else { format!("; {}", version("iptables")) };
    println!("\n## Data plane\n\n{machine}; {nft}{iptables}; {rounds} rounds of {slot:?} slots.");
    samples.print(&SIZES, layouts);
    Ok(())
}
