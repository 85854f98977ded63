//! The plugin on a kernel: links, addresses, rules, packets; undone, killed, many at once. Needs root and nft.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod bridge;
mod killed;
mod lab;
mod loopback;
mod packets;
mod parallel;
#[path = "../support/mod.rs"]
mod support;
mod undone;
mod vlan;
