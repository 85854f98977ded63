//! What another program left beside others' rules, made by the real iptables and ipset, and looked at by them.

use kernel_nft::ipset::Ipsets;
use kernel_nft::{Family, IpVersion, Socket, Trace, Traces, legacy};

use crate::namespace::{feed, in_netns, run};

const LEFT: Traces = Traces {
    tables: &[(Family::Ip, "gone"), (Family::Ip6, "gone")],
    shared: &[(Family::Ip, "filter"), (Family::Ip6, "filter"), (Family::Ip, "nat")],
    is_chain: |name| name.starts_with("LEFT-"),
    is_ipset: |name| name.starts_with("LEFT-"),
};
/// Chains that lead to each other, with matches that only iptables knows (`xt match set`, `physdev`), a comment, and
/// foreign rules that are like them.
const RULES: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:LEFT-A - [0:0]
:LEFT-B - [0:0]
:MINE - [0:0]
-A INPUT -m comment --comment \"left by somebody - ABC\" -j LEFT-A
-A INPUT -m set --match-set mine src -m comment --comment \"leads to LEFT-A, says who wrote it\" -j ACCEPT
-A FORWARD -m physdev --physdev-is-bridged -j LEFT-B
-A FORWARD -m set ! --match-set mine dst -j MINE
-A FORWARD -j LEFT-A
-A LEFT-A -m set --match-set LEFT-SET src -j LEFT-B
-A LEFT-A -j MINE
-A LEFT-B -m limit --limit 10/min -j NFLOG --nflog-group 100
-A LEFT-B -j REJECT
-A MINE -m physdev --physdev-is-bridged -j RETURN
-A MINE -g LEFT-B
COMMIT
";

fn load() {
    run("ipset", &["create", "LEFT-SET", "hash:ip"]);
    run("ipset", &["create", "mine", "hash:net"]);
    run("ipset", &["add", "mine", "192.0.2.0/24"]);
    feed("iptables-nft-restore", &[], RULES).expect("rules that iptables takes");
}

/// Without what changes by itself: counters and dates.
fn saved() -> Vec<String> {
    let text = run("iptables-nft-save", &["-t", "filter"]);
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// What stays of [`RULES`].
fn rest() -> Vec<String> {
    let of_theirs =
        |line: &str| ["-j LEFT-", "-g LEFT-", "-A LEFT-", ":LEFT-"].iter().any(|sign| line.contains(sign));
    RULES.lines().filter(|line| !of_theirs(line)).map(str::to_owned).collect()
}

fn remove() -> (Vec<Trace>, Vec<String>) {
    let (mut nft, mut ipsets) = (Socket::open().unwrap(), Ipsets::open().unwrap());
    let (found, errors) = LEFT.find(&mut nft, &mut ipsets);
    assert!(errors.is_empty(), "{errors:?}");
    let mut removed = Vec::new();
    let errors = LEFT.remove(&mut nft, &mut ipsets, |trace| removed.push(trace.clone()));
    if errors.is_empty() {
        assert_eq!(found, removed, "what is found is what is removed");
    }
    (removed, errors.iter().map(ToString::to_string).collect())
}

#[test]
fn chains_go_with_what_leads_to_them_and_every_other_rule_stays() {
    in_netns(|| {
        load();
        run("nft", &["add table ip gone; add chain ip gone c; add table ip stays"]);
        let (removed, errors) = remove();
        assert_eq!(errors, [""; 0]);
        let of = |which: fn(&Trace) -> bool| removed.iter().filter(|trace| which(trace)).count();
        assert_eq!(of(|trace| matches!(trace, Trace::Rule { .. })), 4, "{removed:?}");
        assert_eq!(of(|trace| matches!(trace, Trace::Chain { .. })), 2, "{removed:?}");
        assert_eq!(of(|trace| matches!(trace, Trace::Table(..))), 1, "{removed:?}");
        assert_eq!(of(|trace| matches!(trace, Trace::Ipset(_))), 1, "{removed:?}");
        assert_eq!(saved(), rest());
        assert_eq!(run("ipset", &["list", "-n"]), "mine\n");
        assert!(run("ipset", &["list", "mine"]).contains("192.0.2.0/24"));
        let tables = run("nft", &["list", "tables"]);
        assert!(tables.contains("ip stays") && !tables.contains("ip gone"), "{tables}");
        assert_eq!(remove(), (Vec::new(), Vec::new()), "once more");
        assert_eq!(saved(), rest());
    });
}

#[test]
fn kernels_that_do_not_answer_the_end_of_a_batch_remove_the_same() {
    in_netns(|| {
        load();
        let (mut nft, mut ipsets) = (Socket::open().unwrap().without_end_ack(), Ipsets::open().unwrap());
        let mut removed = 0;
        let errors = LEFT.remove(&mut nft, &mut ipsets, |_| removed += 1);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(removed, 7);
        assert_eq!(saved(), rest());
    });
}

#[test]
fn a_chain_that_a_map_leads_to_stays_with_all_of_its_table_and_is_named() {
    in_netns(|| {
        load();
        run(
            "nft",
            &["add map ip filter m { type ipv4_addr : verdict; elements = { 192.0.2.1 : jump LEFT-B }; }"],
        );
        let before = run("nft", &["list", "table", "ip", "filter"]);
        let (removed, errors) = remove();
        assert_eq!(removed, [], "one transaction, and the rules use the set");
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("ip filter") && errors[0].contains("chain LEFT-B"), "{errors:?}");
        assert!(errors[1].contains("LEFT-SET") && errors[1].contains("still uses it"), "{errors:?}");
        assert_eq!(run("nft", &["list", "table", "ip", "filter"]), before);
    });
}

#[test]
fn a_set_that_a_foreign_rule_uses_stays_and_is_named() {
    in_netns(|| {
        load();
        run("iptables-nft", &["-A", "MINE", "-m", "set", "--match-set", "LEFT-SET", "dst", "-j", "DROP"]);
        let (removed, errors) = remove();
        assert_eq!(removed.len(), 6, "all but the set: {removed:?}");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("ipset LEFT-SET"), "{errors:?}");
        assert_eq!(run("ipset", &["list", "-n"]), "LEFT-SET\nmine\n");
    });
}

#[test]
fn where_nothing_was_ever_made_there_is_nothing_to_remove() {
    in_netns(|| {
        assert_eq!(remove(), (Vec::new(), Vec::new()));
        assert_eq!(run("nft", &["list", "tables"]), "", "nothing was made on the way");
    });
}

#[test]
fn no_set_is_destroyed_without_its_name() {
    in_netns(|| {
        load();
        let mut ipsets = Ipsets::open().unwrap();
        let long = "x".repeat(40);
        for odd in ["", "\0", "\0mine", &long] {
            let result = ipsets.destroy(odd, std::time::Duration::ZERO);
            assert!(!matches!(result, Ok(true)), "{odd:?}: {result:?}");
        }
        assert_eq!(run("ipset", &["list", "-n"]), "LEFT-SET\nmine\n");
    });
}

#[test]
fn thousands_of_chains_go_in_one_transaction() {
    in_netns(|| {
        let mut rules = "*filter\n".to_owned();
        (0..4000).for_each(|n| rules += &format!(":LEFT-{n:05} - [0:0]\n"));
        (0..4000).for_each(|n| {
            rules += &format!("-A FORWARD -d 10.0.{}.{}/32 -j LEFT-{n:05}\n", n / 250, n % 250);
            rules += &format!("-A LEFT-{n:05} -j REJECT\n");
        });
        feed("iptables-nft-restore", &[], &(rules + "COMMIT\n")).expect("loaded");
        let (removed, errors) = remove();
        assert_eq!((removed.len(), errors.len()), (8000, 0));
        let left = saved();
        assert!(!left.iter().any(|line| line.contains("LEFT")), "{left:?}");
    });
}

#[test]
fn tables_of_the_older_iptables_are_told_apart() {
    in_netns(|| {
        run("iptables-nft", &["-N", "LEFT-A"]);
        assert_eq!(legacy::tables(IpVersion::V4).unwrap(), [""; 0]);
        run("ip6tables-legacy", &["-t", "filter", "-N", "LEFT-A"]);
        assert_eq!(legacy::tables(IpVersion::V4).unwrap(), [""; 0]);
        assert_eq!(legacy::tables(IpVersion::V6).unwrap(), ["filter"]);
    });
}
