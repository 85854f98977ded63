//! Arithmetic of address ranges: `cidr` minus its `except`s, united over the ipBlocks of a rule.
//!
//! Done here rather than in the kernel, because interval sets refuse overlaps and `except` must cut only its
//! own block: kube-router hands overlapping CIDRs to nft and its policies then fail.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Disjoint, sorted, inclusive ranges of one address family, none adjacent to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges(Vec<(u128, u128)>);

/// The ranges of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks {
    /// IPv4
    pub v4: Ranges,
    /// IPv6
    pub v6: Ranges,
}

impl Ranges {
    /// The addresses of a prefix.
    pub fn of(net: &IpNet) -> Self {
        Self(vec![(number(net.network()), number(net.broadcast()))])
    }

    /// No address at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// First and last address of each range, as numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u128, u128)> + '_ {
        self.0.iter().copied()
    }

    /// Adds the addresses of another set of ranges.
    pub fn unite(&mut self, other: &Self) {
        let mut all = std::mem::take(&mut self.0);
        all.extend_from_slice(&other.0);
        all.sort_unstable();
        for (first, last) in all {
            match self.0.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => self.0.push((first, last)),
            }
        }
    }

    /// Removes the addresses of another set of ranges.
    pub fn subtract(&mut self, other: &Self) {
        for &(cut_first, cut_last) in &other.0 {
            let ranges = std::mem::take(&mut self.0);
            for (first, last) in ranges {
                if cut_last < first || last < cut_first {
                    self.0.push((first, last));
                    continue;
                }
                if first < cut_first {
                    self.0.push((first, cut_first - 1));
                }
                if cut_last < last {
                    self.0.push((cut_last + 1, last));
                }
            }
        }
    }

    /// The one prefix that these ranges are, if they are exactly one.
    pub fn as_prefix(&self, v6: bool) -> Option<IpNet> {
        let &[(first, last)] = self.0.as_slice() else { return None };
        let bits: u32 = if v6 { 128 } else { 32 };
        let free = bits - (first ^ last).leading_zeros().saturating_sub(128 - bits);
        let mask = if free == 128 { u128::MAX } else { (1 << free) - 1 };
        if first & mask != 0 || last & mask != mask {
            return None;
        }
        IpNet::new(address(first, v6), u8::try_from(bits - free).ok()?).ok()
    }
}

/// An address as a number, whatever its family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a family with this number.
pub fn address(number: u128, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(cidr: &str) -> Ranges {
        Ranges::of(&cidr.parse().unwrap())
    }

    #[test]
    fn except_leaves_what_is_left_and_right_of_it() {
        let mut block = ranges("10.0.0.0/24");
        block.subtract(&ranges("10.0.0.64/26"));
        let texts: Vec<_> =
            block.iter().map(|(a, b)| format!("{}-{}", address(a, false), address(b, false))).collect();
        assert_eq!(texts, ["10.0.0.0-10.0.0.63", "10.0.0.128-10.0.0.255"]);
    }

    #[test]
    fn overlapping_and_adjacent_blocks_become_one_range() {
        let mut block = ranges("10.0.0.0/25");
        block.unite(&ranges("10.0.0.128/25"));
        block.unite(&ranges("10.0.0.7/32"));
        assert_eq!(block, ranges("10.0.0.0/24"));
        assert_eq!(block.as_prefix(false), Some("10.0.0.0/24".parse().unwrap()));
    }

    #[test]
    fn the_whole_of_a_family_is_a_prefix_and_can_be_cut() {
        assert_eq!(ranges("0.0.0.0/0").as_prefix(false), Some("0.0.0.0/0".parse().unwrap()));
        assert_eq!(ranges("::/0").as_prefix(true), Some("::/0".parse().unwrap()));
        let mut all = ranges("::/0");
        all.subtract(&ranges("8000::/1"));
        assert_eq!(all.as_prefix(true), Some("::/1".parse().unwrap()));
        all.subtract(&ranges("::/0"));
        assert!(all.is_empty());
    }

    #[test]
    fn a_range_that_is_no_prefix_is_not_one() {
        let mut block = ranges("10.0.0.0/24");
        block.subtract(&ranges("10.0.0.0/32"));
        assert_eq!(block.as_prefix(false), None);
        assert_eq!(ranges("10.0.0.3/32").as_prefix(false), Some("10.0.0.3/32".parse().unwrap()));
    }
}
