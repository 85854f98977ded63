//! Each folder of golden/: objects, perhaps a file that was there, and what `plan` prints. `UPDATE_GOLDEN=1` writes
//! what is printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use test_netns::golden;

fn cases() -> Vec<PathBuf> {
    golden::cases(env!("CARGO_MANIFEST_DIR"), 11)
}

fn arguments(case: &Path) -> Vec<String> {
    fs::read_to_string(case.join("args")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn plan(case: &Path, file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cni-bridge-agent"));
    command.args(["plan", "--node-name=n1", "--manifests"]).arg(case.join("objects"));
    command.arg("--cni-conf-file").arg(file).args(arguments(case)).env_remove("KUBE_ROUTER_CNI_CONF_FILE");
    command
}

fn planned(case: &Path, file: &Path) -> Output {
    plan(case, file).output().unwrap()
}

fn file_name(case: &Path) -> String {
    let name = fs::read_to_string(case.join("file")).unwrap_or_else(|_| "before.conflist".to_owned());
    name.trim().to_owned()
}

#[test]
fn every_case_is_planned_as_expected() {
    let told = |case: PathBuf| {
        let output = planned(&case, &case.join(file_name(&case)));
        if output.status.success() {
            (case.join("expect.json"), String::from_utf8(output.stdout).unwrap())
        } else {
            let text = String::from_utf8(output.stderr).unwrap();
            (case.join("expect.error"), text.replace(case.to_str().unwrap(), "CASE"))
        }
    };
    golden::check(cases().into_iter().map(told));
}

#[test]
fn what_is_planned_is_taken_by_the_plugin_and_planned_again_the_same() {
    let mut looked_at = 0;
    for case in cases() {
        let Ok(text) = fs::read_to_string(case.join("expect.json")) else { continue };
        looked_at += 1;
        let arguments = arguments(&case);
        let kind =
            arguments.iter().find_map(|word| word.strip_prefix("--install-as=")).unwrap_or("cni-bridge");
        let file: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(support::read_by_the_plugin(&file, kind), Ok(()), "{}", case.display());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name(&case));
        fs::write(&path, &text).unwrap();
        let again = planned(&case, &path);
        assert_eq!(String::from_utf8(again.stdout).unwrap(), text, "{}", case.display());
    }
    assert!(looked_at >= 9, "{looked_at}");
}

#[test]
fn plan_ends_quietly_when_its_reader_has_seen_enough() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fresh_dual_stack");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let file = case.join("before.conflist");
    let status = plan(&case, &file).stdout(writer).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
}
