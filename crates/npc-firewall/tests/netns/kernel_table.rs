//! The table in the kernel: others at it, the commands that show and remove it, and what a change costs.

use std::fs;
use std::path::PathBuf;

use test_netns::{Attachment, Namespace, Protocol};

use crate::lab::{ALL_PORTS, FAR, Firewall, Lab, PROGRAM, ip, nft, settled, table, tables_can_be_owned};
use crate::objects::Pod;

const ISOLATED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
const TABLE: &str = "inet npc_firewall";
/// What somebody may do to the table, as nft commands: each leaves something open that was closed.
const DAMAGES: [(&str, &str); 7] = [
    ("everything flushed", "flush ruleset"),
    ("the table deleted", "delete table inet npc_firewall"),
    ("a chain emptied", "flush chain inet npc_firewall forward"),
    ("a map emptied", "flush map inet npc_firewall in4"),
    ("an element deleted", "delete element inet npc_firewall in4 { 10.244.1.10 }"),
    ("a rule put before the others", "insert rule inet npc_firewall dispatch accept"),
    ("an element added", "add element inet npc_firewall nodeport { tcp . 7777 }"),
];

fn isolated(attachment: Attachment, flags: &[&str]) -> (Lab, Firewall) {
    let mut lab = Lab::new(attachment, 1, 3);
    let firewall = lab.start("n1", flags);
    lab.objects.policy("x/p", ISOLATED);
    lab.apply(&[&firewall]);
    (lab, firewall)
}

fn check(lab: &Lab, case: &str) {
    lab.check(case, &ALL_PORTS, |t| !t.of_ns("x") && !t.to_ns("x"));
}

#[test]
fn nobody_else_changes_a_table_that_is_owned() {
    if !tables_can_be_owned() {
        // Without asking for it, the table is looked after as if ownership were not wanted.
        return mend(&[]);
    }
    let (lab, firewall) = isolated(Attachment::Routed, &[]);
    let before = firewall.table();
    assert!(nft(firewall.namespace(), &["list", "tables"]).expect("nft").contains(TABLE));
    for (case, damage) in DAMAGES {
        let result = firewall.nft(&damage.split(' ').collect::<Vec<_>>());
        // Flushing everything succeeds: it leaves out what is not its own.
        assert_eq!(result.is_ok(), damage == "flush ruleset", "{case}: {result:?}");
        assert_eq!(firewall.table(), before, "{case}");
    }
    check(&lab, "after all that");
    assert_eq!(firewall.metric("npc_firewall_table_repairs_total", ""), 0);
}

#[test]
fn damage_to_a_table_that_is_not_owned_is_noticed_and_mended() {
    mend(&["--table-ownership=never"]);
}

fn mend(flags: &[&str]) {
    let (lab, firewall) = isolated(Attachment::Routed, flags);
    for (number, (case, damage)) in (1..).zip(DAMAGES) {
        let before = firewall.table();
        firewall.nft(&damage.split(' ').collect::<Vec<_>>()).expect("nobody is in the way");
        // The audit comes after five minutes only, so it is the notification that does this.
        firewall.until(case, || {
            words(&firewall.table()) == words(&before)
                && firewall.metric("npc_firewall_table_repairs_total", "") >= number
        });
        check(&lab, case);
        assert_eq!(firewall.get("/readyz").expect("a page").0, 200, "{case}");
    }
    // Each is reported with its author.
    assert!(firewall.log().contains("process=\"nft\""), "{}", firewall.log());
    // Other tables are nobody's business. What the last repair has put off is done by then.
    let ops = settled(&firewall);
    firewall
        .namespace()
        .nft("table inet other { chain c { type filter hook forward priority 0; }; }")
        .expect("loaded");
    firewall.nft(&["delete", "table", "inet", "other"]).expect("deleted");
    assert_eq!(settled(&firewall), ops);
}

/// The words of a table. A table that was touched may be in another generation after it was mended, and the
/// kernel lists the elements of a new set in another order.
fn words(table: &str) -> Vec<&str> {
    let lines = table.lines().filter(|line| !line.contains("ct mark"));
    let mut words: Vec<_> = lines.flat_map(|line| line.split([' ', '\t', ','])).collect();
    words.sort_unstable();
    words
}

#[test]
fn diff_is_empty_when_all_is_in_force_and_else_shows_what_is_missing() {
    let (mut lab, mut firewall) = isolated(Attachment::Bridge, &["--table-ownership=never"]);
    let diff = |lab: &Lab| {
        let (succeeded, output, log) = lab.run("n1", &["--table-ownership=never", "diff"]);
        assert!(succeeded, "{log}");
        output
    };
    assert_eq!(diff(&lab), "", "beside the running program");
    firewall.terminate();
    let before = firewall.table();
    assert_eq!(diff(&lab), "", "after its end");
    lab.objects.policy("y/p", "{podSelector: {}}");
    lab.write();
    let shown = diff(&lab);
    assert!(shown.contains("y/p") && shown.contains(&lab.v4("y/a").to_string()), "{shown}");
    nft(firewall.namespace(), &["delete", "element", "inet", "npc_firewall", "in4", "{ 10.244.1.10 }"])
        .expect("deleted");
    let shown = diff(&lab);
    assert!(shown.contains("10.244.1.10"), "{shown}");
    nft(firewall.namespace(), &["delete", "table", "inet", "npc_firewall"]).expect("deleted");
    let shown = diff(&lab);
    assert!(
        shown.contains("add table inet npc_firewall") || shown.contains("table inet npc_firewall {"),
        "{shown}"
    );
    assert_eq!(firewall.table(), "", "diff touches nothing");
    // What it prints is what nft takes, and makes the table that run makes.
    firewall.namespace().nft(&shown).expect("loads");
    assert_eq!(diff(&lab), "");
    assert!(!before.is_empty());
}

#[test]
fn diff_beside_a_program_that_owns_the_table_is_empty_or_shows_the_change() {
    let (mut lab, firewall) = isolated(Attachment::Routed, &[]);
    let (succeeded, output, log) = lab.run("n1", &["diff"]);
    assert!(succeeded && output.is_empty(), "{output}{log}");
    drop(firewall);
    lab.objects.policy("y/p", "{podSelector: {}}");
    lab.write();
    let (succeeded, output, log) = lab.run("n1", &["diff"]);
    assert!(succeeded && output.contains("y/p"), "{output}{log}");
}

#[test]
fn plan_touches_nothing_and_prints_what_nft_loads_and_run_makes() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    lab.objects.policy("x/p", ISOLATED);
    lab.objects.policy(
        "y/p",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 14.215.0.0/16, except: [14.215.9.0/24]}}], \
         ports: [{port: 80, endPort: 90}, {protocol: SCTP, port: 81}]}]}",
    );
    lab.write();
    let node = lab.cluster.namespace("n1").expect("a node").clone();
    let (succeeded, plan, log) = lab.run("n1", &["--table-ownership=never", "plan"]);
    assert!(succeeded, "{log}");
    assert_eq!(table(&node), "", "plan touches nothing");
    node.nft(&plan).expect("loads");
    // What nft made of it is in force, and run finds nothing to change.
    lab.check("as nft loads it", &ALL_PORTS, |t| {
        let block = t.from == FAR && (t.tcp(80) || t.tcp(81) || (t.is(Protocol::Sctp) && t.port == 81));
        !t.of_ns("x") && !t.to_ns("x") && (!t.to_ns("y") || block)
    });
    let firewall = lab.start("n1", &["--table-ownership=never"]);
    assert_eq!(firewall.kernel_ops(), 0, "{}", firewall.log());
}

#[test]
fn every_golden_table_loads() {
    let node = Namespace::new("golden").expect("a namespace");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut count = 0;
    for case in fs::read_dir(root).expect("golden cases") {
        let text = fs::read_to_string(case.expect("a case").path().join("expect.nft")).expect("read");
        node.output("nft", &["-c", "-f", "-"], &text).expect("nft and the kernel take it");
        count += 1;
    }
    assert!(count >= 20);
    assert_eq!(table(&node), "", "-c only checks");
}

#[test]
fn cleanup_removes_the_table_and_nothing_of_others() {
    let (lab, mut firewall) = isolated(Attachment::Bridge, &[]);
    let node = firewall.namespace().clone();
    node.nft(
        "table inet other { chain c { type filter hook forward priority 0; }; }\ntable ip npc_firewall { }\n",
    )
    .expect("loaded");
    let (succeeded, output, log) = lab.run("n1", &["cleanup"]);
    if tables_can_be_owned() {
        assert!(!succeeded && log.contains("still running"), "while it runs: {output}{log}");
    } else {
        assert!(succeeded, "nobody is in the way: {output}{log}");
        firewall.until("the program makes it anew", || !firewall.table().is_empty());
    }
    check(&lab, "the table is still there");
    firewall.terminate();
    check(&lab, "the program has ended, its rules have not");
    let (succeeded, output, log) = lab.run("n1", &["cleanup"]);
    assert!(succeeded && output.contains("removed"), "{output}{log}");
    let tables = nft(&node, &["list", "tables"]).expect("nft");
    assert_eq!(tables.lines().collect::<Vec<_>>(), ["table inet other", "table ip npc_firewall"]);
    lab.check("all isolation has ended", &ALL_PORTS, |_| true);
    let (succeeded, output, log) = lab.run("n1", &["cleanup"]);
    assert!(succeeded && output.contains("not there"), "a second time: {output}{log}");
}

#[test]
fn cleanup_goes_on_when_nobody_reads_what_it_tells() {
    let (lab, mut firewall) = isolated(Attachment::Bridge, &[]);
    firewall.terminate();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut cleanup = firewall.namespace().command(PROGRAM);
    let done = cleanup.arg("cleanup").stdout(writer).output().expect("nsenter");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    lab.check("all isolation has ended", &ALL_PORTS, |_| true);
}

#[test]
fn a_pod_that_comes_or_goes_is_a_few_operations_also_with_a_thousand_policies() {
    let mut lab = Lab::new(Attachment::Routed, 1, 3);
    for number in 0..1000_u16 {
        // One in ten has a pod on this node.
        lab.objects.policy(
            &format!("apps/p{number}"),
            &format!(
                "{{podSelector: {{matchLabels: {{app: a{number}}}}}, policyTypes: [Ingress, Egress], \
                 ingress: [{{from: [{{podSelector: {{matchLabels: {{app: a{}}}}}}}], ports: [{{port: 80}}]}}], \
                 egress: [{{to: [{{podSelector: {{matchLabels: {{tier: t{}}}}}}}]}}]}}",
                (number + 1) % 1000,
                number % 7
            ),
        );
        let node = if number % 10 == 0 { "n1" } else { "elsewhere" };
        let [high, low] = number.to_be_bytes();
        let ips = [ip(&format!("10.9.{high}.{low}")), ip(&format!("fd00:9::{number:x}"))];
        let mut pod = Pod::new(node, &ips);
        pod.meta.label("app", &format!("a{number}")).label("tier", &format!("t{}", number % 7));
        lab.objects.add(&format!("apps/pod{number}"), pod);
    }
    let firewall = lab.start("n1", &[]);
    lab.apply(&[&firewall]);
    let chains = firewall.metric("npc_firewall_chains", "");
    assert!(chains > 200, "{chains} chains: two for each policy with a pod here");
    // Elements, and the rest: the constants of the generation, in the few chains that have them. A change of
    // the generation may come with a later step, since they keep a second's distance.
    let cost = |lab: &mut Lab| {
        let counts = || {
            let elements = firewall.metric("npc_firewall_kernel_ops_total", "_element\"");
            (elements, firewall.kernel_ops() - elements)
        };
        let before = counts();
        lab.apply(&[&firewall]);
        // They are counted when the transaction is through.
        firewall.until("counted", || counts().0 > before.0);
        let after = counts();
        assert!(after.1 - before.1 <= 40, "{} operations beside elements", after.1 - before.1);
        // The Service that tells when is two of them.
        after.0 - before.0 - 2
    };
    let mut new = Pod::new("n1", &[ip("10.9.9.9"), ip("fd00:9::9:9")]);
    new.meta.label("app", "a10").label("tier", "t3");
    lab.objects.add("apps/new", new.clone());
    let added = cost(&mut lab);
    // By both IP versions: two verdict maps, the pair with itself, and the set of peers that it is in.
    assert_eq!(added, 8, "for a pod of this node");
    new.node = "elsewhere".into();
    new.ips = vec![ip("10.9.9.8"), ip("fd00:9::9:8")];
    lab.objects.add("apps/remote", new);
    assert_eq!(cost(&mut lab), 2, "for a pod of another node");
    lab.objects.pods.remove("apps/new");
    assert_eq!(cost(&mut lab), 8, "for a pod that goes");
    assert_eq!(cost(&mut lab), 0, "nothing has changed");
}
