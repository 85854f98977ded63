//! The model of the kernel, the differences between rulesets, and the text: nothing here needs a kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod algebra;
#[path = "../support/contract.rs"]
mod contract;
mod faults;
#[path = "../support/layout.rs"]
mod layout;

#[path = "../support/random.rs"]
mod random;
#[path = "../support/service.rs"]
mod service;

use std::collections::BTreeMap;

use contract::World;
use kernel_nft::{CommitError, Counter, Error, Fake, Family, Name, Nftables, Observed, Transaction};

struct InMemory {
    fake: Fake,
    has_persist: bool,
}

impl World for InMemory {
    fn open(&mut self) -> Box<dyn Nftables> {
        Box::new(Process(self.fake.stranger()))
    }

    fn flush_by_stranger(&mut self) {
        self.fake.flush_by_stranger();
    }

    fn has_persist(&self) -> bool {
        self.has_persist
    }

    fn maps_are_sets(&self) -> bool {
        false
    }
}

/// A handle on the fake whose end is that of a process, as with a socket.
struct Process(Fake);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.restart();
    }
}

impl Nftables for Process {
    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error> {
        self.0.observe(family, table)
    }

    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        self.0.observe_counters(family, table)
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError> {
        self.0.commit(transaction)
    }

    fn portid(&self) -> u32 {
        self.0.portid()
    }
}

fn in_memory(test: fn(&mut dyn World)) {
    test(&mut InMemory { fake: Fake::new(), has_persist: true });
}

fn in_memory_without_persist(test: fn(&mut dyn World)) {
    test(&mut InMemory { fake: Fake::without_persist(), has_persist: false });
}

mod keeps_the_contract {
    crate::contract::contract!(super::in_memory);
}

mod keeps_the_contract_without_persist {
    crate::contract::contract!(super::in_memory_without_persist);
}
