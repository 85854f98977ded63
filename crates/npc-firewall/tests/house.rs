//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use npc_firewall::owned;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
    let text = fs::read_to_string(root().join("docs/kernel-ownership.md")).unwrap();
    let section = text.split("## npc-firewall").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
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
        format!("base chain priority: {}", owned::PRIORITY),
        format!("connection mark bits: {:#010x}", owned::MARK_MASK),
        format!("NFLOG group: {}", owned::NFLOG_GROUP),
    ];
    owned.extend(owned::SYSCTLS.map(|name| format!("sysctl set to 1: {name}")));
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
        "kernel_nft::Socket",
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
