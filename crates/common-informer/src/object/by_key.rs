//! Sets whose entries are found by the key that they have in them anyway, so that it is not stored a second time.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{EndpointSlice, FullService, ObjectKey};

/// What has the key of an object in it.
pub trait Keyed {
    /// The key. It never changes.
    fn key(&self) -> &ObjectKey;
}

/// An entry of a set. Equal are those with the same key, whatever else is in them.
#[derive(Clone, Debug)]
pub struct ByKey<T>(pub T);

impl Keyed for Arc<FullService> {
    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

impl Keyed for Arc<EndpointSlice> {
    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

impl<T: Keyed> Borrow<ObjectKey> for ByKey<T> {
    fn borrow(&self) -> &ObjectKey {
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
