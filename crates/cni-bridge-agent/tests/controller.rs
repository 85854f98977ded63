//! The agent on files of its own and a kernel in memory: what it puts where, when, and what it says of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cni_bridge_agent::apply::status::{NodeStatus, WriteError};
use cni_bridge_agent::args::{AgentArgs, Cli, Config, PROGRAM};
use cni_bridge_agent::cleanup;
use cni_bridge_agent::controller::{Agent, Surroundings};
use common_informer::decode;
use common_informer::intern::Interner;
use common_informer::object::{Batch, Change, Kind};
use kernel_netlink::route::{
    Address, Bridge, Command, Fake, LinkChange, LinkIndex, LinkName, NewLink, NewLinkKind, Rtnetlink,
};
use kernel_netlink::sysctl::Sysctls;
use node_runtime::{Cause, Controller, SyncReport};
use serde_json::{Value, json};

const PLUGIN: &str = "CNI bridge plugin cni-bridge 1";

/// How often the status was written, and how the next writes are answered.
#[derive(Clone, Default)]
struct Status(Arc<Mutex<(usize, Vec<WriteError>)>>);

impl NodeStatus for Status {
    fn set_available(&mut self) -> Result<(), WriteError> {
        let mut state = self.0.lock().unwrap();
        if let Some(error) = state.1.pop() {
            return Err(error);
        }
        state.0 += 1;
        Ok(())
    }
}

struct Rig {
    folder: tempfile::TempDir,
    kernel: Fake,
    link: LinkIndex,
    status: Status,
    now: Instant,
    agent: Agent<Fake, Status>,
    config: Config,
}

impl Rig {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            fs::create_dir_all(path("sys/net/bridge")).unwrap();
            fs::write(path(&format!("sys/net/bridge/{name}")), "0\n").unwrap();
        }
        fs::write(path("plugin"), PLUGIN).unwrap();
        let mut arguments = vec![
            "cni-bridge-agent".to_owned(),
            format!("--cni-conf-file={}", path("net.d/10-kuberouter.conflist")),
            format!("--cni-bin-dir={}", path("bin")),
            format!("--plugin={}", path("plugin")),
            format!("--sysctl-root={}", path("sys")),
        ];
        arguments.extend(words.iter().map(|word| (*word).to_owned()));
        let cli = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, arguments).unwrap().cli;
        let args: AgentArgs = cli.agent;
        let config = args.into_config().unwrap();
        let mut kernel = Fake::new();
        let link = kernel.plug_in(&LinkName::new("eth0").unwrap());
        let address = Address::new(link, "192.0.2.1/24".parse().unwrap());
        kernel.commit(&[Command::AddAddress(address)]).unwrap();
        let status = Status::default();
        let agent = agent(&config, &kernel, &status);
        Self { folder, kernel, link, status, now: Instant::now(), agent, config }
    }

    /// The process ends and another begins.
    fn restart(&mut self) {
        self.agent = agent(&self.config, &self.kernel, &self.status);
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

    fn subnets(&self) -> String {
        self.ours()["ipam"]["ranges"].to_string()
    }

    fn set_mtu(&mut self, mtu: u32) {
        let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
        self.kernel.commit(&[Command::SetLink(self.link, change)]).unwrap();
    }

    fn node(&mut self, more: Value) {
        let mut node = json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.1.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        for (key, value) in more.as_object().unwrap() {
            node[key] = value.clone();
        }
        let change = match decode::object_of(Kind::Node, &node, &mut Interner::new()) {
            Ok(decoded) => Change::Applied(decoded.object),
            Err(excluded) => Change::Excluded { object: excluded.object, reason: excluded.reason },
        };
        self.agent.receive(Batch { changes: vec![change], synced: true });
    }

    fn unavailable(&mut self, status: &str) {
        self.node(json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "NetworkUnavailable", "status": status}]}}));
    }

    fn annotated(&mut self, cidrs: &str) {
        self.node(json!({"metadata": {"name": "n1", "annotations": {"kube-router.io/pod-cidrs": cidrs}}}));
    }

    fn sync(&mut self) -> Result<SyncReport, String> {
        self.agent.sync(Cause::Change, self.now).map_err(|error| error.error.to_string())
    }

    /// Operations of a sync that must succeed.
    fn ops(&mut self) -> Vec<(&'static str, u64)> {
        self.sync().unwrap().kernel_ops
    }

    fn reasons(&mut self) -> Vec<&'static str> {
        match self.agent.sync(Cause::Change, self.now) {
            Ok(report) => report.degraded.iter().map(|what| what.reason).collect(),
            Err(error) => error.partial.degraded.iter().map(|what| what.reason).collect(),
        }
    }
}

fn agent(config: &Config, kernel: &Fake, status: &Status) -> Agent<Fake, Status> {
    let surroundings = Surroundings {
        kernel: kernel.clone(),
        status: config.set_network_available.then(|| status.clone()),
        sysctls: config.sysctl_root.clone().map(Sysctls::new),
        metrics: None,
        informer: None,
    };
    let plugin = config.files.plugin.clone().unwrap();
    Agent::new("n1", config.plan.clone(), config.files.clone(), plugin, surroundings)
}

#[test]
fn a_new_node_gets_plugin_configuration_sysctls_and_condition() {
    let mut rig = Rig::new();
    assert!(!rig.agent.is_synced());
    rig.node(json!({}));
    assert_eq!(
        rig.ops(),
        [("condition_set", 1), ("conf_written", 1), ("plugin_installed", 2), ("sysctl_set", 2)]
    );
    assert_eq!(fs::read_to_string(rig.path("bin/cni-bridge")).unwrap(), PLUGIN);
    assert_eq!(fs::read_to_string(rig.path("bin/loopback")).unwrap(), PLUGIN);
    assert_eq!(rig.ours()["mtu"], 1480);
    assert_eq!(rig.subnets(), r#"[[{"subnet":"10.1.0.0/24"}]]"#);
    assert_eq!(fs::read_to_string(rig.path("sys/net/bridge/bridge-nf-call-iptables")).unwrap(), "1\n");
    // And again: nothing.
    assert_eq!(rig.ops(), []);
    rig.restart();
    rig.unavailable("False");
    assert_eq!(rig.ops(), []);
}

#[test]
fn without_a_pod_cidr_there_is_a_plugin_and_no_configuration() {
    let mut rig = Rig::new();
    rig.node(json!({"spec": {}}));
    let error = rig.sync().unwrap_err();
    assert!(error.contains("n1 has no pod CIDR") && error.contains("--allocate-node-cidrs"), "{error}");
    assert!(rig.path("bin/cni-bridge").exists() && !rig.conf_path().exists());
    assert_eq!(rig.status.0.lock().unwrap().0, 0);
    rig.node(json!({}));
    assert_eq!(rig.ops(), [("condition_set", 1), ("conf_written", 1)]);
}

#[test]
fn without_a_plugin_there_is_no_configuration_and_with_an_older_one_it_is_kept_right() {
    let mut rig = Rig::new();
    fs::remove_file(rig.path("plugin")).unwrap();
    rig.node(json!({}));
    assert!(rig.sync().unwrap_err().contains("installing the plugin"));
    assert!(!rig.conf_path().exists());
    fs::write(rig.path("plugin"), PLUGIN).unwrap();
    rig.sync().unwrap();
    fs::remove_file(rig.path("plugin")).unwrap();
    rig.annotated("10.2.0.0/24");
    assert!(rig.sync().is_err());
    assert_eq!(rig.subnets(), r#"[[{"subnet":"10.2.0.0/24"}]]"#);
}

#[test]
fn the_configuration_follows_cidrs_and_the_links_mtu() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.sync().unwrap();
    rig.annotated("10.2.0.0/24,fd00:2::/64");
    assert_eq!(rig.ops(), [("conf_written", 1)]);
    assert_eq!(rig.subnets(), r#"[[{"subnet":"10.2.0.0/24"}],[{"subnet":"fd00:2::/64"}]]"#);
    rig.set_mtu(9000);
    rig.sync().unwrap();
    // No address of IPv6 on the node: its packets go through IPv4.
    assert_eq!(rig.ours()["mtu"], 8980);
    rig.set_mtu(1290);
    assert_eq!(rig.reasons(), ["mtu"]);
    assert_eq!(rig.ours()["mtu"], 1270);
}

#[test]
fn an_mtu_that_is_not_known_leaves_the_one_that_is_there() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.sync().unwrap();
    rig.node(json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}}));
    assert_eq!(rig.reasons(), ["mtu"]);
    assert_eq!(rig.ours()["mtu"], 1480);
    let mut rig = Rig::with(&["--mtu=1400"]);
    rig.node(json!({"status": {}}));
    assert_eq!(rig.reasons(), Vec::<&str>::new());
    assert_eq!(rig.ours()["mtu"], 1400);
}

#[test]
fn what_somebody_changes_or_removes_is_mended() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.sync().unwrap();
    let mut conf = rig.conf();
    conf["name"] = "prod".into();
    conf["plugins"][0]["mtu"] = 9000.into();
    conf["plugins"][0]["ipMasq"] = true.into();
    fs::write(rig.conf_path(), conf.to_string()).unwrap();
    assert_eq!(rig.ops(), [("conf_written", 1)]);
    assert_eq!(rig.ours()["mtu"], 1480);
    assert_eq!(rig.ours()["ipMasq"], true);
    // Lost, it comes back with what others had written, by whose name addresses are reserved.
    let before = fs::read_to_string(rig.conf_path()).unwrap();
    fs::remove_dir_all(rig.path("net.d")).unwrap();
    fs::remove_dir_all(rig.path("bin")).unwrap();
    assert_eq!(rig.ops(), [("conf_written", 1), ("plugin_installed", 2)]);
    assert_eq!(fs::read_to_string(rig.conf_path()).unwrap(), before);
    fs::write(rig.conf_path(), "").unwrap();
    rig.sync().unwrap();
    assert_eq!(fs::read_to_string(rig.conf_path()).unwrap(), before);
}

#[test]
fn what_only_looks_different_is_not_written() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.sync().unwrap();
    let compact = rig.conf().to_string();
    fs::write(rig.conf_path(), &compact).unwrap();
    assert_eq!(rig.ops(), []);
    assert_eq!(fs::read_to_string(rig.conf_path()).unwrap(), compact);
}

#[test]
fn a_file_that_cannot_be_understood_is_left_and_named() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    fs::create_dir(rig.path("net.d")).unwrap();
    fs::write(rig.conf_path(), "{\"plugins\": [}").unwrap();
    let error = rig.sync().unwrap_err();
    assert!(error.contains("10-kuberouter.conflist") && error.contains("mend it"), "{error}");
    assert_eq!(fs::read_to_string(rig.conf_path()).unwrap(), "{\"plugins\": [}");
    assert_eq!(rig.status.0.lock().unwrap().0, 0);
}

#[test]
fn a_malformed_cidr_costs_itself_and_takes_nothing_from_a_network_that_works() {
    let mut rig = Rig::new();
    rig.annotated("10.2.0.0/24,fd00:2::/64");
    rig.sync().unwrap();
    let good = rig.subnets();
    rig.annotated("10.2.0.0/24,fd00:2::/6400");
    assert_eq!(rig.reasons(), ["excluded_objects"]);
    assert_eq!(rig.subnets(), good);
    rig.annotated("10.2.0.0/240");
    rig.sync().unwrap();
    assert_eq!(rig.subnets(), good);
    // The same from spec.
    rig.node(json!({"spec": {"podCIDRs": ["10.2.0.0/24", "x"]}}));
    rig.sync().unwrap();
    assert_eq!(rig.subnets(), good);
    rig.annotated("10.2.0.0/24");
    rig.sync().unwrap();
    assert_eq!(rig.subnets(), r#"[[{"subnet":"10.2.0.0/24"}]]"#);
    // Where there was nothing, there is nothing.
    let mut rig = Rig::new();
    rig.annotated("10.2.0.0/240");
    assert!(rig.sync().is_err() && !rig.conf_path().exists());
}

#[test]
fn a_gateway_of_another_cidr_is_told_until_it_is_gone_or_gives_way() {
    let mut rig = Rig::new();
    let bridge = NewLink::new(LinkName::new("kube-bridge").unwrap(), NewLinkKind::Bridge(Bridge::default()));
    rig.kernel.commit(&[Command::AddLink(bridge)]).unwrap();
    let bridge = rig.kernel.observe_link(&LinkName::new("kube-bridge").unwrap()).unwrap().unwrap().index;
    let gateways = ["10.1.0.1/24", "fd00:9::1/64"].map(|text| Address::new(bridge, text.parse().unwrap()));
    rig.kernel.commit(&gateways.map(Command::AddAddress)).unwrap();
    rig.node(json!({}));
    assert_eq!(rig.reasons(), Vec::<&str>::new());
    rig.annotated("10.2.0.0/24");
    let told = rig.sync().unwrap().degraded;
    assert_eq!(told[0].reason, "gateway_of_before");
    assert!(told[0].message.contains("ip address del 10.1.0.1/24 dev kube-bridge"), "{}", told[0].message);
    let mut conf = rig.conf();
    conf["plugins"][0]["forceAddress"] = true.into();
    fs::write(rig.conf_path(), conf.to_string()).unwrap();
    assert_eq!(rig.reasons(), Vec::<&str>::new());
    conf["plugins"][0]["forceAddress"] = false.into();
    fs::write(rig.conf_path(), conf.to_string()).unwrap();
    assert_eq!(rig.reasons(), ["gateway_of_before"]);
    rig.kernel.commit(&[Command::DeleteAddress(gateways[0])]).unwrap();
    assert_eq!(rig.reasons(), Vec::<&str>::new());
}

#[test]
fn a_node_that_is_gone_or_unreadable_leaves_all_as_it_is() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.sync().unwrap();
    let before = fs::read_to_string(rig.conf_path()).unwrap();
    rig.node(json!({"metadata": {"name": "n1", "labels": 7}}));
    assert!(rig.sync().unwrap_err().contains("cannot be read"));
    assert_eq!(rig.reasons(), ["excluded_objects"]);
    rig.node(json!({"spec": {}}));
    assert!(rig.sync().is_err());
    assert_eq!(fs::read_to_string(rig.conf_path()).unwrap(), before);
}

#[test]
fn nodes_of_others_are_nobodys_business() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.node(json!({"metadata": {"name": "n2"}, "spec": {"podCIDRs": ["10.9.0.0/24"]}}));
    rig.sync().unwrap();
    assert_eq!(rig.subnets(), r#"[[{"subnet":"10.1.0.0/24"}]]"#);
}

#[test]
fn a_file_that_the_runtime_takes_instead_is_told_and_left_and_no_network_is_promised() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    fs::create_dir(rig.path("net.d")).unwrap();
    let other = rig.path("net.d/10-flannel.conflist");
    fs::write(&other, "{}").unwrap();
    assert_eq!(rig.reasons(), ["conf_shadowed"]);
    assert_eq!(rig.status.0.lock().unwrap().0, 0);
    fs::remove_file(other).unwrap();
    assert_eq!(rig.ops(), [("condition_set", 1)]);
}

#[test]
fn the_condition_is_written_when_it_is_not_false_and_rarely_against_somebody_else() {
    let mut rig = Rig::new();
    rig.unavailable("True");
    rig.sync().unwrap();
    let writes = |rig: &Rig| rig.status.0.lock().unwrap().0;
    assert_eq!(writes(&rig), 1);
    // What the watch shows comes later; until then it is not written again.
    assert_eq!(rig.ops(), []);
    for _ in 0..100 {
        rig.unavailable("True");
        let wake = rig.sync().unwrap().wake_at;
        rig.now = wake.unwrap_or(rig.now + Duration::from_secs(1));
    }
    assert!(rig.reasons().contains(&"status_contested"));
    assert!((10..=60).contains(&writes(&rig)), "{}", writes(&rig));
}

#[test]
fn a_status_that_is_not_taken_is_told_and_tried_again_and_all_else_is_in_force() {
    let mut rig = Rig::new();
    rig.status.0.lock().unwrap().1.push(WriteError::Unavailable("forbidden (403)".into()));
    rig.node(json!({}));
    let report = rig.sync().unwrap();
    assert_eq!(report.degraded[0].reason, "status_not_written");
    assert!(report.degraded[0].message.contains("forbidden"));
    rig.now = report.wake_at.unwrap();
    assert_eq!(rig.ops(), [("condition_set", 1)]);
    assert_eq!(rig.reasons(), Vec::<&str>::new());
    let mut rig = Rig::with(&["--set-network-available=false"]);
    rig.unavailable("True");
    rig.sync().unwrap();
    assert_eq!(rig.status.0.lock().unwrap().0, 0);
}

#[test]
fn bridge_sysctls_that_are_missing_are_told_unless_nobody_wants_them() {
    let mut rig = Rig::new();
    fs::remove_dir_all(rig.path("sys/net/bridge")).unwrap();
    rig.node(json!({}));
    assert_eq!(rig.reasons(), ["bridge_not_filtered"]);
    let mut rig = Rig::with(&["--bridge-nf=false"]);
    rig.node(json!({}));
    rig.sync().unwrap();
    assert_eq!(fs::read_to_string(rig.path("sys/net/bridge/bridge-nf-call-iptables")).unwrap(), "0\n");
}

#[test]
fn cleanup_takes_away_what_is_ours_and_no_more() {
    let mut rig = Rig::with(&["--install-as=cni-bridge,bridge"]);
    fs::create_dir(rig.path("bin")).unwrap();
    fs::write(rig.path("bin/bridge"), "theirs").unwrap();
    fs::write(rig.path("bin/loopback"), "theirs").unwrap();
    rig.node(json!({}));
    rig.sync().unwrap();
    assert_eq!(fs::read_to_string(rig.path("bin/bridge")).unwrap(), PLUGIN);
    let mut conf = rig.conf();
    conf["plugins"].as_array_mut().unwrap().push(json!({"type": "tuning"}));
    fs::write(rig.conf_path(), conf.to_string()).unwrap();
    let done = cleanup::run(&rig.config).unwrap().join("\n");
    assert!(done.contains("other plugins of the list are left"), "{done}");
    assert_eq!(rig.conf()["plugins"], json!([{"type": "tuning"}]));
    assert_eq!(fs::read_to_string(rig.path("bin/bridge")).unwrap(), "theirs");
    assert!(!rig.path("bin/cni-bridge").exists() && rig.path("bin/loopback").exists());
    let again = cleanup::run(&rig.config).unwrap().join("\n");
    assert!(again.contains("is not ours") && again.contains("is not there"), "{again}");
    assert_eq!(rig.conf()["plugins"], json!([{"type": "tuning"}]));
}

#[test]
fn cleanup_removes_a_file_in_which_there_is_nothing_else() {
    let mut rig = Rig::new();
    rig.node(json!({}));
    rig.sync().unwrap();
    cleanup::run(&rig.config).unwrap();
    assert!(!rig.conf_path().exists());
    assert_eq!(fs::read_dir(rig.path("bin")).unwrap().count(), 0);
}
