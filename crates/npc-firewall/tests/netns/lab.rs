//! A cluster of namespaces, the objects that describe it, and the built program on its nodes.
//!
//! Objects are written as one file that replaces the one before, so a change reaches the program whole. Each
//! change moves the port of a Service that nothing else uses: when it is in the kernel's set of Services, so
//! is everything that came with it.

use std::fs;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use test_netns::daemon;
pub(crate) use test_netns::daemon::PATIENCE;
use test_netns::{Attachment, Cluster, ClusterSpec, Daemon, Family, Namespace, Outcome, Probe, Protocol};

use crate::objects::Objects;

/// After so long without an answer an established connection is taken for cut. Refusals come at once, but not all:
/// the kernel limits how often it sends ICMP errors.
pub(crate) const EXCHANGE: Duration = Duration::from_secs(3);
/// How long a try may take that is to be refused; what is to come about may take its time.
const PROBE: Duration = Duration::from_millis(1500);
pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];
pub(crate) const ALL_PORTS: [(Protocol, u16); 7] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Udp, 80),
    (Protocol::Udp, 81),
    (Protocol::Sctp, 80),
    (Protocol::Sctp, 81),
    (Protocol::Icmp, 0),
];
/// Served as well, for cases that name them.
pub(crate) const MORE_PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 6379), (Protocol::Tcp, 5978)];
pub(crate) const FAR: &str = "14.215.0.10";
pub(crate) const FAR_EXCEPT: &str = "14.215.9.10";
pub(crate) const FAR6: &str = "2001:db8:14::10";
const MARKER: &str = "192.0.2.1";
const ADMIN_PORT: u16 = 20244;
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_npc-firewall");

pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
    pub(crate) objects: Objects,
    folder: TempDir,
    marker: u16,
}

impl Lab {
    /// Nodes `n1`, `n2`, … with pods `x/a`, `y/a`, `z/a`, `x/b`, … dealt to them in turn, and an outside
    /// host with addresses of its own. No policies yet.
    pub(crate) fn new(attachment: Attachment, nodes: u8, pods: u8) -> Self {
        let outside = [FAR, FAR_EXCEPT, FAR6].map(ip);
        let spec = ClusterSpec::uniform(attachment, &BOTH, nodes, pods);
        let spec = outside.into_iter().fold(spec, ClusterSpec::outside);
        let served = ALL_PORTS.iter().chain(&MORE_PORTS).filter(|(protocol, _)| *protocol != Protocol::Icmp);
        let spec = served.fold(spec, |spec, (protocol, port)| spec.serve(*protocol, *port));
        let cluster = spec.build().expect("a cluster of namespaces (root is needed)");
        let objects = Objects::of(&cluster);
        let folder = TempDir::with_prefix("npc-firewall-test-").expect("a folder");
        let mut lab = Self { cluster, objects, folder, marker: 0 };
        lab.write();
        lab
    }

    /// Writes the objects for the program to find.
    pub(crate) fn write(&mut self) -> u16 {
        self.marker += 1;
        let text = format!(
            "{}---\n{{apiVersion: v1, kind: Service, metadata: {{name: marker, namespace: kube-system}}, \
             spec: {{clusterIP: {MARKER}, ports: [{{port: {}}}]}}}}\n",
            self.objects.yaml(),
            self.marker
        );
        let folder = self.manifests();
        fs::create_dir_all(&folder).expect("a folder");
        let new = self.folder.path().join("objects.new");
        fs::write(&new, text).expect("written");
        fs::rename(new, folder.join("objects.yaml")).expect("renamed");
        self.marker
    }

    /// Writes the objects and waits until they are in force on the nodes of `firewalls`.
    pub(crate) fn apply(&mut self, firewalls: &[&Firewall]) {
        self.write();
        self.wait(firewalls);
    }

    /// Waits until what was last written is in force.
    pub(crate) fn wait(&self, firewalls: &[&Firewall]) {
        let wanted = format!("{MARKER} . 6 . {} ", self.marker);
        for firewall in firewalls {
            firewall.until("the objects are in force", || {
                let set = firewall.nft(&["list", "set", "inet", "npc_firewall", "service4"]);
                set.is_ok_and(|set| set.replace(['}', ','], " ").contains(&wanted))
            });
        }
    }

    /// The folder of manifests.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// Starts the program on a node and waits until it is ready.
    pub(crate) fn start(&self, node: &str, flags: &[&str]) -> Firewall {
        let firewall = self.spawn(node, flags);
        firewall.wait_ready();
        firewall
    }

    /// Starts the program on each node and waits until the objects are in force.
    pub(crate) fn start_all(&self, flags: &[&str]) -> Vec<Firewall> {
        let firewalls: Vec<_> = self.cluster.nodes().map(|node| self.spawn(node, flags)).collect();
        firewalls.iter().for_each(Firewall::wait_ready);
        firewalls
    }

    /// Starts the program on a node.
    pub(crate) fn spawn(&self, node: &str, flags: &[&str]) -> Firewall {
        self.spawn_by(node, &[], flags)
    }

    /// Starts the program on a node with these flags and no others.
    pub(crate) fn spawn_with(&self, node: &str, flags: &[&str]) -> Firewall {
        self.spawn_words(node, &[&[PROGRAM], flags].concat())
    }

    /// Starts the program on a node by way of another that replaces itself with it.
    pub(crate) fn spawn_by(&self, node: &str, way: &[&str], flags: &[&str]) -> Firewall {
        let words = self.words(node);
        let words: Vec<&str> = way.iter().copied().chain(words.iter().map(String::as_str)).collect();
        self.spawn_words(node, &[&words, flags].concat())
    }

    /// Starts a command line on a node.
    pub(crate) fn spawn_words(&self, node: &str, words: &[&str]) -> Firewall {
        let namespace = self.cluster.namespace(node).expect("a node");
        Firewall(Daemon::start(namespace, words, self.folder.path(), ADMIN_PORT))
    }

    /// Runs the program on a node to its end: whether it succeeded, its output, its log.
    pub(crate) fn run(&self, node: &str, flags: &[&str]) -> (bool, String, String) {
        let words = self.words(node);
        let mut command = self.cluster.namespace(node).expect("a node").command(&words[0]);
        let done = command.args(&words[1..]).args(flags).stdin(Stdio::null()).output().expect("nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.success(), text(&done.stdout), text(&done.stderr))
    }

    fn words(&self, node: &str) -> Vec<String> {
        let folder = self.manifests().display().to_string();
        [PROGRAM, "--manifests", &folder, "--node-name", node, "-v"].map(str::to_owned).into()
    }

    /// First IPv4 address of a pod, node, or address of the outside host.
    pub(crate) fn v4(&self, name: &str) -> IpAddr {
        self.cluster.address(name, Family::V4).expect("an IPv4 address")
    }

    /// First IPv6 address.
    pub(crate) fn v6(&self, name: &str) -> IpAddr {
        self.cluster.address(name, Family::V6).expect("an IPv6 address")
    }

    /// Tries everything: from and to each pod and address outside, on `ports`, by both IP versions. Fails
    /// with what is not as `allowed` says.
    pub(crate) fn check(&self, case: &str, ports: &[(Protocol, u16)], allowed: impl Fn(&Try) -> bool) {
        let ends: Vec<&str> =
            self.cluster.pods().iter().map(String::as_str).chain([FAR, FAR_EXCEPT, FAR6]).collect();
        let mut tries = Vec::new();
        for family in BOTH {
            let has = |end: &&&str| self.cluster.address(end, family).is_ok();
            for from in ends.iter().filter(has) {
                for to in ends.iter().filter(has).filter(|to| from.contains('/') || to.contains('/')) {
                    tries.extend(ports.iter().map(|&(protocol, port)| Try {
                        from,
                        to,
                        protocol,
                        port,
                        family,
                    }));
                }
            }
        }
        let probe = |t: &Try| Probe {
            from: t.from.into(),
            to: self.cluster.address(t.to, t.family).expect("an address"),
            protocol: t.protocol,
            port: t.port,
        };
        // A packet to the own address never leaves the pod.
        let connects = |t: &Try| t.from == t.to || allowed(t);
        let (open, closed): (Vec<_>, Vec<_>) = tries.into_iter().partition(connects);
        let outcomes = |tries: &[Try], patience| {
            let probes: Vec<_> = tries.iter().map(probe).collect();
            self.cluster.probe_all(&probes, patience).expect("probed")
        };
        let outcomes = [outcomes(&open, PATIENCE), outcomes(&closed, PROBE)].concat();
        let tries = [open, closed].concat();
        let wrong: Vec<_> = tries
            .iter()
            .zip(&outcomes)
            .filter(|(t, outcome)| outcome.is_connected() != connects(t))
            .map(|(t, outcome)| {
                format!("  {} -> {} {} {} {:?}: {outcome}", t.from, t.to, t.protocol, t.port, t.family)
            })
            .collect();
        let shown = wrong.iter().take(20).fold(String::new(), |text, line| text + line + "\n");
        let (some, all) = (wrong.len(), tries.len());
        assert!(wrong.is_empty(), "{case}: {some} of {all} tries are wrong:\n{shown}");
    }

    /// What one try finds.
    pub(crate) fn probe(&self, from: &str, to: IpAddr, protocol: Protocol, port: u16) -> Outcome {
        self.cluster.probe(from, to, protocol, port).expect("probed")
    }

    /// Whether a TCP connection by IPv4 comes about.
    pub(crate) fn connects(&self, from: &str, to: &str, port: u16) -> bool {
        self.probe(from, self.v4(to), Protocol::Tcp, port).is_connected()
    }
}

/// One try of [`Lab::check`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Try<'a> {
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) family: Family,
}

impl Try<'_> {
    /// From a pod of this namespace.
    pub(crate) fn of_ns(self, namespace: &str) -> bool {
        self.from.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'))
    }

    /// To a pod of this namespace.
    pub(crate) fn to_ns(self, namespace: &str) -> bool {
        self.to.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'))
    }

    /// From a pod, not from outside.
    pub(crate) fn of_pod(self) -> bool {
        self.from.contains('/')
    }

    pub(crate) fn tcp(&self, port: u16) -> bool {
        (self.protocol, self.port) == (Protocol::Tcp, port)
    }

    pub(crate) fn is(&self, protocol: Protocol) -> bool {
        self.protocol == protocol
    }

    pub(crate) fn v4(&self) -> bool {
        self.family == Family::V4
    }
}

/// Whether this kernel has tables that only their owner may change and that outlive it (Linux 6.9).
pub(crate) fn tables_can_be_owned() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Waits until something holds; fails with `what` when it never does.
pub(crate) fn until(what: &str, holds: impl FnMut() -> bool) {
    daemon::until(PATIENCE, what, String::new, holds);
}

/// Waits until nothing is put off any more, as a change of the generation is; operations in the kernel by then.
pub(crate) fn settled(firewall: &Firewall) -> u64 {
    let mut ops = firewall.kernel_ops();
    until("nothing changes any more", || {
        std::thread::sleep(2 * npc_firewall::plan::generation::INTERVAL);
        let before = std::mem::replace(&mut ops, firewall.kernel_ops());
        before == ops
    });
    ops
}

/// The program on a node. Dropping it kills it; its table stays.
pub(crate) struct Firewall(Daemon);

impl Deref for Firewall {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Firewall {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}

impl Firewall {
    /// As [`until`], with the log in the message.
    pub(crate) fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        daemon::until(PATIENCE, what, || self.log(), holds);
    }

    pub(crate) fn wait_ready(&self) {
        self.until("ready", || self.is_ready());
    }

    /// Objects changed in the kernel so far, as the program counts them.
    pub(crate) fn kernel_ops(&self) -> u64 {
        self.metric("npc_firewall_kernel_ops_total", "")
    }

    /// Runs `nft` with numbers in its output.
    pub(crate) fn nft(&self, words: &[&str]) -> anyhow::Result<String> {
        nft(self.namespace(), words)
    }

    /// The table as text; empty when there is none.
    pub(crate) fn table(&self) -> String {
        table(self.namespace())
    }
}

/// Runs `nft` in a node's namespace.
pub(crate) fn nft(namespace: &Namespace, words: &[&str]) -> anyhow::Result<String> {
    let words: Vec<_> = ["-n"].iter().chain(words).copied().collect();
    namespace.output("nft", &words, "")
}

/// The table as text, without the counters' values and its owner; empty when there is none.
pub(crate) fn table(namespace: &Namespace) -> String {
    let text = nft(namespace, &["-s", "list", "table", "inet", "npc_firewall"]).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with("\tflags"));
    let lines = lines.map(|line| line.split(" # progname").next().unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}
