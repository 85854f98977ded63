//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use cni_bridge::owned;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
    let text = fs::read_to_string(root().join("docs/kernel-ownership.md")).unwrap();
    let section = text.split("\n## cni-bridge\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
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
        format!("nat chain priority at postrouting: {}", owned::SOURCE_PRIORITY),
        format!("nat chain priority at prerouting, output: {}", owned::DESTINATION_PRIORITY),
        format!("base chain priority at prerouting: {}", owned::LOOPBACK_PRIORITY),
        format!("devices: {}", owned::LINK_PREFIX),
        format!("alias of its devices: {}", owned::ALIAS_PREFIX),
        format!("sysctl set to 0: {}", owned::ACCEPT_RA),
    ];
    owned.extend(owned::SYSCTLS.map(|name| format!("sysctl set to 1: {name}")));
    listed.sort();
    owned.sort();
    assert_eq!(listed, owned);
}

#[test]
fn the_program_links_neither_an_async_runtime_nor_the_api_servers_client() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    for word in ["tokio", "common-informer", "node-runtime", "kube"] {
        assert!(!dependencies.contains(word), "{word}");
    }
}
