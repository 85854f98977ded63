//! npc-firewall and svc-proxy-ipvs on one node, as on bare metal: what goes to a Service is balanced by the one and
//! judged by the other, by the pods at both ends. Needs root and IPVS: the virtual machine of e2e/vm.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use test_netns::daemon::{PATIENCE, until};
use test_netns::{Attachment, Cluster, ClusterSpec, Daemon, Family, Flow, Outcome, Protocol};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
const RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
const EXTERNAL: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];
/// Pods that are served by direct return as well, at an external address.
const DIRECT: [&str; 2] = ["y/a", "y/b"];
/// A Service of no use: when one port of it is in the firewall's table, so is everything that came with it.
const MARKER: &str = "10.96.255.254";
const NODE_PORT: u16 = 30080;
/// After so long without an answer a connection is taken for cut.
const EXCHANGE: Duration = Duration::from_secs(3);

/// Pods: x/a, z/a, y/b on n1; y/a, x/b, z/b on n2. The Service of a pod has it as its only endpoint.
struct Lab {
    cluster: Cluster,
    folder: TempDir,
    firewalls: Vec<Daemon>,
    _proxies: Vec<Daemon>,
    marker: u16,
}

impl Lab {
    fn new(attachment: Attachment) -> Self {
        let spec = ClusterSpec::uniform(attachment, &BOTH, 2, 3);
        let spec = spec.serve(Protocol::Tcp, 8080).serve(Protocol::Udp, 8080);
        let cluster = spec.build().expect("a cluster of namespaces (root is needed)");
        if attachment == Attachment::Bridge {
            for pod in cluster.pods() {
                let host = cluster.host(pod).expect("a pod");
                let node = cluster.namespace(host.node.as_deref().expect("a node")).expect("a node");
                // What CNI plugins do that are told hairpinMode.
                node.ip(&format!("link set {} type bridge_slave hairpin on\n", host.node_link()))
                    .expect("set");
            }
        }
        let mut routes = String::new();
        for (range, family) in EXTERNAL.into_iter().zip(BOTH) {
            let way = cluster.address("n1", family).expect("an address");
            writeln!(routes, "route add {range} via {way}").expect("a string");
        }
        cluster.namespace("outside").expect("a host").ip(&routes).expect("routes");
        let folder = TempDir::with_prefix("together-test-").expect("a folder");
        let mut lab = Self { cluster, folder, firewalls: vec![], _proxies: vec![], marker: 0 };
        lab.write("");
        let start = |program: &str, port, flags: &[String]| -> Vec<Daemon> {
            let path = Path::new(env!("CARGO_BIN_EXE_demo")).with_file_name(program).display().to_string();
            let manifests = format!("--manifests={}", lab.folder.path().join("manifests").display());
            let start = |node: &str| {
                let namespace = lab.cluster.namespace(node).expect("a node");
                let name = format!("--node-name={node}");
                let words = [&[path.clone(), manifests.clone(), name, "-v".to_owned()], flags].concat();
                Daemon::start(namespace, &words, lab.folder.path(), port)
            };
            lab.cluster.nodes().map(start).collect()
        };
        let flags = [
            format!("--service-cluster-ip-range={}", RANGES.join(",")),
            format!("--service-external-ip-range={}", EXTERNAL.join(",")),
            format!("--netns-dir={}", lab.namespaces().display()),
        ];
        let (firewalls, proxies) =
            (start("npc-firewall", 20244, &[]), start("svc-proxy-ipvs", 20246, &flags));
        for daemon in firewalls.iter().chain(&proxies) {
            until(PATIENCE, "ready", || daemon.log(), || daemon.is_ready());
        }
        (lab.firewalls, lab._proxies) = (firewalls, proxies);
        lab
    }

    /// A folder like `/run/netns`, of all nodes.
    fn namespaces(&self) -> PathBuf {
        let folder = self.folder.path().join("netns");
        fs::create_dir(&folder).expect("a folder");
        for pod in self.cluster.pods() {
            let namespace = self.cluster.namespace(pod).expect("a pod");
            symlink(namespace.path(), folder.join(format!("cni-{}", pod.replace('/', "-")))).expect("a link");
        }
        folder
    }

    /// External addresses of a pod.
    fn direct(&self, pod: &str) -> [IpAddr; 2] {
        let number = 1 + DIRECT.iter().position(|name| *name == pod).expect("a pod of these");
        [format!("203.0.113.{number}"), format!("2001:db8:113::{number}")]
            .map(|ip| ip.parse().expect("an address"))
    }

    fn addresses(&self, host: &str) -> [IpAddr; 2] {
        BOTH.map(|family| self.cluster.address(host, family).expect("an address"))
    }

    /// Cluster IPs of the Service of a pod.
    fn service(&self, pod: &str) -> [IpAddr; 2] {
        let number = 1 + self.cluster.pods().iter().position(|name| name == pod).expect("a pod");
        [format!("10.96.0.{number}"), format!("fd00:96::{number}")].map(|ip| ip.parse().expect("an address"))
    }

    /// Writes all objects, with these policies.
    fn write(&mut self, policies: &str) {
        self.marker += 1;
        let mut text = format!(
            "{policies}---\n{{apiVersion: v1, kind: Service, metadata: {{name: marker, namespace: kube-system}}, \
             spec: {{clusterIP: {MARKER}, clusterIPs: [{MARKER}], ports: [{{port: {}}}]}}}}\n",
            self.marker
        );
        let mut add = |document: &str| writeln!(text, "---\n{document}").expect("a string");
        for namespace in ["x", "y", "z"] {
            add(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: '{namespace}', labels: {{ns: '{namespace}'}}}}}}"
            ));
        }
        for node in self.cluster.nodes() {
            let [v4, v6] = self.addresses(node);
            add(&format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}, status: {{addresses: [\
                 {{type: InternalIP, address: {v4}}}, {{type: InternalIP, address: '{v6}'}}]}}}}"
            ));
        }
        for pod in self.cluster.pods() {
            let (namespace, name) = pod.split_once('/').expect("namespace/name");
            let node = self.cluster.host(pod).expect("a pod").node.clone().expect("a node");
            let [v4, v6] = self.addresses(pod);
            add(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: '{namespace}'}}, \
                 spec: {{nodeName: {node}}}, status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}}}"
            ));
            let [vip4, vip6] = self.service(pod);
            let (kind, node_port) = match pod.as_str() {
                "y/b" => ("NodePort", format!(", nodePort: {NODE_PORT}")),
                _ => ("ClusterIP", String::new()),
            };
            let mut services = vec![(
                format!("name: {name}"),
                format!(
                    "type: {kind}, clusterIP: {vip4}, clusterIPs: [{vip4}, '{vip6}'], ports: [\
                     {{name: tcp, protocol: TCP, port: 80, targetPort: 8080{node_port}}}, \
                     {{name: udp, protocol: UDP, port: 80, targetPort: 8080}}]"
                ),
            )];
            if DIRECT.contains(&pod.as_str()) {
                let [external4, external6] = self.direct(pod);
                services.push((
                    format!("name: {name}-direct, annotations: {{kube-router.io/service.dsr: tunnel}}"),
                    format!(
                        "type: ClusterIP, clusterIP: {vip4}0, clusterIPs: [{vip4}0, '{vip6}0'], \
                         externalIPs: [{external4}, '{external6}'], \
                         ports: [{{name: tcp, protocol: TCP, port: 8080, targetPort: 8080}}]"
                    ),
                ));
            }
            for (number, (metadata, spec)) in services.iter().enumerate() {
                let service = ["", "-direct"][number];
                add(&format!(
                    "{{apiVersion: v1, kind: Service, metadata: {{namespace: '{namespace}', {metadata}}}, \
                     spec: {{ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, {spec}}}}}"
                ));
                for (family, ip) in [("IPv4", v4), ("IPv6", v6)] {
                    add(&format!(
                        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, \
                         metadata: {{name: {name}{service}-{}, namespace: '{namespace}', \
                         labels: {{kubernetes.io/service-name: {name}{service}}}}}, \
                         ports: [{{name: tcp, protocol: TCP, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}], \
                         endpoints: [{{addresses: ['{ip}'], nodeName: {node}, conditions: {{ready: true}}}}]}}",
                        family.to_lowercase()
                    ));
                }
            }
        }
        let folder = self.folder.path().join("manifests");
        fs::create_dir_all(&folder).expect("a folder");
        let new = self.folder.path().join("objects.new");
        fs::write(&new, text).expect("written");
        fs::rename(new, folder.join("objects.yaml")).expect("renamed");
    }

    /// Writes these policies instead of all others (`key: spec`, one on a line) and waits until the firewalls have
    /// them in force.
    fn apply(&mut self, policies: &[(&str, &str)]) {
        let mut text = String::new();
        for (key, spec) in policies {
            let (namespace, name) = key.split_once('/').expect("namespace/name");
            writeln!(
                text,
                "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                 metadata: {{name: {name}, namespace: '{namespace}'}}, spec: {spec}}}"
            )
            .expect("a string");
        }
        self.write(&text);
        let wanted = format!("{MARKER} . 6 . {} ", self.marker);
        for firewall in &self.firewalls {
            let table = || {
                let words = ["-n", "list", "set", "inet", "npc_firewall", "service4"];
                firewall.namespace().output("nft", &words, "").unwrap_or_default().replace(['}', ','], " ")
            };
            until(PATIENCE, "in force", || firewall.log(), || table().contains(&wanted));
        }
    }

    /// That both protocols by both versions of IP reach the Service of a pod, or are refused.
    fn expect(&self, case: &str, from: &str, pod: &str, passes: bool) {
        for to in self.service(pod) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let outcome = self.cluster.probe(from, to, protocol, 80).expect("probed");
                let right = if passes { answered_by(&outcome, pod) } else { outcome.is_rejected() };
                assert!(right, "{case}: {from} -> Service of {pod} {to} {protocol}: {outcome}");
            }
        }
    }

    fn flow(&self, from: &str, pod: &str, family: usize) -> Flow {
        let flow = self
            .cluster
            .connect(from, self.service(pod)[family], Protocol::Tcp, 80, PATIENCE)
            .expect("tried");
        assert!(flow.opened().is_connected(), "{from} -> {pod}: {}", flow.opened());
        flow
    }
}

fn answered_by(outcome: &Outcome, pod: &str) -> bool {
    matches!(outcome, Outcome::Connected(answer) if answer.server == pod)
}

const EGRESS_TO_X: &str = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}";
const EGRESS_TO_Y: &str = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [\
     {namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 8080}, {protocol: UDP, port: 8080}]}]}";
const INGRESS_FROM_X: &str =
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}";
const ISOLATED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

fn hold(attachment: Attachment) {
    let mut lab = Lab::new(attachment);
    for (from, pod) in
        [("x/a", "y/a"), ("x/a", "y/b"), ("z/a", "y/a"), ("z/a", "x/a"), ("x/a", "x/a"), ("x/b", "y/b")]
    {
        lab.expect("without policies", from, pod, true);
    }
    let ranges = format!(
        "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {}}}}}, \
         {{ipBlock: {{cidr: '{}'}}}}]}}]}}",
        RANGES[0], RANGES[1]
    );
    lab.apply(&[("x/p", EGRESS_TO_X)]);
    for (from, pod, passes) in [
        ("x/a", "y/a", false),
        ("x/a", "y/b", false),
        ("x/b", "y/b", false),
        ("x/a", "x/b", true),
        ("z/a", "y/a", true),
    ] {
        lab.expect("egress to its own namespace", from, pod, passes);
    }
    lab.apply(&[("x/p", &ranges)]);
    lab.expect("the virtual address is not what counts", "x/a", "y/b", false);
    lab.expect("the virtual address is not what counts", "x/a", "y/a", false);

    let (mut kept, mut cut) = (vec![], vec![]);
    lab.apply(&[]);
    for family in [0, 1] {
        kept.extend([lab.flow("x/a", "y/a", family), lab.flow("x/a", "y/b", family)]);
        cut.extend([lab.flow("z/a", "y/a", family), lab.flow("z/a", "y/b", family)]);
    }
    lab.apply(&[("x/p", EGRESS_TO_Y), ("y/p", INGRESS_FROM_X)]);
    for (from, pod, passes) in [
        ("x/a", "y/a", true),
        ("x/a", "y/b", true),
        ("x/b", "y/b", true),
        ("z/a", "y/a", false),
        ("z/a", "y/b", false),
        ("z/b", "y/b", false),
    ] {
        lab.expect("the endpoint allows x only", from, pod, passes);
    }
    for flow in &mut kept {
        let outcome = flow.exchange(PATIENCE);
        assert!(outcome.is_connected(), "an allowed connection lives on: {outcome}");
    }
    for flow in &mut cut {
        let cut = || !flow.exchange(EXCHANGE).is_connected();
        until(PATIENCE, "what is no longer allowed is cut", String::new, cut);
    }

    lab.apply(&[("x/p", ISOLATED)]);
    lab.expect("to itself, whatever policies say", "x/a", "x/a", true);
    lab.expect("to an isolated pod", "z/a", "x/a", false);
    lab.expect("from an isolated pod", "x/a", "y/b", false);

    let node = lab.addresses("n1");
    let reaches = |lab: &Lab, to| {
        let outcome = lab.cluster.probe("outside", to, Protocol::Tcp, NODE_PORT).expect("probed");
        answered_by(&outcome, "y/b")
    };
    for (policies, passes) in [(vec![], true), (vec![("y/p", INGRESS_FROM_X)], false)] {
        lab.apply(&policies);
        for to in node {
            assert_eq!(reaches(&lab, to), passes, "from outside by a node port: {policies:?}");
        }
    }
    hold_with_direct_return(&mut lab);
}

/// What is sent through a tunnel is judged by the addresses of the tunnel, at endpoints on the node that sends it too.
fn hold_with_direct_return(lab: &mut Lab) {
    // From n1: to a pod on a bridge, the bridge's address.
    let ways = DIRECT.iter().flat_map(|pod| lab.addresses(pod)).map(|to| {
        let route =
            lab.cluster.namespace("n1").expect("a node").output("ip", &["route", "get", &to.to_string()], "");
        let route = route.expect("a route");
        let source =
            route.split_once(" src ").expect("a source").1.split(' ').next().expect("an address").to_owned();
        format!("{{ipBlock: {{cidr: '{source}/{}'}}}}", if to.is_ipv4() { 32 } else { 128 })
    });
    let nodes: Vec<_> = ways.collect();
    let nodes = format!("{{podSelector: {{}}, ingress: [{{from: [{}]}}]}}", nodes.join(", "));
    let reaches = |lab: &Lab, to, pod| {
        let outcome = lab.cluster.probe("outside", to, Protocol::Tcp, 8080).expect("probed");
        answered_by(&outcome, pod)
    };
    for (case, policies, passes) in [
        ("without policies", vec![], true),
        ("isolated", vec![("y/p", ISOLATED)], false),
        ("the nodes are allowed", vec![("y/p", nodes.as_str())], true),
    ] {
        lab.apply(&policies);
        for pod in DIRECT {
            for to in lab.direct(pod) {
                if passes {
                    until(PATIENCE, &format!("{case}: {to} of {pod}"), String::new, || reaches(lab, to, pod));
                } else {
                    assert!(!reaches(lab, to, pod), "{case}: {to} of {pod}");
                }
            }
        }
    }
}

#[test]
fn services_are_judged_by_their_real_ends_on_routed_pods() {
    hold(Attachment::Routed);
}

#[test]
fn services_are_judged_by_their_real_ends_on_bridged_pods() {
    hold(Attachment::Bridge);
}
