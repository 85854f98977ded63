//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::Path;

use cni_bridge_agent::owned;
use test_netns::house;

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
    let mut owned = owned::SYSCTLS.map(|name| format!("sysctl set to 1 where it exists: {name}")).to_vec();
    owned.sort();
    assert_eq!(house::owned(env!("CARGO_MANIFEST_DIR"), "cni-bridge-agent").unwrap(), owned);
}

#[test]
fn model_and_plan_have_no_clock_and_no_input_or_output() {
    house::pure(env!("CARGO_MANIFEST_DIR"), 10, &["nix::", "kernel_netlink::"]).unwrap();
}

#[test]
fn the_agent_links_nothing_of_the_plugin() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    assert!(dependencies.contains("tokio") && !dependencies.contains("cni-bridge"), "{dependencies}");
}
