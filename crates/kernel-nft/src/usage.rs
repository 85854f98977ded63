//! Who uses what in a table, counted as the kernel counts it, to refuse what the kernel refuses.

use std::collections::{BTreeMap, HashMap};

use nix::libc;

use crate::expr::{Expr, IpVersion};
use crate::reference::Reference;
use crate::ruleset::{Family, Key, MapsTo, Name, Op, Rule, Ruleset, Value};
use crate::validate::check_base;

/// How often each chain, set and counter is named by rules and elements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    chains: HashMap<Name, usize>,
    sets: HashMap<Name, usize>,
    counters: HashMap<Name, usize>,
    /// What the present rules and elements name, by the chain or set that holds them.
    held_by_chain: HashMap<Name, Vec<Held>>,
    held_by_set: HashMap<Name, BTreeMap<Key, Name>>,
}

/// An owned [`Reference`].
#[derive(Clone, Debug)]
enum Held {
    Chain(Name),
    Set(Name),
    Counter(Name),
}

impl Usage {
    /// What the kernel checks of an op beyond presence and form; `Err` is a positive `errno`.
    pub(crate) fn check(&self, ruleset: &Ruleset, op: &Op) -> Result<(), i32> {
        let unused = |counts: &HashMap<Name, usize>, name: &Name| {
            if counts.get(name).copied().unwrap_or(0) > 0 { Err(libc::EBUSY) } else { Ok(()) }
        };
        match op {
            Op::DeleteChain(name) if ruleset.chains.contains_key(name) => unused(&self.chains, name),
            Op::DeleteSet(name) if ruleset.sets.contains_key(name) => unused(&self.sets, name),
            Op::DeleteCounter(name) if ruleset.counters.contains_key(name) => unused(&self.counters, name),
            Op::AddChain(name, Some(base), _) if !ruleset.chains.contains_key(name) => check_base(base),
            Op::AddRule(chain, rule) if ruleset.chains.contains_key(chain) => check_rule(ruleset, rule),
            Op::AddElements(set, elements) if ruleset.sets.contains_key(set) => elements
                .iter()
                .filter_map(|(_, value)| value.target())
                .try_for_each(|chain| check_target(ruleset, chain)),
            _ => Ok(()),
        }
    }

    /// Counts an op that was carried out.
    pub(crate) fn add(&mut self, op: &Op) {
        match op {
            Op::AddRule(chain, rule) => {
                let held: Vec<Held> = rule.references().map(Held::from).collect();
                held.iter().for_each(|held| *self.count(held) += 1);
                self.held_by_chain.entry(chain.clone()).or_default().extend(held);
            }
            Op::FlushChain(chain) | Op::DeleteChain(chain) => {
                for held in self.held_by_chain.remove(chain).unwrap_or_default() {
                    *self.count(&held) -= 1;
                }
            }
            Op::AddElements(set, elements) => {
                for (key, chain) in elements.iter().filter_map(|(key, value)| Some((key, value.target()?))) {
                    let present = self.held_by_set.entry(set.clone()).or_default();
                    if present.insert(key.clone(), chain.clone()).is_none() {
                        *self.chains.entry(chain.clone()).or_default() += 1;
                    }
                }
            }
            Op::DeleteElements(set, elements) => self.release_elements(set, elements),
            Op::DeleteSet(set) => {
                for chain in self.held_by_set.remove(set).unwrap_or_default().into_values() {
                    *self.chains.entry(chain).or_default() -= 1;
                }
            }
            _ => {}
        }
    }

    fn release_elements(&mut self, set: &Name, elements: &[(Key, Value)]) {
        let Some(present) = self.held_by_set.get_mut(set) else { return };
        for chain in elements.iter().filter_map(|(key, _)| present.remove(key)) {
            *self.chains.entry(chain).or_default() -= 1;
        }
    }

    fn count(&mut self, held: &Held) -> &mut usize {
        match held {
            Held::Chain(name) => self.chains.entry(name.clone()).or_default(),
            Held::Set(name) => self.sets.entry(name.clone()).or_default(),
            Held::Counter(name) => self.counters.entry(name.clone()).or_default(),
        }
    }
}

impl From<Reference<'_>> for Held {
    fn from(reference: Reference<'_>) -> Self {
        match reference {
            Reference::Chain(name) => Self::Chain(name.clone()),
            Reference::Set(name) => Self::Set(name.clone()),
            Reference::Counter(name) => Self::Counter(name.clone()),
        }
    }
}

fn check_rule(ruleset: &Ruleset, rule: &Rule) -> Result<(), i32> {
    for expression in &rule.expressions {
        match expression {
            Expr::Lookup { set, verdict_map, .. } => {
                let set = ruleset.sets.get(set).ok_or(libc::ENOENT)?;
                // KERNEL: nft_lookup_init(). Since Linux 6.5 a rule may look up only the keys of a map; who relies
                // on that fails on kernels that we support, so it is refused here.
                if *verdict_map != set.spec.is_verdict_map() || matches!(set.spec.maps_to, MapsTo::Data(_)) {
                    return Err(libc::EINVAL);
                }
            }
            Expr::Map { set, .. } => {
                let set = ruleset.sets.get(set).ok_or(libc::ENOENT)?;
                if !matches!(set.spec.maps_to, MapsTo::Data(_)) {
                    return Err(libc::EINVAL);
                }
            }
            // KERNEL: nft_nat_init(): the version of the address is that of the table, unless it is for both.
            Expr::Nat { version, .. } if !allows(ruleset.table.family, *version) => {
                return Err(libc::EOPNOTSUPP);
            }
            Expr::CounterRef(counter) if !ruleset.counters.contains_key(counter) => return Err(libc::ENOENT),
            Expr::Verdict(verdict) => {
                if let Some(target) = verdict.target() {
                    check_target(ruleset, target)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn allows(family: Family, version: IpVersion) -> bool {
    match family {
        Family::Inet => true,
        Family::Ip => version == IpVersion::V4,
        Family::Ip6 => version == IpVersion::V6,
        Family::Bridge => false,
    }
}

/// KERNEL: nft_verdict_init().
fn check_target(ruleset: &Ruleset, chain: &Name) -> Result<(), i32> {
    match ruleset.chains.get(chain) {
        None => Err(libc::ENOENT),
        Some(chain) if chain.base.is_some() => Err(libc::EOPNOTSUPP),
        Some(_) => Ok(()),
    }
}
