//! The firewall's process on one node.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_netns::{Cluster, Namespace};

use crate::manifest::Manifests;
use crate::signal;

/// The firewall's default health port; each node has its own network, so both can have it.
pub(crate) const HEALTH_PORT: u16 = 20244;

/// A running `npc-firewall`.
pub(crate) struct Firewall {
    pub(crate) node: String,
    pub(crate) log: PathBuf,
    namespace: Namespace,
    child: Child,
}

/// The binary: `NPC_FIREWALL`, or the one beside this program.
pub(crate) fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("NPC_FIREWALL") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe().context("where am I")?.with_file_name("npc-firewall"),
    };
    ensure!(
        path.is_file(),
        "no npc-firewall at {}: build it (cargo build --release -p npc-firewall), or set NPC_FIREWALL",
        path.display()
    );
    path.canonicalize().with_context(|| format!("find {}", path.display()))
}

impl Firewall {
    pub(crate) fn start(
        binary: &std::path::Path,
        cluster: &Cluster,
        node: &str,
        manifests: &Manifests,
    ) -> Result<Self> {
        let namespace = cluster.namespace(node)?.clone();
        let log = manifests.logs().join(format!("{node}.log"));
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = namespace.daemon(&binary.display().to_string());
        command
            .arg("--manifests")
            .arg(manifests.folder())
            .args(["--node-name", node, "--health-port", &HEALTH_PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file);
        let child = signal::unblocked(|| command.spawn())?.context("start npc-firewall")?;
        Ok(Self { node: node.into(), log, namespace, child })
    }

    /// Waits until `/readyz` says so: the policies of that moment are in force.
    pub(crate) fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            self.check_alive()?;
            if Instant::now() > deadline {
                bail!("the firewall of {} does not get ready; its log:\n{}", self.node, self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("the firewall of {} ended ({status}); its log:\n{}", self.node, self.tail())
            }
        }
    }

    /// The last lines of its log.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Ends it as Kubernetes would, with SIGTERM.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("send SIGTERM")?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.success(),
                    "the firewall of {} ended with {status}:\n{}",
                    self.node,
                    self.tail()
                );
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().context("kill")?;
        bail!("the firewall of {} does not end at SIGTERM", self.node)
    }

    fn get(&self, path: &str) -> Result<String> {
        self.namespace.run(|| -> Result<String> {
            let second = Some(Duration::from_secs(1));
            let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT)))?;
            stream.set_read_timeout(second)?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }
}
