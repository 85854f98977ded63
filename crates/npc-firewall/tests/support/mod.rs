//! What the tests of this crate share: an oracle of the policy rules, random clusters, and the public conformance
//! suites. The interpreter of compiled rulesets is that of `test-netns`.
//!
//! ```text
//! random ──► objects ──┬─► oracle ──────────────► allowed?  ┐
//!                      └─► planner ─► ruleset ─► interpreter ├─ must agree
//! conformance ─► objects, expected cells ────────────────────┘
//! ```
#![allow(dead_code, reason = "each test binary uses another part of these modules")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]
#![allow(unreachable_pub, reason = "modules of test binaries are private")]

pub mod cluster;
pub mod conformance;
pub mod oracle;
pub mod random;

pub use test_netns::interpreter;
