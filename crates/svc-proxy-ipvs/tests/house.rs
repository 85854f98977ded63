//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, reason = "a broken test ends in a panic")]

use svc_proxy_ipvs::owned;
use test_netns::house;

#[test]
fn docs_kernel_ownership_says_what_owned_rs_says() {
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
    owned.sort();
    assert_eq!(house::owned(env!("CARGO_MANIFEST_DIR"), "svc-proxy-ipvs").unwrap(), owned);
}

#[test]
fn model_and_plan_have_no_clock_and_no_input_or_output() {
    house::pure(
        env!("CARGO_MANIFEST_DIR"),
        10,
        &[
            "nix::",
            "tracing",
            "kernel_nft::Socket",
            "ipvs::Socket",
            "route::Socket",
            "crate::apply",
            "crate::controller",
        ],
    )
    .unwrap();
}
