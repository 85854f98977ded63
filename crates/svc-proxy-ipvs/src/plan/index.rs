//! Things that are known by the key of a virtual service that they have in them anyway.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use kernel_netlink::ipvs::ServiceKey;

/// Has the key of a virtual service.
pub trait Keyed {
    /// The key; always the same one.
    fn key(&self) -> &ServiceKey;
}

/// Things by key, in no order. A map that has the keys beside the things takes three times the memory.
#[derive(Clone, Debug)]
pub struct Index<T: Keyed>(HashSet<ByKey<T>>);

#[derive(Clone, Debug)]
struct ByKey<T>(T);

impl<T: Keyed> Default for Index<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: Keyed> Index<T> {
    /// The thing with a key.
    pub fn get(&self, key: &ServiceKey) -> Option<&T> {
        self.0.get(key).map(|ByKey(thing)| thing)
    }

    /// Whether there is a thing with a key.
    pub fn contains_key(&self, key: &ServiceKey) -> bool {
        self.0.contains(key)
    }

    /// Puts a thing in; gives the one that had its key.
    pub fn insert(&mut self, thing: T) -> Option<T> {
        self.0.replace(ByKey(thing)).map(|ByKey(thing)| thing)
    }

    /// Takes the thing with a key out.
    pub fn remove(&mut self, key: &ServiceKey) -> Option<T> {
        self.0.take(key).map(|ByKey(thing)| thing)
    }

    /// All things.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|ByKey(thing)| thing)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.iter().map(Keyed::key)
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Keyed> Borrow<ServiceKey> for ByKey<T> {
    fn borrow(&self) -> &ServiceKey {
        self.0.key()
    }
}

impl<T: Keyed> PartialEq for ByKey<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl<T: Keyed> Eq for ByKey<T> {}

impl<T: Keyed> Hash for ByKey<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}
