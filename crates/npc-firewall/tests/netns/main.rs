//! The built program in the namespaces of nodes, judged by the packets that pass.
//!
//! Each test has a cluster of its own, so all run side by side. `lab` is that cluster with the program in it,
//! `objects` what the program is told; the other modules are the cases.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod established;
mod fields;
mod hammered;
mod kernel_table;
mod kube_router;
mod lab;
mod leftovers;
mod nflog;
mod node;
mod objects;
mod pods;
mod privilege;
mod refusal;
mod restart;
mod tke;
