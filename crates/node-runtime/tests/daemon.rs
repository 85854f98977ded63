//! A whole process (`examples/heartbeat.rs`): flags, environment, pages, signals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The example that cargo built beside this test.
fn heartbeat() -> Command {
    let test = std::env::current_exe().unwrap();
    let path: PathBuf = test.parent().unwrap().parent().unwrap().join("examples/heartbeat");
    let mut command = Command::new(path);
    command.env_remove("RUST_LOG").env_remove("NODE_NAME").stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ends the process whatever becomes of the test.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to a line with `text`.
    fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "no {text:?} in:\n{seen}");
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_daemon_serves_its_pages_and_stops_with_status_zero_on_sigterm() {
    let port = free_port();
    let mut command = heartbeat();
    command.args(["--run-router=false", "-v", "--metrics-path=/m"]);
    command.env("HEARTBEAT_HEALTH_ADDR", "127.0.0.1").env("HEARTBEAT_HEALTH_PORT", port.to_string());
    let mut running = Running::start(command);
    let warning = running.wait_for("flag has no effect here");
    assert!(warning.contains("run-router"), "{warning}");
    running.wait_for("admin port open");
    assert!(get(port, "/healthz").starts_with("HTTP/1.1 200"));
    let state = get(port, "/state");
    assert!(state.contains("\"file\":\"/dev/null\""), "{state}");
    assert!(get(port, "/m").contains("heartbeat_sync_total"));
    running.signal("TERM");
    running.wait_for("stopping");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_daemon_whose_sync_does_not_come_back() {
    let mut command = heartbeat();
    command.args(["--hang", "--health-port=0"]);
    let mut running = Running::start(command);
    running.wait_for("hanging");
    running.signal("TERM");
    running.wait_for("stopping");
    running.signal("INT");
    running.wait_for("second signal");
    assert_eq!(running.child.wait().unwrap().code(), Some(130));
}

#[test]
fn log_lines_are_json_objects_when_asked_for() {
    let mut command = heartbeat();
    command.args(["--log-format=json", "--health-port=0", "--once"]);
    let mut running = Running::start(command);
    let line = running.wait_for("starting");
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["message"], "starting");
    assert_eq!(record["program"], "heartbeat");
    assert_eq!(record["level"], "INFO");
}

#[test]
fn once_ends_by_itself_with_the_result_as_status() {
    let mut good = heartbeat();
    let good = good.args(["--once", "--health-port=0"]).output().unwrap();
    assert_eq!(good.status.code(), Some(0));

    let mut bad = heartbeat();
    let bad = bad.args(["--once", "--health-port=0", "--file=/proc/no/such/file"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(1));
    let text = String::from_utf8(bad.stderr).unwrap();
    assert!(text.contains("heartbeat: sync failed: No such file or directory"), "{text}");
}

#[test]
fn a_mistake_in_the_flags_is_status_two_and_names_the_flag() {
    let output = heartbeat().arg("--sync-period=5M").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--sync-period") && text.contains("1h30m"), "{text}");
}
