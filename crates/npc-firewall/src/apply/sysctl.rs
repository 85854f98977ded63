//! The bridge sysctls: without them, packets between two pods on one Linux bridge never reach the forward
//! hook, and no policy applies to them.
//!
//! KERNEL: net/bridge/br_netfilter_hooks.c; the files exist while the module br_netfilter is loaded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::owned::SYSCTLS;

/// What was found in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is 1, or has just been set to 1.
    On,
    /// There is no such file.
    Missing,
    /// It is not 1 and cannot be set.
    Stuck(String),
}

/// Where sysctls are.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
    devices: PathBuf,
}

impl Sysctls {
    /// Sysctls below a folder, `/proc/sys` unless it is mounted elsewhere.
    pub fn new(root: PathBuf) -> Self {
        Self { root, devices: "/sys/class/net".into() }
    }

    /// Sets each to 1 if it is not.
    pub fn ensure(&self) -> Vec<(&'static str, State)> {
        SYSCTLS.iter().map(|name| (*name, ensure(&self.root.join(name)))).collect()
    }

    /// Whether this node has a Linux bridge at all.
    pub fn has_bridge(&self) -> bool {
        let Ok(devices) = fs::read_dir(&self.devices) else { return false };
        devices.flatten().any(|device| device.path().join("bridge").is_dir())
    }
}

fn ensure(path: &Path) -> State {
    match fs::read_to_string(path) {
        Ok(value) if value.trim() == "1" => State::On,
        Ok(_) => match fs::write(path, "1\n") {
            Ok(()) => State::On,
            Err(error) => State::Stuck(format!("writing 1 to {} failed: {error}", path.display())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => State::Missing,
        Err(error) => State::Stuck(format!("reading {} failed: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_set_and_what_is_missing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let bridge = folder.path().join("net/bridge");
        fs::create_dir_all(&bridge).unwrap();
        fs::write(bridge.join("bridge-nf-call-iptables"), "0\n").unwrap();
        let states = Sysctls::new(folder.path().into()).ensure();
        assert_eq!(states[0].1, State::On);
        assert_eq!(states[1].1, State::Missing);
        assert_eq!(fs::read_to_string(bridge.join("bridge-nf-call-iptables")).unwrap(), "1\n");
    }
}
