//! The destinations of a virtual service, packed: nearly all differ from each other in address and port only, and
//! there are more of them than of anything else.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel_netlink::ipvs::Destination;

/// A list of destinations that does not change.
#[derive(Clone, PartialEq, Eq)]
pub struct Destinations(Packed);

/// Always the first of these that can hold a list, so that equal lists are equal.
#[derive(Clone, PartialEq, Eq)]
enum Packed {
    /// As [`Destination::new`] makes them, 6 bytes each.
    V4(Box<[(Ipv4Addr, u16)]>),
    /// As [`Destination::new`] makes them, 18 bytes each.
    V6(Box<[(Ipv6Addr, u16)]>),
    /// 40 bytes each.
    Any(Box<[Destination]>),
}

impl Destinations {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Destination> {
        let (v4, v6, any) = match &self.0 {
            Packed::V4(list) => (&**list, &[][..], &[][..]),
            Packed::V6(list) => (&[][..], &**list, &[][..]),
            Packed::Any(list) => (&[][..], &[][..], &**list),
        };
        let v4 = v4.iter().map(|(ip, port)| Destination::new(IpAddr::V4(*ip), *port));
        let v6 = v6.iter().map(|(ip, port)| Destination::new(IpAddr::V6(*ip), *port));
        v4.chain(v6).chain(any.iter().copied())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Packed::V4(list) => list.len(),
            Packed::V6(list) => list.len(),
            Packed::Any(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Destinations {
    fn default() -> Self {
        Self(Packed::V4(Box::default()))
    }
}

impl From<Vec<Destination>> for Destinations {
    fn from(list: Vec<Destination>) -> Self {
        let plain = |to: &Destination| *to == Destination::new(to.key.address, to.key.port);
        let v4 = |to: &Destination| match to.key.address {
            IpAddr::V4(ip) if plain(to) => Some((ip, to.key.port)),
            _ => None,
        };
        let v6 = |to: &Destination| match to.key.address {
            IpAddr::V6(ip) if plain(to) => Some((ip, to.key.port)),
            _ => None,
        };
        if let Some(list) = list.iter().map(v4).collect() {
            return Self(Packed::V4(list));
        }
        if let Some(list) = list.iter().map(v6).collect() {
            return Self(Packed::V6(list));
        }
        Self(Packed::Any(list.into()))
    }
}

impl FromIterator<Destination> for Destinations {
    fn from_iter<T: IntoIterator<Item = Destination>>(list: T) -> Self {
        list.into_iter().collect::<Vec<_>>().into()
    }
}

impl fmt::Debug for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use kernel_netlink::ipvs::{Forward, Tunnel};
    use proptest::prelude::*;

    use super::*;

    fn destination() -> impl Strategy<Value = Destination> {
        let ip = prop_oneof![
            4 => any::<Ipv4Addr>().prop_map(IpAddr::V4),
            4 => any::<Ipv6Addr>().prop_map(IpAddr::V6),
        ];
        (
            ip,
            any::<u16>(),
            prop_oneof![9 => Just(1u32), 1 => Just(0)],
            prop_oneof![9 => Just(false), 1 => Just(true)],
        )
            .prop_map(|(ip, port, weight, tunnel)| {
                let forward = if tunnel { Forward::Tunnel(Tunnel::Ipip) } else { Forward::Masquerade };
                Destination { weight, forward, ..Destination::new(ip, port) }
            })
    }

    proptest! {
        #[test]
        fn a_list_is_what_it_was_made_of(
            lists in prop::collection::vec(prop::collection::vec(destination(), 0..4), 2..4),
        ) {
            for list in &lists {
                let packed: Destinations = list.iter().copied().collect();
                prop_assert_eq!(&packed.iter().collect::<Vec<_>>(), list);
                prop_assert_eq!((packed.len(), packed.is_empty()), (list.len(), list.is_empty()));
                for other in &lists {
                    prop_assert_eq!(packed == other.iter().copied().collect(), list == other);
                }
            }
        }
    }

    #[test]
    fn plain_destinations_take_no_more_than_address_and_port() {
        assert_eq!((size_of::<(Ipv4Addr, u16)>(), size_of::<(Ipv6Addr, u16)>()), (6, 18));
        let of = |ip: &str| Destinations::from(vec![Destination::new(ip.parse().unwrap(), 80)]);
        assert!(matches!(of("10.0.0.1").0, Packed::V4(_)) && matches!(of("fd00::1").0, Packed::V6(_)));
    }
}
