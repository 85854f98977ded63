//! Which address is in which set.
//!
//! An address set is shared by all rules that mean the same pods. It exists while a chain names it. For one
//! address the sets that it belongs to are found by its pod's labels, so that a pod that comes or goes costs
//! what it changes, however many policies there are.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use common_informer::object::{Labels, Pod, Protocol, Str};
use common_informer::selector::Selector;
use kernel_nft::{DataType, IpVersion, Key, Name, SetSpec, Value};

use super::base::{address_type, plain_set};
use super::digest;
use crate::model::index::SelectorIndex;
use crate::model::policy::{NamespaceMatch, Term};
use crate::model::ranges::{Ranges, address};
use crate::model::world::World;
use kernel_nft::Journal;

/// What an address set means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey {
    /// Pods that any of these select; sorted.
    pub terms: Vec<Term>,
    /// Only pods that declare this port, each with its number for it.
    pub port: Option<(Str, Protocol)>,
    /// Only pods of this node.
    pub local: bool,
}

/// Identifies a set as long as the process lives; never used twice.
pub type SetId = u32;

/// Membership of an address: in which set, with which port (0 if the set has none).
pub type Membership = (SetId, u16);

/// The address sets in use.
#[derive(Debug, Default)]
pub struct AddressSets {
    next: SetId,
    ids: HashMap<SetKey, SetId>,
    sets: HashMap<SetId, AddressSet>,
    by_namespace: HashMap<Str, SelectorIndex<SetId>>,
    /// Namespace selectors, and below each the pod selectors that go with it.
    namespace_selectors: SelectorIndex<Selector>,
    by_labels: HashMap<Selector, SelectorIndex<SetId>>,
}

#[derive(Debug)]
struct AddressSet {
    key: SetKey,
    names: Vec<(IpVersion, Name)>,
    references: usize,
}

impl SetKey {
    /// Name of its set for an IP version.
    pub fn name(&self, version: IpVersion) -> Name {
        let stem = if self.port.is_some() { "n" } else { "p" };
        let digit = if version == IpVersion::V4 { 4 } else { 6 };
        format!("{stem}{digit}-{}", digest(&self.to_string())).into()
    }

    fn spec(&self, version: IpVersion) -> SetSpec {
        let mut key = vec![address_type(version)];
        if self.port.is_some() {
            key.push(DataType::InetService);
        }
        plain_set(key, &comment(&self.to_string()))
    }
}

impl std::fmt::Display for SetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((name, protocol)) = &self.port {
            write!(f, "port {name:?}/{protocol} of ")?;
        }
        if self.local {
            f.write_str("local ")?;
        }
        for (at, term) in self.terms.iter().enumerate() {
            write!(f, "{}{term}", if at > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

/// Text as a comment may hold it: at most 128 bytes, without the quotes and control characters that `nft`
/// could not read again.
pub fn comment(text: &str) -> String {
    let mut comment: String = text.chars().filter(|c| *c != '"' && !c.is_control()).collect();
    comment.truncate(comment.floor_char_boundary(128));
    comment
}

impl AddressSets {
    /// The set of a key, made if need be, with one more reference. True if it is new and has to be filled.
    pub fn acquire(&mut self, key: &SetKey, versions: &[IpVersion], journal: &mut Journal) -> (SetId, bool) {
        if let Some(&id) = self.ids.get(key) {
            if let Some(set) = self.sets.get_mut(&id) {
                set.references += 1;
            }
            return (id, false);
        }
        let id = self.next;
        self.next += 1;
        let names: Vec<_> = versions.iter().map(|&version| (version, key.name(version))).collect();
        for (version, name) in &names {
            journal.ensure_set(name, || key.spec(*version));
        }
        for term in &key.terms {
            match &term.namespaces {
                NamespaceMatch::Name(name) => {
                    self.by_namespace.entry(name.clone()).or_default().insert(term.pods.clone(), id);
                }
                NamespaceMatch::Labels(labels) => {
                    if !self.by_labels.contains_key(labels) {
                        self.namespace_selectors.insert(labels.clone(), labels.clone());
                    }
                    self.by_labels.entry(labels.clone()).or_default().insert(term.pods.clone(), id);
                }
            }
        }
        self.ids.insert(key.clone(), id);
        self.sets.insert(id, AddressSet { key: key.clone(), names, references: 1 });
        (id, true)
    }

    /// Gives a reference back. The set goes with the last one; then its id is returned.
    pub fn release(&mut self, id: SetId) -> bool {
        let Some(set) = self.sets.get_mut(&id) else { return false };
        set.references -= 1;
        set.references == 0
    }

    /// Removes a set without references from the kernel and from the index. Returns its members, which have
    /// to forget it.
    pub fn remove(&mut self, id: SetId, journal: &mut Journal) -> Vec<IpAddr> {
        let Some(set) = self.sets.remove(&id) else { return Vec::new() };
        self.ids.remove(&set.key);
        for term in &set.key.terms {
            match &term.namespaces {
                NamespaceMatch::Name(name) => {
                    if let Some(index) = self.by_namespace.get_mut(name) {
                        index.remove(&term.pods, &id);
                        if index.is_empty() {
                            self.by_namespace.remove(name);
                        }
                    }
                }
                NamespaceMatch::Labels(labels) => {
                    if let Some(index) = self.by_labels.get_mut(labels) {
                        index.remove(&term.pods, &id);
                        if index.is_empty() {
                            self.by_labels.remove(labels);
                            self.namespace_selectors.remove(labels, labels);
                        }
                    }
                }
            }
        }
        let mut members = Vec::new();
        for (version, name) in &set.names {
            if let Some(set) = journal.ruleset().sets.get(name) {
                members.extend(set.elements.keys().filter_map(|key| member_address(&key, *version)));
            }
            journal.remove_set(name);
        }
        members
    }

    /// True while a chain names the set.
    pub fn is_referenced(&self, id: SetId) -> bool {
        self.sets.get(&id).is_some_and(|set| set.references > 0)
    }

    /// The sets that an address with this owner belongs to, sorted.
    pub fn memberships(&self, pod: &Pod, namespace_labels: &Labels, local: bool) -> Vec<Membership> {
        let mut ids = BTreeSet::new();
        if let Some(index) = self.by_namespace.get(&pod.key.namespace) {
            ids.extend(index.matching(&pod.labels).copied());
        }
        for labels in self.namespace_selectors.matching(namespace_labels) {
            if let Some(index) = self.by_labels.get(labels) {
                ids.extend(index.matching(&pod.labels).copied());
            }
        }
        let mut memberships = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(set) = self.sets.get(&id) else { continue };
            if set.key.local && !local {
                continue;
            }
            match &set.key.port {
                None => memberships.push((id, 0)),
                Some((name, protocol)) => memberships.extend(
                    pod.ports
                        .iter()
                        .filter(|port| port.name == *name && port.protocol == *protocol)
                        .map(|port| (id, port.port)),
                ),
            }
        }
        memberships.sort_unstable();
        memberships.dedup();
        memberships
    }

    /// Addresses that are in a new set.
    pub fn members_of(&self, id: SetId, world: &World) -> Vec<(IpAddr, Membership)> {
        let Some(set) = self.sets.get(&id) else { return Vec::new() };
        let mut members = Vec::new();
        for term in &set.key.terms {
            match &term.namespaces {
                NamespaceMatch::Name(name) => set.collect(id, term, name, world, &mut members),
                NamespaceMatch::Labels(labels) => {
                    for name in world.namespaces() {
                        if labels.matches(&world.namespace_labels(name)) {
                            set.collect(id, term, name, world, &mut members);
                        }
                    }
                }
            }
        }
        members
    }

    /// Puts an address into a set, or takes it out.
    pub fn set_member(&self, (id, port): Membership, address: IpAddr, present: bool, journal: &mut Journal) {
        let Some(set) = self.sets.get(&id) else { return };
        let version = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let Some((_, name)) = set.names.iter().find(|(v, _)| *v == version) else { return };
        let key = if set.key.port.is_some() { address_port(address, port) } else { address.into() };
        journal.set_element(name, key, present.then_some(Value::Member));
    }

    /// True if no pod at all is in the set of a key. False if the set is not in use.
    pub fn is_empty(&self, key: &SetKey, journal: &Journal) -> bool {
        self.ids.get(key).and_then(|id| self.sets.get(id)).is_some_and(|set| {
            set.names
                .iter()
                .all(|(_, name)| journal.ruleset().sets.get(name).is_none_or(|set| set.elements.is_empty()))
        })
    }
}

impl AddressSet {
    fn collect(
        &self,
        id: SetId,
        term: &Term,
        namespace: &Str,
        world: &World,
        members: &mut Vec<(IpAddr, Membership)>,
    ) {
        for (address, pod) in world.addresses_in(namespace) {
            if (self.key.local && !world.is_local(pod)) || !term.pods.matches(&pod.labels) {
                continue;
            }
            match &self.key.port {
                None => members.push((address, (id, 0))),
                Some((name, protocol)) => members.extend(
                    pod.ports
                        .iter()
                        .filter(|port| port.name == *name && port.protocol == *protocol)
                        .map(|port| (address, (id, port.port))),
                ),
            }
        }
    }
}

/// The key `address . port`.
pub fn address_port(address: IpAddr, port: u16) -> Key {
    Key::concat(&[Key::from(address).as_bytes(), &port.to_be_bytes()])
}

fn member_address(key: &Key, version: IpVersion) -> Option<IpAddr> {
    let bytes = key.as_bytes();
    match version {
        IpVersion::V4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?)),
        IpVersion::V6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?)),
    }
}

/// Name of the set of ranges that are not one prefix.
pub fn block_set_name(version: IpVersion, ranges: &Ranges) -> Name {
    let v6 = version == IpVersion::V6;
    let text: String =
        ranges.iter().map(|(a, b)| format!("{}-{},", address(a, v6), address(b, v6))).collect();
    format!("b{}-{}", if v6 { 6 } else { 4 }, digest(&text)).into()
}

/// Makes the set of some ranges unless it is there. Its elements never change.
pub fn ensure_block_set(name: &Name, version: IpVersion, ranges: &Ranges, journal: &mut Journal) {
    if journal.ruleset().sets.contains_key(name) {
        return;
    }
    let comment = format!("ipBlocks without their excepts: {} ranges", ranges.iter().len());
    journal
        .ensure_set(name, || SetSpec { interval: true, ..plain_set(vec![address_type(version)], &comment) });
    let v6 = version == IpVersion::V6;
    for (first, last) in ranges.iter() {
        journal.set_element(name, address(first, v6).into(), Some(Value::Until(address(last, v6).into())));
    }
}
