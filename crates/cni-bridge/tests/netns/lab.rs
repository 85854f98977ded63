//! A node and its pods, each a namespace.

use std::path::PathBuf;

use cni_bridge::verbs::Program;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_netns::Namespace;

use crate::support::{Answer, call};

pub(crate) struct Lab {
    pub(crate) node: Namespace,
    pub(crate) folder: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { node: Namespace::new("node").unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Two families, with a gateway.
    pub(crate) fn conf(&self, more: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "cni-bridge", "bridge": "br0", "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": self.data(),
                "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]},
        });
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        conf
    }

    pub(crate) fn call(&self, verb: &str, id: &str, netns: &str, conf: &Value) -> Answer {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns),
            ("CNI_PATH", "/"),
        ];
        let conf = conf.to_string();
        self.node.run(|| call(Program::Bridge, &variables, &conf)).unwrap()
    }

    pub(crate) fn add(&self, id: &str, pod: &Namespace, conf: &Value) -> Answer {
        self.call("ADD", id, pod.path().to_str().unwrap(), conf)
    }

    pub(crate) fn del(&self, id: &str, pod: &Namespace, conf: &Value) -> Answer {
        self.call("DEL", id, pod.path().to_str().unwrap(), conf)
    }

    /// A pod with its result.
    pub(crate) fn pod(&self, id: &str, conf: &Value) -> (Namespace, Value) {
        let pod = Namespace::new(id).unwrap();
        let result = self.add(id, &pod, conf).success().json();
        (pod, result)
    }

    /// Names of the node's links but loopback.
    pub(crate) fn links(&self) -> Vec<String> {
        links(&self.node)
    }

    /// Reserved addresses.
    pub(crate) fn reserved(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data().join("net")) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// Files about owners of addresses.
    pub(crate) fn index(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data().join(".cni-bridge/net")) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| !["boot", "gateways"].contains(&name.as_str())).collect()
    }

    /// What nft lists.
    pub(crate) fn rules(&self) -> String {
        self.node.output("nft", &["list", "ruleset"], "").unwrap()
    }

    /// That no attachment has left anything but the bridge and the empty table.
    pub(crate) fn assert_nothing_left(&self, when: &str) {
        assert!(self.links().iter().all(|name| name == "br0"), "{when}: {:?}", self.links());
        assert_eq!(self.reserved(), Vec::<String>::new(), "{when}");
        assert_eq!(self.index(), Vec::<String>::new(), "{when}");
        let rules = self.rules();
        for word in ["elements", "hairpin_", "goto", "jump hairpin"] {
            assert!(!rules.contains(word), "{when}: {rules}");
        }
    }
}

pub(crate) fn links(namespace: &Namespace) -> Vec<String> {
    let links: Value =
        serde_json::from_str(&namespace.output("ip", &["-json", "link", "show"], "").unwrap()).unwrap();
    let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
    // KERNEL: with the modules of tunnels loaded, each namespace has these.
    names.filter(|name| !["lo", "tunl0", "ip6tnl0"].contains(&name.as_str())).collect()
}
