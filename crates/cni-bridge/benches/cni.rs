//! `make bench-cni`: what attaching and detaching a pod takes, beside the reference's plugins as Debian ships them
//! (`bridge`, `host-local`, `portmap`), in one run and with the same configuration.
//!
//! Both are called as a runtime calls them: a process for each plugin of the list, configuration by stdin. They take
//! turns, pod by pod and burst by burst, so that whatever else the machine does hits both alike. Each has a node, one
//! pod that stays and pods that come and go, which are namespaces, and its reservations in a folder of its own. After
//! each ADD it is looked whether the pod has what the result says, after each DEL whether it is gone; nothing of that
//! is timed.
//!
//! Needs root, and GNU time for memory. `BENCH_ROUNDS` (default 20) lengthens it; `CNI_BRIDGE` names another program
//! than the one that cargo has built (`make` has it linked statically, as in the image); `CNI_REFERENCE_DIR` (default
//! `/usr/lib/cni`) says where the reference's plugins are.

#[path = "cni/lane.rs"]
mod lane;
#[path = "cni/report.rs"]
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use lane::{Conf, Lane, Side};
use report::{Samples, What};
use test_netns::cost;

/// Pods that are attached one after another in a round.
const ALONE: usize = 10;
/// Pods that are attached at once.
const BURST: usize = 50;

fn rounds() -> Result<usize> {
    match std::env::var("BENCH_ROUNDS") {
        Ok(text) => {
            Ok(text.parse::<usize>().with_context(|| format!("BENCH_ROUNDS={text}"))?.clamp(2, 1_000))
        }
        Err(_) => Ok(20),
    }
}

fn reference_version() -> String {
    let package = "containernetworking-plugins";
    match Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}", package]).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => format!("{package} of unknown version"),
    }
}

fn reference() -> Result<PathBuf> {
    let folder = std::env::var_os("CNI_REFERENCE_DIR").map_or_else(|| "/usr/lib/cni".into(), PathBuf::from);
    for plugin in ["bridge", "host-local", "portmap"] {
        if !folder.join(plugin).exists() {
            bail!("{}/{plugin} is missing: apt-get install containernetworking-plugins", folder.display());
        }
    }
    Ok(folder)
}

/// One after another: each pod comes and goes before the next.
fn alone(lane: &Lane, samples: &mut Vec<(What, Duration)>) -> Result<()> {
    for pod in 0..ALONE {
        let (took, result) = lane.add(pod)?;
        samples.push((What::Add, took));
        lane.check_attached(&[(pod, result)])?;
        samples.push((What::Del, lane.del(pod)?));
        lane.check_detached(&[pod])?;
    }
    Ok(())
}

/// All at once; each pod is timed by itself, and all together.
fn burst(lane: &Lane, samples: &mut Vec<(What, Duration)>) -> Result<()> {
    let pods: Vec<usize> = (0..BURST).collect();
    let start = Instant::now();
    let added = lane.at_once(&pods, |pod| lane.add(pod))?;
    samples.push((What::AllAdds, start.elapsed()));
    samples.extend(added.iter().map(|(took, _)| (What::BurstAdd, *took)));
    let results = pods.iter().copied().zip(added.into_iter().map(|(_, result)| result));
    lane.check_attached(&results.collect::<Vec<_>>())?;
    let start = Instant::now();
    let deleted = lane.at_once(&pods, |pod| lane.del(pod))?;
    samples.push((What::AllDels, start.elapsed()));
    samples.extend(deleted.into_iter().map(|took| (What::BurstDel, took)));
    lane.check_detached(&pods)
}

fn main() -> Result<()> {
    // `cargo test` builds and starts benches with this flag.
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(());
    }
    let rounds = rounds()?;
    let ours = std::env::var_os("CNI_BRIDGE").unwrap_or_else(|| env!("CARGO_BIN_EXE_cni-bridge").into());
    let ours = Path::new(&ours);
    let sides = [Side::ours(ours)?, Side::reference(&reference()?)];
    let (machine, reference) = (cost::machine()?, reference_version());
    println!(
        "\n## CNI plugin\n\n{machine}; {reference}; {rounds} rounds of {ALONE} pods alone and {BURST} at once."
    );
    for conf in Conf::ALL {
        let lanes = [Lane::new(&sides[0], conf, BURST)?, Lane::new(&sides[1], conf, BURST)?];
        // What is made once (the bridge, the tables) is no part of what a pod takes, so one pod is always there. Alone
        // first: the reference's portmap fails where several want to make its chains at once.
        for lane in &lanes {
            lane.add(lane.resident()).with_context(|| format!("{}, {}", lane.name(), conf.name()))?;
            burst(lane, &mut Vec::new()).with_context(|| format!("{}, {}", lane.name(), conf.name()))?;
        }
        let mut samples = Samples::default();
        for round in 0..rounds {
            let started = Instant::now();
            for work in [alone, burst] {
                // Every other round the other way round, so that drift favours nobody.
                for turn in 0..lanes.len() {
                    let side = (turn + round) % lanes.len();
                    let mut taken = Vec::new();
                    work(&lanes[side], &mut taken)
                        .with_context(|| format!("{}, {}", lanes[side].name(), conf.name()))?;
                    samples.add(round, side, taken);
                }
            }
            eprintln!("{}: round {} of {rounds}: {:.1?}", conf.name(), round + 1, started.elapsed());
        }
        println!("\n### {}\n", conf.name());
        samples.print();
        let memory = [lanes[0].memory()?, lanes[1].memory()?];
        println!("\n| | cni-bridge | reference |\n|---|---|---|");
        println!("| largest RSS of a process | {:.1} MB | {:.1} MB |", memory[0], memory[1]);
        let sizes = [sides[0].bytes(conf)?, sides[1].bytes(conf)?].map(|bytes| bytes as f64 / 1e6);
        ensure!(sizes[0] > 0.1, "{} is no program", ours.display());
        println!("| size of what is executed | {:.2} MB | {:.1} MB |", sizes[0], sizes[1]);
    }
    Ok(())
}
