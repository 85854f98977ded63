//! Finds which of many selectors match a label set.
//!
//! With 10,000 policies in a cluster, trying each selector on each pod that changes would cost more than all
//! else. Nearly every real selector requires some `key=value`; it is filed under one such pair, and a label
//! set is looked up by the pairs that it has. Selectors that require no pair are tried always.

use std::collections::HashMap;

use common_informer::object::{Labels, Str};
use common_informer::selector::Selector;

/// Selectors with what each stands for.
#[derive(Debug)]
pub struct SelectorIndex<T> {
    by_pair: HashMap<Str, HashMap<Str, Vec<(Selector, T)>>>,
    others: Vec<(Selector, T)>,
}

impl<T> Default for SelectorIndex<T> {
    fn default() -> Self {
        Self { by_pair: HashMap::new(), others: Vec::new() }
    }
}

impl<T: Clone + PartialEq> SelectorIndex<T> {
    /// Files a selector. The same selector may be filed for several targets.
    pub fn insert(&mut self, selector: Selector, target: T) {
        let pair = selector.required_pairs().next().map(|(key, value)| (key.clone(), value.clone()));
        match pair {
            Some((key, value)) => {
                self.by_pair.entry(key).or_default().entry(value).or_default().push((selector, target));
            }
            None => self.others.push((selector, target)),
        }
    }

    /// Removes what `insert` filed with the same arguments; nothing happens if it was not there.
    pub fn remove(&mut self, selector: &Selector, target: &T) {
        fn take<T: PartialEq>(list: &mut Vec<(Selector, T)>, selector: &Selector, target: &T) {
            if let Some(at) = list.iter().position(|(s, t)| t == target && s == selector) {
                list.swap_remove(at);
            }
        }
        let Some((key, value)) = selector.required_pairs().next() else {
            return take(&mut self.others, selector, target);
        };
        let Some(values) = self.by_pair.get_mut(key) else { return };
        if let Some(list) = values.get_mut(value) {
            take(list, selector, target);
            if list.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.by_pair.remove(key);
        }
    }

    /// The targets of all the selectors that match, in no order.
    pub fn matching<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a T> + 'a {
        labels
            .iter()
            .filter_map(|(key, value)| self.by_pair.get(key)?.get(value))
            .flatten()
            .chain(&self.others)
            .filter(|(selector, _)| selector.matches(labels))
            .map(|(_, target)| target)
    }

    /// True when nothing is filed.
    pub fn is_empty(&self) -> bool {
        self.by_pair.is_empty() && self.others.is_empty()
    }
}
