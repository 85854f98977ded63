//! One side's node with its pods, and the calls of a runtime.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use kernel_netlink::route::{LinkName, RouteFilter, Rtnetlink, Socket};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_netns::Namespace;

const INTERFACE: &str = "eth0";
/// So large that no address is given out twice: the reference's pods are not reached for ten seconds by neighbours who
/// knew the address's last owner.
const SUBNETS: [&str; 2] = ["10.1.0.0/16", "fd00:1::/64"];
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conf {
    /// As kube-router writes it, with both families.
    Plain,
    /// Also masqueraded, and a port of the node for each pod.
    Ports,
}

impl Conf {
    pub(crate) const ALL: [Self; 2] = [Self::Plain, Self::Ports];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "kube-router's configuration, two families",
            Self::Ports => "with ipMasq and a host port for each pod",
        }
    }
}

/// Whose plugins are called.
#[derive(Debug)]
pub(crate) struct Side {
    name: &'static str,
    /// Where a runtime looks for plugins.
    folder: PathBuf,
    /// Whether host ports are another plugin's work.
    has_portmap: bool,
    _made: Option<TempDir>,
}

impl Side {
    /// Ours, installed as `bridge`.
    pub(crate) fn ours(program: &Path) -> Result<Self> {
        let made = tempfile::tempdir()?;
        symlink(program, made.path().join("bridge"))?;
        let folder = made.path().to_owned();
        Ok(Self { name: "cni-bridge", folder, has_portmap: false, _made: Some(made) })
    }

    /// The reference's, as they are installed.
    pub(crate) fn reference(folder: &Path) -> Self {
        Self { name: "reference", folder: folder.to_owned(), has_portmap: true, _made: None }
    }

    /// Bytes of the programs that an attachment executes.
    pub(crate) fn bytes(&self, conf: Conf) -> Result<u64> {
        let mut programs = vec!["bridge"];
        if self.has_portmap {
            programs.push("host-local");
            programs.extend((conf == Conf::Ports).then_some("portmap"));
        }
        let size = |name: &str| Ok(std::fs::metadata(self.folder.join(name))?.len());
        programs.into_iter().map(size).sum()
    }
}

/// A node and its pods.
pub(crate) struct Lane<'a> {
    side: &'a Side,
    conf: Conf,
    node: Namespace,
    pods: Vec<Namespace>,
    reservations: TempDir,
}

impl<'a> Lane<'a> {
    /// With so many pods that come and go, and one that stays.
    pub(crate) fn new(side: &'a Side, conf: Conf, pods: usize) -> Result<Self> {
        let node = Namespace::new(side.name)?;
        node.ip("link set lo up")?;
        let pods = (0..=pods).map(|number| Namespace::new(format!("p{number}"))).collect::<Result<_>>()?;
        Ok(Self { side, conf, node, pods, reservations: tempfile::tempdir()? })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.side.name
    }

    /// The plugins of the list, as the runtime hands each its configuration.
    fn plugins(&self, pod: usize) -> Vec<(&'static str, Value)> {
        let ports = self.conf == Conf::Ports;
        let mut bridge = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "kube-bridge",
            "isDefaultGateway": true, "hairpinMode": true, "ipMasq": ports,
            "ipam": {"type": "host-local", "dataDir": self.reservations.path(),
                "ranges": [[{"subnet": SUBNETS[0]}], [{"subnet": SUBNETS[1]}]]},
        });
        if !ports {
            return vec![("bridge", bridge)];
        }
        let mappings = json!([{"hostPort": host_port(pod), "containerPort": 80, "protocol": "tcp"}]);
        let capabilities = json!({"portMappings": true});
        if !self.side.has_portmap {
            bridge["capabilities"] = capabilities;
            bridge["runtimeConfig"] = json!({ "portMappings": mappings });
            return vec![("bridge", bridge)];
        }
        let portmap = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": true, "capabilities": capabilities,
            "runtimeConfig": {"portMappings": mappings},
        });
        vec![("bridge", bridge), ("portmap", portmap)]
    }

    fn command(&self, program: &Path, verb: &str, pod: usize) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &format!("container{pod}")),
            ("CNI_IFNAME", INTERFACE),
            // For the reference, which executes iptables.
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ]);
        command.env("CNI_PATH", &self.side.folder).env("CNI_NETNS", self.pods[pod].path());
        command
    }

    /// Calls all plugins for a pod, in the node's namespace; tells how long it took.
    fn call(&self, verb: &str, pod: usize) -> Result<(Duration, Value)> {
        let mut plugins = self.plugins(pod);
        if verb == "DEL" {
            plugins.reverse();
        }
        self.node.run(|| {
            let start = Instant::now();
            let mut result = Value::Null;
            for (plugin, mut conf) in plugins {
                if !result.is_null() {
                    conf["prevResult"] = result;
                }
                let command = self.command(&self.side.folder.join(plugin), verb, pod);
                result =
                    exchange(command, &conf).with_context(|| format!("{plugin} {verb} for pod {pod}"))?;
            }
            Ok((start.elapsed(), result))
        })?
    }

    /// Attaches a pod.
    pub(crate) fn add(&self, pod: usize) -> Result<(Duration, Value)> {
        self.call("ADD", pod)
    }

    /// Detaches a pod.
    pub(crate) fn del(&self, pod: usize) -> Result<Duration> {
        Ok(self.call("DEL", pod)?.0)
    }

    /// Does the same for many pods at once.
    pub(crate) fn at_once<T: Send>(
        &self,
        pods: &[usize],
        work: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let barrier = Barrier::new(pods.len());
        thread::scope(|scope| {
            let start = |pod: usize| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    work(pod)
                })
            };
            let threads: Vec<_> = pods.iter().map(|pod| start(*pod)).collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        })
    }

    /// That pods have the addresses and routes of their results, each its own, and ports of the node that lead there.
    pub(crate) fn check_attached(&self, attached: &[(usize, Value)]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for (pod, result) in attached {
            let told: Vec<IpNet> = result["ips"]
                .as_array()
                .with_context(|| format!("no addresses in {result}"))?
                .iter()
                .map(|ip| Ok(ip["address"].as_str().context("no address")?.parse()?))
                .collect::<Result<_>>()?;
            ensure!(told.len() == 2, "not two addresses: {result}");
            for address in &told {
                ensure!(seen.insert(*address), "{address} was given twice");
            }
            let (has, gateways) = self.pods[*pod].run(|| look().context("looking into the pod"))??;
            for address in told {
                ensure!(has.contains(&address), "pod {pod} has {has:?}, not {address}");
            }
            let wanted = ["10.1.0.1", "fd00:1::1"].map(|text| text.parse::<IpAddr>().ok());
            ensure!(wanted.iter().flatten().all(|ip| gateways.contains(ip)), "pod {pod}: {gateways:?}");
        }
        // Of the last one only, as it stands for all.
        match attached.last() {
            Some((pod, _)) if self.conf == Conf::Ports => self.check_port(*pod),
            _ => Ok(()),
        }
    }

    fn check_port(&self, pod: usize) -> Result<()> {
        let listener = self.pods[pod].run(|| TcpListener::bind(("0.0.0.0", 80)))??;
        let to = (IpAddr::from([10, 1, 0, 1]), host_port(pod)).into();
        let stream = self.node.run(|| TcpStream::connect_timeout(&to, TIMEOUT))?;
        drop(stream.with_context(|| format!("the host port {to} leads nowhere"))?);
        listener.accept().map(drop).context("nobody came by the host port")
    }

    /// The pod that is always there, after all others.
    pub(crate) const fn resident(&self) -> usize {
        self.pods.len() - 1
    }

    /// That pods have no interface any more, and the node nothing but what the resident has.
    pub(crate) fn check_detached(&self, pods: &[usize]) -> Result<()> {
        let name = LinkName::new(INTERFACE).context("a name")?;
        for pod in pods {
            let found = self.pods[*pod].run(|| Socket::open()?.observe_link(&name))??;
            ensure!(found.is_none(), "pod {pod} has {INTERFACE} still");
        }
        let links = self.node.run(|| Socket::open()?.observe_links())??;
        let left: Vec<_> = links.iter().filter(|link| link.name.as_str().starts_with("veth")).collect();
        ensure!(left.len() == 1, "{} links, not one", left.len());
        let reserved = std::fs::read_dir(self.reservations.path().join("net"))?;
        let names = reserved.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let left: Vec<_> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
        ensure!(left.len() == 2, "reserved still: {left:?}");
        Ok(())
    }

    /// Largest memory of a process of an ADD or DEL, in MB of a million bytes.
    ///
    /// KERNEL: what a process had before it executed another program counts (`ru_maxrss`), so that it must be started
    /// by a small one: GNU time.
    pub(crate) fn memory(&self) -> Result<f64> {
        let file = self.reservations.path().join("memory");
        let mut most = 0.0_f64;
        for verb in ["ADD", "DEL"] {
            let mut plugins = self.plugins(0);
            if verb == "DEL" {
                plugins.reverse();
            }
            let mut result = Value::Null;
            for (plugin, mut conf) in plugins {
                if !result.is_null() {
                    conf["prevResult"] = result;
                }
                let mut command = self.command(Path::new("/usr/bin/time"), verb, 0);
                command.args(["-q", "-f", "%M", "-o"]).arg(&file).arg(self.side.folder.join(plugin));
                result = self.node.run(|| exchange(command, &conf))?.context("with /usr/bin/time")?;
                let kilobytes: f64 = std::fs::read_to_string(&file)?.trim().parse()?;
                most = most.max(kilobytes * 1024.0 / 1e6);
            }
        }
        Ok(most)
    }
}

fn host_port(pod: usize) -> u16 {
    20_000 + u16::try_from(pod).unwrap_or_default()
}

/// Runs a plugin in the namespace of the calling thread.
fn exchange(mut command: Command, conf: &Value) -> Result<Value> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(conf.to_string().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    if text.trim().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
}

/// Addresses and gateways of the namespace of the calling thread.
fn look() -> Result<(Vec<IpNet>, Vec<IpAddr>)> {
    let mut socket = Socket::open()?;
    let addresses = socket.observe_addresses()?.into_iter().map(|address| address.address).collect();
    let routes = socket.observe_routes(&RouteFilter::default())?;
    let gateways = routes.iter().filter(|route| route.destination.prefix_len() == 0);
    Ok((addresses, gateways.flat_map(|route| route.next_hops.iter()).filter_map(|hop| hop.gateway).collect()))
}
