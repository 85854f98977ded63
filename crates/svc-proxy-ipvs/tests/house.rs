//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use svc_proxy_ipvs::owned;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
    let text = fs::read_to_string(root().join("docs/kernel-ownership.md")).unwrap();
    let section = text.split("## svc-proxy-ipvs").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let mut listed: Vec<String> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what"))
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            format!("{}: {}", cells[1], cells[2].split('`').nth(1).expect("a value in backticks"))
        })
        .collect();
    let mut owned = vec![
        format!("nftables table: inet {}", owned::TABLE),
        format!("base chain priority at input: {}", owned::INPUT_PRIORITY),
        format!("base chain priority at output: {}", owned::OUTPUT_PRIORITY),
        format!("base chain priority at forward: {}", owned::FORWARD_PRIORITY),
        format!("nat chain priority at prerouting, output: {}", owned::DSTNAT_PRIORITY),
        format!("nat chain priority at postrouting: {}", owned::SRCNAT_PRIORITY),
        format!("base chain priority at prerouting, before tracking: {}", owned::RAW_PRIORITY),
        format!("base chain priority at prerouting, last: {}", owned::MARK_PRIORITY),
        format!("route chain priority at output: {}", owned::MARK_OUTPUT_PRIORITY),
        format!("base chain priority at output, for what IPVS sends: {}", owned::UNMARK_PRIORITY),
        format!("packet marks: {:#x}/{:#x}", owned::MARK, owned::MARK_MASK),
        format!("preference of ip rules: {}", owned::MARK_RULE),
        format!("routing table: {}", owned::MARK_TABLE),
        format!("device: {}", owned::DEVICE),
        format!("protocol number of routes and rules: {}", owned::ROUTE_PROTOCOL),
    ];
    owned.extend(owned::TUNNELS.map(|name| format!("device in pods: {name}")));
    owned.extend(owned::DIRECT_SYSCTLS.map(|name| format!("sysctl set with direct return: {name}")));
    owned.extend(owned::SYSCTLS.map(|(name, value)| format!("sysctl set to {value}: {name}")));
    owned.extend(
        owned::BRIDGE_SYSCTLS.map(|(name, value)| format!("sysctl set to {value} where it exists: {name}")),
    );
    listed.sort();
    owned.sort();
    assert_eq!(listed, owned);
}

#[test]
fn model_and_plan_have_no_clock_and_no_input_or_output() {
    let forbidden = [
        "tokio",
        "kube::",
        "std::fs",
        "std::env",
        "std::net::Tcp",
        "std::net::Udp",
        "std::io",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "std::process",
        "nix::",
        "tracing",
        "kernel_nft::Socket",
        "ipvs::Socket",
        "route::Socket",
        "crate::apply",
        "crate::controller",
    ];
    let mut files = Vec::new();
    for folder in ["model", "plan"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder), &mut files);
    }
    assert!(files.len() >= 10, "the sources are elsewhere: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in forbidden {
            assert!(!code.contains(word), "{} uses {word}", file.display());
        }
    }
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else {
            files.push(path);
        }
    }
}
