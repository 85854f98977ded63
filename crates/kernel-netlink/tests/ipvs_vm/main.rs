//! What only the kernel can show, each test in a network namespace of its own. Needs real root, IPVS and
//! `ipvsadm` (the other witness): the virtual machine of e2e/vm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../support/contract.rs"]
mod contract;
#[path = "../support/namespace.rs"]
mod namespace;
mod traffic;
mod witness;

use contract::World;
use kernel_netlink::ipvs::{Ipvs, Socket};
use namespace::in_netns;

struct Kernel;

impl World for Kernel {
    fn open(&mut self) -> Box<dyn Ipvs> {
        Box::new(Socket::open().unwrap())
    }
}

fn kernel(test: fn(&mut dyn World)) {
    in_netns(move || test(&mut Kernel));
}

mod the_kernel_keeps_the_contract {
    crate::contract::contract!(super::kernel);
}
