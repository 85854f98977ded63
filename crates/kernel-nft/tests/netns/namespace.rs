//! A network namespace for one test, on a thread of its own, and `nft` in it as the other witness.

use std::process::{Command, Stdio};

/// Runs `test` on a new thread in a new network namespace, which goes away with the thread.
pub(crate) fn in_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        test()
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// By the kernel's own word, for what differs.
pub(crate) fn linux_is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("proc is mounted");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse().ok());
    let mut next = || numbers.next().expect("a release such as 6.1.0");
    (next(), next()) >= (major, minor)
}

/// Runs a program in the namespace of the calling thread; panics with its words if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    match try_run(program, arguments) {
        Ok(output) => output,
        Err(output) => panic!("{program} {arguments:?}: {output}"),
    }
}

/// Runs a program; `Err` holds what it said if it failed.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).expect("text")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Feeds a program its standard input; `Err` holds what it said if it failed.
pub(crate) fn feed(program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is installed");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the program reads");
    let output = child.wait_with_output().expect("the program ends");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
