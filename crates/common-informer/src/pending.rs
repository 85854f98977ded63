//! Changes that the consumer has not taken yet, at most one for each object.

use std::collections::{BTreeMap, HashMap};

use crate::object::{Change, ObjectRef};

/// Changes in the order of the source. A later change of an object replaces an earlier one, so the size is
/// bounded by the objects that there are and those that the consumer knows of.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    changes: BTreeMap<u64, Entry>,
    positions: HashMap<ObjectRef, u64>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    change: Change,
    /// The consumer has never heard of the object: if it goes again, there is nothing to tell.
    fresh: bool,
}

impl Pending {
    /// Adds a change. `known` says whether the source had the object before this change.
    pub(crate) fn push(&mut self, change: Change, known: bool) {
        let object = change.object_ref();
        let earlier = self.positions.remove(&object).and_then(|position| self.changes.remove(&position));
        let fresh = earlier.map_or(!known, |entry| entry.fresh);
        if fresh && matches!(change, Change::Deleted(_)) {
            return;
        }
        self.positions.insert(object, self.next);
        self.changes.insert(self.next, Entry { change, fresh });
        self.next += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> Vec<Change> {
        self.positions = HashMap::new();
        std::mem::take(&mut self.changes).into_values().map(|entry| entry.change).collect()
    }
}
