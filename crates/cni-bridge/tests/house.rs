//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::Path;

use cni_bridge::owned;
use test_netns::house;

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
    let mut owned = vec![
        format!("nftables table: inet {}", owned::TABLE),
        format!("nat chain priority at postrouting: {}", owned::SOURCE_PRIORITY),
        format!("nat chain priority at prerouting, output: {}", owned::DESTINATION_PRIORITY),
        format!("base chain priority at prerouting: {}", owned::LOOPBACK_PRIORITY),
        format!("devices: {}", owned::LINK_PREFIX),
        format!("alias of its devices: {}", owned::ALIAS_PREFIX),
    ];
    owned.extend(owned::BRIDGE_SYSCTLS.map(|name| format!("sysctl set to 0: {name}")));
    owned.extend(owned::SYSCTLS.map(|name| format!("sysctl set to 1: {name}")));
    owned.sort();
    assert_eq!(house::owned(env!("CARGO_MANIFEST_DIR"), "cni-bridge").unwrap(), owned);
}

#[test]
fn the_program_links_neither_an_async_runtime_nor_the_api_servers_client() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    for word in ["tokio", "common-informer", "node-runtime", "kube"] {
        assert!(!dependencies.contains(word), "{word}");
    }
}
