//! Carries out changes on a [`Ruleset`] as the kernel would: the exact shadow of a table.
//!
//! A controller that keeps such a shadow need not read the kernel after each of its own transactions.

use nix::libc;

use crate::describe::describe;
use crate::ruleset::{Chain, Key, MapsTo, Name, Op, Ruleset, Set, SetSpec, Value};

/// Why a change is refused, as the kernel would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{description}: {}", std::io::Error::from_raw_os_error(*.errno))]
pub struct Refused {
    /// Index of the change.
    pub op: usize,
    /// Positive `errno`.
    pub errno: i32,
    /// The change in words.
    pub description: String,
}

/// Carries out `ops` in order. The cost is that of the ops, not of the ruleset; so it is not checked whether
/// something deleted is still in use or whether chains jump in circles ([`Fake`](crate::Fake) does).
///
/// `DeleteTable` empties the ruleset; a following `AddTable` gives it its new properties.
///
/// # Errors
/// [`Refused`] at the first op that does not fit what is there. The ruleset then holds the changes before it:
/// throw it away.
pub fn apply(ruleset: &mut Ruleset, ops: &[Op]) -> Result<(), Refused> {
    for (index, op) in ops.iter().enumerate() {
        apply_one(ruleset, op).map_err(|errno| Refused { op: index, errno, description: describe(op) })?;
    }
    Ok(())
}

/// Carries out one change, or nothing of it; `Err` is a positive `errno`.
pub(crate) fn apply_one(ruleset: &mut Ruleset, op: &Op) -> Result<(), i32> {
    match op {
        Op::AddTable(table) => ruleset.table = table.clone(),
        Op::DeleteTable => *ruleset = Ruleset::new(ruleset.table.clone()),
        Op::AddCounter(name, counter) => insert(&mut ruleset.counters, name, counter.clone())?,
        Op::DeleteCounter(name) => ruleset.counters.remove(name).map(drop).ok_or(libc::ENOENT)?,
        Op::AddSet(name, spec) => {
            insert(&mut ruleset.sets, name, Set { spec: spec.clone(), elements: Default::default() })?;
        }
        Op::DeleteSet(name) => ruleset.sets.remove(name).map(drop).ok_or(libc::ENOENT)?,
        Op::AddElements(name, elements) => {
            add_elements(ruleset.sets.get_mut(name).ok_or(libc::ENOENT)?, elements)?;
        }
        Op::DeleteElements(name, elements) => {
            delete_elements(ruleset.sets.get_mut(name).ok_or(libc::ENOENT)?, elements)?;
        }
        Op::AddChain(name, base, comment) => {
            let chain = Chain { base: *base, comment: comment.clone(), rules: Vec::new() };
            insert(&mut ruleset.chains, name, chain)?;
        }
        Op::DeleteChain(name) => ruleset.chains.remove(name).map(drop).ok_or(libc::ENOENT)?,
        Op::FlushChain(name) => ruleset.chains.get_mut(name).ok_or(libc::ENOENT)?.rules.clear(),
        Op::AddRule(name, rule) => {
            ruleset.chains.get_mut(name).ok_or(libc::ENOENT)?.rules.push(rule.clone());
        }
    }
    Ok(())
}

fn insert<T>(map: &mut std::collections::BTreeMap<Name, T>, name: &Name, object: T) -> Result<(), i32> {
    match map.entry(name.clone()) {
        std::collections::btree_map::Entry::Occupied(_) => Err(libc::EEXIST),
        std::collections::btree_map::Entry::Vacant(vacant) => {
            vacant.insert(object);
            Ok(())
        }
    }
}

fn add_elements(set: &mut Set, elements: &[(Key, Value)]) -> Result<(), i32> {
    for (key, value) in elements {
        fits(&set.spec, key, value)?;
        match set.elements.get(key) {
            // KERNEL: nft_add_set_elem takes what is there already, if it is the same, without NLM_F_EXCL.
            Some(present) if present == *value => continue,
            Some(_) => return Err(libc::EEXIST),
            None => {}
        }
        if let Value::Until(last) = value
            && overlaps(set, key, last)
        {
            // KERNEL: the ENOTEMPTY of nft_set_rbtree.c becomes EEXIST in nft_add_set_elem().
            return Err(libc::EEXIST);
        }
        if set.spec.size.is_some_and(|size| set.elements.len() >= size as usize) {
            return Err(libc::ENFILE);
        }
        set.elements.insert(key.clone(), value.clone());
    }
    Ok(())
}

fn delete_elements(set: &mut Set, elements: &[(Key, Value)]) -> Result<(), i32> {
    for (key, value) in elements {
        fits(&set.spec, key, value)?;
        // KERNEL: an element is deleted by its key, a range by both its ends.
        match (set.elements.get(key), value) {
            (Some(Value::Until(present)), Value::Until(last)) if present != *last => {
                return Err(libc::ENOENT);
            }
            (Some(_), _) => {}
            (None, _) => return Err(libc::ENOENT),
        }
        set.elements.remove(key);
    }
    Ok(())
}

/// The key has the length and the value the kind that the set is for.
fn fits(spec: &SetSpec, key: &Key, value: &Value) -> Result<(), i32> {
    let kind = match value {
        Value::Member => !spec.interval && spec.maps_to == MapsTo::Nothing,
        Value::Until(last) => {
            spec.interval
                && spec.maps_to == MapsTo::Nothing
                && last.as_bytes().len() == spec.key_len()
                && key <= last
        }
        Value::Verdict(_) => spec.is_verdict_map(),
        Value::Data(data) => {
            matches!(spec.maps_to, MapsTo::Data(_)) && data.as_bytes().len() == spec.data_len()
        }
    };
    if kind && key.as_bytes().len() == spec.key_len() { Ok(()) } else { Err(libc::EINVAL) }
}

/// True if a range of the set has a key in common with `first` to `last`.
fn overlaps(set: &Set, first: &Key, last: &Key) -> bool {
    set.elements.last_until(last).is_some_and(|(start, value)| match value {
        Value::Until(end) => start >= *first || end >= *first,
        Value::Member | Value::Verdict(_) | Value::Data(_) => false,
    })
}
