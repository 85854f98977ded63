//! What only the kernel can show, each test in a network namespace of its own. Needs root, `nft` and
//! `conntrack` (the other witnesses).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../support/contract.rs"]
mod contract;
#[path = "../support/layout.rs"]
mod layout;
mod load;
mod marks;
mod namespace;
mod packets;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/service.rs"]
mod service;
mod traces;
mod watch;
mod witness;

use contract::World;
use kernel_nft::{Nftables, Socket};
use namespace::{in_netns, linux_is_at_least, run};

struct Kernel {
    end_ack: bool,
}

impl World for Kernel {
    fn open(&mut self) -> Box<dyn Nftables> {
        let socket = Socket::open().unwrap();
        Box::new(if self.end_ack { socket } else { socket.without_end_ack() })
    }

    fn flush_by_stranger(&mut self) {
        run("nft", &["flush", "ruleset"]);
    }

    fn has_persist(&self) -> bool {
        linux_is_at_least(6, 9)
    }

    fn maps_are_sets(&self) -> bool {
        linux_is_at_least(6, 5)
    }
}

fn kernel(test: fn(&mut dyn World)) {
    in_netns(move || test(&mut Kernel { end_ack: true }));
}

/// The way that is taken on Linux before 6.10.
fn kernel_without_end_ack(test: fn(&mut dyn World)) {
    in_netns(move || test(&mut Kernel { end_ack: false }));
}

mod the_kernel_keeps_the_contract {
    crate::contract::contract!(super::kernel);
}

mod the_kernel_keeps_the_contract_without_end_ack {
    crate::contract::contract!(super::kernel_without_end_ack);
}
