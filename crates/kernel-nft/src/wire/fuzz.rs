//! Bytes from the kernel's side of the socket may be anything: nothing here panics, whatever is read.

use proptest::collection::vec;
use proptest::prelude::*;

use super::decode::{self, Dumped, Elements};
use super::encode::Batch;
use super::{Message, Messages};
use crate::ruleset::{DataType, Family, Ruleset, SetSpec};
use crate::transaction::Transaction;
use crate::{TableFlags, create};

#[path = "../../tests/support/layout.rs"]
#[allow(dead_code, reason = "made for other tests too")]
mod layout;
#[path = "../../tests/support/service.rs"]
#[allow(dead_code, reason = "made for other tests too")]
mod service;

/// A transaction has the messages that a dump has.
fn messages_of(table: &Ruleset) -> Vec<u8> {
    let ops = create(table);
    let transaction =
        Transaction { family: Family::Inet, table: &table.table.name, ops: &ops, generation: Some(1) };
    Batch::encode(&transaction, 1, true).unwrap().bytes().to_vec()
}

/// Of everything that this crate writes.
fn messages_of_a_table() -> Vec<u8> {
    let mut bytes = messages_of(&layout::layout("npc", TableFlags::default()));
    bytes.extend(messages_of(&service::service_layout("npc")));
    bytes
}

/// Everything that reads messages, on all messages; how many objects were found.
fn read_everything(bytes: &[u8]) -> usize {
    let specs = [
        SetSpec::set(&[DataType::Ipv4Addr]),
        SetSpec::set(&[DataType::Ipv6Addr, DataType::InetProto, DataType::InetService]),
        SetSpec::intervals(DataType::Ipv4Addr),
        SetSpec::verdicts(&[DataType::Ipv6Addr]),
        SetSpec::data(&[DataType::Ipv4Addr], &[DataType::Ipv4Addr]),
    ];
    let mut elements = specs.each_ref().map(|_| Elements::default());
    let mut found = 0;
    for message in Messages::new(bytes).map_while(Result::ok) {
        found += read(&message);
        for (spec, elements) in specs.iter().zip(&mut elements) {
            elements.add(&message, spec);
        }
    }
    let whole = elements.map(Elements::finish);
    found + whole.iter().filter(|dumped| matches!(dumped, Dumped::All(_))).count()
}

fn read(message: &Message<'_>) -> usize {
    let found = [
        decode::table(message, Family::Inet).is_some(),
        decode::generation(message).is_some(),
        decode::table_name(message).is_some(),
        decode::chain(message, "npc").is_some(),
        decode::rule(message, "npc").is_some(),
        decode::set(message, "npc").is_some(),
        decode::counter(message, "npc").is_some(),
    ];
    found.into_iter().filter(|found| *found).count()
}

#[test]
fn the_messages_that_are_damaged_below_are_read_when_whole() {
    assert!(read_everything(&messages_of_a_table()) > 200);
}

proptest! {
    #[test]
    fn fuzz_damaged_messages(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        end in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = messages_of_a_table();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let end = if whole { bytes.len() } else { end.index(bytes.len()) };
        read_everything(&bytes[..end]);
    }

    #[test]
    fn fuzz_any_bytes(bytes in vec(any::<u8>(), 0..512)) {
        read_everything(&bytes);
        // As one message, so that the attributes are reached.
        read(&Message { kind: 0, flags: 0, sequence: 0, portid: 0, body: &bytes });
    }
}
