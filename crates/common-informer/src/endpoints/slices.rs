//! The slices that there are, by Service.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::object::{Change, EndpointSlice, Kind, Object, ObjectKey};

/// The EndpointSlices of a cluster. A change costs as much as its Service has slices.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    slices: HashMap<ObjectKey, Arc<EndpointSlice>>,
    /// By Service. Most have one slice, or one of each family.
    services: HashMap<ObjectKey, SmallVec<[Arc<EndpointSlice>; 2]>>,
}

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
                self.set(&slice.key, Some(slice.clone()), touched);
            }
            Change::Applied(_) => {}
            Change::Deleted(object) | Change::Excluded { object, .. } => {
                if object.kind == Kind::EndpointSlice {
                    self.set(&object.key, None, touched);
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

    fn set(&mut self, key: &ObjectKey, slice: Option<Arc<EndpointSlice>>, touched: &mut BTreeSet<ObjectKey>) {
        let earlier = match &slice {
            Some(slice) => self.slices.insert(key.clone(), slice.clone()),
            None => self.slices.remove(key),
        };
        if earlier == slice {
            return;
        }
        if let Some(service) = earlier.as_deref().and_then(service_of) {
            if let Some(slices) = self.services.get_mut(&service) {
                slices.retain(|other| other.key != *key);
                if slices.is_empty() {
                    self.services.remove(&service);
                }
            }
            touched.insert(service);
        }
        if let Some(slice) = slice
            && let Some(service) = service_of(&slice)
        {
            self.services.entry(service.clone()).or_default().push(slice);
            touched.insert(service);
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.service.clone()?;
    Some(ObjectKey { namespace: slice.key.namespace.clone(), name })
}
