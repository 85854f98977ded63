//! The parts of all Services, by the keys that the Services have in them anyway.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use common_informer::object::{FullService, ObjectKey};

use crate::plan::part::Part;

/// Parts by the key of their Service.
#[derive(Debug, Default)]
pub(super) struct Parts(HashSet<OfService>);

#[derive(Debug)]
struct OfService(Arc<FullService>, Part);

impl Parts {
    pub(super) fn get(&self, service: &ObjectKey) -> Option<&Part> {
        self.0.get(service).map(|OfService(_, part)| part)
    }

    pub(super) fn insert(&mut self, service: Arc<FullService>, part: Part) {
        self.0.replace(OfService(service, part));
    }

    pub(super) fn remove(&mut self, service: &ObjectKey) -> Option<Part> {
        self.0.take(service).map(|OfService(_, part)| part)
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Part)> {
        self.0.iter().map(|OfService(service, part)| (&service.key, part))
    }
}

impl Borrow<ObjectKey> for OfService {
    fn borrow(&self) -> &ObjectKey {
        &self.0.key
    }
}

impl PartialEq for OfService {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for OfService {}

impl Hash for OfService {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}
