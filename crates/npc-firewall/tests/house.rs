//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, reason = "a broken test ends in a panic")]

use npc_firewall::owned;
use test_netns::house;

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
    let mut owned = vec![
        format!("nftables table: inet {}", owned::TABLE),
        format!("base chain priority: {}", owned::PRIORITY),
        format!("connection mark bits: {:#010x}", owned::MARK_MASK),
        format!("NFLOG group: {}", owned::NFLOG_GROUP),
    ];
    owned.extend(owned::SYSCTLS.map(|name| format!("sysctl set to 1: {name}")));
    owned.sort();
    assert_eq!(house::owned(env!("CARGO_MANIFEST_DIR"), "npc-firewall").unwrap(), owned);
}

#[test]
fn model_and_plan_have_no_clock_and_no_input_or_output() {
    house::pure(env!("CARGO_MANIFEST_DIR"), 10, &["nix::", "kernel_nft::Socket"]).unwrap();
}
