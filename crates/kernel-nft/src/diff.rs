//! The steps from what is there to what should be.
//!
//! One transaction is atomic, so the order inside it only has to be one that the kernel accepts: it refuses
//! to delete what is still named by something, and to name what does not exist. What is committed ahead of the
//! rest (the module `ahead`) comes first.
//!
//! ```text
//!  flush chains ─► delete elements ─► delete sets, chains, counters
//!    ─► add counters, sets, chains ─► elements of sets and data maps ─► rules ─► elements of verdict maps
//! ```
//!
//! What the kernel cannot change in place (the type of a set, the hook of a chain, any comment) is *renewed*:
//! deleted and added again under its name. Whatever names it is rewritten in the same transaction.

use std::collections::BTreeSet;

use crate::reference::Reference;
use crate::ruleset::{Chain, Counter, Key, Name, Op, Ruleset, Set, TableFlags, Value};
use crate::stages::arrange;

/// The ops that make `want` where there is no such table.
pub fn create(want: &Ruleset) -> Vec<Op> {
    let mut ops = vec![Op::AddTable(want.table.clone())];
    ops.extend(changes(want, &Ruleset::new(want.table.clone())));
    ops
}

/// The ops that turn `have` into `want`; none if they are equal. Both describe the same table; for a table
/// that is absent use [`create`].
///
/// A table's flags and comment cannot be changed, except that an orphan (flag `persist` without `owner`) is
/// adopted and a dormant table without owner is woken. Any other difference there removes the table and makes
/// it anew, in the same transaction.
/// Named counters keep their values, also when their comment changes.
pub fn diff(want: &Ruleset, have: &Ruleset) -> Vec<Op> {
    if want.table == have.table {
        return arrange(changes(want, have));
    }
    let orphan = TableFlags { persist: true, ..TableFlags::default() };
    let adopted = TableFlags { owner: true, persist: true, dormant: false };
    let woken = TableFlags { dormant: false, ..have.table.flags };
    let adoptable = (have.table.flags == orphan && want.table.flags == adopted
        || want.table.flags == woken && !woken.owner)
        && have.table.comment == want.table.comment
        && have.table.name == want.table.name
        && have.table.family == want.table.family;
    if adoptable {
        let mut ops = vec![Op::AddTable(want.table.clone())];
        ops.extend(changes(want, have));
        return arrange(ops);
    }
    let mut ops = vec![Op::DeleteTable];
    ops.extend(create(want));
    ops
}

/// Names of one kind of object, by what becomes of them.
#[derive(Default)]
struct Fate<'a> {
    /// In `have`, and deleted: not wanted, or renewed.
    deleted: BTreeSet<&'a Name>,
    /// In `want`, and added: not there, or renewed.
    added: BTreeSet<&'a Name>,
}

impl<'a> Fate<'a> {
    fn of<T>(
        want: &'a std::collections::BTreeMap<Name, T>,
        have: &'a std::collections::BTreeMap<Name, T>,
        alike: impl Fn(&T, &T) -> bool,
    ) -> Self {
        let differs = |name: &Name, mine: &T, others: &std::collections::BTreeMap<Name, T>| {
            others.get(name).is_none_or(|other| !alike(mine, other))
        };
        Self {
            deleted: have
                .iter()
                .filter(|(name, object)| differs(name, object, want))
                .map(|(name, _)| name)
                .collect(),
            added: want
                .iter()
                .filter(|(name, object)| differs(name, object, have))
                .map(|(name, _)| name)
                .collect(),
        }
    }
}

struct Plan<'a> {
    want: &'a Ruleset,
    have: &'a Ruleset,
    counters: Fate<'a>,
    sets: Fate<'a>,
    chains: Fate<'a>,
    ops: Vec<Op>,
}

fn changes(want: &Ruleset, have: &Ruleset) -> Vec<Op> {
    let mut plan = Plan {
        want,
        have,
        counters: Fate::of(&want.counters, &have.counters, |a, b| a == b),
        sets: Fate::of(&want.sets, &have.sets, |a, b| a.spec == b.spec),
        chains: Fate::of(&want.chains, &have.chains, |a, b| a.base == b.base && a.comment == b.comment),
        ops: Vec::new(),
    };
    plan.flush_chains();
    plan.delete_elements();
    plan.ops.extend(plan.sets.deleted.iter().map(|name| Op::DeleteSet((*name).clone())));
    plan.ops.extend(plan.chains.deleted.iter().map(|name| Op::DeleteChain((*name).clone())));
    plan.ops.extend(plan.counters.deleted.iter().map(|name| Op::DeleteCounter((*name).clone())));
    plan.add_objects();
    plan.add_elements(false);
    plan.add_rules();
    plan.add_elements(true);
    plan.ops
}

impl Plan<'_> {
    /// True if the kernel would refuse to delete that object as long as the reference is there.
    fn is_deleted(&self, reference: Reference<'_>) -> bool {
        match reference {
            Reference::Chain(name) => self.chains.deleted.contains(name),
            Reference::Set(name) => self.sets.deleted.contains(name),
            Reference::Counter(name) => self.counters.deleted.contains(name),
        }
    }

    fn names_deleted(&self, chain: &Chain) -> bool {
        chain.rules.iter().flat_map(|rule| rule.references()).any(|reference| self.is_deleted(reference))
    }

    /// What is to be written into a chain that stays: all of its rules after a flush, or those at its end
    /// that are missing. `None` if the chain is as it should be.
    fn rewrite(&self, name: &Name, want: &Chain) -> Option<Rewrite> {
        let have = match self.have.chains.get(name) {
            Some(have) if !self.chains.deleted.contains(name) => have,
            _ => return (!want.rules.is_empty()).then_some(Rewrite { flush: false, from: 0 }),
        };
        if self.names_deleted(have) || !want.rules.starts_with(&have.rules) {
            return Some(Rewrite { flush: !have.rules.is_empty(), from: 0 });
        }
        (have.rules.len() < want.rules.len()).then_some(Rewrite { flush: false, from: have.rules.len() })
    }

    fn flush_chains(&mut self) {
        let mut flushed = Vec::new();
        for (name, have) in &self.have.chains {
            let flush = if self.chains.deleted.contains(name) {
                // A chain takes its rules along; only those that hold on to other deleted things must go
                // before, as there may be no order in which each is deleted after its users.
                self.names_deleted(have)
            } else {
                self.want
                    .chains
                    .get(name)
                    .and_then(|want| self.rewrite(name, want))
                    .is_some_and(|rewrite| rewrite.flush)
            };
            if flush {
                flushed.push(Op::FlushChain(name.clone()));
            }
        }
        self.ops.extend(flushed);
    }

    fn add_rules(&mut self) {
        let mut rules = Vec::new();
        for (name, want) in &self.want.chains {
            if let Some(rewrite) = self.rewrite(name, want) {
                rules.extend(
                    want.rules[rewrite.from..].iter().map(|rule| Op::AddRule(name.clone(), rule.clone())),
                );
            }
        }
        self.ops.extend(rules);
    }

    /// True if the element cannot stay: its chain is renewed.
    fn is_released(&self, value: &Value) -> bool {
        value.target().is_some_and(|chain| self.chains.deleted.contains(chain))
    }

    /// Elements of `of` that `from` has not, or has with another value, or that must be taken out and put in.
    fn missing(&self, of: &Set, from: &Set) -> Vec<(Key, Value)> {
        if self.chains.deleted.is_empty() || !of.spec.is_verdict_map() {
            return of.elements.not_in(&from.elements).collect();
        }
        let missing = |(key, value): &(Key, Value)| {
            self.is_released(value) || from.elements.get(key).as_ref() != Some(value)
        };
        of.elements.iter().filter(missing).collect()
    }

    fn delete_elements(&mut self) {
        for (name, have) in &self.have.sets {
            if self.sets.deleted.contains(name) {
                continue;
            }
            let Some(want) = self.want.sets.get(name) else { continue };
            let gone = self.missing(have, want);
            if !gone.is_empty() {
                self.ops.push(Op::DeleteElements(name.clone(), gone));
            }
        }
    }

    fn add_elements(&mut self, verdict_maps: bool) {
        for (name, want) in &self.want.sets {
            if want.spec.is_verdict_map() != verdict_maps {
                continue;
            }
            let new = match self.have.sets.get(name) {
                Some(have) if !self.sets.deleted.contains(name) => self.missing(want, have),
                _ => want.elements.iter().collect(),
            };
            if !new.is_empty() {
                self.ops.push(Op::AddElements(name.clone(), new));
            }
        }
    }

    fn add_objects(&mut self) {
        for name in &self.counters.added {
            if let Some(want) = self.want.counters.get(*name) {
                let counter = match self.have.counters.get(*name) {
                    Some(have) => Counter { comment: want.comment.clone(), ..have.clone() },
                    None => want.clone(),
                };
                self.ops.push(Op::AddCounter((*name).clone(), counter));
            }
        }
        for name in &self.sets.added {
            if let Some(want) = self.want.sets.get(*name) {
                self.ops.push(Op::AddSet((*name).clone(), want.spec.clone()));
            }
        }
        for name in &self.chains.added {
            if let Some(want) = self.want.chains.get(*name) {
                self.ops.push(Op::AddChain((*name).clone(), want.base, want.comment.clone()));
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Rewrite {
    flush: bool,
    /// Index of the first rule to be added.
    from: usize,
}
