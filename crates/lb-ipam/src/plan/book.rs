//! Who has which address of the pools, and which is the next free one.
//!
//! An address is taken while somebody *holds* it (we gave it) and while somebody *shows* it (it is in a status
//! or among external IPs). The second outlives the first by the time that a write of a status takes, so that an
//! address is never in two statuses, whatever the order in which they are written and whichever writes fail.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{Family, ObjectKey, Str};

use super::Keys;
use crate::model::pool::Pools;
use crate::model::range::{AddressRange, address, number};

/// What is known of one address that is not free.
#[derive(Clone, Debug, Default)]
struct Taken {
    holders: Keys,
    shown_by: Keys,
}

/// The addresses that are not free.
#[derive(Clone, Debug)]
pub struct Book {
    pools: Arc<Pools>,
    taken: BTreeMap<IpAddr, Taken>,
    /// First address of each range: below this number nothing in it is free.
    cursors: BTreeMap<IpAddr, u128>,
    /// Addresses of those that would share, by namespace and key.
    shared: BTreeMap<(Str, Str), BTreeMap<IpAddr, usize>>,
    /// See [`Book::take_moved`].
    moved: Vec<IpAddr>,
}

impl Book {
    /// All addresses free.
    pub fn new(pools: Arc<Pools>) -> Self {
        Self {
            pools,
            taken: BTreeMap::new(),
            cursors: BTreeMap::new(),
            shared: BTreeMap::new(),
            moved: Vec::new(),
        }
    }

    /// `key` has `ip` from now on; `group` if it would share.
    pub fn hold(&mut self, ip: IpAddr, key: &ObjectKey, group: Option<&(Str, Str)>) {
        self.taken.entry(ip).or_default().holders.push(key.clone());
        self.moved.push(ip);
        if let Some(group) = group {
            *self.shared.entry(group.clone()).or_default().entry(ip).or_default() += 1;
        }
    }

    /// The inverse of [`Book::hold`], with the same `group`.
    pub fn release(&mut self, ip: IpAddr, key: &ObjectKey, group: Option<&(Str, Str)>) {
        self.forget(ip, |taken| taken.holders.retain(|holder| holder != key));
        let Some(group) = group else { return };
        let Some(addresses) = self.shared.get_mut(group) else { return };
        if let Some(count) = addresses.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&ip);
            }
        }
        if addresses.is_empty() {
            self.shared.remove(group);
        }
    }

    /// `key` shows `ip` from now on.
    pub fn show(&mut self, ip: IpAddr, key: &ObjectKey) {
        self.taken.entry(ip).or_default().shown_by.push(key.clone());
        self.moved.push(ip);
    }

    /// `key` no longer shows `ip`.
    pub fn hide(&mut self, ip: IpAddr, key: &ObjectKey) {
        self.forget(ip, |taken| taken.shown_by.retain(|other| other != key));
    }

    fn forget(&mut self, ip: IpAddr, change: impl FnOnce(&mut Taken)) {
        let Some(taken) = self.taken.get_mut(&ip) else { return };
        change(taken);
        self.moved.push(ip);
        if !taken.holders.is_empty() || !taken.shown_by.is_empty() {
            return;
        }
        self.taken.remove(&ip);
        // The range that it is in begins at or before it.
        if let Some((first, cursor)) = self.cursors.range_mut(..=ip).next_back()
            && Family::of(*first) == Family::of(ip)
        {
            *cursor = number(ip).min(*cursor);
        }
    }

    /// Addresses of which it was noted since the last call that somebody holds or shows them, or does so no more; some
    /// of them several times. Who asks for one of these may be refused for another reason now.
    pub(crate) fn take_moved(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.moved)
    }

    /// Who holds `ip`.
    pub fn holders(&self, ip: IpAddr) -> &[ObjectKey] {
        self.taken.get(&ip).map_or(&[], |taken| &taken.holders)
    }

    /// Who shows `ip`.
    pub fn shown_by(&self, ip: IpAddr) -> &[ObjectKey] {
        self.taken.get(&ip).map_or(&[], |taken| &taken.shown_by)
    }

    /// The lowest address of a range that nobody holds or shows.
    pub fn first_free(&mut self, range: &AddressRange) -> Option<IpAddr> {
        let end = number(range.last());
        let cursor = self.cursors.entry(range.first()).or_insert_with(|| number(range.first()));
        while *cursor <= end {
            let ip = address(range.family(), *cursor);
            if !self.taken.contains_key(&ip) {
                return Some(ip);
            }
            // `UNUSABLE` keeps ranges from ending at the largest number.
            *cursor += 1;
        }
        None
    }

    /// Addresses that Services of this group hold, lowest first.
    pub fn shared(&self, group: &(Str, Str)) -> impl Iterator<Item = IpAddr> {
        self.shared.get(group).into_iter().flat_map(|addresses| addresses.keys().copied())
    }

    /// How many addresses of each pool and family are not free.
    pub fn used(&self) -> BTreeMap<(usize, Family), usize> {
        let mut used = BTreeMap::new();
        for ip in self.taken.keys() {
            if let Some((pool, _)) = self.pools.of(*ip) {
                *used.entry((pool, Family::of(*ip))).or_default() += 1;
            }
        }
        used
    }

    /// Every address that somebody holds, with its holders.
    pub fn held(&self) -> impl Iterator<Item = (IpAddr, &[ObjectKey])> {
        self.taken
            .iter()
            .filter(|(_, taken)| !taken.holders.is_empty())
            .map(|(ip, taken)| (*ip, taken.holders.as_slice()))
    }

    /// Whose pools these are.
    pub fn pools(&self) -> &Arc<Pools> {
        &self.pools
    }
}
