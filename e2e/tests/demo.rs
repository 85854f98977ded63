//! The demo as a whole, with the real firewall: as root.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up has failed")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// Bound of the wait for a change: the demo itself takes some time before it.
const LIMIT: Duration = Duration::from_secs(180);

/// `NPC_FIREWALL`, or the firewall of this build, beside the demo; Cargo builds that only when asked.
fn firewall() -> PathBuf {
    if let Some(path) = std::env::var_os("NPC_FIREWALL") {
        return path.into();
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--package", "npc-firewall", "--bin", "npc-firewall"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "npc-firewall does not build");
    Path::new(DEMO).with_file_name("npc-firewall")
}

fn demo(firewall: &Path, folder: &Path) -> Command {
    let mut command = Command::new(DEMO);
    command.env("NPC_FIREWALL", firewall).env("TMPDIR", folder).env_remove("KEEP").env("DEMO_PAUSE", "0");
    command
}

fn left_behind(folder: &Path) -> Vec<PathBuf> {
    folder.read_dir().expect("lists").map(|entry| entry.expect("reads").path()).collect()
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_step_is_as_its_policy_says_and_fits_a_narrow_terminal() {
    let folder = tempfile::tempdir().expect("folder");
    let output = demo(&firewall(), folder.path()).output().expect("runs");
    let (shown, errors) = texts(&output);
    assert!(output.status.success(), "{shown}\n{errors}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("ok:")).count(), 7, "{shown}");
    let paths = ["  program", "  manifests"];
    for line in shown.lines().filter(|line| !paths.iter().any(|path| line.starts_with(path))) {
        assert!(line.chars().count() <= 100, "{line}");
    }
    assert_eq!(left_behind(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_firewall_that_does_not_enforce_makes_it_fail_with_the_cells_that_are_wrong() {
    let folder = tempfile::tempdir().expect("folder");
    // Given another node's name it finds no pods of its own.
    let idle = folder.path().join("idle-firewall");
    let script = format!("#!/bin/sh\nexec {} \"$@\" --node-name elsewhere\n", firewall().display());
    std::fs::write(&idle, script).expect("written");
    std::fs::set_permissions(&idle, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    let inner = folder.path().join("tmp");
    std::fs::create_dir(&inner).expect("made");
    let output = demo(&idle, &inner).output().expect("runs");
    let (shown, errors) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}\n{errors}");
    assert!(errors.contains("nsb/shop -> nsa/web should be blocked: connected to nsa/web"), "{errors}");
    assert_eq!(left_behind(&inner), Vec::<PathBuf>::new());
}

#[test]
fn kept_up_it_shows_what_an_edit_changes_and_goes_at_a_signal() {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = demo(&firewall(), folder.path());
    let mut child = command.env("KEEP", "1").stdout(Stdio::piped()).spawn().expect("starts");
    let pid = Pid::from_raw(child.id() as i32);
    let (done, shown) = mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        // Its output ends then, and with it the loop below.
        if shown.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            kill(pid, Signal::SIGKILL).expect("killed");
        }
    });
    let mut manifests = None;
    let mut edited = false;
    let mut changed = Vec::new();
    // nsc/tool is the sixth column. A table that is made while the policy comes into force may have a part of it.
    let is_refused = |line: &str| line.starts_with("nsa/web") && line.split_whitespace().nth(6) == Some("X*");
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("reads");
        if let Some(path) = line.strip_prefix("  manifests  ") {
            manifests = Some(PathBuf::from(path));
        }
        if line.starts_with("Ctrl-C") {
            let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: mine, \
                          namespace: nsc}\nspec: {podSelector: {matchLabels: {app: tool}}}\n";
            let manifests = manifests.as_ref().expect("was shown before");
            std::fs::write(manifests.join("mine.yaml"), policy).expect("written");
            edited = true;
        } else if edited {
            changed.push(line);
            if changed.last().is_some_and(|line| is_refused(line)) {
                break;
            }
        }
    }
    drop(done);
    guard.join().expect("ended");
    assert!(changed.iter().any(|line| is_refused(line)), "{changed:#?}");
    // Nobody reads any more, and what changes next is shown all the same.
    std::fs::remove_file(manifests.expect("was shown before").join("mine.yaml")).expect("removed");
    std::thread::sleep(Duration::from_secs(2));
    kill(pid, Signal::SIGINT).expect("signalled");
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(0));
    assert_eq!(left_behind(folder.path()), Vec::<PathBuf>::new());
}
