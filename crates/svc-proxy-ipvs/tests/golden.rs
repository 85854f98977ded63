//! Golden cases: the smallest objects, and what node `n1` has in its kernel for them.
//!
//! Each folder of `tests/golden` has `case.md` (what it pins, and why), `objects.yaml`, `flags` where there are
//! any, and `expect.txt`. The node and the flags that hold in every case are in `support`. Of the table only what
//! differs from that without any Service is shown; `tests/golden/table.nft` is that one.
//! `UPDATE_GOLDEN=1` rewrites the expectations; read the difference before you commit it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common_informer::problem::Problem as _;
use svc_proxy_ipvs::plan::text;
use test_netns::golden;

use support::{NODE, Pure, changes, config};

fn cases() -> Vec<PathBuf> {
    golden::cases(env!("CARGO_MANIFEST_DIR"), 50)
}

fn planned(flags: &[&str], yaml: &str) -> Pure {
    let mut pure = Pure::new("n1", config(flags));
    let mut objects = if yaml.contains("kind: Node,") { Vec::new() } else { changes(NODE) };
    objects.extend(changes(yaml));
    pure.update(objects);
    pure
}

fn of_case(case: &Path) -> Pure {
    let flags = fs::read_to_string(case.join("flags")).unwrap_or_default();
    let flags: Vec<_> = flags.lines().collect();
    planned(&flags, &fs::read_to_string(case.join("objects.yaml")).unwrap())
}

fn told(pure: &Pure) -> String {
    let planner = &pure.planner;
    let mut out = String::from("# ipvsadm -R\n");
    out += &text::render(planner.virtuals().values().map(|wanted| &**wanted));
    for wanted in planner.virtuals().values().filter(|wanted| !wanted.lingering.is_empty()) {
        let keys: Vec<_> = wanted.lingering.iter().map(ToString::to_string).collect();
        writeln!(out, "# {} lingers: {}", wanted.service.key, keys.join(" ")).unwrap();
    }
    out += "\n# virtual addresses\n";
    planner.vips().for_each(|ip| writeln!(out, "{ip}").unwrap());
    out += "\n# nft -f -\n";
    let without = planned(&[], "");
    let ops = kernel_nft::diff(planner.ruleset(), without.ruleset());
    out += &kernel_nft::text::render_ops(planner.ruleset(), &ops);
    for (port, (service, check)) in planner.health() {
        write!(out, "\n# health check port {port}\n{service}: {} here\n", check.local).unwrap();
    }
    for (object, problems) in planner.problems() {
        write!(out, "\n# problems of {object}\n").unwrap();
        problems.iter().for_each(|p| writeln!(out, "{}: {}", p.reason(), p.message()).unwrap());
    }
    out
}

#[test]
fn every_golden_case_is_planned_as_expected() {
    golden::check(cases().iter().map(|case| (case.join("expect.txt"), told(&of_case(case)))));
}

#[test]
fn the_table_without_services_is_as_expected() {
    let table = kernel_nft::text::render(planned(&[], "").ruleset());
    golden::check([(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/table.nft"), table)]);
}

#[test]
fn every_case_says_what_it_pins() {
    for case in cases() {
        let text = fs::read_to_string(case.join("case.md")).unwrap();
        assert!(text.starts_with("# ") && text.lines().count() >= 3, "{}", case.display());
    }
}

/// Whether this process may make network namespaces. Everybody may write the text; only root may have `nft` ask
/// the kernel about it, which `make test-netns` does.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(1) == Some("0"))
}

#[test]
fn nft_and_the_kernel_take_the_table_of_every_case() {
    if !is_root() {
        println!("not root: no kernel is asked");
        return;
    }
    // Tables of many cases in one process, each with a name of its own: starting nft is what takes long.
    let mut all = String::new();
    for (number, case) in cases().iter().enumerate() {
        let table = kernel_nft::text::render(of_case(case).ruleset());
        let renamed = table.replace("svc_proxy_ipvs", &format!("case_{number}"));
        assert_ne!(renamed, table, "{}", case.display());
        all += &renamed;
    }
    let mut nft = Command::new("unshare")
        .args(["--net", "nft", "--check", "--file", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare (util-linux) and nft");
    nft.stdin.take().unwrap().write_all(all.as_bytes()).unwrap();
    let output = nft.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
