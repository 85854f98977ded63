//! The built binary, as far as it needs neither a kernel nor a cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn plan(case: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_npc-firewall"));
    command.args(["plan", "--node-name", "n1", "--manifests"]).arg(case).stderr(Stdio::null());
    command
}

#[test]
fn plan_waits_for_all_objects_each_time() {
    let case = case("deny_all_ingress");
    let expected = std::fs::read_to_string(case.join("expect.nft")).unwrap();
    for _ in 0..30 {
        let output = plan(&case).output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[test]
fn plan_ends_quietly_when_its_reader_has_seen_enough() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = plan(&case("deny_all_ingress")).stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
}
