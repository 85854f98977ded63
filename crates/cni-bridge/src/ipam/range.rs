//! Ranges of addresses. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

/// A range as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RangeConf {
    /// The network; its length is that of the addresses given out.
    pub subnet: Option<String>,
    /// First address; that after the network's own if absent.
    #[serde(rename = "rangeStart")]
    pub start: Option<IpAddr>,
    /// Last address; the last but the broadcast address if absent.
    #[serde(rename = "rangeEnd")]
    pub end: Option<IpAddr>,
    /// Never given out; the first of the network if absent.
    pub gateway: Option<IpAddr>,
}

/// A range to give out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The network.
    pub subnet: IpNet,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
    /// Never given out.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which a container gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// An address as a number of its family.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The number as an address of the family of `like`. Numbers that IPv4 does not have wrap round.
pub fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl RangeConf {
    /// Fills in what is absent.
    ///
    /// # Errors
    /// In the words of the reference.
    pub fn complete(&self) -> Result<Range, String> {
        let text = self.subnet.as_deref().unwrap_or_default();
        let subnet: IpNet = text.parse().map_err(|_| format!("invalid CIDR address: {text}"))?;
        if subnet.addr() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            ));
        }
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        let first = address(number(subnet.network()) + 1, subnet.network());
        // IPv6 has no broadcast address.
        let last = match subnet {
            IpNet::V4(_) => address(number(subnet.broadcast()) - 1, subnet.network()),
            IpNet::V6(_) => subnet.broadcast(),
        };
        let inside = |name: &str, ip: Option<IpAddr>, default| match ip {
            None => Ok(default),
            Some(ip) if subnet.contains(&ip) => Ok(ip),
            Some(ip) => Err(format!("{name} {ip} not in network {subnet}")),
        };
        let range = Range {
            subnet,
            start: inside("RangeStart", self.start, first)?,
            end: inside("RangeEnd", self.end, last)?,
            gateway: self.gateway.unwrap_or(first),
        };
        if range.start > range.end {
            return Err(format!("RangeStart {} is after RangeEnd {}", range.start, range.end));
        }
        Ok(range)
    }
}

impl Range {
    /// Whether the address may be given out, gateway aside.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && self.start <= ip && ip <= self.end
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || self.contains(other.end) || other.contains(self.start)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    /// Ranges of one family that have no address in common.
    ///
    /// # Errors
    /// In the words of the reference.
    pub fn new(confs: &[RangeConf]) -> Result<Self, String> {
        if confs.is_empty() {
            return Err("empty range set".to_owned());
        }
        let ranges = confs.iter().map(RangeConf::complete).collect::<Result<Vec<_>, _>>()?;
        if ranges.iter().any(|range| range.start.is_ipv4() != ranges[0].start.is_ipv4()) {
            return Err("mixed address families".to_owned());
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..index].iter().find(|other| other.overlaps(range)) {
                return Err(format!("subnets {other} and {range} overlap"));
            }
        }
        Ok(Self(ranges))
    }

    /// Its ranges, in order.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that has the address.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Whether any address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|other| range.overlaps(other)))
    }

    /// Every address that may be given out, once, from the one after `last` round to it.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = (&Range, IpAddr)> {
        let place =
            last.and_then(|last| self.0.iter().position(|range| range.contains(last)).map(|at| (at, last)));
        let (from, start) = match place {
            Some((from, last)) => (from, number(last).saturating_add(1)),
            None => (0, number(self.0[0].start)),
        };
        let count = self.0.len();
        // The first range comes twice: what is after `start`, and at the end what is before it.
        let pieces = (0..=count).map(move |step| {
            let range = &self.0[(from + step) % count];
            let (first, last) = (number(range.start), number(range.end));
            match step {
                0 => (range, start.max(first), last),
                _ if step == count => (range, first, start.saturating_sub(1).min(last)),
                _ => (range, first, last),
            }
        });
        pieces
            .filter(move |(_, first, last)| first <= last)
            .flat_map(|(range, first, last)| (first..=last).map(move |n| (range, address(n, range.start))))
            .filter(|(range, ip)| *ip != range.gateway)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(subnet: &str) -> RangeConf {
        RangeConf { subnet: Some(subnet.into()), ..RangeConf::default() }
    }

    fn set(subnets: &[&str]) -> RangeSet {
        RangeSet::new(&subnets.iter().map(|subnet| conf(subnet)).collect::<Vec<_>>()).unwrap()
    }

    fn all(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.after(last.map(|ip| ip.parse().unwrap())).map(|(_, ip)| ip.to_string()).collect()
    }

    #[test]
    fn every_address_comes_once_wherever_one_begins() {
        let set = set(&["10.0.0.0/29", "10.0.1.0/30"]);
        let from_start = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.1.2"];
        assert_eq!(all(&set, None), from_start);
        assert_eq!(
            all(&set, Some("10.0.0.4")),
            ["10.0.0.5", "10.0.0.6", "10.0.1.2", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        );
        assert_eq!(
            all(&set, Some("10.0.1.2")),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.1.2"]
        );
        // One that is in no range any more: from the start.
        assert_eq!(all(&set, Some("10.9.9.9")), from_start);
    }

    #[test]
    fn ipv6_has_no_broadcast_address() {
        let range = conf("2001:db8::/126").complete().unwrap();
        assert_eq!(range.to_string(), "2001:db8::1-2001:db8::3");
        assert_eq!(range.gateway.to_string(), "2001:db8::1");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_the_words_of_the_reference() {
        for (subnet, words) in [
            ("10.1.0.0/31", "Network 10.1.0.0/31 too small to allocate from"),
            (
                "10.1.0.5/24",
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.0.0",
            ),
            ("", "invalid CIDR address: "),
        ] {
            assert_eq!(conf(subnet).complete().unwrap_err(), words);
        }
        let outside = RangeConf { start: Some("10.2.0.1".parse().unwrap()), ..conf("10.1.0.0/24") };
        assert_eq!(outside.complete().unwrap_err(), "RangeStart 10.2.0.1 not in network 10.1.0.0/24");
        assert_eq!(
            RangeSet::new(&[conf("10.1.0.0/24"), conf("fd00::/64")]).unwrap_err(),
            "mixed address families"
        );
    }

    proptest::proptest! {
        #[test]
        fn nothing_outside_is_given_out(length in 24u8..=30, begin: u8) {
            let set = set(&[&format!("10.0.0.0/{length}")]);
            let last = IpAddr::from([10, 0, 0, begin]);
            let found: Vec<_> = set.after(Some(last)).map(|(_, ip)| ip).collect();
            let unique: std::collections::BTreeSet<_> = found.iter().copied().collect();
            // Without network, gateway and broadcast address.
            assert_eq!(found.len(), (1 << (32 - length)) - 3);
            assert_eq!(unique.len(), found.len());
            assert!(found.iter().all(|ip| set.range_of(*ip).is_some()));
        }
    }
}
