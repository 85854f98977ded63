//! What belongs to others stays as it is; what is ours is mended and cleaned up.

use serde_json::json;
use test_netns::Protocol;

use crate::lab::{Lab, WEB, ip, routes, table};
use crate::tries::{from, served_itself};

/// Virtual services of others: an address in none of our ranges, one in `--excluded-cidrs`, a port of the node
/// that is no node port.
const FOREIGN: &str = "-A -t 172.18.0.2:8888 -s wlc
-a -t 172.18.0.2:8888 -r 10.244.1.12:8080 -m -w 7
-A -t 10.96.200.1:80 -s rr
-a -t 10.96.200.1:80 -r 10.244.1.12:8080 -m -w 3
-A -u 192.0.2.50:53 -s rr
";
/// As ours, of an earlier run: wanted by no Service.
const STALE: &str = "-A -t 10.96.99.99:80 -s rr
-a -t 10.96.99.99:80 -r 10.244.1.12:8080 -m -w 1
-A -t 172.18.0.2:30999 -s rr
-A -u [fd00:96::99]:80 -s rr
";
const EXCLUDED: &str = "--excluded-cidrs=10.96.200.0/24";

/// The lines of `ipvsadm -Sn` that are in `FOREIGN` or, if they are not, should be there.
fn foreign(ipvs: &str) -> Vec<&str> {
    let mut lines: Vec<_> = ipvs
        .lines()
        .filter(|line| ["8888", "10.96.200.1", "192.0.2.50"].iter().any(|word| line.contains(word)))
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn w18_virtual_services_of_others_are_never_touched() {
    let mut lab = Lab::routed();
    let namespace = lab.cluster.namespace("n1").unwrap().clone();
    namespace.output("ipvsadm", &["-R"], &format!("{FOREIGN}{STALE}")).unwrap();
    let before = namespace.output("ipvsadm", &["-Sn"], "").unwrap();
    let wanted = foreign(&before);
    assert_eq!(wanted.len(), 5, "{before}");
    lab.web(json!({}), &["p1"]);
    let mut n1 = lab.start("n1", &[EXCLUDED]);
    let after_start = n1.ipvs();
    assert_eq!(foreign(&after_start), wanted);
    for stale in ["10.96.99.99", "30999", "fd00:96::99"] {
        assert!(!after_start.contains(stale), "{stale} is ours and of no use: {after_start}");
    }
    lab.set_endpoints(lab.endpoints(&["p2"]));
    lab.apply(&[&n1]);
    assert_eq!(foreign(&n1.ipvs()), wanted, "after a change");
    n1.kill();
    let mut n1 = lab.start("n1", &[EXCLUDED]);
    assert_eq!(foreign(&n1.ipvs()), wanted, "after a restart");
    lab.check("ours", &WEB.map(|web| from("p3", ip(web), 80, served_itself(&["p2"]))));
    assert!(n1.terminate().success());

    // Others' things of the same kinds as ours.
    namespace.nft("table inet others { chain c { type filter hook input priority 0; }; }").unwrap();
    lab.output("n1", &["ip", "route", "add", "local", "192.0.2.50", "dev", "lo", "table", "local"]);
    let (ok, out, log) = lab.run("n1", &["cleanup", EXCLUDED]);
    assert!(ok, "{out}{log}");
    let ipvs = namespace.output("ipvsadm", &["-Sn"], "").unwrap();
    assert_eq!(foreign(&ipvs), wanted, "after the clean-up");
    assert_eq!(ipvs.lines().count(), wanted.len(), "nothing of ours is left: {ipvs}");
    assert_eq!((table(&namespace), routes(&namespace)), (String::new(), String::new()));
    assert!(!lab.output("n1", &["ip", "-o", "link"]).contains("kube-dummy-if"));
    assert!(lab.output("n1", &["nft", "list", "tables"]).contains("table inet others"));
    assert!(lab.output("n1", &["ip", "route", "show", "table", "local"]).contains("192.0.2.50"));
    let (ok, out, log) = lab.run("n1", &["cleanup", EXCLUDED]);
    assert!(ok, "where nothing is, nothing is removed: {out}{log}");
}

/// What kube-router's proxy and firewall and a user have, by table (reference, §2.3 to §2.5).
const KUBE_ROUTER: [(&str, &str); 2] = [
    (
        "filter",
        ":KUBE-ROUTER-INPUT - [0:0]
:KUBE-ROUTER-SERVICES - [0:0]
-A INPUT -j KUBE-ROUTER-INPUT
-A INPUT -m set --match-set SETSkube-router-svip dst -j KUBE-ROUTER-SERVICES
-A INPUT -m set --match-set SETSuser src -j ACCEPT
-A KUBE-ROUTER-SERVICES -m set --match-set SETSkube-router-svip-prt dst,dst -j ACCEPT
-A KUBE-ROUTER-SERVICES -m set ! --match-set SETSkube-router-local-ips dst -j REJECT
",
    ),
    (
        "nat",
        ":KUBE-ROUTER-HAIRPIN - [0:0]
-A POSTROUTING -m ipvs --vdir ORIGINAL -j KUBE-ROUTER-HAIRPIN
-A POSTROUTING -m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ -j SNAT --to-source NODE
-A KUBE-ROUTER-HAIRPIN -s POD -d POD -m ipvs --vaddr POD --vport 80 -j SNAT --to-source NODE
",
    ),
];

#[test]
fn chains_and_sets_of_kube_router_s_proxy_go_and_those_of_its_firewall_and_of_others_stay() {
    let lab = Lab::routed();
    let namespace = lab.cluster.namespace("n1").unwrap().clone();
    let tools = [
        ("iptables-nft", "", "inet", "10.244.1.10", "172.18.0.2"),
        ("ip6tables-nft", "inet6:", "inet6", "fd00::10", "fd00::2"),
    ];
    for (iptables, prefix, family, pod, node) in tools {
        for (set, kind) in [
            ("local-ips", "hash:ip"),
            ("svip", "hash:ip"),
            ("svip-prt", "hash:ip,port"),
            ("pod-subnets", "hash:net"),
        ] {
            lab.output(
                "n1",
                &["ipset", "create", &format!("{prefix}kube-router-{set}"), kind, "family", family],
            );
        }
        lab.output("n1", &["ipset", "create", &format!("{prefix}user"), "hash:ip", "family", family]);
        for (table, rules) in KUBE_ROUTER {
            let rules = rules.replace("SETS", prefix).replace("POD", pod).replace("NODE", node);
            let text = format!("*{table}\n{rules}COMMIT\n");
            namespace.output(&format!("{iptables}-restore"), &["--noflush"], &text).unwrap();
        }
    }
    let (ok, out, log) = lab.run("n1", &["cleanup", "--kube-router"]);
    assert!(ok, "{out}{log}");
    for (iptables, prefix, ..) in tools {
        let saved = lab.output("n1", &[&format!("{iptables}-save")]);
        assert!(!saved.contains("KUBE-ROUTER-SERVICES") && !saved.contains("HAIRPIN"), "{saved}");
        let stays = format!("--match-set {prefix}user src -j ACCEPT");
        for stays in ["-A INPUT -j KUBE-ROUTER-INPUT", &stays, "--vmethod MASQ -j SNAT"] {
            assert!(saved.contains(stays), "{stays}: {saved}");
        }
    }
    let sets = lab.output("n1", &["ipset", "list", "-n"]);
    let mut sets: Vec<_> = sets.lines().collect();
    sets.sort_unstable();
    assert_eq!(sets, ["inet6:kube-router-pod-subnets", "inet6:user", "kube-router-pod-subnets", "user"]);
    let (ok, again, log) = lab.run("n1", &["cleanup", "--kube-router"]);
    assert!(ok && !again.contains("chain KUBE"), "{again}{log}");
}

#[test]
fn what_others_break_is_mended() {
    let mut lab = Lab::routed();
    lab.web(json!({}), &["p1"]);
    let n1 = lab.start("n1", &[]);
    let whole = (n1.ipvs(), n1.table(), n1.routes());
    n1.output(&["nft", "delete", "table", "inet", "svc_proxy_ipvs"]);
    n1.until("the table is back", || n1.table() == whole.1);
    n1.output(&["nft", "flush", "ruleset"]);
    n1.until("the table is back again", || n1.table() == whole.1);
    drop(n1);
    // What tells nobody of its end is looked for.
    let n1 = lab.start("n1", &["--sync-period=3s"]);
    for break_it in [
        &["ip", "route", "del", "local", "10.96.0.10", "table", "local"][..],
        &["ip", "link", "del", "kube-dummy-if"],
        &["ipvsadm", "-D", "-t", "10.96.0.10:80"],
        &["ipvsadm", "-d", "-u", "10.96.0.10:80", "-r", "10.244.1.11:8080"],
        &["ipvsadm", "-E", "-t", "[fd00:96::10]:80", "-s", "wlc"],
        &["ipvsadm", "-C"],
    ] {
        n1.output(break_it);
        n1.until(&format!("mended: {break_it:?}"), || (n1.ipvs(), n1.table(), n1.routes()) == whole);
    }
    n1.namespace().sysctl("net/ipv4/vs/conntrack", "0").unwrap();
    n1.until("the sysctl is back", || n1.output(&["cat", "/proc/sys/net/ipv4/vs/conntrack"]).trim() == "1");
    lab.check("served", &WEB.map(|web| from("p3", ip(web), 80, served_itself(&["p1"])).by(Protocol::Tcp)));
}
