//! The whole of it: the built agent installs the built plugin and writes its configuration; called with that, it
//! gives a pod its network.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use test_netns::Namespace;

use crate::process::{LIMIT, Process, eventually};

struct Lab {
    node: Namespace,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let node = Namespace::new("node").unwrap();
        node.ip("link add up0 mtu 1450 type veth peer name down0 mtu 1450\n\
                 link set up0 up\n\
                 link set down0 up\n\
                 address add 192.0.2.1/24 dev up0\n\
                 address add 2001:db8::1/64 dev up0 nodad")
            .unwrap();
        let lab = Self { node, folder: tempfile::tempdir().unwrap() };
        fs::create_dir(lab.path("objects")).unwrap();
        fs::create_dir(lab.path("net.d")).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn conf_path(&self) -> PathBuf {
        self.path("net.d/10-kuberouter.conflist")
    }

    fn conf(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.conf_path()).unwrap()).unwrap()
    }

    fn ours(&self) -> Value {
        self.conf()["plugins"][0].clone()
    }

    fn put_node(&self, cidrs: Value) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDRs": cidrs},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]}});
        let draft = self.path("draft");
        fs::write(&draft, node.to_string()).unwrap();
        fs::rename(draft, self.path("objects/node.json")).unwrap();
    }

    /// The agent, with the plugin that stands beside it: `cargo build -p cni-bridge` makes it.
    fn words(&self) -> Vec<String> {
        let plugin = Path::new(env!("CARGO_BIN_EXE_cni-bridge-agent")).with_file_name("cni-bridge");
        assert!(plugin.exists(), "{} is missing: cargo build -p cni-bridge", plugin.display());
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        vec![
            "--node-name=n1".to_owned(),
            format!("--manifests={}", path("objects")),
            format!("--cni-conf-file={}", self.conf_path().display()),
            format!("--cni-bin-dir={}", path("bin")),
            "--health-port=0".to_owned(),
        ]
    }

    fn start(&self) -> Process {
        let mut command = self.node.daemon(env!("CARGO_BIN_EXE_cni-bridge-agent"));
        let quiet = std::env::var_os("SHOW_LOG").is_none();
        let error = if quiet { Stdio::null() } else { Stdio::inherit() };
        Process(command.args(self.words()).stdout(Stdio::null()).stderr(error).spawn().unwrap())
    }

    /// Calls the installed plugin with the written configuration, as a runtime would.
    fn call(&self, verb: &str, id: &str, pod: &Namespace) -> String {
        let plugin = self.path("bin/cni-bridge");
        let conf = self.conf_path();
        let netns = pod.path();
        let words =
            ["exec", verb, "--conf", conf.to_str().unwrap(), "--id", id, "--netns", netns.to_str().unwrap()];
        self.node.output(plugin.to_str().unwrap(), &words, "").unwrap()
    }
}

/// What a listener at the address says to the client.
fn ask(from: &Namespace, to: &Namespace, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let listener = to.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, client) = listener.accept().unwrap();
        write!(stream, "{}", client.ip()).unwrap();
    });
    let text = from
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .unwrap();
    answering.join().unwrap();
    text
}

fn mtu(pod: &Namespace) -> u64 {
    let links = pod.output("ip", &["-json", "link", "show", "dev", "eth0"], "").unwrap();
    serde_json::from_str::<Value>(&links).unwrap()[0]["mtu"].as_u64().unwrap()
}

#[test]
fn a_pod_gets_its_network_from_what_the_agent_has_put_in_place() {
    let lab = Lab::new();
    // As kube-router leaves it; reservations are kept apart from this machine's.
    let before = json!({"cniVersion": "0.3.0", "name": "mynet", "plugins": [{"name": "kubernetes", "type": "bridge",
        "bridge": "kube-bridge", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "dataDir": lab.path("data"), "ranges": [[{"subnet": "10.9.0.0/24"}]]}}]});
    fs::write(lab.conf_path(), before.to_string()).unwrap();
    lab.put_node(json!(["10.1.0.0/24", "fd00:1::/64"]));
    let mut agent = lab.start();
    eventually("the configuration", || lab.ours()["type"] == "cni-bridge");
    // ip6tnl with its option takes 48 of 1450.
    assert_eq!(lab.ours()["mtu"], 1402);

    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    let result: Value = serde_json::from_str(&lab.call("add", "a", &a)).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/24", "{result}");
    assert_eq!(result["ips"][1]["address"], "fd00:1::2/64", "{result}");
    lab.call("add", "b", &b);
    assert_eq!(mtu(&a), 1402);
    assert_eq!(ask(&a, &b, "10.1.0.3:80"), "10.1.0.2");
    assert_eq!(ask(&a, &b, "[fd00:1::3]:80"), "fd00:1::2");
    assert_eq!(ask(&a, &lab.node, "192.0.2.1:80"), "10.1.0.2");

    // The node's CIDR and its link change: the next pod is told.
    lab.put_node(json!(["10.2.0.0/24"]));
    eventually("the other CIDR", || lab.ours()["ipam"]["ranges"] == json!([[{"subnet": "10.2.0.0/24"}]]));
    assert_eq!(lab.ours()["mtu"], 1430);
    lab.node.ip("link set up0 mtu 1400").unwrap();
    eventually("the other MTU", || lab.ours()["mtu"] == 1380);
    // The bridge is the gateway of one IPv4 network: the node is drained, and the first new pod changes it.
    for (id, pod) in [("a", &a), ("b", &b)] {
        lab.call("del", id, pod);
    }
    let c = Namespace::new("c").unwrap();
    let result: Value = serde_json::from_str(&lab.call("add", "c", &c)).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.2.0.2/24", "{result}");
    assert_eq!(mtu(&c), 1380);
    lab.call("del", "c", &c);
    let reserved = fs::read_dir(lab.path("data/mynet")).unwrap().flatten();
    let reserved = reserved.filter(|entry| entry.file_name().to_string_lossy().starts_with("10."));
    assert_eq!(reserved.count(), 0);

    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    let words = lab.words();
    let words: Vec<&str> = ["cleanup"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let done = lab.node.output(env!("CARGO_BIN_EXE_cni-bridge-agent"), &words, "").unwrap();
    assert_eq!(done.matches("removed").count(), 3, "{done}");
    assert!(!lab.conf_path().exists());
    assert!(["bin/cni-bridge", "bin/loopback"].iter().all(|program| !lab.path(program).exists()));
}
