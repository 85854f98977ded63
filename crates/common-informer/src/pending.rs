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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::object::{Kind, ObjectKey};

    fn object(name: u8) -> ObjectRef {
        ObjectRef { kind: Kind::Pod, key: ObjectKey { namespace: "x".into(), name: name.to_string().into() } }
    }

    /// `Excluded` stands for every change that leaves the object there: what it carries does not matter here.
    fn present(name: u8, version: u8) -> Change {
        Change::Excluded { object: object(name), reason: version.to_string() }
    }

    fn apply(state: &mut BTreeMap<ObjectRef, Change>, change: Change) {
        match change {
            Change::Deleted(object) => {
                state.remove(&object);
            }
            change => {
                state.insert(change.object_ref(), change);
            }
        }
    }

    #[test]
    fn latest_change_wins_and_takes_the_latest_place() {
        let mut pending = Pending::default();
        pending.push(present(1, 1), true);
        pending.push(present(2, 1), true);
        pending.push(present(1, 2), true);
        assert_eq!(pending.take(), [present(2, 1), present(1, 2)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn object_that_is_back_is_only_applied() {
        let mut pending = Pending::default();
        pending.push(Change::Deleted(object(1)), true);
        pending.push(present(1, 1), false);
        assert_eq!(pending.take(), [present(1, 1)]);
    }

    #[test]
    fn object_that_is_back_and_gone_again_is_deleted() {
        let mut pending = Pending::default();
        pending.push(Change::Deleted(object(1)), true);
        pending.push(present(1, 1), false);
        pending.push(Change::Deleted(object(1)), true);
        assert_eq!(pending.take(), [Change::Deleted(object(1))]);
    }

    #[test]
    fn object_that_came_and_went_unseen_takes_no_place() {
        let mut pending = Pending::default();
        for name in 0..=u8::MAX {
            pending.push(present(name, 1), false);
            pending.push(present(name, 2), true);
            pending.push(Change::Deleted(object(name)), true);
        }
        assert!(pending.is_empty() && pending.positions.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..6, any::<u8>()).prop_map(|(name, version)| Step::Put(name, version)),
            3 => (0u8..6).prop_map(Step::Delete),
            2 => Just(Step::Take),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn coalesced_changes_lead_where_all_of_them_would(steps in steps()) {
            let (mut pending, mut source, mut consumer) =
                (Pending::default(), BTreeMap::new(), BTreeMap::new());
            for step in steps.into_iter().chain([Step::Take]) {
                match step {
                    Step::Put(name, version) => {
                        let known = source.contains_key(&object(name));
                        pending.push(present(name, version), known);
                        apply(&mut source, present(name, version));
                    }
                    Step::Delete(name) if source.contains_key(&object(name)) => {
                        pending.push(Change::Deleted(object(name)), true);
                        apply(&mut source, Change::Deleted(object(name)));
                    }
                    Step::Delete(_) => {}
                    Step::Take => {
                        let changes = pending.take();
                        let mut objects: Vec<_> = changes.iter().map(Change::object_ref).collect();
                        objects.sort();
                        objects.dedup();
                        prop_assert_eq!(objects.len(), changes.len(), "one change for each object");
                        for change in changes {
                            if let Change::Deleted(object) = &change {
                                prop_assert!(consumer.contains_key(object), "only what is known is deleted");
                            }
                            apply(&mut consumer, change);
                        }
                        prop_assert_eq!(&consumer, &source);
                    }
                }
                prop_assert!(pending.changes.len() <= 6);
            }
        }
    }
}
