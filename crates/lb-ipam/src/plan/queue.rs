//! Who has less than it asks for, in the order in which what becomes free is given out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use common_informer::object::ObjectKey;

use crate::model::claim::{Claim, Rank};

/// Where a Service stands: who asks for an address by name comes first (`false`), then by age.
pub(crate) type Place = (bool, Rank);

/// Those that wait. Why they do may depend on others; the queue knows of whom that is true, so that what they are told
/// costs as much as what changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    places: BTreeSet<Place>,
    /// Who asks for an address by name is told who has it.
    asking: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Who needs two addresses at once is told which of them it lacks.
    needing_both: BTreeSet<ObjectKey>,
}

pub(crate) fn place(claim: &Claim) -> Place {
    (claim.asked.is_empty(), claim.rank.clone())
}

impl Queue {
    /// Without effect if it waits already.
    pub(crate) fn insert(&mut self, claim: &Claim) {
        let key = &claim.rank.key;
        self.places.insert(place(claim));
        for ip in &claim.asked {
            self.asking.entry(*ip).or_default().insert(key.clone());
        }
        if claim.all_or_nothing {
            self.needing_both.insert(key.clone());
        }
    }

    /// The inverse of [`Queue::insert`], with the same claim; without effect if it does not wait.
    pub(crate) fn remove(&mut self, claim: &Claim) {
        let key = &claim.rank.key;
        self.places.remove(&place(claim));
        for ip in &claim.asked {
            if let Some(keys) = self.asking.get_mut(ip) {
                keys.remove(key);
                if keys.is_empty() {
                    self.asking.remove(ip);
                }
            }
        }
        self.needing_both.remove(key);
    }

    pub(crate) fn contains(&self, place: &Place) -> bool {
        self.places.contains(place)
    }

    /// The first one behind `from`.
    pub(crate) fn next(&self, from: Bound<Place>) -> Option<Place> {
        self.places.range((from, Bound::Unbounded)).next().cloned()
    }

    /// Whose problems may be others now that these addresses have other holders, or are shown by others.
    pub(crate) fn concerned(&self, moved: &[IpAddr]) -> BTreeSet<ObjectKey> {
        if moved.is_empty() {
            return BTreeSet::new();
        }
        let asking = moved.iter().filter_map(|ip| self.asking.get(ip)).flatten();
        asking.chain(&self.needing_both).cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }
}
