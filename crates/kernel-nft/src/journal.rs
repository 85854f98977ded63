//! The wanted table, and what changed in it since the last commit.
//!
//! The journal keeps what stood in a place before it was first touched, and compares at the end: whatever
//! happened in between, the ops are the smallest ones, in an order that the kernel accepts in one
//! transaction.

use std::collections::{BTreeMap, HashMap};

use crate::elements::Elements;
use crate::ruleset::{Chain, Counter, Key, Name, Op, Rule, Ruleset, Set, SetSpec, TableFlags, Value};
use crate::stages::arrange;

/// Wanted state with a memory of the last commit.
#[derive(Debug)]
pub struct Journal {
    ruleset: Ruleset,
    chains_before: BTreeMap<Name, Option<Chain>>,
    specs_before: BTreeMap<Name, Option<SetSpec>>,
    elements_before: HashMap<Name, BTreeMap<Key, Option<Value>>>,
    records: bool,
}

/// The steps from the last commit to now.
#[derive(Debug, Default)]
pub struct Steps {
    /// In an order that works in one transaction.
    pub ops: Vec<Op>,
    /// Something that was allowed may not be any more.
    pub tightened: bool,
}

impl Journal {
    /// Starts from a ruleset that counts as committed.
    pub fn new(ruleset: Ruleset) -> Self {
        Self {
            ruleset,
            chains_before: BTreeMap::new(),
            specs_before: BTreeMap::new(),
            elements_before: HashMap::new(),
            records: true,
        }
    }

    /// Whether steps are recorded from here on. Where what is in the kernel is not known, nobody asks for them, and
    /// those to a whole table take more memory than the table.
    pub fn record(&mut self, records: bool) {
        self.records = records;
    }

    /// The wanted state.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// Wants other flags of the table; no step leads there, only the first commit.
    pub fn set_flags(&mut self, flags: TableFlags) {
        self.ruleset.table.flags = flags;
    }

    /// Makes a counter. Counters are made once, before the first commit.
    pub fn add_counter(&mut self, name: &Name, comment: &str) {
        let counter = Counter { comment: Some(comment.into()), ..Counter::default() };
        self.ruleset.counters.insert(name.clone(), counter);
    }

    /// Makes an empty set unless it is there.
    pub fn ensure_set(&mut self, name: &Name, spec: impl FnOnce() -> SetSpec) {
        if self.ruleset.sets.contains_key(name) {
            return;
        }
        if self.records {
            self.specs_before.entry(name.clone()).or_insert(None);
        }
        self.ruleset.sets.insert(name.clone(), Set { spec: spec(), elements: Elements::new() });
    }

    /// Removes a set and its elements.
    pub fn remove_set(&mut self, name: &Name) {
        let Some(set) = self.ruleset.sets.remove(name) else { return };
        let pending = self.elements_before.remove(name);
        if !self.records {
            return;
        }
        if let std::collections::btree_map::Entry::Vacant(entry) = self.specs_before.entry(name.clone()) {
            entry.insert(Some(set.spec));
            // The set was committed. Should it come back before the next commit, its old elements count.
            let mut before: BTreeMap<_, _> = set.elements.iter().map(|(k, v)| (k, Some(v))).collect();
            before.extend(pending.into_iter().flatten());
            self.elements_before.insert(name.clone(), before);
        }
    }

    /// Puts an element into a set, or takes it out with `None`. Unknown sets are ignored.
    pub fn set_element(&mut self, name: &Name, key: Key, value: Option<Value>) {
        let Some(set) = self.ruleset.sets.get_mut(name) else { return };
        let before = match &value {
            Some(value) => set.elements.insert(key.clone(), value.clone()),
            None => set.elements.remove(&key),
        };
        // A set made since the last commit is sent whole.
        if self.records && before != value && !matches!(self.specs_before.get(name), Some(None)) {
            let pending = match self.elements_before.get_mut(name) {
                Some(pending) => pending,
                None => self.elements_before.entry(name.clone()).or_default(),
            };
            pending.entry(key).or_insert(before);
        }
    }

    /// Sets the whole of a chain, or removes it with `None`.
    pub fn set_chain(&mut self, name: &Name, chain: Option<Chain>) {
        let before = match chain {
            Some(chain) if self.ruleset.chains.get(name) == Some(&chain) => return,
            Some(chain) => self.ruleset.chains.insert(name.clone(), chain),
            None => self.ruleset.chains.remove(name),
        };
        if self.records {
            self.chains_before.entry(name.clone()).or_insert(before);
        }
    }

    /// The steps since the last call; the wanted state counts as committed from here on. `exempts` names the
    /// sets whose elements never allowed a connection to be marked, so that taking one out tightens nothing.
    pub fn take_steps(&mut self, exempts: impl Fn(&str) -> bool) -> Steps {
        let mut steps = Phases::default();
        for (name, before) in std::mem::take(&mut self.specs_before) {
            let after = self.ruleset.sets.get(&name);
            match (before, after) {
                (None, Some(set)) => {
                    steps.sets.push(Op::AddSet(name.clone(), set.spec.clone()));
                    if !set.elements.is_empty() {
                        let all = set.elements.iter().collect();
                        steps.add_elements(set.spec.is_verdict_map(), name, all);
                    }
                }
                (Some(_), None) => {
                    self.elements_before.remove(&name);
                    steps.removed_sets.push(Op::DeleteSet(name));
                }
                (Some(before), Some(set)) if before != set.spec => {
                    // Names are digests of what the set is, so this does not happen; if it did, the audit
                    // would mend it.
                    debug_assert!(false, "set {name} came back as another set");
                }
                _ => {}
            }
        }
        let mut pending: Vec<_> = std::mem::take(&mut self.elements_before).into_iter().collect();
        pending.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, before) in pending {
            let Some(set) = self.ruleset.sets.get(&name) else { continue };
            steps.elements(name.clone(), set, before, exempts(&name));
        }
        for (name, before) in std::mem::take(&mut self.chains_before) {
            steps.chain(name.clone(), before, self.ruleset.chains.get(&name));
        }
        steps.finish()
    }
}

/// Steps by kind, in the order in which they go into a transaction: things are made before they are used,
/// and no longer used before they are removed.
#[derive(Default)]
struct Phases {
    sets: Vec<Op>,
    chains: Vec<Op>,
    members: Vec<Op>,
    rules: Vec<Op>,
    verdicts: Vec<Op>,
    removed_chains: Vec<Op>,
    removed_sets: Vec<Op>,
    tightened: bool,
}

impl Phases {
    fn add_elements(&mut self, verdict_map: bool, name: Name, elements: Vec<(Key, Value)>) {
        let phase = if verdict_map { &mut self.verdicts } else { &mut self.members };
        phase.push(Op::AddElements(name, elements));
    }

    fn elements(&mut self, name: Name, set: &Set, before: BTreeMap<Key, Option<Value>>, exempt: bool) {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (key, before) in before {
            let after = set.elements.get(&key);
            if before == after {
                continue;
            }
            if let Some(before) = before {
                gone.push((key.clone(), before));
            }
            if let Some(after) = after {
                new.push((key, after));
            }
        }
        // A pod that gets a verdict becomes isolated; an address that leaves a set is no longer allowed.
        self.tightened |=
            if set.spec.is_verdict_map() { !new.is_empty() } else { !exempt && !gone.is_empty() };
        if !gone.is_empty() {
            let phase = if set.spec.is_verdict_map() { &mut self.verdicts } else { &mut self.members };
            phase.push(Op::DeleteElements(name.clone(), gone));
        }
        if !new.is_empty() {
            self.add_elements(set.spec.is_verdict_map(), name, new);
        }
    }

    fn chain(&mut self, name: Name, before: Option<Chain>, after: Option<&Chain>) {
        match (before, after) {
            (Some(before), Some(after)) if before != *after => {
                self.tightened |= !includes(&after.rules, &before.rules);
                self.rules.push(Op::FlushChain(name.clone()));
                self.rules.extend(after.rules.iter().map(|rule| Op::AddRule(name.clone(), rule.clone())));
            }
            (None, Some(after)) => {
                self.chains.push(Op::AddChain(name.clone(), after.base, after.comment.clone()));
                self.rules.extend(after.rules.iter().map(|rule| Op::AddRule(name.clone(), rule.clone())));
            }
            (Some(_), None) => {
                // Its rules name sets that may be removed as well; they go first.
                self.removed_chains.insert(0, Op::FlushChain(name.clone()));
                self.removed_chains.push(Op::DeleteChain(name));
            }
            _ => {}
        }
    }

    fn finish(self) -> Steps {
        let phases = [
            self.sets,
            self.chains,
            self.members,
            self.rules,
            self.verdicts,
            self.removed_chains,
            self.removed_sets,
        ];
        Steps { ops: arrange(phases.into_iter().flatten().collect()), tightened: self.tightened }
    }
}

/// Whether all of `some` are among `all`: a chain whose rules allow, but for the last, refuses nothing that it
/// allowed if it only gained rules.
fn includes(all: &[Rule], some: &[Rule]) -> bool {
    some.iter().all(|rule| all.contains(rule))
}
