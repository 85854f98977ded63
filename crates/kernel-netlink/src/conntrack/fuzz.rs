//! Bytes from the kernel's side of the socket may be anything: nothing here panics, whatever is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NetlinkSerializable;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::wire::{self, CTA_TUPLE_ORIG};
use super::{Connection, Family, Protocol, Tuple};
use crate::attribute::{Attribute, Message, Value};

fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::Ipv4 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()).boxed(),
        Family::Ipv6 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()).boxed(),
    }
}

/// A connection whose answers come from where packets went.
fn connection() -> impl Strategy<Value = Connection> {
    let family = prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)];
    let addresses = family.prop_flat_map(|family| (address(family), address(family)));
    let numbers = any::<(u8, u16, u16, u16)>();
    (addresses, numbers, option::of(any::<u32>())).prop_map(
        |((source, destination), (protocol, source_port, destination_port, zone), id)| {
            let original = Tuple { source, destination, source_port, destination_port };
            Connection { protocol: Protocol(protocol), original, reply: original, zone, id }
        },
    )
}

/// As a dump tells it: with a second tuple, and news.
fn told(connection: &Connection) -> Vec<u8> {
    let mut message = wire::delete(connection);
    let tuple = message.attributes.iter().find(|attribute| attribute.kind == CTA_TUPLE_ORIG).unwrap().clone();
    message.attributes.push(Attribute { kind: CTA_TUPLE_ORIG + 1, ..tuple });
    message.attributes.insert(0, Attribute::new(4000, Value::Text("news".to_owned())));
    body(&message)
}

fn body(message: &Message) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn connections_are_read_back_as_written(connection in connection()) {
        prop_assert_eq!(wire::connection(&told(&connection)), Ok(Some(connection)));
    }

    #[test]
    fn what_ends_a_connection_always_names_it(connection in connection()) {
        let message = wire::delete(&connection);
        let Some(Attribute { value: Value::Nested(inner), .. }) =
            message.attributes.iter().find(|attribute| attribute.kind == CTA_TUPLE_ORIG)
        else {
            return Err(TestCaseError::fail("no tuple: this would end all connections"));
        };
        prop_assert_eq!(inner.len(), 2);
    }

    #[test]
    fn fuzz_damaged_messages(
        connection in connection(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        end in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let mut bytes = told(&connection);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let end = if whole { bytes.len() } else { end.index(bytes.len()) };
        let _ = wire::connection(&bytes[..end]);
    }

    #[test]
    fn fuzz_any_bytes(bytes in vec(any::<u8>(), 0..256)) {
        let _ = wire::connection(&bytes);
    }
}
