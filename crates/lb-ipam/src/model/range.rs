//! A range of addresses, as it may be handed out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common_informer::object::Family;
use ipnet::IpNet;

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no range that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It has no such form.
    #[error("{0:?} is no range of addresses; give a CIDR such as 192.0.2.0/24, or FIRST-LAST")]
    Malformed(String),
    /// FIRST-LAST of two families, or the wrong way round.
    #[error("{0:?}: the last address does not follow the first one")]
    Backwards(String),
    /// Nobody can be served on these.
    #[error("{range:?} contains {what}")]
    Unusable {
        /// The text.
        range: String,
        /// Which addresses.
        what: &'static str,
    },
}

impl AddressRange {
    /// Parses a CIDR or `FIRST-LAST`.
    ///
    /// Of a CIDR only the addresses of hosts are taken:
    /// - IPv4: neither the network nor the broadcast address, unless it is a /31 or /32 (RFC 3021);
    /// - IPv6: not the first, which is the anycast address of the routers (RFC 4291 §2.6.1), unless it is a
    ///   /127 or /128 (RFC 6164).
    ///
    /// # Errors
    /// Another form, a single family is not kept, or an address that is never one of a Service.
    pub fn parse(text: &str) -> Result<Self, RangeError> {
        let malformed = || RangeError::Malformed(text.to_owned());
        let range = match text.split_once('-') {
            Some((first, last)) => Self {
                first: first.trim().parse().map_err(|_| malformed())?,
                last: last.trim().parse().map_err(|_| malformed())?,
            },
            None => Self::hosts(text.trim().parse().map_err(|_| malformed())?),
        };
        if range.first.is_ipv4() != range.last.is_ipv4() || range.first > range.last {
            return Err(RangeError::Backwards(text.to_owned()));
        }
        match UNUSABLE.iter().find(|(first, last, _)| range.overlaps(&Self { first: *first, last: *last })) {
            Some((.., what)) => Err(RangeError::Unusable { range: text.to_owned(), what }),
            None => Ok(range),
        }
    }

    fn hosts(net: IpNet) -> Self {
        let (mut first, mut last) = (net.network(), net.broadcast());
        if net.prefix_len() + 1 < net.max_prefix_len() {
            first = address(Family::of(first), number(first) + 1);
            if last.is_ipv4() {
                last = address(Family::V4, number(last) - 1);
            }
        }
        Self { first, last }
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of all of them.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether `ip` is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        // `IpAddr` orders all of IPv4 before all of IPv6.
        (self.first..=self.last).contains(&ip)
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// How many addresses; the largest number for more than that.
    pub fn size(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// An address as a number, for counting.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The inverse of [`number`]. A number that is too large for IPv4 becomes its last address.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

/// First and last address of what no Service can be reached at from outside.
static UNUSABLE: [(IpAddr, IpAddr, &str); 8] = [
    (v4(0, 0, 0, 0), v4(0, 255, 255, 255), "addresses of \"this network\" (0.0.0.0/8)"),
    (v4(127, 0, 0, 0), v4(127, 255, 255, 255), "loopback addresses"),
    (v4(169, 254, 0, 0), v4(169, 254, 255, 255), "link-local addresses"),
    (v4(224, 0, 0, 0), v4(255, 255, 255, 255), "multicast or reserved addresses (224.0.0.0/3)"),
    (v6(0, 0), IpAddr::V6(Ipv6Addr::LOCALHOST), "the unspecified or the loopback address"),
    (v6(0, 0xffff_0000_0000), v6(0, 0xffff_ffff_ffff), "IPv4 addresses written as IPv6"),
    (v6(0xfe80 << 48, 0), v6(0xfebf_ffff_ffff_ffff, u64::MAX), "link-local addresses"),
    (v6(0xff00 << 48, 0), v6(u64::MAX, u64::MAX), "multicast addresses"),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(high: u64, low: u64) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(((high as u128) << 64) | low as u128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(text: &str) -> (String, String) {
        let range = AddressRange::parse(text).unwrap();
        (range.first().to_string(), range.last().to_string())
    }

    fn pair(first: &str, last: &str) -> (String, String) {
        (first.to_owned(), last.to_owned())
    }

    #[test]
    fn network_and_broadcast_address_are_no_addresses_of_services() {
        assert_eq!(ends("192.0.2.0/24"), pair("192.0.2.1", "192.0.2.254"));
        assert_eq!(ends("192.0.2.4/30"), pair("192.0.2.5", "192.0.2.6"));
        assert_eq!(ends("192.0.2.77/24"), pair("192.0.2.1", "192.0.2.254"));
        assert_eq!(ends("192.0.2.4/31"), pair("192.0.2.4", "192.0.2.5"));
        assert_eq!(ends("192.0.2.4/32"), pair("192.0.2.4", "192.0.2.4"));
    }

    #[test]
    fn the_anycast_address_of_routers_is_no_address_of_services() {
        assert_eq!(ends("2001:db8::/112"), pair("2001:db8::1", "2001:db8::ffff"));
        assert_eq!(ends("2001:db8::/127"), pair("2001:db8::", "2001:db8::1"));
        assert_eq!(ends("2001:db8::7/128"), pair("2001:db8::7", "2001:db8::7"));
    }

    #[test]
    fn first_and_last_are_taken_as_they_are_written() {
        assert_eq!(ends("192.0.2.0-192.0.2.255"), pair("192.0.2.0", "192.0.2.255"));
        assert_eq!(ends("2001:db8:: - 2001:db8::f"), pair("2001:db8::", "2001:db8::f"));
        assert_eq!(AddressRange::parse("192.0.2.0-192.0.2.255").unwrap().size(), 256);
        assert_eq!(AddressRange::parse("2001:db8::/64").unwrap().size(), u128::from(u64::MAX));
    }

    #[test]
    fn what_is_no_range_of_usable_addresses_is_refused_by_name() {
        for text in ["", "192.0.2.1", "192.0.2.0/33", "a-b", "192.0.2.1-", "192.0.2.0/24-192.0.3.0/24"] {
            assert!(matches!(AddressRange::parse(text), Err(RangeError::Malformed(_))), "{text}");
        }
        for text in ["192.0.2.9-192.0.2.8", "192.0.2.1-2001:db8::1", "2001:db8::1-192.0.2.1"] {
            assert!(matches!(AddressRange::parse(text), Err(RangeError::Backwards(_))), "{text}");
        }
        for text in ["0.0.0.0/0", "127.0.0.0/8", "169.254.1.0/24", "239.0.0.0/8", "223.255.255.1-224.0.0.1"] {
            assert!(matches!(AddressRange::parse(text), Err(RangeError::Unusable { .. })), "{text}");
        }
        for text in ["::/0", "::1/128", "fe80::/64", "ff02::/16", "::ffff:192.0.2.0/120"] {
            assert!(matches!(AddressRange::parse(text), Err(RangeError::Unusable { .. })), "{text}");
        }
    }
}
