//! Direct return: `kube-router.io/service.dsr: tunnel`.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use test_netns::{Attachment, Protocol};

use crate::lab::{Lab, PATIENCE, Proxy, ip};
use crate::objects::Service;
use crate::tries::Expect::Refused;
use crate::tries::Seen::{As, Itself};
use crate::tries::{Tries, from, served, served_itself};

/// External addresses of the Service `web`.
const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const NODES: [&str; 2] = ["n1", "n2"];
const PODS: [&str; 4] = ["p1", "p2", "p3", "q1"];

/// A lab, and what its nodes know of their pods' namespaces: a folder like `/run/netns`.
struct Direct {
    lab: Lab,
    folders: [TempDir; 2],
    /// Servers of UDP, which answer from the address that was asked.
    servers: Vec<(Arc<AtomicBool>, JoinHandle<()>)>,
    marker: u16,
}

impl Direct {
    fn new(attachment: Attachment) -> Self {
        let lab = Lab::new(attachment);
        let folders = NODES.map(|_| TempDir::with_prefix("netns-").unwrap());
        for pod in PODS {
            let node = lab.cluster.host(pod).unwrap().node.clone().unwrap();
            let folder = &folders[usize::from(node == "n2")];
            let namespace = lab.cluster.namespace(pod).unwrap();
            symlink(namespace.path(), folder.path().join(format!("cni-{pod}"))).unwrap();
        }
        for node in NODES {
            let namespace = lab.cluster.namespace(node).unwrap();
            // As on many distributions.
            namespace.sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
        }
        let mut direct = Self { lab, folders, servers: Vec::new(), marker: 0 };
        for pod in ["p1", "q1"] {
            direct.serve_datagrams(pod);
        }
        direct
    }

    /// Wants `web` with direct return, on the ports that its pods listen on.
    fn web(&mut self, endpoints: &[&str]) -> &mut Service {
        let fields = json!({
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"], "externalIPs": VIPS,
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": 8080},
                {"name": "udp", "protocol": "UDP", "port": 8080},
            ],
        });
        let service = Service::new(fields).annotated("service.dsr", "tunnel");
        self.lab.service("web", service, endpoints)
    }

    fn flags(&self, node: usize) -> Vec<String> {
        vec![
            format!("--netns-dir={}", self.folders[node].path().display()),
            "--ipvs-graceful-period=0s".into(),
        ]
    }

    fn start(&self, node: usize) -> Proxy {
        let flags = self.flags(node);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        self.lab.start(NODES[node], &flags)
    }

    fn start_all(&self) -> [Proxy; 2] {
        [0, 1].map(|node| self.start(node))
    }

    /// Writes the objects and waits until they are in force.
    ///
    /// KERNEL: where other namespaces have virtual services, `/proc/net/ip_vs` leaves some out if it is longer than
    /// a page (`ip_vs_info_seq_next()` counts those of others, `ip_vs_info_array()` does not). So `ipvsadm` is asked.
    fn apply(&mut self, proxies: &[&Proxy]) {
        self.marker += 1;
        let fields = json!({
            "clusterIP": "10.96.255.253", "clusterIPs": ["10.96.255.253"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "ports": [{"port": self.marker}],
        });
        self.lab.service("last", Service::new(fields), &[]);
        self.lab.write();
        let wanted = format!("10.96.255.253:{} ", self.marker);
        for proxy in proxies {
            proxy.until("the objects are in force", || {
                let text = proxy.ipvs();
                text.contains(&wanted) && text.matches("10.96.255.253:").count() == 1
            });
        }
    }

    fn serve_datagrams(&mut self, pod: &'static str) {
        let namespace = self.lab.cluster.namespace(pod).unwrap();
        for (vip, family) in VIPS.map(ip).into_iter().zip(["ipv4", "ipv6"]) {
            namespace.sysctl(&format!("net/{family}/ip_nonlocal_bind"), "1").unwrap();
            let socket = namespace.run(|| UdpSocket::bind((vip, 8080)).unwrap()).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = stop.clone();
            let thread = std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !stopped.load(Ordering::Relaxed) {
                    let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                    let mut answer = format!("{pod} {}\n", peer.ip()).into_bytes();
                    answer.extend(&buffer[..length]);
                    // A lost answer is the client's to notice.
                    let _ = socket.send_to(&answer, peer);
                }
            });
            self.servers.push((stop, thread));
        }
    }

    /// What a program prints in the namespace of a pod or node.
    fn shown(&self, host: &str, words: &str) -> String {
        let words: Vec<_> = words.split(' ').collect();
        let namespace = self.lab.cluster.namespace(host).unwrap();
        namespace.output(words[0], &words[1..], "").unwrap()
    }

    /// Everything that direct return leaves on nodes and in pods.
    fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in NODES {
            for family in ["-4", "-6"] {
                let rules = self.shown(node, &format!("ip {family} rule"));
                found.extend(rules.lines().filter(|line| line.contains("lookup 78")).map(str::to_owned));
                // A table that there is not is an error to `ip`.
                let routes = self.shown(node, &format!("ip {family} route show table all"));
                found.extend(routes.lines().filter(|line| line.contains("table 78")).map(str::to_owned));
            }
            let ipvs = self.shown(node, "ipvsadm -Sn");
            found.extend(ipvs.lines().filter(|line| line.contains("-f ")).map(str::to_owned));
            let table = crate::lab::table(self.lab.cluster.namespace(node).unwrap());
            found.extend(table.lines().filter(|line| line.contains("dsr")).map(str::to_owned));
        }
        for pod in PODS {
            let links = self.shown(pod, "ip -o address");
            found.extend(
                links
                    .lines()
                    .filter(|line| line.contains("kube-tunnel") || VIPS.iter().any(|vip| line.contains(vip)))
                    .map(|line| format!("{pod}: {line}")),
            );
        }
        found
    }

    /// Sends that much by TCP to port 8081, and gives what the pod has counted when it has all.
    fn upload(&mut self, pod: &str, to: IpAddr, bytes: usize) {
        let listener = self.lab.cluster.namespace(pod).unwrap();
        let listener = listener.run(|| TcpListener::bind((to, 8081)).unwrap()).unwrap();
        let outside = self.lab.cluster.namespace("outside").unwrap();
        let stream = outside.run(|| TcpStream::connect_timeout(&(to, 8081).into(), PATIENCE)).unwrap();
        let mut stream = stream.unwrap_or_else(|error| panic!("{pod} {to}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let pod = pod.to_owned();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut seen, mut buffer) = (0, vec![0; 65536]);
            while seen < bytes {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => seen += length,
                }
            }
            stream.write_all(seen.to_string().as_bytes()).unwrap();
        });
        stream.write_all(&vec![b'x'; bytes]).unwrap_or_else(|error| panic!("{pod} {to}: {error}"));
        let mut counted = String::new();
        stream.read_to_string(&mut counted).unwrap_or_else(|error| panic!("{pod} {to}: {error}"));
        assert_eq!(counted, bytes.to_string(), "{pod} {to}");
        thread.join().unwrap();
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.servers.iter().for_each(|(stop, _)| stop.store(true, Ordering::Relaxed));
        for (_, thread) in self.servers.drain(..) {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

fn by_tcp_and_udp(tries: Tries) -> [Tries; 2] {
    [tries.clone().by(Protocol::Tcp), tries.by(Protocol::Udp)]
}

/// Tries from outside that meet all of these, who see the client itself.
fn met(endpoints: &[&'static str]) -> Vec<Tries> {
    let tries = VIPS.map(|vip| by_tcp_and_udp(from("outside", ip(vip), 8080, served_itself(endpoints))));
    tries.into_iter().flatten().collect()
}

/// Counts packets from virtual addresses that come to n1 from other nodes.
const WATCH: &str = "table inet watch {
    chain prerouting {
        type filter hook prerouting priority -400; policy accept;
        iifname eth0 ip saddr 203.0.113.10 counter
        iifname eth0 ip6 saddr 2001:db8:113::10 counter
    }
}";

#[test]
fn replies_come_straight_from_the_pods_of_all_nodes() {
    for attachment in [Attachment::Routed, Attachment::Bridge] {
        let mut direct = Direct::new(attachment);
        direct.web(&["p1", "q1"]);
        let [n1, n2] = direct.start_all();
        n1.namespace().nft(WATCH).unwrap();
        direct.lab.check(&format!("{attachment:?}"), &met(&["p1", "q1"]));
        let watched = n1.output(&["nft", "list", "table", "inet", "watch"]);
        assert_eq!(watched.matches("packets 0 bytes 0").count(), 2, "{watched}");
        // In the cluster it is an address like any other, for the endpoints too.
        let mut tries = Vec::new();
        for vip in VIPS.map(ip) {
            tries.push(from("p3", vip, 8080, served_itself(&["p1", "q1"])).by(Protocol::Tcp));
            tries
                .push(from("n1", vip, 8080, served(&[("p1", As("n1")), ("q1", As("n1"))])).by(Protocol::Tcp));
            // An endpoint has the address itself.
            tries.push(from("p1", vip, 8080, served_itself(&["p1"])).by(Protocol::Tcp));
        }
        direct.lab.check("in the cluster", &tries);
        drop((n1, n2));
    }
}

#[test]
fn large_uploads_and_datagrams_get_through_the_tunnel() {
    let mut direct = Direct::new(Attachment::Routed);
    let web = direct.web(&["q1"]);
    let port = json!({"name": "upload", "protocol": "TCP", "port": 8081});
    web.spec["ports"].as_array_mut().unwrap().push(port.clone());
    web.ports.as_array_mut().unwrap().push(port);
    let [n1, n2] = direct.start_all();
    for endpoint in ["q1", "p1"] {
        let endpoints = direct.lab.endpoints(&[endpoint]);
        direct.lab.set_endpoints(endpoints);
        direct.apply(&[&n1, &n2]);
        for vip in VIPS.map(ip) {
            direct.upload(endpoint, vip, 400_000);
        }
        // Larger than the tunnel, not than the wire.
        let outside = direct.lab.cluster.namespace("outside").unwrap();
        let socket = outside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((ip(VIPS[0]), 8080)).unwrap();
        socket.send(&[b'x'; 1440 + 20]).unwrap();
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{endpoint}: {error}"));
        assert!(length > 1460 && buffer.starts_with(endpoint.as_bytes()));
    }
}

#[test]
fn a_restart_keeps_marks_and_connections_and_changes_nothing() {
    let mut direct = Direct::new(Attachment::Routed);
    direct.web(&["p1", "q1"]);
    // Its marks are freed, so that those of `web` are not what a first start would give.
    direct.lab.service("first", Service::new(json!({
        "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "externalIPs": ["203.0.113.9"], "ports": [{"name": "tcp", "protocol": "TCP", "port": 8080}],
    })).annotated("service.dsr", "tunnel"), &["p1"]);
    let [mut n1, n2] = direct.start_all();
    direct.lab.objects.services.remove("first");
    direct.apply(&[&n1, &n2]);
    let mut flows: Vec<_> = (0..4)
        .map(|_| direct.lab.cluster.connect("outside", ip(VIPS[0]), Protocol::Tcp, 8080, PATIENCE).unwrap())
        .collect();
    assert!(flows.iter().all(|flow| flow.opened().is_connected()), "{}", n1.shown());
    let before = (n1.ipvs(), n1.table());
    assert!(before.1.contains("0x4d000005") || before.1.contains("0x4d000002"), "{}", before.1);
    n1.kill();
    n1 = direct.start(0);
    assert_eq!((n1.ipvs(), n1.table()), before);
    assert_eq!(n1.kernel_ops(), 0, "{}", n1.shown());
    assert!(flows.iter_mut().all(|flow| flow.exchange(PATIENCE).is_connected()));
    direct.lab.check("after the restart", &met(&["p1", "q1"]));
}

#[test]
fn what_is_over_leaves_nothing_behind_on_nodes_and_in_pods() {
    let mut direct = Direct::new(Attachment::Routed);
    direct.web(&["p1", "q1"]);
    let [n1, n2] = direct.start_all();
    let links = direct.shown("q1", "ip -d link");
    assert!(links.contains("kube-tunnel-if") && links.contains("kube-tunnel-v6"), "{links}");
    let sysctl = |node: &Proxy, name: &str| node.output(&["cat", &format!("/proc/sys/net/ipv4/vs/{name}")]);
    assert_eq!(sysctl(&n1, "pmtu_disc").trim(), "0");
    // Another endpoint takes over: that of before is left.
    direct.web(&["p1", "p2"]);
    direct.apply(&[&n1, &n2]);
    n2.until("q1 is left", || !direct.shown("q1", "ip link").contains("kube-tunnel"));
    assert!(direct.shown("p2", "ip -o address").contains(VIPS[1]));
    // The same addresses without direct return, at once.
    direct.web(&["p1", "q1"]).annotations.clear();
    direct.apply(&[&n1, &n2]);
    let plain = VIPS.map(|vip| from("outside", ip(vip), 8080, served(&[("p1", Itself), ("q1", As("n1"))])));
    direct.lab.check("without", &plain.map(|tries| tries.by(Protocol::Tcp)));
    n1.until("nothing is left", || direct.traces().is_empty());
    assert_eq!(sysctl(&n1, "pmtu_disc").trim(), "1");
    // And by `cleanup`, after the program was killed.
    direct.web(&["p1", "q1"]);
    direct.apply(&[&n1, &n2]);
    assert!(!direct.traces().is_empty());
    drop((n1, n2));
    for node in [0, 1] {
        let flags = direct.flags(node);
        let words: Vec<_> = ["cleanup"].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let (ok, out, log) = direct.lab.run(NODES[node], &words);
        assert!(ok, "{out}{log}");
    }
    assert_eq!(direct.traces(), [""; 0]);
}

#[test]
fn an_address_is_shared_with_services_without_direct_return_and_with_sctp() {
    let mut direct = Direct::new(Attachment::Routed);
    let web = direct.web(&["q1"]);
    web.spec["ports"].as_array_mut().unwrap().push(json!({"name": "sctp", "protocol": "SCTP", "port": 8080}));
    direct.lab.service(
        "other",
        Service::new(json!({
            "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"], "externalIPs": VIPS,
        })),
        &["p1", "q2"],
    );
    let [n1, n2] = direct.start_all();
    let mut tries = met(&["q1"]);
    for vip in VIPS.map(ip) {
        tries.push(from("outside", vip, 8080, served(&[("q1", As("n1"))])).by(Protocol::Sctp));
        tries.push(from("outside", vip, 80, served(&[("p1", Itself), ("q2", As("n1"))])));
        // Nobody's port is not sent round and round between the nodes and their router.
        tries.push(from("outside", vip, 81, Refused).by(Protocol::Tcp));
        tries.push(from("outside", vip, 81, Refused).by(Protocol::Udp));
    }
    direct.lab.check("shared", &tries);
    let state = n1.state().to_string();
    assert!(state.contains("without direct return"), "{state}");
    // Who takes away the way of marked packets does not stop them for long.
    n1.output(&["ip", "rule", "del", "pref", "32764"]);
    n1.until("the rule is back", || n1.output(&["ip", "rule"]).contains("0x4d000000/0xff000000"));
    // Without endpoints it is refused and not forwarded to nowhere.
    direct.web(&[]);
    direct.apply(&[&n1, &n2]);
    let refused = VIPS.map(|vip| from("outside", ip(vip), 8080, Refused).by(Protocol::Tcp));
    direct.lab.check("without endpoints", &refused);
}

#[test]
fn an_endpoint_that_cannot_be_set_up_is_reported_and_costs_nobody_else() {
    let mut direct = Direct::new(Attachment::Routed);
    direct.web(&["p1"]);
    let link = direct.folders[0].path().join("cni-p1");
    let target = std::fs::read_link(&link).unwrap();
    std::fs::remove_file(&link).unwrap();
    let n1 = direct.start(0);
    let state = n1.state().to_string();
    assert!(state.contains("endpoint_not_set_up") && state.contains("no network namespace in"), "{state}");
    symlink(target, &link).unwrap();
    n1.until("it is found", || !n1.state().to_string().contains("endpoint_not_set_up"));
    direct.lab.check("found", &met(&["p1"]));
}
