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
use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use test_netns::daemon;
pub(crate) use test_netns::daemon::PATIENCE;
use test_netns::{Attachment, Cluster, ClusterSpec, Daemon, Family, Namespace, NodeSpec, PodSpec, Protocol};

use crate::objects::{Endpoint, Objects, Service};

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
        let namespace = self.cluster.namespace(node).expect("a node");
        let usual = self.flags(node);
        let usual = usual.iter().map(String::as_str);
        let words: Vec<_> = [PROGRAM].into_iter().chain(usual).chain(flags.iter().copied()).collect();
        Proxy(Daemon::start(namespace, &words, self.folder.path(), ADMIN_PORT))
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
pub(crate) struct Proxy(Daemon);

impl Deref for Proxy {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Proxy {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}

impl Proxy {
    /// Waits until something holds; fails with `what` and all there is to see when it never does.
    pub(crate) fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        self.until_within(PATIENCE, what, holds);
    }

    /// As [`until`](Self::until), with a bound of its own.
    pub(crate) fn until_within(&self, patience: Duration, what: &str, holds: impl FnMut() -> bool) {
        daemon::until(patience, what, || self.shown(), holds);
    }

    pub(crate) fn wait_ready(&self) {
        self.until("ready", || self.is_ready());
    }

    /// Objects changed in the kernel so far, as the program counts them.
    pub(crate) fn kernel_ops(&self) -> u64 {
        self.metric("svc_proxy_ipvs_kernel_ops_total", "")
    }

    /// What a program of the node prints; fails if it fails.
    pub(crate) fn output(&self, words: &[&str]) -> String {
        self.namespace().output(words[0], &words[1..], "").expect("it succeeds")
    }

    /// The virtual services: `ipvsadm -Sn`.
    pub(crate) fn ipvs(&self) -> String {
        self.output(&["ipvsadm", "-Sn"])
    }

    /// The table, without the counters' values and its owner; empty when there is none.
    pub(crate) fn table(&self) -> String {
        table(self.namespace())
    }

    /// The routes of virtual addresses.
    pub(crate) fn routes(&self) -> String {
        routes(self.namespace())
    }

    /// What is in the kernel, and the log.
    pub(crate) fn shown(&self) -> String {
        format!("{}--- log\n{}", self.in_kernel(), self.log())
    }

    fn in_kernel(&self) -> String {
        let ipvs = self.namespace().output("ipvsadm", &["-Sn"], "").unwrap_or_default();
        format!("--- ipvsadm\n{ipvs}--- ip\n{}--- nft\n{}", self.routes(), self.table())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.in_kernel());
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
