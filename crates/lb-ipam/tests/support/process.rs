//! The built binary as a process.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A process that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    /// Starts an instance whose Lease outlasts every test: who leads changes only where one is given back.
    pub(crate) fn start(url: &str, name: &str, more: &[&str]) -> Self {
        Self::start_with_lease(url, name, 3600, more)
    }

    /// Starts an instance that is believed dead after `seconds`, and believes itself for two thirds of them.
    pub(crate) fn start_with_lease(url: &str, name: &str, seconds: u32, more: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_lb-ipam"))
            .args(["--master", url, "--pod-name", name, "--health-port=0", "--lease-retry-period=300ms"])
            .arg(format!("--lease-duration={seconds}s"))
            .arg(format!("--lease-renew-deadline={}s", seconds / 3 * 2))
            .args(more)
            .env_remove("KUBECONFIG")
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("SHOW_LOG").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .unwrap();
        Self(child)
    }

    /// `kill -9`
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGTERM, and the end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.wait(Duration::from_secs(60))
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
