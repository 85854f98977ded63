//! Bytes from the kernel's side of the socket may be anything: nothing here panics, whatever is read; and what
//! is written is read back as it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU16, NonZeroU32};

use netlink_packet_core::Emitable;
use proptest::collection::vec;
use proptest::prelude::*;

use super::entry::*;
use super::{uapi, wire};
use crate::attribute::{Attribute, Value};
use crate::genl;

fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::Ipv4 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()).boxed(),
        Family::Ipv6 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()).boxed(),
    }
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)]
}

fn key() -> impl Strategy<Value = ServiceKey> {
    let by_address =
        (family().prop_flat_map(address), any::<u8>(), any::<u16>()).prop_map(|(address, protocol, port)| {
            ServiceKey::Address { protocol: Protocol(protocol), address, port }
        });
    let by_mark = (family(), 1..=u32::MAX)
        .prop_map(|(family, mark)| ServiceKey::Mark { family, mark: NonZeroU32::new(mark).unwrap() });
    prop_oneof![by_address, by_mark]
}

fn service() -> impl Strategy<Value = Service> {
    let persistence = (any::<u32>(), any::<u32>(), 1..=128u8);
    let more = (proptest::option::of(persistence), any::<u32>(), "[a-z]{1,15}");
    (key(), more).prop_map(|(key, (persistence, flags, scheduler))| {
        let persistence = persistence.map(|(timeout, mask, bits)| Persistence {
            timeout,
            netmask: match key.family() {
                Family::Ipv4 => Netmask::of_mask(mask),
                Family::Ipv6 => Netmask::Prefix(bits),
            },
        });
        let scheduler = Scheduler::new(&scheduler).unwrap();
        Service { key, scheduler, flags: Flags::from_bits(flags), persistence }
    })
}

fn forward() -> impl Strategy<Value = Forward> {
    let gue = (1..=u16::MAX, any::<u16>()).prop_map(|(port, flags)| Tunnel::Gue {
        port: NonZeroU16::new(port).unwrap(),
        checksum: Checksum(flags),
    });
    let gre = any::<u16>().prop_map(|flags| Tunnel::Gre { checksum: Checksum(flags) });
    prop_oneof![
        Just(Forward::Masquerade),
        Just(Forward::Local),
        Just(Forward::Route),
        Just(Forward::Bypass),
        prop_oneof![Just(Tunnel::Ipip), gue, gre].prop_map(Forward::Tunnel),
    ]
}

fn destination() -> impl Strategy<Value = Destination> {
    let key = (family().prop_flat_map(address), any::<u16>());
    (key, forward(), any::<[u32; 3]>()).prop_map(|((address, port), forward, [weight, upper, lower])| {
        Destination {
            key: DestinationKey { address, port },
            forward,
            weight,
            upper_threshold: upper,
            lower_threshold: lower,
        }
    })
}

/// A message as it follows the `nlmsghdr`. KERNEL: answers have the numbers of the commands NEW_SERVICE and
/// NEW_DEST and the same attributes.
fn body(command: genl::Command) -> Vec<u8> {
    let message = command.message(20);
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// Puts an attribute that nobody knows in front of those inside `kind`.
fn with_news(mut command: genl::Command, kind: u16) -> genl::Command {
    for attribute in &mut command.attributes {
        if let Value::Nested(inner) = &mut attribute.value
            && attribute.kind == kind
        {
            inner.insert(0, Attribute::new(4000, Value::Text("news".to_owned())));
            inner.push(Attribute::new(4001, Value::Nested(vec![Attribute::new(1, Value::U8(1))])));
        }
    }
    command
}

/// Everything that reads messages; how many things were found.
fn read_everything(bytes: &[u8]) -> usize {
    let found = [
        wire::service(bytes).is_ok_and(|found| found.is_some()),
        wire::destination(bytes, Family::Ipv4).is_ok_and(|found| found.is_some()),
        wire::destination(bytes, Family::Ipv6).is_ok_and(|found| found.is_some()),
        wire::timeouts(bytes).is_ok_and(|found| found.is_some()),
        wire::info(bytes).is_ok_and(|found| found.is_some()),
    ];
    found.into_iter().filter(|found| *found).count()
}

#[test]
fn information_of_the_kernel_is_read() {
    let info = genl::Command {
        command: uapi::IPVS_CMD_SET_INFO,
        version: 1,
        attributes: vec![
            Attribute::new(uapi::IPVS_INFO_ATTR_VERSION, Value::U32(0x010201)),
            Attribute::new(uapi::IPVS_INFO_ATTR_CONN_TAB_SIZE, Value::U32(4096)),
        ],
    };
    let expected = Info { version: (1, 2, 1), connection_buckets: 4096 };
    assert_eq!(wire::info(&body(info)), Ok(Some(expected)));
}

proptest! {
    #[test]
    fn services_are_read_back_as_written_with_news_among_them(service in service()) {
        let written = wire::command(&Command::AddService(service));
        let bytes = body(with_news(written, uapi::IPVS_CMD_ATTR_SERVICE));
        let read = wire::service(&bytes).unwrap().unwrap();
        prop_assert_eq!(read.service, service);
    }

    #[test]
    fn destinations_are_read_back_as_written_with_news_among_them(key in key(), destination in destination()) {
        let written = wire::command(&Command::AddDestination(key, destination));
        let bytes = body(with_news(written, uapi::IPVS_CMD_ATTR_DEST));
        let read = wire::destination(&bytes, key.family()).unwrap().unwrap();
        prop_assert_eq!(read.destination, destination);
    }

    #[test]
    fn timeouts_are_read_back_as_written(tcp: u32, tcp_fin: u32, udp: u32) {
        let timeouts = Timeouts { tcp, tcp_fin, udp };
        let bytes = body(wire::command(&Command::SetTimeouts(timeouts)));
        prop_assert_eq!(wire::timeouts(&bytes), Ok(Some(timeouts)));
    }

    #[test]
    fn fuzz_damaged_messages(
        service in service(),
        destination in destination(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        end in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        for command in [Command::AddService(service), Command::AddDestination(service.key, destination)] {
            let mut bytes = body(wire::command(&command));
            prop_assert!(read_everything(&bytes) > 0);
            for (place, value) in &damage {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
            let end = if whole { bytes.len() } else { end.index(bytes.len()) };
            read_everything(&bytes[..end]);
        }
    }

    #[test]
    fn fuzz_any_bytes(mut bytes in vec(any::<u8>(), 0..256), command in 0..18u8) {
        read_everything(&bytes);
        // As a command that is looked into.
        if let Some(first) = bytes.first_mut() {
            *first = command;
        }
        read_everything(&bytes);
    }
}
