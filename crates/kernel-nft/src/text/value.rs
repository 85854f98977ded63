//! Values of sets and comparisons as `nft` writes them, and the order in which it lists them.

use std::cmp::Ordering;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::expr::Verdict;
use crate::ruleset::{DataType, Key, MapsTo, SetSpec, Value};

/// Name of a type in `type …`.
pub(super) fn type_name(field: DataType) -> &'static str {
    match field {
        DataType::Ipv4Addr => "ipv4_addr",
        DataType::Ipv6Addr => "ipv6_addr",
        DataType::InetProto => "inet_proto",
        DataType::InetService => "inet_service",
        DataType::Icmpv6Type => "icmpv6_type",
        DataType::IcmpType => "icmp_type",
        DataType::Mark => "mark",
        DataType::Ifname => "ifname",
        DataType::Foreign => "foreign",
    }
}

/// How many elements nft 1.0.6 puts on a line, by the type of the key.
pub(super) fn elements_per_line(spec: &SetSpec) -> usize {
    match spec.key.as_slice() {
        [DataType::Ipv4Addr] => 2,
        [DataType::InetProto | DataType::InetService | DataType::Mark] => 5,
        _ => 1,
    }
}

/// All elements in the order of `nft list`.
pub(super) fn elements(spec: &SetSpec, elements: impl Iterator<Item = (Key, Value)>) -> Vec<String> {
    let mut sorted: Vec<(Key, Value)> = elements.collect();
    sorted.sort_by(|(a, _), (b, _)| order(spec, a, b));
    sorted.into_iter().map(|(key, value)| element(spec, &key, &value)).collect()
}

/// nft compares a key as one number: a single field in its byte order, a concatenation as if its bytes (not
/// padded) were a number of the host. Both are the same as comparing backwards on this (little-endian) host.
fn order(spec: &SetSpec, a: &Key, b: &Key) -> Ordering {
    match spec.key.as_slice() {
        [single] if !single.is_host_order() => a.cmp(b),
        fields => {
            let bytes = |key: &Key| -> Vec<u8> {
                let mut bytes: Vec<u8> =
                    split(fields, key).into_iter().flat_map(|(_, data)| data.iter().copied()).collect();
                bytes.reverse();
                bytes
            };
            bytes(a).cmp(&bytes(b))
        }
    }
}

fn element(spec: &SetSpec, key: &Key, value: &Value) -> String {
    match value {
        Value::Member => key_text(spec, key),
        Value::Until(last) => range(spec, key, last),
        Value::Data(data) => {
            let fields = match &spec.maps_to {
                MapsTo::Data(fields) => fields.as_slice(),
                MapsTo::Nothing | MapsTo::Verdict => &[],
            };
            format!("{} : {}", key_text(spec, key), concatenation(fields, data))
        }
        Value::Verdict(verdict_value) => format!("{} : {}", key_text(spec, key), verdict(verdict_value)),
    }
}

fn key_text(spec: &SetSpec, key: &Key) -> String {
    concatenation(&spec.key, key)
}

fn concatenation(fields: &[DataType], value: &Key) -> String {
    let words: Vec<String> =
        split(fields, value).into_iter().map(|(field, data)| datum(field, data)).collect();
    words.join(" . ")
}

/// The fields of a key without their padding.
fn split<'k>(fields: &[DataType], key: &'k Key) -> Vec<(DataType, &'k [u8])> {
    let mut at = 0;
    fields
        .iter()
        .map(|field| {
            let data = key.as_bytes().get(at..at + field.width()).unwrap_or_default();
            at += field.width().next_multiple_of(4);
            (*field, data)
        })
        .collect()
}

fn range(spec: &SetSpec, first: &Key, last: &Key) -> String {
    if first == last {
        return key_text(spec, first);
    }
    if let [DataType::Ipv4Addr | DataType::Ipv6Addr] = spec.key.as_slice()
        && let Some(bits) = prefix_length(first.as_bytes(), last.as_bytes())
    {
        return format!("{}/{bits}", key_text(spec, first));
    }
    format!("{}-{}", key_text(spec, first), key_text(spec, last))
}

/// Length of the prefix that is just the range, if there is one.
fn prefix_length(first: &[u8], last: &[u8]) -> Option<usize> {
    let bits = |bytes: &[u8]| -> Vec<bool> {
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    };
    let (first, last) = (bits(first), bits(last));
    let length = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
    let rest_is_whole = first[length..].iter().all(|bit| !bit) && last[length..].iter().all(|bit| *bit);
    rest_is_whole.then_some(length)
}

/// A verdict.
pub(super) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

/// One value of a type; hexadecimal if it has not the length of the type.
pub(super) fn datum(field: DataType, data: &[u8]) -> String {
    match (field, data) {
        (DataType::Ipv4Addr, &[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).to_string(),
        (DataType::Ipv6Addr, _) => match <[u8; 16]>::try_from(data) {
            Ok(octets) => ipv6(octets.into()),
            Err(_) => hex(data),
        },
        (DataType::InetProto, &[number]) => protocol(number),
        (DataType::InetService, &[high, low]) => u16::from_be_bytes([high, low]).to_string(),
        (DataType::Icmpv6Type, &[number]) => named(ICMPV6_TYPES, number),
        (DataType::IcmpType, &[number]) => named(ICMP_TYPES, number),
        (DataType::Mark, &[a, b, c, d]) => mark(u32::from_ne_bytes([a, b, c, d])),
        (DataType::Ifname, _) => {
            let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
            let name = String::from_utf8_lossy(&data[..end]);
            match name.strip_suffix('*') {
                _ if end == data.len() && end < field.width() => format!("\"{name}*\""),
                // At the end it would stand for any rest.
                Some(start) => format!("\"{start}\\*\""),
                None => format!("\"{name}\""),
            }
        }
        _ => hex(data),
    }
}

pub(super) fn mark(value: u32) -> String {
    format!("0x{value:08x}")
}

pub(super) fn hex(data: &[u8]) -> String {
    data.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// As glibc's inet_ntop() writes it, which unlike Rust ends some addresses in dotted form: those with just 96
/// zero bits in front.
fn ipv6(address: Ipv6Addr) -> String {
    let [a, b, c, d, e, f, g, _] = address.segments();
    if (a, b, c, d, e, f) == (0, 0, 0, 0, 0, 0) && g != 0 {
        let [.., w, x, y, z] = address.octets();
        return format!("::{w}.{x}.{y}.{z}");
    }
    address.to_string()
}

fn named(names: &[(u8, &str)], number: u8) -> String {
    match names.iter().find(|(value, _)| *value == number) {
        Some((_, name)) => (*name).to_owned(),
        None => number.to_string(),
    }
}

/// `inet_proto` as nft prints it with the /etc/protocols of Debian's netbase.
pub(super) fn protocol(number: u8) -> String {
    named(PROTOCOLS, number)
}

const ICMPV6_TYPES: &[(u8, &str)] = &[
    (1, "destination-unreachable"),
    (2, "packet-too-big"),
    (3, "time-exceeded"),
    (4, "parameter-problem"),
    (128, "echo-request"),
    (129, "echo-reply"),
    (130, "mld-listener-query"),
    (131, "mld-listener-report"),
    (132, "mld-listener-done"),
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
    (138, "router-renumbering"),
    (141, "ind-neighbor-solicit"),
    (142, "ind-neighbor-advert"),
    (143, "mld2-listener-report"),
];

const ICMP_TYPES: &[(u8, &str)] = &[
    (0, "echo-reply"),
    (3, "destination-unreachable"),
    (4, "source-quench"),
    (5, "redirect"),
    (8, "echo-request"),
    (9, "router-advertisement"),
    (10, "router-solicitation"),
    (11, "time-exceeded"),
    (12, "parameter-problem"),
    (13, "timestamp-request"),
    (14, "timestamp-reply"),
    (15, "info-request"),
    (16, "info-reply"),
    (17, "address-mask-request"),
    (18, "address-mask-reply"),
];

#[rustfmt::skip]
const PROTOCOLS: &[(u8, &str)] = &[
    (0, "ip"), (1, "icmp"), (2, "igmp"), (3, "ggp"), (4, "ipencap"), (5, "st"), (6, "tcp"), (8, "egp"),
    (9, "igp"), (12, "pup"), (17, "udp"), (20, "hmp"), (22, "xns-idp"), (27, "rdp"), (29, "iso-tp4"),
    (33, "dccp"), (36, "xtp"), (37, "ddp"), (38, "idpr-cmtp"), (41, "ipv6"), (43, "ipv6-route"),
    (44, "ipv6-frag"), (45, "idrp"), (46, "rsvp"), (47, "gre"), (50, "esp"), (51, "ah"), (57, "skip"),
    (58, "ipv6-icmp"), (59, "ipv6-nonxt"), (60, "ipv6-opts"), (73, "rspf"), (81, "vmtp"), (88, "eigrp"),
    (89, "ospf"), (93, "ax.25"), (94, "ipip"), (97, "etherip"), (98, "encap"), (103, "pim"),
    (108, "ipcomp"), (112, "vrrp"), (115, "l2tp"), (124, "isis"), (132, "sctp"), (133, "fc"),
    (135, "mobility-header"), (136, "udplite"), (137, "mpls-in-ip"), (138, "manet"), (139, "hip"),
    (140, "shim6"), (141, "wesp"), (142, "rohc"), (143, "ethernet"),
];
