//! The built binary, as far as it needs no cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use test_netns::golden;

fn lb_ipam(words: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lb-ipam")).args(words).arg("--manifests").arg(folder).output().unwrap()
}

#[test]
fn every_golden_case_is_planned_as_expected() {
    let planned = |case: PathBuf| {
        let pools = case.join("pools.yaml");
        // Pools are no objects: they stand beside the folder that is watched.
        let words = ["plan", "--pools", pools.to_str().unwrap()];
        let output = lb_ipam(&words, &case.join("objects"));
        assert!(output.status.success(), "{}: {}", case.display(), String::from_utf8_lossy(&output.stderr));
        (case.join("expect.txt"), String::from_utf8(output.stdout).unwrap())
    };
    golden::check(golden::cases(env!("CARGO_MANIFEST_DIR"), 5).into_iter().map(planned));
}

#[test]
fn run_with_files_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let output = lb_ipam(&["run", "--loadbalancer-ip-range=192.0.2.0/24"], folder.path());
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--manifests") && text.contains("only `plan` works"), "{text}");
}

#[test]
fn plan_ends_quietly_when_its_reader_has_seen_enough() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/oldest_first");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_lb-ipam"))
        .args(["plan", "--loadbalancer-ip-range=192.0.2.0/24", "--manifests"])
        .arg(case.join("objects"))
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
