//! cyclonus and Kubernetes' network policy e2e with real packets: a cluster of namespaces, the built binary on
//! each node, and for each step the manifests on disk and a probe for every cell.
//!
//! All of e2e, with a firewall that is started for each step and with one that stays; of cyclonus one case in
//! 31, others each day. `CONFORMANCE_ALL=1` takes every case, `CONFORMANCE_SEED=7` those of another day,
//! `CONFORMANCE_CASE=v6-2node/104` just those whose id contains the text. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use common_informer::object;
use support::conformance::{self, Case, Step, Table};
use tempfile::TempDir;
use test_netns::{Attachment, Cluster, ClusterSpec, Expected, Family, NodeSpec, PodSpec, Protocol};

const FIREWALL: &str = env!("CARGO_BIN_EXE_npc-firewall");
const NODES: [&str; 2] = ["n1", "n2"];
/// One case in so many is tried each day.
const ROTATION: usize = 31;
/// How long a running firewall may take to enforce a change that it sees on disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Name, node and address of each pod.
type Pods = BTreeMap<String, (String, IpAddr)>;

/// How the firewall is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// `--once`, for each step.
    Once,
    /// One process for each node, which sees the manifests change.
    Daemon,
}

/// A cluster of namespaces with a firewall on each node.
struct Lab {
    mode: Mode,
    manifests: TempDir,
    pods: Pods,
    cluster: Cluster,
    daemons: Vec<Child>,
}

impl Lab {
    fn build(mode: Mode, pods: Pods) -> Result<Self> {
        let mut spec = ClusterSpec::new(Attachment::Routed);
        for node in NODES {
            spec = spec.node(NodeSpec::new(node));
        }
        for (name, (node, address)) in &pods {
            spec = spec.pod(PodSpec::new(name, node, [*address]));
        }
        for port in [80, 81] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                spec = spec.serve(protocol, port);
            }
        }
        let cluster = spec.build().context("build a cluster of namespaces")?;
        let manifests = TempDir::new().context("make a folder for manifests")?;
        Ok(Self { mode, manifests, pods, cluster, daemons: vec![] })
    }

    /// Adds and removes pods until there are those of the step.
    fn move_to(&mut self, pods: &Pods) -> Result<()> {
        for (name, pod) in self.pods.clone() {
            if pods.get(&name) != Some(&pod) {
                self.cluster.remove_pod(&name)?;
                self.pods.remove(&name);
            }
        }
        for (name, (node, address)) in pods {
            if !self.pods.contains_key(name) {
                self.cluster.add_pod(PodSpec::new(name, node, [*address]))?;
                self.pods.insert(name.clone(), (node.clone(), *address));
            }
        }
        Ok(())
    }

    /// Puts the manifests on disk, as a whole or not at all.
    fn write(&self, step: &Step) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": step.manifests});
        let new = self.manifests.path().join(".new");
        std::fs::write(&new, serde_json::to_vec(&list)?)?;
        Ok(std::fs::rename(new, self.manifests.path().join("cluster.json"))?)
    }

    fn command(&self, node: &str) -> Result<Command> {
        let namespace = self.cluster.namespace(node)?;
        let mut command =
            if self.mode == Mode::Once { namespace.command(FIREWALL) } else { namespace.daemon(FIREWALL) };
        command.arg("--manifests").arg(self.manifests.path()).args(["--node-name", node]);
        command.stdin(Stdio::null()).env_remove("NODE_NAME");
        Ok(command)
    }

    /// Brings the step into force, and says whether all cells are as they should be.
    fn check(&mut self, step: &Step) -> Result<()> {
        self.move_to(&pods(step))?;
        self.write(step)?;
        match self.mode {
            Mode::Once => {
                let mut children = vec![];
                for node in NODES {
                    let mut command = self.command(node)?;
                    command.arg("--once").stdout(Stdio::null()).stderr(Stdio::piped());
                    children.push(command.spawn().context("start the firewall")?);
                }
                for child in children {
                    let output = child.wait_with_output()?;
                    let (status, text) = (output.status, String::from_utf8_lossy(&output.stderr));
                    ensure!(status.success(), "npc-firewall --once: {status}\n{text}");
                }
                self.probe(step)
            }
            Mode::Daemon => {
                if self.daemons.is_empty() {
                    for node in NODES {
                        let log = std::fs::File::create(self.log(node))?;
                        let child = self.command(node)?.stdout(log.try_clone()?).stderr(log).spawn()?;
                        self.daemons.push(child);
                    }
                }
                let deadline = Instant::now() + PATIENCE;
                loop {
                    match self.probe(step) {
                        Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                        outcome => return outcome.with_context(|| self.logs()),
                    }
                }
            }
        }
    }

    fn probe(&self, step: &Step) -> Result<()> {
        let order: Vec<&str> = step.order.iter().map(String::as_str).collect();
        let ports: Vec<_> = step.tables.iter().map(|table| (protocol(table), table.port)).collect();
        let family = Family::of(step.addresses[0]);
        let matrices = self.cluster.matrix_between(&order, &order, &ports, family)?;
        for (matrix, table) in matrices.iter().zip(&step.tables) {
            matrix.check(&Expected::parse(&step.order, &table.rows)?)?;
        }
        Ok(())
    }

    fn log(&self, node: &str) -> PathBuf {
        // Hidden files are no manifests.
        self.manifests.path().join(format!(".{node}.log"))
    }

    fn logs(&self) -> String {
        NODES.map(|node| std::fs::read_to_string(self.log(node)).unwrap_or_default()).join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.daemons {
            // Gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pods(step: &Step) -> Pods {
    let places = step.nodes.iter().cloned().zip(step.addresses.iter().copied());
    step.order.iter().cloned().zip(places).collect()
}

fn protocol(table: &Table) -> Protocol {
    match table.protocol {
        object::Protocol::Tcp => Protocol::Tcp,
        object::Protocol::Udp => Protocol::Udp,
        object::Protocol::Sctp => Protocol::Sctp,
    }
}

/// All steps of all cases, on as many labs as there are processors. Cases of the same pods share one, and so
/// find the rules and connections of the case before.
fn every_cell_is_right(mode: Mode, mut cases: Vec<Case>) {
    if let Ok(wanted) = std::env::var("CONFORMANCE_CASE") {
        cases.retain(|case| case.id.contains(&wanted));
    }
    cases.sort_by_cached_key(|case| pods(&case.steps[0]));
    let (next, wrong, cells) = (AtomicUsize::new(0), Mutex::new(vec![]), AtomicUsize::new(0));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut lab: Option<Lab> = None;
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(mode, &mut lab, case) {
                        Ok(count) => drop(cells.fetch_add(count, Ordering::Relaxed)),
                        Err(error) => {
                            eprintln!("{}: {error:?}", case.id);
                            wrong.lock().unwrap().push(case.id.clone());
                            lab = None;
                        }
                    }
                }
            });
        }
    });
    println!("{} cases, {} cells", cases.len(), cells.into_inner());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} cases are wrong: {wrong:?}", wrong.len(), cases.len());
}

/// Returns the number of cells, all of which are right.
fn run(mode: Mode, lab: &mut Option<Lab>, case: &Case) -> Result<usize> {
    let first = pods(&case.steps[0]);
    if lab.as_ref().is_none_or(|lab| lab.pods != first) {
        *lab = None;
    }
    let lab = match lab {
        Some(lab) => lab,
        None => lab.insert(Lab::build(mode, first)?),
    };
    for (number, step) in case.steps.iter().enumerate() {
        lab.check(step).with_context(|| format!("step {number} of {:?}", case.name))?;
    }
    Ok(case.steps.iter().map(|step| step.cells().count()).sum())
}

/// The day, or what `CONFORMANCE_SEED` says.
fn seed() -> usize {
    let day = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        usize::try_from(now.as_secs() / 86_400).unwrap()
    };
    std::env::var("CONFORMANCE_SEED").map_or_else(|_| day(), |text| text.parse().expect("a number"))
}

#[test]
fn the_e2e_suite_holds_for_packets_when_the_firewall_is_run_for_each_step() {
    every_cell_is_right(Mode::Once, conformance::e2e());
}

#[test]
fn the_e2e_suite_holds_for_packets_while_the_firewall_runs() {
    every_cell_is_right(Mode::Daemon, conformance::e2e());
}

#[test]
fn cyclonus_holds_for_packets() {
    let mut cases = conformance::cyclonus();
    let everything = std::env::var("CONFORMANCE_ALL").is_ok_and(|value| value == "1");
    if !everything && std::env::var_os("CONFORMANCE_CASE").is_none() {
        let seed = seed();
        println!("CONFORMANCE_SEED={seed}");
        cases = cases.into_iter().skip(seed % ROTATION).step_by(ROTATION).collect();
    }
    every_cell_is_right(Mode::Once, cases);
}
