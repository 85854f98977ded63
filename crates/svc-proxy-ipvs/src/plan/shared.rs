//! Things that several Services have in common, such as an address: there as long as one has it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// How many have each thing, and what came and went since the last look.
#[derive(Clone, Debug)]
pub struct Shared<T> {
    users: BTreeMap<T, u32>,
    /// Whether it was there at the last look. Not in a tree: its nodes would leave holes between what stays.
    before: HashMap<T, bool>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { users: BTreeMap::new(), before: HashMap::new() }
    }
}

/// What came and went, each in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<T> {
    /// Came.
    pub new: Vec<T>,
    /// Went.
    pub gone: Vec<T>,
}

impl<T> Default for Difference<T> {
    fn default() -> Self {
        Self { new: Vec::new(), gone: Vec::new() }
    }
}

impl<T: Ord> Difference<T> {
    /// Whether a thing was there before, if it is there now or not.
    pub fn was(&self, thing: &T, is_there: bool) -> bool {
        let has = |list: &Vec<T>| list.binary_search(thing).is_ok();
        if is_there { !has(&self.new) } else { has(&self.gone) }
    }
}

impl<T: Ord + Hash + Clone> Shared<T> {
    /// One more has it.
    pub fn acquire(&mut self, thing: T) {
        let users = self.users.entry(thing.clone()).or_insert(0);
        self.before.entry(thing).or_insert(*users > 0);
        *users += 1;
    }

    /// One less has it.
    pub fn release(&mut self, thing: &T) {
        let Some(users) = self.users.get_mut(thing) else { return };
        self.before.entry(thing.clone()).or_insert(true);
        *users -= 1;
        if *users == 0 {
            self.users.remove(thing);
        }
    }

    /// Whether anybody has it.
    pub fn contains(&self, thing: &T) -> bool {
        self.users.contains_key(thing)
    }

    /// All that somebody has.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.users.keys()
    }

    /// How many different things there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody has anything.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// What came and went since the last call.
    pub fn take_difference(&mut self) -> Difference<T> {
        let mut difference = Difference::default();
        for (thing, was) in std::mem::take(&mut self.before) {
            match (was, self.users.contains_key(&thing)) {
                (false, true) => difference.new.push(thing),
                (true, false) => difference.gone.push(thing),
                _ => {}
            }
        }
        difference.new.sort();
        difference.gone.sort();
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_there_as_long_as_one_has_it() {
        let mut shared = Shared::default();
        shared.acquire(1);
        shared.acquire(1);
        shared.acquire(2);
        let difference = shared.take_difference();
        assert_eq!(difference, Difference { new: vec![1, 2], gone: vec![] });
        assert!(!difference.was(&1, true) && !difference.was(&3, false) && difference.was(&4, true));
        shared.release(&1);
        shared.release(&2);
        shared.acquire(2);
        assert_eq!(shared.take_difference(), Difference { new: vec![], gone: vec![] });
        shared.release(&1);
        let difference = shared.take_difference();
        assert_eq!(difference, Difference { new: vec![], gone: vec![1] });
        assert!(difference.was(&1, false) && difference.was(&2, true));
    }
}
