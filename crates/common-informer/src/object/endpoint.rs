//! discovery.k8s.io/v1 EndpointSlice.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::{Family, ObjectKey, Protocol, Str};
use crate::intern::Interner;

/// `addressType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressType {
    /// `IPv4` or `IPv6`
    Ip(Family),
    /// `FQDN`: names, which no proxy can serve. The slice has no endpoints here.
    Fqdn,
}

/// discovery.k8s.io/v1 EndpointSlice: some of the endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The label `kubernetes.io/service-name`: its Service, in the same namespace. A slice without it
    /// belongs to nothing that is known here.
    pub service: Option<Str>,
    /// `addressType`
    pub address_type: AddressType,
    /// `ports`, interned: they hold for every endpoint of the slice.
    pub ports: Arc<[EndpointPort]>,
    /// `endpoints` with an address of the slice's family.
    pub endpoints: Endpoints,
}

/// discovery.k8s.io/v1 EndpointPort.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointPort {
    /// `name`, empty if it has none.
    pub name: Str,
    /// `protocol`, TCP by default.
    pub protocol: Protocol,
    /// `port`; slices that are not made for a Service may have none.
    pub port: Option<u16>,
}

/// discovery.k8s.io/v1 Endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The first of `addresses`. The API says nothing about the meaning of the others.
    pub address: IpAddr,
    /// `conditions.ready`; absent is true.
    pub ready: bool,
    /// `conditions.serving`; absent is true.
    pub serving: bool,
    /// `conditions.terminating`; absent is false.
    pub terminating: bool,
    /// `nodeName`
    pub node: Option<Str>,
    /// `hints`; `None` if there are none.
    pub hints: Option<Arc<Hints>>,
}

/// discovery.k8s.io/v1 EndpointHints: who should use the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hints {
    /// `forZones[].name`
    pub zones: Box<[Str]>,
    /// `forNodes[].name`
    pub nodes: Box<[Str]>,
}

/// A list of endpoints that does not change, packed: there are more of them than of anything else. They are put
/// together when they are looked at, so they are given by value.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoints(Packed);

/// The first of these that can hold a list, so that equal lists are equal.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Packed {
    /// 16 bytes each.
    V4(Box<[Compact<Ipv4Addr>]>),
    /// 32 bytes each.
    Any(Box<[Compact<IpAddr>]>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Compact<A> {
    address: A,
    /// [`READY`], [`SERVING`] and [`TERMINATING`].
    conditions: u8,
    /// `None` if nothing is said of either.
    site: Option<Arc<Site>>,
}

const READY: u8 = 1;
const SERVING: u8 = 2;
const TERMINATING: u8 = 4;

/// Where endpoints are and who should use them; interned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Site {
    node: Option<Str>,
    hints: Option<Arc<Hints>>,
}

impl Endpoints {
    /// A list whose nodes and hints are shared with other lists.
    pub fn interned(list: &[Endpoint], interner: &mut Interner) -> Self {
        Self::pack(list, |site| interner.site(site))
    }

    fn pack(list: &[Endpoint], mut share: impl FnMut(Site) -> Arc<Site>) -> Self {
        let v4 = |endpoint: &Endpoint| match endpoint.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        if let Some(addresses) = list.iter().map(v4).collect::<Option<Vec<_>>>() {
            let pairs = addresses.into_iter().zip(list);
            return Self(Packed::V4(pairs.map(|(ip, one)| Compact::new(ip, one, &mut share)).collect()));
        }
        Self(Packed::Any(list.iter().map(|one| Compact::new(one.address, one, &mut share)).collect()))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> {
        let (v4, any) = match &self.0 {
            Packed::V4(list) => (&**list, &[][..]),
            Packed::Any(list) => (&[][..], &**list),
        };
        v4.iter().map(Compact::endpoint).chain(any.iter().map(Compact::endpoint))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Packed::V4(list) => list.len(),
            Packed::Any(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<A: Copy + Into<IpAddr>> Compact<A> {
    fn new(address: A, endpoint: &Endpoint, share: impl FnOnce(Site) -> Arc<Site>) -> Self {
        let bit = |holds, bit| if holds { bit } else { 0 };
        let site = Site { node: endpoint.node.clone(), hints: endpoint.hints.clone() };
        Self {
            address,
            conditions: bit(endpoint.ready, READY)
                | bit(endpoint.serving, SERVING)
                | bit(endpoint.terminating, TERMINATING),
            site: (site != Site::default()).then(|| share(site)),
        }
    }

    fn endpoint(&self) -> Endpoint {
        let site = self.site.as_deref();
        Endpoint {
            address: self.address.into(),
            ready: self.conditions & READY != 0,
            serving: self.conditions & SERVING != 0,
            terminating: self.conditions & TERMINATING != 0,
            node: site.and_then(|site| site.node.clone()),
            hints: site.and_then(|site| site.hints.clone()),
        }
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self(Packed::V4(Box::default()))
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<T: IntoIterator<Item = Endpoint>>(list: T) -> Self {
        Self::pack(&list.into_iter().collect::<Vec<_>>(), Arc::new)
    }
}

impl<const N: usize> From<[Endpoint; N]> for Endpoints {
    fn from(list: [Endpoint; N]) -> Self {
        Self::pack(&list, Arc::new)
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let address = prop_oneof![9 => any::<Ipv4Addr>().prop_map(IpAddr::V4), 1 => any::<IpAddr>()];
        let node = prop::option::of("n[0-3]");
        (address, any::<[bool; 3]>(), node, prop::option::of("z[0-3]")).prop_map(
            |(address, [ready, serving, terminating], node, zone)| Endpoint {
                address,
                ready,
                serving,
                terminating,
                node: node.map(Into::into),
                hints: zone.map(|zone| Hints { zones: [zone.into()].into(), nodes: Box::default() }.into()),
            },
        )
    }

    proptest! {
        #[test]
        fn a_list_is_what_it_was_made_of(
            lists in prop::collection::vec(prop::collection::vec(endpoint(), 0..4), 2..4),
        ) {
            let mut interner = Interner::new();
            for list in &lists {
                let packed = Endpoints::interned(list, &mut interner);
                prop_assert_eq!(&packed.iter().collect::<Vec<_>>(), list);
                prop_assert_eq!((packed.len(), packed.is_empty()), (list.len(), list.is_empty()));
                for other in &lists {
                    prop_assert_eq!(packed == other.iter().cloned().collect(), list == other);
                }
            }
        }
    }

    /// There are a hundred thousand endpoints where there are twenty thousand slices and Services.
    #[test]
    fn objects_are_small() {
        assert_eq!((size_of::<Compact<Ipv4Addr>>(), size_of::<Compact<IpAddr>>()), (16, 32));
        let sizes = [size_of::<EndpointSlice>(), size_of::<crate::object::FullService>()];
        assert!(sizes.iter().zip([96, 144]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
