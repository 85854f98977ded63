//! What the person sees; at most 100 columns.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use test_netns::{Cluster, Family, Matrix, Outcome, Protocol};

use crate::firewall::{Firewall, HEALTH_PORT};
use crate::scenario::{PORTS, STEPS, Step};

/// Prints a line. That its reader has seen enough (`demo | head`) is no reason to leave the cluster behind.
macro_rules! say {
    ($($words:tt)*) => {
        writeln!(std::io::stdout(), $($words)*).unwrap_or_default()
    };
}

/// Standard output, and how to write to it.
pub(crate) struct Screen {
    colour: bool,
    pause: Duration,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let pause = std::env::var("DEMO_PAUSE").ok().and_then(|value| value.parse::<f64>().ok());
        let pause = pause.filter(|seconds| (0.0..=10.0).contains(seconds));
        Self {
            colour: set("CLICOLOR_FORCE") || (terminal && !set("NO_COLOR")),
            // Time to read, for whoever watches.
            pause: Duration::from_secs_f64(pause.unwrap_or(if terminal { 2.0 } else { 0.0 })),
        }
    }

    pub(crate) fn pause(&self) {
        std::thread::sleep(self.pause);
    }

    pub(crate) fn opening(&self, cluster: &Cluster, manifests: &Path, binary: &Path) -> Result<()> {
        say!("{}", self.bold("npc-firewall: NetworkPolicy on real packets"));
        say!("Two nodes, each a network namespace, with a firewall that reads the same manifests:");
        say!("  program    {}", binary.display());
        say!("  manifests  {}", manifests.display());
        for node in cluster.nodes() {
            let mut pods = Vec::new();
            for pod in cluster.pods() {
                let host = cluster.host(pod)?;
                if host.node.as_deref() == Some(node) {
                    pods.push(format!("{pod} {}", cluster.address(pod, Family::V4)?));
                }
            }
            say!("  {node}         {}", pods.join(", "));
        }
        say!("  outside    14.215.0.10 and 203.0.113.9, one host beyond the nodes");
        say!("Tables: rows try to reach columns. Every pod has IPv4 and IPv6; IPv4 is shown.");
        let legend = [
            ('.', "connects"),
            ('X', "refused"),
            ('T', "no answer"),
            ('*', "changed by this step"),
            ('-', "not tried"),
        ];
        let legend: Vec<String> =
            legend.iter().map(|(symbol, meaning)| format!("{} {meaning}", self.symbol(*symbol))).collect();
        say!("  {}", legend.join("   "));
        Ok(())
    }

    pub(crate) fn step(&self, number: usize, step: &Step) {
        say!("\n{}", self.bold(&format!("{} of {}. {}", number + 1, STEPS.len(), step.title)));
        let spec = step.policy.and_then(|policy| policy.split_once("spec:\n"));
        for line in spec.map(|(_, spec)| spec).unwrap_or_default().lines() {
            say!("  {}", self.dim(line));
        }
    }

    pub(crate) fn matrices(&self, step: &Step, now: &[Matrix], before: &[Matrix], took: Duration) {
        for matrix in now.iter().filter(|matrix| step.show.contains(&(matrix.protocol, matrix.port))) {
            self.matrix(matrix, before);
        }
        let cells = now.iter().flat_map(|matrix| &matrix.cells).flatten().flatten().count();
        let names: Vec<String> = PORTS.iter().map(|port| name(*port)).collect();
        let (opened, closed) = changes(now, before);
        say!("{} as the policy says: {cells} cells of {}, and IPv6", self.good("ok:"), names.join(", "));
        if before.is_empty() {
            return;
        }
        let took = took.as_secs_f64();
        say!("    so {took:.2} s after the file changed; {closed} cells closed, {opened} opened");
    }

    /// For `KEEP=1`: something has changed.
    pub(crate) fn change(&self, now: &[Matrix], before: &[Matrix]) {
        say!("\n{}", self.bold("Changed:"));
        for matrix in now {
            let old = before.iter().find(|old| (old.protocol, old.port) == (matrix.protocol, matrix.port));
            if old.is_none_or(|old| old.rows() != matrix.rows()) {
                self.matrix(matrix, before);
            }
        }
    }

    fn matrix(&self, matrix: &Matrix, before: &[Matrix]) {
        let old = before.iter().find(|old| (old.protocol, old.port) == (matrix.protocol, matrix.port));
        say!("{}", self.bold(&name((matrix.protocol, matrix.port))));
        say!("{}", matrix.render(old, self.colour).trim_end());
    }

    pub(crate) fn log(&self, firewall: &Firewall) {
        eprintln!("--- last lines of the firewall of {}:\n{}", firewall.node, firewall.tail());
    }

    pub(crate) fn closing(&self, took: Duration, keep: bool) {
        say!("\n{}", self.good(&format!("Every step was as its policy says; {:.0} s.", took.as_secs_f64())));
        if !keep {
            say!("Next:");
            say!("  make demo KEEP=1   the same, and leaves it up: edit the policies and watch");
            say!("  make test          what proves it: golden rulesets, properties, packets");
            say!("  make help          everything else; README.md: how to run it on a cluster");
        }
    }

    /// For `KEEP=1`: how to look around.
    pub(crate) fn hints(&self, cluster: &Cluster, manifests: &Path) -> Result<()> {
        say!("\n{}", self.bold("Left up. Try, in another terminal:"));
        say!("  ls {0}; $EDITOR {0}/policy.yaml", manifests.display());
        say!("      the firewalls follow, and the tables that change appear here");
        let shell = |name: &str| -> Result<String> {
            Ok(format!("nsenter --net={}", cluster.namespace(name)?.path().display()))
        };
        say!("  {} nft list table inet npc_firewall", shell("n1")?);
        say!("  {} curl -s localhost:{HEALTH_PORT}/state", shell("n1")?);
        say!("Inside a pod (the servers say who they are, and whom they see):");
        let to = cluster.address("nsa/api", Family::V4)?;
        say!("  {} bash -c 'head -1 </dev/tcp/{to}/80'", shell("nsb/shop")?);
        for name in cluster.pods().iter().map(String::as_str).chain(cluster.nodes()).chain(["outside"]) {
            say!("  {name:<10} {}", shell(name)?);
        }
        say!("Ctrl-C ends it; nothing stays.");
        Ok(())
    }

    fn symbol(&self, symbol: char) -> String {
        let colour = match symbol {
            '.' => "32",
            'X' => "31",
            'T' => "33",
            '*' => "1",
            _ => "90",
        };
        self.paint(colour, &symbol.to_string())
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("36", text)
    }

    fn good(&self, text: &str) -> String {
        self.paint("1;32", text)
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn name((protocol, port): (Protocol, u16)) -> String {
    if protocol == Protocol::Icmp { "ping".to_owned() } else { format!("{protocol} {port}") }
}

/// How many cells connect now that didn't before, and the reverse.
fn changes(now: &[Matrix], before: &[Matrix]) -> (usize, usize) {
    let connects = |cell: &Option<Outcome>| cell.as_ref().is_some_and(Outcome::is_connected);
    let cells = |matrices: &[Matrix]| -> Vec<bool> {
        matrices.iter().flat_map(|matrix| matrix.cells.iter().flatten().map(connects)).collect()
    };
    let (now, before) = (cells(now), cells(before));
    let opened = now.iter().zip(&before).filter(|(now, before)| **now && !**before).count();
    let closed = now.iter().zip(&before).filter(|(now, before)| !**now && **before).count();
    (opened, closed)
}
