//! The built program in the namespaces of nodes, on a kernel with IPVS, judged by the packets that pass and by
//! what `ipvsadm`, `nft` and `ip` show. Needs root, IPVS and these programs: the virtual machine of e2e/vm.
//!
//! Each test has a cluster of its own. `lab` is that cluster with the program in it, `objects` what the program is
//! told, `tries` what is tried; the other modules are the cases.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod balance;
mod cluster_ip;
mod direct;
mod drain;
mod external;
mod faulty;
mod foreign;
mod lab;
mod objects;
mod policy;
mod refusal;
mod restart;
mod scale;
mod tries;
mod udp;
