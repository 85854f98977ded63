//! The parts of all Services, by the keys that the Services have in them anyway.

use std::collections::HashSet;
use std::sync::Arc;

use common_informer::object::{ByKey, FullService, Keyed, ObjectKey};

use crate::plan::part::Part;

/// Parts by the key of their Service.
#[derive(Debug, Default)]
pub(super) struct Parts(HashSet<ByKey<OfService>>);

#[derive(Debug)]
struct OfService(Arc<FullService>, Part);

impl Parts {
    pub(super) fn get(&self, service: &ObjectKey) -> Option<&Part> {
        self.0.get(service).map(|ByKey(OfService(_, part))| part)
    }

    pub(super) fn insert(&mut self, service: Arc<FullService>, part: Part) {
        self.0.replace(ByKey(OfService(service, part)));
    }

    pub(super) fn remove(&mut self, service: &ObjectKey) -> Option<Part> {
        self.0.take(service).map(|ByKey(OfService(_, part))| part)
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Part)> {
        self.0.iter().map(|ByKey(OfService(service, part))| (&service.key, part))
    }
}

impl Keyed for OfService {
    fn key(&self) -> &ObjectKey {
        &self.0.key
    }
}
