//! A map of a few entries.
//!
//! Most Services have one front. A `BTreeMap` of one entry takes as much memory as one of eleven; with twenty
//! thousand Services that is most of the process.

/// Entries in the order of their keys, in no more memory than they take. Changing it costs as much as it has
/// entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<K, V = ()>(Box<[(K, V)]>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<K: Ord, V> Few<K, V> {
    /// Puts an entry in, in the place of one with the same key.
    pub fn insert(&mut self, key: K, value: V) {
        let place = self.0.binary_search_by(|(other, _)| other.cmp(&key));
        if let Ok(place) = place
            && let Some(entry) = self.0.get_mut(place)
        {
            entry.1 = value;
            return;
        }
        let mut entries = std::mem::take(&mut self.0).into_vec();
        entries.reserve_exact(1);
        entries.insert(place.unwrap_or_else(|place| place), (key, value));
        self.0 = entries.into();
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) {
        if let Ok(place) = self.0.binary_search_by(|(other, _)| other.cmp(key)) {
            let mut entries = std::mem::take(&mut self.0).into_vec();
            entries.remove(place);
            self.0 = entries.into();
        }
    }

    /// The value of a key.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = self.0.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        self.0.get_mut(place).map(|(_, value)| value)
    }

    /// Whether there is an entry with this key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.0.binary_search_by(|(other, _)| other.cmp(key)).is_ok()
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps: Vec<(u8, Option<u8>)>, absent: u8) {
            let (mut few, mut map) = (Few::default(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        few.insert(key % 16, value);
                        map.insert(key % 16, value);
                    }
                    None => {
                        few.remove(&(key % 16));
                        map.remove(&(key % 16));
                    }
                }
            }
            assert!(few.iter().eq(map.iter()));
            assert!(few.keys().eq(map.keys()));
            assert_eq!(few.contains_key(&absent), map.contains_key(&absent));
            assert_eq!(few.get_mut(&(absent % 16)), map.get_mut(&(absent % 16)));
            assert!(map.keys().all(|key| few.contains_key(key)));
        }
    }
}
