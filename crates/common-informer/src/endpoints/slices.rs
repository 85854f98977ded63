//! The slices that there are, by Service.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::object::{Change, EndpointSlice, Kind, Object, ObjectKey};

/// The EndpointSlices of a cluster. A change costs as much as its Service has slices.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    slices: HashSet<ByKey>,
    /// By Service. Most have one slice, or one of each family.
    services: HashMap<ObjectKey, SmallVec<[Arc<EndpointSlice>; 2]>>,
}

/// A slice that is found by its key, which is not stored a second time.
#[derive(Clone, Debug)]
struct ByKey(Arc<EndpointSlice>);

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
        self.services.get(service).map_or(&[], |slices| slices.as_slice())
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
        earlier: Option<ByKey>,
        slice: Option<&Arc<EndpointSlice>>,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        let changes = earlier.as_ref().map(|ByKey(earlier)| earlier) != slice;
        if let Some(ByKey(earlier)) = earlier
            && let Some(service) = service_of(&earlier)
        {
            if let Some(slices) = self.services.get_mut(&service) {
                slices.retain(|other| other.key != earlier.key);
                if slices.is_empty() {
                    self.services.remove(&service);
                }
            }
            if changes {
                touched.insert(service);
            }
        }
        if let Some(slice) = slice
            && let Some(service) = service_of(slice)
        {
            self.services.entry(service.clone()).or_default().push(slice.clone());
            if changes {
                touched.insert(service);
            }
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.service.clone()?;
    Some(ObjectKey { namespace: slice.key.namespace.clone(), name })
}

impl Borrow<ObjectKey> for ByKey {
    fn borrow(&self) -> &ObjectKey {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}
