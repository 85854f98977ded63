//! A cluster of namespaces, the objects that describe it, and the built program on its nodes.
//!
//! ```text
//!   p1 p2 p3        q1 q2        pods, 10.244.1.0/24 and 10.244.2.0/24
//!    └──┬──┘        └─┬─┘
//!      n1            n2          nodes with the program
//!       └──── core ───┴── outside, which reaches virtual addresses by way of n1
//! ```
//!
//! Objects are written as one file that replaces the one before, so a change reaches the program whole. Each
//! change moves the port of a Service that nothing else uses: its virtual service of before is removed in the last
//! step that the program takes.

use std::fs;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_netns::{Attachment, Cluster, ClusterSpec, Family, Namespace, NodeSpec, PodSpec, Protocol};

use crate::objects::{Endpoint, Objects, Service};

/// Bound of every wait: far above what anything takes, since the machine may be busy, and is emulated.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Cluster IPs of the Service `web`.
pub(crate) const WEB: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Ranges of virtual addresses: cluster IPs, external IPs, those of load balancers.
pub(crate) const CLUSTER: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
pub(crate) const EXTERNAL: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];
pub(crate) const BALANCER: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];
/// Addresses of the outside host beside its usual ones.
pub(crate) const FAR: [&str; 2] = ["14.0.0.10", "2001:db8:14::10"];
/// Further addresses of n1, in tests that give it some.
pub(crate) const SECOND: [&str; 2] = ["172.18.0.77", "fd00:172:18::77"];
const MARKER: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 254);
const ADMIN_PORT: u16 = 20246;
const PROGRAM: &str = env!("CARGO_BIN_EXE_svc-proxy-ipvs");
const PODS: [(&str, &str); 5] = [("p1", "n1"), ("p2", "n1"), ("p3", "n1"), ("q1", "n2"), ("q2", "n2")];

pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
    pub(crate) objects: Objects,
    folder: TempDir,
    marker: u16,
}

fn pod_cidrs(node: &str) -> Vec<String> {
    let number = node.trim_start_matches('n');
    vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
}

impl Lab {
    /// The cluster, with pods that hang on their nodes in this way and serve 8080 of each protocol.
    pub(crate) fn new(attachment: Attachment) -> Self {
        let mut spec = ClusterSpec::new(attachment);
        for name in ["n1", "n2"] {
            let cidrs = pod_cidrs(name).into_iter().map(|cidr| cidr.parse().expect("a range"));
            spec = spec.node(cidrs.fold(NodeSpec::new(name), NodeSpec::pod_cidr));
        }
        for (name, node) in PODS {
            let (subnet, last) =
                (node.trim_start_matches('n'), name[1..].parse::<u8>().expect("a number") + 10);
            let addresses = [format!("10.244.{subnet}.{last}"), format!("fd00:10:244:{subnet}::{last}")];
            spec = spec.pod(PodSpec::new(name, node, addresses.map(|address| ip(&address))));
        }
        for protocol in PROTOCOLS {
            spec = spec.serve(protocol, 8080);
        }
        let spec = FAR.into_iter().fold(spec, |spec, far| spec.outside(ip(far)));
        let cluster = spec.build().expect("a cluster of namespaces (root is needed)");
        let mut routes = String::new();
        for ranges in [CLUSTER, EXTERNAL, BALANCER] {
            for (range, family) in ranges.into_iter().zip([Family::V4, Family::V6]) {
                let way = cluster.address("n1", family).expect("an address");
                routes += &format!("route add {range} via {way}\n");
            }
        }
        cluster.namespace("outside").expect("a host").ip(&routes).expect("routes");
        let objects = Objects::of(&cluster, pod_cidrs);
        let folder = TempDir::with_prefix("svc-proxy-ipvs-test-").expect("a folder");
        Self { cluster, objects, folder, marker: 0 }
    }

    /// A cluster with pods on links of their own.
    pub(crate) fn routed() -> Self {
        Self::new(Attachment::Routed)
    }

    /// Wants the Service `web`: these fields beside cluster IPs of both families, and these endpoints.
    pub(crate) fn web(&mut self, spec: Value, endpoints: &[&str]) -> &mut Service {
        let mut whole = json!({"clusterIP": WEB[0], "clusterIPs": WEB});
        whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        self.service("web", Service::new(whole), endpoints)
    }

    /// Wants a Service with these endpoints.
    pub(crate) fn service(&mut self, name: &str, service: Service, endpoints: &[&str]) -> &mut Service {
        let endpoints = self.endpoints(endpoints);
        let service = Service { endpoints, ..service };
        self.objects.services.insert(name.into(), service);
        self.objects.services.get_mut(name).expect("just inserted")
    }

    /// Ready endpoints.
    pub(crate) fn endpoints(&self, names: &[&str]) -> Vec<Endpoint> {
        names.iter().map(|name| Endpoint::of(&self.cluster, name)).collect()
    }

    /// Gives the Service `web` other endpoints.
    pub(crate) fn set_endpoints(&mut self, endpoints: Vec<Endpoint>) {
        self.objects.services.get_mut("web").expect("the Service web").endpoints = endpoints;
    }

    fn marker(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "marker", "namespace": "kube-system"},
            "spec": {"clusterIP": MARKER, "clusterIPs": [MARKER], "ports": [{"port": self.marker}]},
        })
    }

    /// Writes the objects for the program to find, with the marker if there is one.
    pub(crate) fn write(&self) {
        let marker = if self.marker == 0 { Vec::new() } else { vec![self.marker()] };
        self.write_text(&self.objects.text(marker));
    }

    /// Writes this instead of the objects.
    pub(crate) fn write_text(&self, text: &str) {
        let folder = self.manifests();
        fs::create_dir_all(&folder).expect("a folder");
        let new = self.folder.path().join("objects.new");
        fs::write(&new, text).expect("written");
        fs::rename(new, folder.join("objects.json")).expect("renamed");
    }

    /// Writes the objects and waits until they are in force on the nodes of `proxies`.
    pub(crate) fn apply(&mut self, proxies: &[&Proxy]) {
        if self.marker == 0 {
            // Nothing of the first marker is removed last.
            self.mark(proxies);
        }
        self.mark(proxies);
    }

    fn mark(&mut self, proxies: &[&Proxy]) {
        self.marker += 1;
        self.write();
        let (wanted, any) = (format!("-A -t {MARKER}:{} ", self.marker), format!("-A -t {MARKER}:"));
        for proxy in proxies {
            proxy.until("the objects are in force", || {
                // Not /proc/net/ip_vs: where other namespaces have services too, it leaves some out.
                let text = proxy.ipvs();
                text.contains(&wanted) && text.matches(&any).count() == 1
            });
        }
    }

    /// The folder of manifests.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// Writes the objects, starts the program on a node, and waits until it is ready.
    pub(crate) fn start(&self, node: &str, flags: &[&str]) -> Proxy {
        self.write();
        let proxy = self.spawn(node, flags);
        proxy.wait_ready();
        proxy
    }

    /// Writes the objects, starts the program on both nodes, and waits until they are in force.
    pub(crate) fn start_all(&self, flags: &[&str]) -> [Proxy; 2] {
        self.write();
        let proxies = ["n1", "n2"].map(|node| self.spawn(node, flags));
        proxies.iter().for_each(Proxy::wait_ready);
        proxies
    }

    /// Starts the program on a node.
    pub(crate) fn spawn(&self, node: &str, flags: &[&str]) -> Proxy {
        let namespace = self.cluster.namespace(node).expect("a node").clone();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let log = self.folder.path().join(format!("{node}-{}.log", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut command = namespace.daemon(PROGRAM);
        command.args(self.flags(node)).args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).expect("a log"));
        let child = command.spawn().expect("nsenter and setpriv");
        Proxy { child, namespace, log }
    }

    /// Runs the program on a node to its end: whether it succeeded, its output, its log.
    pub(crate) fn run(&self, node: &str, words: &[&str]) -> (bool, String, String) {
        let mut command = self.cluster.namespace(node).expect("a node").command(PROGRAM);
        command.args(words).args(self.flags(node)).stdin(Stdio::null());
        let done = command.output().expect("nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.success(), text(&done.stdout), text(&done.stderr))
    }

    fn flags(&self, node: &str) -> Vec<String> {
        vec![
            "--manifests".into(),
            self.manifests().display().to_string(),
            format!("--node-name={node}"),
            "-v".into(),
            format!("--service-cluster-ip-range={}", CLUSTER.join(",")),
            format!("--service-external-ip-range={}", EXTERNAL.join(",")),
            format!("--loadbalancer-ip-range={}", BALANCER.join(",")),
        ]
    }

    /// Runs a program on a node; fails if it fails.
    pub(crate) fn output(&self, node: &str, words: &[&str]) -> String {
        let namespace = self.cluster.namespace(node).expect("a node");
        namespace.output(words[0], &words[1..], "").expect("it succeeds")
    }

    /// Addresses of a pod or node, one of each family.
    pub(crate) fn addresses(&self, name: &str) -> [IpAddr; 2] {
        [Family::V4, Family::V6].map(|family| self.cluster.address(name, family).expect("an address"))
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The program on a node. Dropping it kills it; what it put into the kernel stays.
pub(crate) struct Proxy {
    child: Child,
    namespace: Namespace,
    log: PathBuf,
}

impl Proxy {
    /// The node's namespace.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until something holds; fails with `what` and the log when it never does.
    pub(crate) fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        self.until_within(PATIENCE, what, holds);
    }

    /// As [`until`](Self::until), with a bound of its own.
    pub(crate) fn until_within(&self, patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + patience;
        while !holds() {
            assert!(Instant::now() < deadline, "not within {patience:?}: {what}\n{}", self.shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_ready(&self) {
        self.until("ready", || self.is_ready());
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// Status and body of a page of the admin port; `None` while nobody listens.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let ask = || -> std::io::Result<String> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.namespace.run(ask).expect("the node's namespace").ok()?;
        let status = answer.split_whitespace().nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    }

    /// The sum of a metric over its labels that contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> u64 {
        let (_, page) = self.get("/metrics").expect("metrics");
        let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let own = series.split('{').next() == Some(name) && series.contains(label);
            own.then(|| value.parse::<f64>().ok())?
        });
        values.sum::<f64>() as u64
    }

    /// Objects changed in the kernel so far, as the program counts them.
    pub(crate) fn kernel_ops(&self) -> u64 {
        self.metric("svc_proxy_ipvs_kernel_ops_total", "")
    }

    pub(crate) fn state(&self) -> Value {
        let (status, body) = self.get("/state").expect("state");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// What a program of the node prints; fails if it fails.
    pub(crate) fn output(&self, words: &[&str]) -> String {
        self.namespace.output(words[0], &words[1..], "").expect("it succeeds")
    }

    /// The virtual services: `ipvsadm -Sn`.
    pub(crate) fn ipvs(&self) -> String {
        self.output(&["ipvsadm", "-Sn"])
    }

    /// The table, without the counters' values and its owner; empty when there is none.
    pub(crate) fn table(&self) -> String {
        table(&self.namespace)
    }

    /// The routes of virtual addresses.
    pub(crate) fn routes(&self) -> String {
        routes(&self.namespace)
    }

    /// What is in the kernel, and the log.
    pub(crate) fn shown(&self) -> String {
        let ipvs = self.namespace.output("ipvsadm", &["-Sn"], "").unwrap_or_default();
        format!(
            "--- ipvsadm\n{ipvs}--- ip\n{}--- nft\n{}--- log\n{}",
            self.routes(),
            self.table(),
            self.log()
        )
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("signalled");
        self.wait()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.shown());
        }
    }
}

/// The table as text, without the counters' values and its owner; empty when there is none.
pub(crate) fn table(namespace: &Namespace) -> String {
    let words = ["-nn", "-s", "list", "table", "inet", "svc_proxy_ipvs"];
    let text = namespace.output("nft", &words, "").unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with("\tflags"));
    let lines = lines.map(|line| line.split(" # progname").next().unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The routes of virtual addresses of both families.
pub(crate) fn routes(namespace: &Namespace) -> String {
    ["-4", "-6"]
        .map(|family| {
            let words = [family, "route", "show", "table", "local", "proto", "44"];
            namespace.output("ip", &words, "").expect("routes")
        })
        .concat()
}
