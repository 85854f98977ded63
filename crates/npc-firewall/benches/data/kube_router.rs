//! The rules that kube-router v2.11 makes for the same node, in its iptables and its nftables layout.
//!
//! Written from a description of its behaviour: the order of rules and the number of rules that a packet
//! walks are kube-router's, the hashes in names are plain numbers here. Only IPv4, since the rules of the
//! other family are in tables that no packet of this benchmark sees.

use std::fmt::Write;

use super::scenario::{PEERS, PORTS, Scenario};

const SERVICE_RANGE: &str = "10.96.0.0/12";
const NODE_PORTS: (u16, u16) = (30000, 32767);

/// Adds one line; writing to a `String` cannot fail.
macro_rules! line {
    ($text:expr, $($arguments:tt)*) => {{ let _ = writeln!($text, $($arguments)*); }};
}

fn pod_chain(index: usize) -> String {
    format!("KUBE-POD-FW-{index:016}")
}

fn policy_chain(index: usize) -> String {
    format!("KUBE-NWPLCY-{index:016}")
}

fn targets(index: usize) -> String {
    format!("KUBE-DST-{index:016}")
}

fn peers(index: usize) -> String {
    format!("KUBE-SRC-{index:016}")
}

/// Input for `ipset restore`.
pub(crate) fn ipsets(scenario: &Scenario) -> String {
    let mut text = String::new();
    for policy in 0..scenario.policies() {
        let members: [(String, Vec<_>); 2] = [
            (targets(policy), scenario.selected_by(policy).map(|pod| scenario.pod(pod)).collect()),
            (peers(policy), (0..PEERS).map(|peer| scenario.peer(peer)).collect()),
        ];
        for (name, addresses) in members {
            line!(text, "create {name} hash:ip family inet hashsize 1024 maxelem 65536 timeout 0");
            for address in addresses {
                line!(text, "add {name} {address} timeout 0");
            }
        }
    }
    text
}

/// Input for `iptables-restore`.
pub(crate) fn iptables(scenario: &Scenario) -> String {
    let mut text =
        String::from("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n");
    let statics = ["KUBE-ROUTER-INPUT", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT"]
        .into_iter()
        .chain(["KUBE-NWPLCY-DEFAULT", "KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-TAIL"])
        .map(str::to_owned);
    let chains =
        statics.chain((0..scenario.pods).map(pod_chain)).chain((0..scenario.policies()).map(policy_chain));
    for chain in chains {
        line!(text, ":{chain} - [0:0]");
    }
    for hook in ["INPUT", "FORWARD", "OUTPUT"] {
        line!(
            text,
            "-A {hook} -m comment --comment \"kube-router netpol - {hook:_<16}\" -j KUBE-ROUTER-{hook}"
        );
    }
    iptables_statics(&mut text);
    for pod in 0..scenario.pods {
        iptables_jumps(&mut text, scenario, pod);
        iptables_pod(&mut text, scenario, pod);
    }
    for policy in 0..scenario.policies() {
        iptables_policy(&mut text, policy);
    }
    for hook in ["INPUT", "FORWARD", "OUTPUT"] {
        line!(text, "-A KUBE-ROUTER-{hook} -j KUBE-NWPLCY-TAIL");
        line!(
            text,
            "-A KUBE-ROUTER-{hook} -m comment --comment \"rule to explicitly ACCEPT traffic that comply to network policies\" \
             -m mark --mark 0x20000/0x20000 -j ACCEPT"
        );
    }
    text.push_str("COMMIT\n");
    text
}

fn iptables_statics(text: &mut String) {
    line!(
        text,
        "-A KUBE-ROUTER-INPUT -d {SERVICE_RANGE} -m comment --comment \"allow traffic to primary/secondary cluster IP range\" -j RETURN"
    );
    let (first, last) = NODE_PORTS;
    for protocol in ["tcp", "udp"] {
        line!(
            text,
            "-A KUBE-ROUTER-INPUT -p {protocol} -m comment --comment \"allow LOCAL {protocol} traffic to node ports\" \
             -m addrtype --dst-type LOCAL -m multiport --dports {first}:{last} -j RETURN"
        );
    }
    line!(
        text,
        "-A KUBE-NWPLCY-DEFAULT -m comment --comment \"rule to mark traffic matching a network policy\" -j MARK --set-xmark 0x10000/0x10000"
    );
    let common = [
        ("rule to drop invalid state for pod", "-m conntrack --ctstate INVALID -j DROP"),
        ("rule for stateful firewall for pod", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        ("allow icmp echo requests", "-p icmp -m icmp --icmp-type echo-request -j ACCEPT"),
        (
            "allow icmp destination unreachable messages",
            "-p icmp -m icmp --icmp-type destination-unreachable -j ACCEPT",
        ),
        ("allow icmp time exceeded messages", "-p icmp -m icmp --icmp-type time-exceeded -j ACCEPT"),
    ];
    for (comment, rule) in common {
        line!(text, "-A KUBE-NWPLCY-COMMON -m comment --comment \"{comment}\" {rule}");
    }
}

/// The linear lists: four rules for each pod in FORWARD, two in OUTPUT, one in INPUT.
fn iptables_jumps(text: &mut String, scenario: &Scenario, pod: usize) {
    let (ip, chain) = (scenario.pod(pod), pod_chain(pod));
    let comment = |what: &str| {
        format!(
            "-m comment --comment \"rule to jump traffic {what} POD name:app-{pod} namespace: apps to chain {chain}\""
        )
    };
    let (to, from) = (comment("destined to"), comment("from"));
    line!(text, "-A KUBE-ROUTER-FORWARD -d {ip}/32 {to} -j {chain}");
    line!(text, "-A KUBE-ROUTER-FORWARD -d {ip}/32 -m physdev --physdev-is-bridged {to} -j {chain}");
    line!(text, "-A KUBE-ROUTER-FORWARD -s {ip}/32 {from} -j {chain}");
    line!(text, "-A KUBE-ROUTER-FORWARD -s {ip}/32 -m physdev --physdev-is-bridged {from} -j {chain}");
    line!(text, "-A KUBE-ROUTER-OUTPUT -d {ip}/32 {to} -j {chain}");
    line!(text, "-A KUBE-ROUTER-OUTPUT -s {ip}/32 {from} -j {chain}");
    line!(text, "-A KUBE-ROUTER-INPUT -s {ip}/32 {from} -j {chain}");
}

fn iptables_pod(text: &mut String, scenario: &Scenario, pod: usize) {
    let (ip, chain) = (scenario.pod(pod), pod_chain(pod));
    let policy = policy_chain(pod / super::scenario::PODS_PER_POLICY);
    let rules = [
        ("run through common rules".to_owned(), "-j KUBE-NWPLCY-COMMON".to_owned()),
        (
            "rule to permit the traffic traffic to pods when source is the pod's local node".to_owned(),
            format!("-d {ip}/32 -m addrtype --src-type LOCAL -j ACCEPT"),
        ),
        ("run through default egress policy".to_owned(), format!("-s {ip}/32 -j KUBE-NWPLCY-DEFAULT")),
        ("run through nw policy".to_owned(), format!("-d {ip}/32 -j {policy}")),
        (
            format!("rule to log dropped traffic POD name:app-{pod} namespace: apps"),
            "-m mark ! --mark 0x10000/0x10000 -m limit --limit 10/minute --limit-burst 10 -j NFLOG --nflog-group 100".to_owned(),
        ),
        (
            format!("rule to REJECT traffic destined for POD name:app-{pod} namespace: apps"),
            "-m mark ! --mark 0x10000/0x10000 -j REJECT".to_owned(),
        ),
        ("reset mark".to_owned(), "-j MARK --set-xmark 0/0x10000".to_owned()),
        ("set mark to ACCEPT".to_owned(), "-j MARK --set-xmark 0x20000/0x20000".to_owned()),
    ];
    for (comment, rule) in rules {
        line!(text, "-A {chain} -m comment --comment \"{comment}\" {rule}");
    }
}

fn iptables_policy(text: &mut String, policy: usize) {
    let (chain, from, to) = (policy_chain(policy), peers(policy), targets(policy));
    for (protocol, port) in PORTS {
        let protocol = protocol.to_lowercase();
        let rule = format!(
            "-A {chain} -p {protocol} -m comment --comment \"rule to ACCEPT traffic from source pods to dest pods selected by policy name policy-{policy} namespace apps\" \
             -m set --match-set {from} src -m set --match-set {to} dst -m {protocol} --dport {port}"
        );
        line!(text, "{rule} -j MARK --set-xmark 0x10000/0x10000");
        line!(text, "{rule} -m mark --mark 0x10000/0x10000 -j RETURN");
    }
}

/// Input for `nft -f`.
pub(crate) fn nftables(scenario: &Scenario) -> String {
    let mut text = String::from("table ip kube-router-filter-ipv4 {\n");
    for policy in 0..scenario.policies() {
        let from: Vec<_> = (0..PEERS).map(|peer| scenario.peer(peer).to_string()).collect();
        let to: Vec<_> = scenario.selected_by(policy).map(|pod| scenario.pod(pod).to_string()).collect();
        for (name, elements) in [(peers(policy), from), (targets(policy), to)] {
            line!(text, "set {name} {{ type ipv4_addr; elements = {{ {} }}; }}", elements.join(", "));
        }
    }
    nftables_statics(&mut text);
    for policy in 0..scenario.policies() {
        let (from, to) = (peers(policy), targets(policy));
        line!(text, "chain {} {{", policy_chain(policy));
        for (protocol, port) in PORTS {
            let protocol = protocol.to_lowercase();
            line!(
                text,
                "ip saddr @{from} ip daddr @{to} {protocol} dport {port} counter meta mark set meta mark or 0x10000 return"
            );
        }
        line!(text, "}}");
    }
    for pod in 0..scenario.pods {
        nftables_pod(&mut text, scenario, pod);
    }
    for hook in ["INPUT", "FORWARD", "OUTPUT"] {
        nftables_hook(&mut text, scenario, hook);
    }
    text.push_str("}\n");
    text
}

fn nftables_statics(text: &mut String) {
    text.push_str(
        "chain KUBE-NWPLCY-DEFAULT { counter meta mark set meta mark or 0x10000; }\n\
         chain KUBE-NWPLCY-TAIL { }\n\
         chain KUBE-NWPLCY-COMMON {\n\
         ct state invalid counter drop\n\
         ct state related,established counter accept\n\
         icmp type echo-request counter accept\n\
         icmp type destination-unreachable counter accept\n\
         icmp type time-exceeded counter accept\n\
         }\n",
    );
}

fn nftables_pod(text: &mut String, scenario: &Scenario, pod: usize) {
    let (ip, chain) = (scenario.pod(pod), pod_chain(pod));
    let policy = policy_chain(pod / super::scenario::PODS_PER_POLICY);
    line!(text, "chain {chain} {{");
    line!(text, "counter jump KUBE-NWPLCY-COMMON");
    line!(text, "fib saddr type local ip daddr {ip} counter accept");
    line!(text, "ip saddr {ip} counter jump KUBE-NWPLCY-DEFAULT");
    line!(text, "ip daddr {ip} counter jump {policy}");
    line!(text, "meta mark and 0x10000 == 0x0 limit rate 10/minute burst 10 packets log group 100");
    line!(text, "meta mark and 0x10000 == 0x0 counter reject");
    line!(text, "counter meta mark set meta mark and 0xfffeffff");
    line!(text, "counter meta mark set meta mark or 0x20000");
    line!(text, "}}");
}

/// A base chain with its linear list: two rules for each pod in FORWARD and OUTPUT, one in INPUT.
fn nftables_hook(text: &mut String, scenario: &Scenario, hook: &str) {
    line!(text, "chain KUBE-ROUTER-{hook} {{");
    line!(text, "type filter hook {} priority filter; policy accept;", hook.to_lowercase());
    if hook == "INPUT" {
        let (first, last) = NODE_PORTS;
        line!(text, "ip daddr {SERVICE_RANGE} counter return");
        for protocol in ["tcp", "udp", "sctp"] {
            line!(
                text,
                "meta l4proto {protocol} fib daddr type local {protocol} dport {first}-{last} counter return"
            );
        }
    }
    for pod in 0..scenario.pods {
        let (ip, chain) = (scenario.pod(pod), pod_chain(pod));
        if hook != "INPUT" {
            line!(text, "ip daddr {ip} counter jump {chain}");
        }
        line!(text, "ip saddr {ip} counter jump {chain}");
    }
    line!(text, "jump KUBE-NWPLCY-TAIL");
    line!(text, "meta mark and 0x20000 == 0x20000 counter accept");
    line!(text, "}}");
}
