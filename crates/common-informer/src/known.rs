//! What was told of each object last, by key.
//!
//! Objects that their consumers keep are kept here too: one more owner of what is there anyway takes less memory than
//! a second key. Of others only a fingerprint is kept.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use crate::object::{Change, EndpointSlice, FullService, Object, ObjectKey, Pod, Service};

/// The objects of a kind that there are.
#[derive(Debug, Default)]
pub(crate) struct Known {
    objects: HashSet<Told>,
    /// Keyed at random, so that nobody can make two objects with the same fingerprint.
    hasher: RandomState,
}

/// What was told of an object.
#[derive(Debug)]
enum Told {
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    FullService(Arc<FullService>),
    EndpointSlice(Arc<EndpointSlice>),
    /// Of any other. Policies are compiled by who is told of them, nodes read in part.
    Fingerprint(Box<(ObjectKey, u64)>),
}

/// How an object compares with what was told of it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Novelty {
    /// It was not there.
    New,
    /// It was there, and was another.
    Changed,
    /// It was there as it is.
    Same,
}

impl Known {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The keys, in no order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.iter().map(Told::key)
    }

    /// Takes a change that says that an object is there.
    pub(crate) fn set(&mut self, key: &ObjectKey, change: &Change) -> Novelty {
        let told = match change {
            Change::Applied(Object::Pod(pod)) => Told::Pod(pod.clone()),
            Change::Applied(Object::Service(service)) => Told::Service(service.clone()),
            Change::Applied(Object::FullService(service)) => Told::FullService(service.clone()),
            Change::Applied(Object::EndpointSlice(slice)) => Told::EndpointSlice(slice.clone()),
            _ => Told::Fingerprint(Box::new((key.clone(), self.hasher.hash_one(change)))),
        };
        let earlier = self.objects.get(key);
        match earlier.map(|earlier| earlier.says_the_same(&told)) {
            Some(true) => Novelty::Same,
            Some(false) => {
                self.objects.replace(told);
                Novelty::Changed
            }
            None => {
                self.objects.insert(told);
                Novelty::New
            }
        }
    }

    /// Takes that an object is gone. False if it was not there.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> bool {
        self.objects.remove(key)
    }
}

impl Told {
    fn key(&self) -> &ObjectKey {
        match self {
            Self::Pod(pod) => &pod.key,
            Self::Service(service) => &service.key,
            Self::FullService(service) => &service.key,
            Self::EndpointSlice(slice) => &slice.key,
            Self::Fingerprint(told) => &told.0,
        }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pod(one), Self::Pod(other)) => one == other,
            (Self::Service(one), Self::Service(other)) => one == other,
            (Self::FullService(one), Self::FullService(other)) => one == other,
            (Self::EndpointSlice(one), Self::EndpointSlice(other)) => one == other,
            (Self::Fingerprint(one), Self::Fingerprint(other)) => one.1 == other.1,
            _ => false,
        }
    }
}

impl Borrow<ObjectKey> for Told {
    fn borrow(&self) -> &ObjectKey {
        self.key()
    }
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Told {}

impl Hash for Told {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Kind, Namespace, ObjectRef};

    fn key(name: &str) -> ObjectKey {
        ObjectKey { namespace: "".into(), name: name.into() }
    }

    fn pod(name: &str, created: i64) -> Change {
        Change::Applied(Object::Pod(Arc::new(Pod {
            key: key(name),
            labels: Arc::default(),
            created,
            ips: smallvec::SmallVec::new(),
            node: None,
            host_network: false,
            finished: false,
            ports: [].into(),
        })))
    }

    fn namespace(name: &str, annotation: Option<&str>) -> Change {
        let network_policy_annotation = annotation.map(Into::into);
        let namespace = Namespace { name: name.into(), labels: Arc::default(), network_policy_annotation };
        Change::Applied(Object::Namespace(Arc::new(namespace)))
    }

    fn excluded(name: &str, reason: &str) -> Change {
        Change::Excluded { object: ObjectRef { kind: Kind::Pod, key: key(name) }, reason: reason.into() }
    }

    #[test]
    fn what_is_told_again_is_the_same_until_it_changes() {
        for (one, other) in [
            (pod("a", 1), pod("a", 2)),
            (namespace("a", None), namespace("a", Some("{}"))),
            (excluded("a", "x"), excluded("a", "y")),
            (pod("a", 1), excluded("a", "x")),
            (excluded("a", "x"), pod("a", 1)),
        ] {
            let mut known = Known::default();
            let told = [&one, &one, &other, &other, &one].map(|change| known.set(&key("a"), change));
            assert_eq!(
                told,
                [Novelty::New, Novelty::Same, Novelty::Changed, Novelty::Same, Novelty::Changed]
            );
            assert!(known.remove(&key("a")) && !known.remove(&key("a")));
            assert_eq!(known.set(&key("a"), &one), Novelty::New);
        }
    }

    #[test]
    fn objects_are_told_apart_by_their_keys() {
        let mut known = Known::default();
        for name in ["a", "b"] {
            assert_eq!(known.set(&key(name), &pod(name, 1)), Novelty::New);
        }
        assert_eq!((known.len(), known.keys().count()), (2, 2));
    }
}
