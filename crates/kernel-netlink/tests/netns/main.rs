//! What only the kernel can show, each test in a network namespace of its own. Needs root, and `ip`,
//! `conntrack` and `nft` (the other witnesses).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod conntrack;
#[path = "../support/conntrack_contract.rs"]
mod conntrack_contract;
mod elsewhere;
#[cfg(feature = "vm")]
mod kinds;
mod monitor;
#[path = "../support/namespace.rs"]
mod namespace;
mod packets;
#[path = "../support/route_contract.rs"]
mod route_contract;
mod witness;

use kernel_netlink::route::{Rtnetlink, Socket};
use namespace::in_empty_netns;
use route_contract::World;

struct Kernel;

impl World for Kernel {
    fn open(&mut self) -> Box<dyn Rtnetlink> {
        Box::new(Socket::open().unwrap())
    }
}

fn kernel(test: fn(&mut dyn World)) {
    in_empty_netns(move || test(&mut Kernel));
}

mod the_kernel_keeps_the_contract {
    crate::route_contract::route_contract!(super::kernel);
}
