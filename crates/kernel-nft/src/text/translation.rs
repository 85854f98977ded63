//! Statements that change a packet or its connection, in the words of `nft`.

use crate::expr::{IpVersion, NatFlags, NatKind, TcpFlag};

/// `snat ip to A:P flags`. Without words for the port the address has them too, as what comes out of a map.
pub(super) fn nat(
    kind: NatKind,
    version: IpVersion,
    address: Option<String>,
    port: Option<String>,
    flags: NatFlags,
) -> String {
    let verb = match kind {
        NatKind::Source => "snat",
        NatKind::Destination => "dnat",
    };
    let address = address.unwrap_or_else(|| "[?]".to_owned());
    let target = match (port, version) {
        (None, _) => address,
        (Some(port), IpVersion::V4) => format!("{address}:{port}"),
        (Some(port), IpVersion::V6) => format!("[{address}]:{port}"),
    };
    format!("{verb} {} to {target}{}", self::version(version), nat_flags(flags))
}

pub(super) fn masquerade(flags: NatFlags) -> String {
    format!("masquerade{}", nat_flags(flags))
}

pub(super) fn redirect(port: Option<String>, flags: NatFlags) -> String {
    let port = port.map(|port| format!(" to :{port}")).unwrap_or_default();
    format!("redirect{port}{}", nat_flags(flags))
}

/// Only the maximum segment size has a name here.
pub(super) fn tcp_option_set(option: u8, offset: u32, len: u32, value: Option<String>) -> String {
    let value = value.unwrap_or_else(|| "[?]".to_owned());
    match (option, offset, len) {
        (2, 2, 2) => format!("tcp option maxseg size set {value}"),
        _ => {
            format!("tcp option @{option},{},{} set {value}", offset.saturating_mul(8), len.saturating_mul(8))
        }
    }
}

fn nat_flags(flags: NatFlags) -> String {
    let words: Vec<&str> =
        [(flags.random, "random"), (flags.fully_random, "fully-random"), (flags.persistent, "persistent")]
            .into_iter()
            .filter_map(|(set, word)| set.then_some(word))
            .collect();
    if words.is_empty() { String::new() } else { format!(" {}", words.join(",")) }
}

/// Name of the header.
pub(super) fn version(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "ip",
        IpVersion::V6 => "ip6",
    }
}

pub(super) fn tcp_flag(flag: TcpFlag) -> &'static str {
    match flag {
        TcpFlag::Fin => "fin",
        TcpFlag::Syn => "syn",
        TcpFlag::Rst => "rst",
        TcpFlag::Psh => "psh",
        TcpFlag::Ack => "ack",
        TcpFlag::Urg => "urg",
    }
}
