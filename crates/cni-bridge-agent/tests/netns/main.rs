//! Links of a kernel, and the built agent with the built plugin: a pod gets its network. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod links;
mod pod;
#[path = "../support/process.rs"]
mod process;
