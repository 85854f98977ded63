//! Sharing of equal values between objects.
//!
//! In a cluster of 15,000 pods there are a few hundred different label maps, port lists, namespaces and node
//! names; each is kept once.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use crate::object::{EndpointPort, Hints, Labels, NamedPort, ServiceSettings, Site, Str};

/// Pools of shared strings, label maps, port lists, sites of endpoints and settings of Services.
///
/// A pool forgets values that nobody else holds when it has doubled since it last did so, and when it is told
/// to ([`Interner::purge`]); so it is never larger than twice what is in use (and some).
#[derive(Debug, Default)]
pub struct Interner {
    strings: Pool<str>,
    labels: Pool<BTreeMap<Str, Str>>,
    ports: Pool<[NamedPort]>,
    endpoint_ports: Pool<[EndpointPort]>,
    hints: Pool<Hints>,
    sites: Pool<Site>,
    settings: Pool<ServiceSettings>,
}

/// Values that a pool may hold unused before it looks for them.
const SLACK: usize = 1024;

#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    purge_at: usize,
}

impl<T: ?Sized + Eq + Hash> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), purge_at: SLACK }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn get<'a, Q>(&mut self, value: &'a Q) -> Arc<T>
    where
        Q: ?Sized + Eq + Hash,
        Arc<T>: Borrow<Q> + From<&'a Q>,
    {
        if let Some(shared) = self.values.get(value) {
            return shared.clone();
        }
        self.insert(Arc::from(value))
    }

    fn insert(&mut self, value: Arc<T>) -> Arc<T> {
        if self.values.len() >= self.purge_at {
            self.purge();
        }
        self.values.insert(value.clone());
        value
    }

    fn purge(&mut self) {
        self.values.retain(|value| Arc::strong_count(value) > 1);
        self.values.shrink_to(SLACK);
        self.purge_at = 2 * self.values.len() + SLACK;
    }
}

impl Interner {
    /// An interner that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The shared string equal to `text`.
    pub fn string(&mut self, text: &str) -> Str {
        self.strings.get(text)
    }

    /// The shared map equal to `labels`.
    pub fn labels(&mut self, labels: BTreeMap<Str, Str>) -> Labels {
        match self.labels.values.get(&labels) {
            Some(shared) => shared.clone(),
            None => self.labels.insert(Arc::new(labels)),
        }
    }

    /// The shared list equal to `ports`.
    pub fn ports(&mut self, ports: &[NamedPort]) -> Arc<[NamedPort]> {
        self.ports.get(ports)
    }

    /// The shared list equal to `ports`.
    pub fn endpoint_ports(&mut self, ports: &[EndpointPort]) -> Arc<[EndpointPort]> {
        self.endpoint_ports.get(ports)
    }

    /// The shared value equal to `hints`.
    pub fn hints(&mut self, hints: Hints) -> Arc<Hints> {
        match self.hints.values.get(&hints) {
            Some(shared) => shared.clone(),
            None => self.hints.insert(Arc::new(hints)),
        }
    }

    /// The shared value equal to `site`.
    pub fn site(&mut self, site: Site) -> Arc<Site> {
        match self.sites.values.get(&site) {
            Some(shared) => shared.clone(),
            None => self.sites.insert(Arc::new(site)),
        }
    }

    /// The shared value equal to `settings`.
    pub fn settings(&mut self, settings: ServiceSettings) -> Arc<ServiceSettings> {
        match self.settings.values.get(&settings) {
            Some(shared) => shared.clone(),
            None => self.settings.insert(Arc::new(settings)),
        }
    }

    /// Forgets every value that nobody else holds.
    pub fn purge(&mut self) {
        // ORDER: settings hold maps, sites hints; maps and lists hold strings, so the strings come last.
        self.settings.purge();
        self.sites.purge();
        self.labels.purge();
        self.ports.purge();
        self.endpoint_ports.purge();
        self.hints.purge();
        self.strings.purge();
    }

    /// How many strings, label maps and port lists of containers are held.
    pub fn sizes(&self) -> [usize; 3] {
        [self.strings.values.len(), self.labels.values.len(), self.ports.values.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(interner: &mut Interner, value: &str) -> Labels {
        let labels = BTreeMap::from([(interner.string("app"), interner.string(value))]);
        interner.labels(labels)
    }

    #[test]
    fn equal_values_are_shared() {
        let mut interner = Interner::new();
        let one = map(&mut interner, "web");
        let other = map(&mut interner, "web");
        assert!(Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&interner.string("web"), &interner.string("web")));
        assert!(Arc::ptr_eq(&interner.ports(&[]), &interner.ports(&[])));
    }

    #[test]
    fn purge_forgets_exactly_what_nobody_holds() {
        let mut interner = Interner::new();
        let kept = map(&mut interner, "web");
        map(&mut interner, "db");
        interner.ports(&[]);
        interner.purge();
        assert_eq!(interner.sizes(), [2, 1, 0]);
        assert!(Arc::ptr_eq(&kept, &map(&mut interner, "web")));
    }

    #[test]
    fn pools_stay_bounded_while_values_come_and_go() {
        let mut interner = Interner::new();
        for index in 0..100_000 {
            map(&mut interner, &index.to_string());
        }
        let [strings, labels, _] = interner.sizes();
        // A map that waits for its purge holds its string.
        assert!(strings <= 4 * SLACK && labels <= 2 * SLACK, "{strings} strings, {labels} maps");
    }
}
