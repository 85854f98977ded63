//! The slices that there are, by Service.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::object::{ByKey, Change, EndpointSlice, Kind, Object, ObjectKey};

/// The EndpointSlices of a cluster. A change costs as much as its Service has slices.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    slices: HashSet<ByKey<Arc<EndpointSlice>>>,
    /// Those of a Service together. Their Service is in each of them, so it is not stored once more.
    services: HashTable<OfService>,
    hasher: RandomState,
}

/// Never empty. Most Services have one slice, or one of each family.
type OfService = SmallVec<[Arc<EndpointSlice>; 1]>;

impl Slices {
    /// No slices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a change of a slice, and adds the Services whose endpoints it may change to `touched`: none if it
    /// changes nothing, two if a slice goes from one Service to another. Changes of other kinds are passed over.
    ///
    /// A slice that can no longer be read has no endpoints.
    pub fn apply(&mut self, change: &Change, touched: &mut BTreeSet<ObjectKey>) {
        match change {
            Change::Applied(Object::EndpointSlice(slice)) => {
                let earlier = self.slices.replace(ByKey(slice.clone()));
                self.replace(earlier, Some(slice), touched);
            }
            Change::Applied(_) => {}
            Change::Deleted(object) | Change::Excluded { object, .. } => {
                if object.kind == Kind::EndpointSlice {
                    let earlier = self.slices.take(&object.key);
                    self.replace(earlier, None, touched);
                }
            }
        }
    }

    /// The slices of a Service, in no order that means anything.
    pub fn of(&self, service: &ObjectKey) -> &[Arc<EndpointSlice>] {
        let hash = self.hasher.hash_one(name(service));
        self.services.find(hash, |slices| is_of(slices, service)).map_or(&[], |slices| slices.as_slice())
    }

    /// How many slices there are.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Replaces a slice in the index by Service.
    fn replace(
        &mut self,
        earlier: Option<ByKey<Arc<EndpointSlice>>>,
        slice: Option<&Arc<EndpointSlice>>,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        let changes = earlier.as_ref().map(|ByKey(earlier)| earlier) != slice;
        if let Some(ByKey(earlier)) = earlier
            && let Some(service) = service_of(&earlier)
        {
            let hash = self.hasher.hash_one(name(&service));
            if let Ok(mut entry) = self.services.find_entry(hash, |slices| is_of(slices, &service)) {
                match entry.get().as_slice() {
                    [_] => drop(entry.remove()),
                    _ => entry.get_mut().retain(|other| other.key != earlier.key),
                }
            }
            if changes {
                touched.insert(service);
            }
        }
        if let Some(slice) = slice
            && let Some(service) = service_of(slice)
        {
            let hash = self.hasher.hash_one(name(&service));
            match self.services.find_mut(hash, |slices| is_of(slices, &service)) {
                Some(slices) => slices.push(slice.clone()),
                None => {
                    let hasher = |slices: &OfService| {
                        self.hasher.hash_one(slices.first().and_then(|slice| service_name(slice)))
                    };
                    self.services.insert_unique(hash, OfService::from_elem(slice.clone(), 1), hasher);
                }
            }
            if changes {
                touched.insert(service);
            }
        }
    }
}

/// What is hashed of a Service.
fn name(service: &ObjectKey) -> Option<(&str, &str)> {
    Some((&service.namespace, &service.name))
}

/// [`name`] of the Service of a slice.
fn service_name(slice: &EndpointSlice) -> Option<(&str, &str)> {
    Some((&slice.key.namespace, slice.service.as_deref()?))
}

fn is_of(slices: &OfService, service: &ObjectKey) -> bool {
    slices.first().and_then(|slice| service_name(slice)) == name(service)
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.service.clone()?;
    Some(ObjectKey { namespace: slice.key.namespace.clone(), name })
}
