//! What kube-router's firewall left on a node, made by the real iptables and ipset as kube-router has them, beside
//! rules of others; `cleanup --kube-router` removes exactly that. What is there is judged by iptables and ipset.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use tempfile::TempDir;
use test_netns::{Attachment, Namespace};

use crate::lab::{ALL_PORTS, Lab, PROGRAM, until};

const FAMILIES: [Family; 2] = [
    Family { iptables: "iptables-nft", sets: "", of_sets: "inet", subnet: "198.51.100.0/24" },
    Family { iptables: "ip6tables-nft", sets: "inet6:", of_sets: "inet6", subnet: "2001:db8:99::/64" },
];
/// Rules of others, also such that look like kube-router's: kube-proxy's, kube-router's own proxy, and a user's.
const FOREIGN: &str = "\
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-SERVICES - [0:0]
:KUBE-SERVICES - [0:0]
:user - [0:0]
-A INPUT -m set --match-set SETSuser src -m comment --comment \"KUBE-ROUTER-INPUT -j KUBE-POD-FW-ABC\" -j user
-A INPUT -m set --match-set SETSkube-router-svip dst -j KUBE-ROUTER-SERVICES
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m physdev --physdev-is-bridged -j user
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-ROUTER-SERVICES -m set ! --match-set SETSuser dst -j REJECT
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j RETURN
-A user -m limit --limit 3/min -j NFLOG --nflog-group 7
-A user -j RETURN
";
const MODE_NFTABLES: &str = "
table ip kube-router-filter-ipv4 {
  set KUBE-DST-A { type ipv4_addr; }
  chain KUBE-NWPLCY-A { ip daddr @KUBE-DST-A counter meta mark set meta mark or 0x10000 return; }
  chain KUBE-ROUTER-FORWARD { type filter hook forward priority filter; policy accept; jump KUBE-NWPLCY-A; }
}
table ip6 kube-router-filter-ipv6 { chain KUBE-ROUTER-INPUT { type filter hook input priority filter; } ; }
table ip kube-router-filter-mine { }
";

struct Family {
    iptables: &'static str,
    sets: &'static str,
    of_sets: &'static str,
    subnet: &'static str,
}

impl Family {
    fn foreign(&self) -> String {
        FOREIGN.replace("SETS", self.sets)
    }

    /// kube-router's mode iptables on a node where `pods` are isolated for ingress (reference, §1.3).
    fn kube_router(&self, pods: &[IpAddr]) -> (String, String) {
        let (mut chains, mut rules) = (String::new(), String::new());
        for (hook, signs) in [("INPUT", &["-s"][..]), ("FORWARD", &["-d", "-s"]), ("OUTPUT", &["-d", "-s"])] {
            let chain = format!("KUBE-ROUTER-{hook}");
            chains += &format!(":{chain} - [0:0]\n");
            rules +=
                &format!("-I {hook} 1 -m comment --comment \"kube-router netpol - ABCDEF\" -j {chain}\n");
            for (number, pod) in pods.iter().enumerate() {
                let matches = ["", "-m physdev --physdev-is-bridged "];
                for matches in &matches[..if hook == "FORWARD" { 2 } else { 1 }] {
                    for sign in signs {
                        rules += &format!("-A {chain} {matches}{sign} {pod} -j KUBE-POD-FW-{number:016}\n");
                    }
                }
            }
            rules += &format!(
                "-A {chain} -j KUBE-NWPLCY-TAIL\n-A {chain} -m mark --mark 0x20000/0x20000 -j ACCEPT\n"
            );
        }
        for chain in ["DEFAULT", "COMMON", "TAIL", "POLICY"] {
            chains += &format!(":KUBE-NWPLCY-{chain} - [0:0]\n");
        }
        rules += "-A KUBE-NWPLCY-DEFAULT -j MARK --set-xmark 0x10000/0x10000\n";
        rules += "-A KUBE-NWPLCY-COMMON -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        let policy = format!(
            "-A KUBE-NWPLCY-POLICY -m set --match-set {0}KUBE-SRC-PEERS src -m set --match-set {0}KUBE-DST-TARGETS dst",
            self.sets
        );
        rules +=
            &format!("{policy} -p tcp -m multiport --dports 80,81 -j MARK --set-xmark 0x10000/0x10000\n");
        rules += &format!("{policy} -m mark --mark 0x10000/0x10000 -j RETURN\n");
        let local = format!("-m set ! --match-set {}kube-router-local-pods dst", self.sets);
        rules += &format!("-A KUBE-NWPLCY-TAIL -d {} {local} -j REJECT\n", self.subnet);
        for (number, pod) in pods.iter().enumerate() {
            let chain = format!("KUBE-POD-FW-{number:016}");
            chains += &format!(":{chain} - [0:0]\n");
            rules += &format!(
                "-A {chain} -j KUBE-NWPLCY-COMMON\n\
                 -A {chain} -d {pod} -m addrtype --src-type LOCAL -j ACCEPT\n\
                 -A {chain} -s {pod} -j KUBE-NWPLCY-DEFAULT\n\
                 -A {chain} -d {pod} -j KUBE-NWPLCY-POLICY\n\
                 -A {chain} -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/min --limit-burst 10 -j NFLOG \
                 --nflog-group 100\n\
                 -A {chain} -m mark ! --mark 0x10000/0x10000 -j REJECT\n\
                 -A {chain} -j MARK --set-xmark 0x0/0x10000\n\
                 -A {chain} -j MARK --set-xmark 0x20000/0x20000\n"
            );
        }
        (chains, rules)
    }

    fn load(&self, node: &Namespace, lines: &str) {
        let text = format!("*filter\n{lines}COMMIT\n");
        let restore = format!("{}-restore", self.iptables);
        node.output(&restore, &["--noflush"], &text).expect("rules that iptables takes");
    }

    /// Without what changes by itself: dates.
    fn saved(&self, node: &Namespace) -> String {
        let text = node.output(&format!("{}-save", self.iptables), &["-t", "filter"], "").expect("iptables");
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    }
}

fn pods() -> [Vec<IpAddr>; 2] {
    [["10.244.1.10", "10.244.1.11"], ["fd00::10", "fd00::11"]]
        .map(|pods| pods.map(|pod| pod.parse().expect("an address")).into())
}

fn ipsets(node: &Namespace, sets: &[&str]) {
    for Family { sets: prefix, of_sets, .. } in &FAMILIES {
        let lines: String = sets
            .iter()
            .map(|set| format!("create {prefix}{set} hash:ip family {of_sets} timeout 0\n"))
            .collect();
        node.output("ipset", &["restore"], &lines).expect("sets that ipset takes");
    }
}

fn set_names(node: &Namespace) -> Vec<String> {
    let text = node.output("ipset", &["list", "-n"], "").expect("ipset");
    let mut names: Vec<_> = text.lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// What is others', then what is kube-router's. Returns what others have.
fn fill(node: &Namespace, pods: &[Vec<IpAddr>; 2]) -> (Vec<String>, Vec<String>) {
    ipsets(node, &["user", "kube-router-svip", "KUBE-CLUSTER-IP"]);
    FAMILIES.iter().for_each(|family| family.load(node, &family.foreign()));
    let others = (FAMILIES.iter().map(|family| family.saved(node)).collect(), set_names(node));
    ipsets(node, &["KUBE-SRC-PEERS", "KUBE-DST-TARGETS", "KUBE-SRC-UNUSED", "kube-router-local-pods"]);
    for (family, pods) in FAMILIES.iter().zip(pods) {
        let (chains, rules) = family.kube_router(pods);
        family.load(node, &(chains + &rules));
    }
    others
}

fn now(node: &Namespace) -> (Vec<String>, Vec<String>) {
    (FAMILIES.iter().map(|family| family.saved(node)).collect(), set_names(node))
}

fn cleanup(node: &Namespace, flags: &[&str]) -> (bool, String, String) {
    let mut command = node.command(PROGRAM);
    let done = command.arg("cleanup").args(flags).stdin(Stdio::null()).output().expect("nsenter");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.success(), text(&done.stdout), text(&done.stderr))
}

const FORCED: [&str; 2] = ["--kube-router", "--without-firewall"];

#[test]
fn exactly_what_kube_router_left_is_removed_and_once_more_changes_nothing() {
    let node = Namespace::new("node").expect("root is needed");
    let others = fill(&node, &pods());
    let before = now(&node);
    assert_ne!(before, others);
    let (ok, dry, errors) = cleanup(&node, &["--kube-router", "--dry-run"]);
    assert!(ok, "{errors}");
    assert_eq!(now(&node), before, "a dry run touches nothing");
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(ok, "{told}{errors}");
    assert_eq!(now(&node), others);
    assert_eq!(told.replace("removed: ", "would remove: "), dry, "what is told before is what is done");
    for what in [
        "removed: rule of chain INPUT that leads to KUBE-ROUTER-INPUT, table ip filter\n",
        "removed: chain KUBE-NWPLCY-TAIL, table ip6 filter\n",
        "removed: ipset inet6:kube-router-local-pods\n",
        "removed: ipset KUBE-SRC-UNUSED\n",
    ] {
        assert!(told.contains(what), "{what}{told}");
    }
    // 3 rules, 9 chains and 4 sets for each IP version.
    assert_eq!(told.lines().count(), 2 * (3 + 9 + 4), "{told}");
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(ok, "{errors}");
    assert_eq!(told, "kube-router's firewall left nothing here\n");
    assert_eq!(now(&node), others);
}

#[test]
fn tables_of_kube_router_s_mode_nftables_go_and_others_stay() {
    let node = Namespace::new("node").expect("root is needed");
    node.nft(MODE_NFTABLES).expect("loaded");
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(ok, "{errors}");
    assert_eq!(
        told,
        "removed: table ip kube-router-filter-ipv4\nremoved: table ip6 kube-router-filter-ipv6\n"
    );
    let tables = node.output("nft", &["list", "tables"], "").expect("nft");
    assert_eq!(tables, "table ip kube-router-filter-mine\n");
}

#[test]
fn cleaning_up_waits_for_our_table_and_then_opens_what_only_kube_router_refused() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    lab.objects.policy(
        "x/p",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}",
    );
    lab.write();
    let node = lab.cluster.namespace("n1").expect("a node").clone();
    // kube-router saw a policy for x/a and y/a that is there no more.
    let isolated = [vec![lab.v4("x/a"), lab.v4("y/a")], vec![lab.v6("x/a"), lab.v6("y/a")]];
    let others = fill(&node, &isolated);
    let (ok, _, errors) = cleanup(&node, &["--kube-router"]);
    assert!(!ok && errors.contains("inet npc_firewall") && errors.contains("--without-firewall"), "{errors}");
    assert_ne!(now(&node), others, "nothing is removed before our table is in force");
    assert!(!lab.connects("z/a", "x/a", 80), "kube-router refuses it");
    assert!(!lab.connects("z/a", "y/a", 80), "kube-router refuses it");

    let mut firewall = lab.start("n1", &[]);
    assert!(!lab.connects("y/a", "x/a", 80), "both have a say");
    let table = firewall.table();
    let (ok, told, errors) = cleanup(&node, &["--kube-router"]);
    assert!(ok, "{told}{errors}");
    assert_eq!(now(&node), others);
    assert_eq!(firewall.table(), table, "ours stays");
    // kube-router's chain of its service proxy, which is not in question here, refuses at input.
    for family in &FAMILIES {
        node.output(family.iptables, &["-F", "KUBE-ROUTER-SERVICES"], "").expect("flushed");
    }
    lab.check("by the policies alone", &ALL_PORTS, |t| !t.to_ns("x") || t.of_ns("y"));
    firewall.terminate();
}

#[test]
fn what_others_still_use_stays_and_is_named_and_the_rest_goes() {
    let node = Namespace::new("node").expect("root is needed");
    let others = fill(&node, &pods());
    node.nft(
        "add map ip filter m { type ipv4_addr : verdict; elements = { 192.0.2.1 : jump KUBE-NWPLCY-TAIL }; }",
    )
    .expect("loaded");
    let used = ["-A", "user", "-m", "set", "--match-set", "inet6:KUBE-SRC-UNUSED", "src", "-j", "DROP"];
    node.output("ip6tables-nft", &used, "").expect("added");
    let before = now(&node);
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(!ok, "{told}");
    for what in [
        "nftables table ip filter: delete chain KUBE-NWPLCY-TAIL",
        "ipset KUBE-SRC-PEERS: a rule or another set still uses it",
        "ipset inet6:KUBE-SRC-UNUSED: a rule or another set still uses it",
    ] {
        assert!(errors.contains(what), "{what}\n{errors}");
    }
    let after = now(&node);
    assert_eq!(after.0[0], before.0[0], "one transaction: IPv4 is as it was");
    assert_eq!(
        after.0[1].replace("-A user -m set --match-set inet6:KUBE-SRC-UNUSED src -j DROP\n", ""),
        others.0[1]
    );
    node.nft("delete map ip filter m").expect("deleted");
    node.output("ip6tables-nft", &[&["-D"], &used[1..]].concat(), "").expect("deleted");
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(ok, "{told}{errors}");
    assert_eq!(now(&node), others);
}

#[test]
fn the_older_iptables_is_told_with_the_command_that_remains_to_be_run() {
    let node = Namespace::new("node").expect("root is needed");
    ipsets(
        &node,
        &["KUBE-SRC-PEERS", "KUBE-DST-TARGETS", "kube-router-local-pods", "user", "kube-router-svip"],
    );
    let [v4, v6] = pods();
    let mut others = Vec::new();
    for (program, family, pods) in
        [("iptables-legacy", &FAMILIES[0], &v4), ("ip6tables-legacy", &FAMILIES[1], &v6)]
    {
        let restore = |lines: &str| {
            let text = format!("*filter\n{lines}COMMIT\n");
            node.output(&format!("{program}-restore"), &["--noflush"], &text).expect("loaded");
        };
        restore(&family.foreign());
        others.push((program, legacy_saved(&node, program)));
        let (chains, rules) = family.kube_router(pods);
        restore(&(chains + &rules));
    }
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(
        !ok && errors.contains("ipset KUBE-DST-TARGETS: a rule or another set still uses it"),
        "{errors}"
    );
    let commands: Vec<_> = told.lines().filter(|line| line.contains("-legacy-save")).collect();
    assert_eq!(commands.len(), 2, "{told}");
    for command in commands {
        node.output("sh", &["-c", command], "").expect("the command runs as it is");
    }
    for (program, others) in others {
        assert_eq!(legacy_saved(&node, program), others, "{program}");
    }
    let (ok, told, errors) = cleanup(&node, &FORCED);
    assert!(ok, "{told}{errors}");
    assert_eq!(set_names(&node), ["inet6:kube-router-svip", "inet6:user", "kube-router-svip", "user"]);
}

fn legacy_saved(node: &Namespace, program: &str) -> Vec<String> {
    let text = node.output(&format!("{program}-save"), &["-t", "filter"], "").expect("iptables");
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn a_kube_router_that_is_still_running_on_this_node_is_told() {
    let node = Namespace::new("node").expect("root is needed");
    let elsewhere = Namespace::new("elsewhere").expect("root is needed");
    let folder = TempDir::with_prefix("npc-firewall-test-").expect("a folder");
    // A shell under another name that waits for its standard input.
    let program = folder.path().join("kube-router");
    fs::copy("/bin/bash", &program).expect("copied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    let program = program.display().to_string();
    let run = |node: &Namespace, flags: &[&str]| {
        let mut command = node.daemon(&program);
        command.args(["-c", "read line", "kube-router"]).args(flags).stdin(Stdio::piped());
        let child = command.spawn().expect("nsenter and setpriv");
        let name = format!("/proc/{}/comm", child.id());
        until("it runs", || fs::read_to_string(&name).is_ok_and(|name| name == "kube-router\n"));
        Running(child)
    };
    let _elsewhere = run(&elsewhere, &[]);
    let _for_routes = run(&node, &["--run-router=true", "--run-firewall=false"]);
    assert_eq!(cleanup(&node, &FORCED).2, "", "one has another network namespace, one no firewall");
    let here = run(&node, &["--run-router=false"]);
    let (ok, _, errors) = cleanup(&node, &FORCED);
    assert!(ok, "it is a warning");
    assert!(errors.contains(&format!("process {}.", here.0.id())), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn its_own_table_is_only_shown_by_a_dry_run() {
    let node = Namespace::new("node").expect("root is needed");
    node.nft("table inet npc_firewall { }").expect("loaded");
    assert_eq!(cleanup(&node, &["--dry-run"]).1, "would remove: table inet npc_firewall\n");
    assert_eq!(cleanup(&node, &[]).1, "table inet npc_firewall removed\n");
    assert_eq!(cleanup(&node, &["--dry-run"]).1, "table inet npc_firewall is not there\n");
    let (ok, _, errors) = cleanup(&node, &["--without-firewall"]);
    assert!(!ok && errors.contains("--kube-router"), "{errors}");
}
