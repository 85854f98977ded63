//! The demo: policies enforced between pods that are network namespaces.
//!
//! Two nodes with pods in three namespaces, and an outside host. Each node runs the real `npc-firewall` on a
//! folder of manifests. Then policies come one after another, every one alone; after each, everybody tries
//! to reach everybody, and what is seen is compared with what the policy says.
//!
//! - `scenario`: the pods, the policies, and what each policy should do.
//! - `manifest`: objects as files.
//! - `firewall`: the processes.
//! - `screen`: what the person sees; `signal`: Ctrl-C.
//!
//! Environment: `KEEP=1` leaves everything up at the end; `NPC_FIREWALL` is the binary (default: beside this
//! one); `NO_COLOR`, `CLICOLOR_FORCE=1`; `DEMO_PAUSE=SECONDS` between the steps.

mod firewall;
mod manifest;
mod scenario;
mod screen;
mod signal;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use test_netns::{Cluster, Expected, Family, Matrix};

use firewall::Firewall;
use manifest::Manifests;
use scenario::{PORTS, STEPS, Step};
use screen::Screen;

/// How long a policy may take to be in force everywhere. It takes well below a second; the rest is for
/// machines that are busy otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let keep = std::env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0");
    match run(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(keep: bool) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
    let screen = Screen::new();
    let start = Instant::now();
    let binary = firewall::binary()?;
    let folder = tempfile::Builder::new().prefix("npc-demo-").tempdir().context("make a folder")?;
    signal::end_process(folder.path(), keep)?;
    let cluster = scenario::cluster()?;
    let manifests = Manifests::new(folder.path())?;
    manifests.put("namespaces.yaml", &manifest::namespaces())?;
    manifests.put("pods.yaml", &manifest::pods(&cluster)?)?;
    let mut firewalls = Vec::new();
    for node in cluster.nodes() {
        firewalls.push(Firewall::start(&binary, &cluster, node, &manifests)?);
    }
    for firewall in &mut firewalls {
        firewall.wait_ready(PATIENCE)?;
    }
    screen.opening(&cluster, manifests.folder(), &binary)?;
    let mut before: Vec<Matrix> = Vec::new();
    for (number, step) in STEPS.iter().enumerate() {
        screen.step(number, step);
        match step.policy {
            Some(policy) => manifests.put("policy.yaml", policy)?,
            None => manifests.remove("policy.yaml")?,
        }
        let (matrices, took) = in_force(&cluster, step)
            .inspect_err(|_| firewalls.iter().for_each(|firewall| screen.log(firewall)))?;
        screen.matrices(step, &matrices, &before, took);
        before = matrices;
        screen.pause();
    }
    screen.closing(start.elapsed(), keep);
    if keep {
        screen.hints(&cluster, manifests.folder())?;
        return watch(&screen, &cluster, before, &mut firewalls);
    }
    firewalls.into_iter().try_for_each(Firewall::stop)
}

/// Probes until everything is as the policy says, and once more to see that it stays so. Returns the IPv4
/// matrices, and how long it took from now to the first probe run that was wholly right.
fn in_force(cluster: &Cluster, step: &Step) -> Result<(Vec<Matrix>, Duration)> {
    let start = Instant::now();
    loop {
        let took = start.elapsed();
        match judged(cluster, step) {
            Ok(_) => return Ok((judged(cluster, step).context("it did not stay so")?, took)),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error.context(format!("{:?} is not what is seen", step.title)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// One run of all probes, in both families; the IPv4 matrices if every cell is right.
fn judged(cluster: &Cluster, step: &Step) -> Result<Vec<Matrix>> {
    let matrices = probed(cluster, Family::V4)?;
    for matrix in matrices.iter().chain(&probed(cluster, Family::V6)?) {
        let mut expected = Expected::new();
        for from in &matrix.sources {
            for to in &matrix.destinations {
                if matrix.cell(from, to).is_some() {
                    expected.set(from, to, step.allows(from, to, matrix.protocol, matrix.port));
                }
            }
        }
        matrix.check(&expected)?;
    }
    Ok(matrices)
}

/// Everybody to everybody; the outside host's own loopback is left out.
fn probed(cluster: &Cluster, family: Family) -> Result<Vec<Matrix>> {
    let outside: &[&str] = if family == Family::V4 { &scenario::OUTSIDE } else { &[] };
    let names: Vec<&str> = cluster.pods().iter().map(String::as_str).chain(outside.iter().copied()).collect();
    let mut matrices = cluster.matrix_between(&names, &names, &PORTS, family)?;
    let pods = cluster.pods().len();
    for matrix in &mut matrices {
        for row in matrix.cells.iter_mut().skip(pods) {
            row.iter_mut().skip(pods).for_each(|cell| *cell = None);
        }
    }
    Ok(matrices)
}

/// Shows the matrices again whenever they change, until a signal ends the process.
fn watch(
    screen: &Screen,
    cluster: &Cluster,
    mut before: Vec<Matrix>,
    firewalls: &mut [Firewall],
) -> Result<()> {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        firewalls.iter_mut().try_for_each(Firewall::check_alive)?;
        let now = probed(cluster, Family::V4)?;
        if now.iter().map(Matrix::rows).ne(before.iter().map(Matrix::rows)) {
            screen.change(&now, &before);
            before = now;
        }
    }
}
