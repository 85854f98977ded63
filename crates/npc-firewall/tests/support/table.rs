//! What a list of ops makes of a table, refusing what the kernel refuses: the other witness of the planner's
//! transactions, written from the rules of net/netfilter/nf_tables_api.c and not from the planner.

use std::collections::BTreeMap;

use kernel_nft::{Chain, Expr, Name, Op, Rule, Ruleset, Set, Value, Verdict};

/// Carries out a transaction on a table, or says why the kernel would refuse it.
pub fn apply(table: &Ruleset, ops: &[Op]) -> Result<Ruleset, String> {
    let mut table = table.clone();
    for op in ops {
        step(&mut table, op).map_err(|why| format!("{why}: {op:?}"))?;
    }
    Ok(table)
}

fn step(table: &mut Ruleset, op: &Op) -> Result<(), String> {
    match op {
        Op::AddTable(_) | Op::DeleteTable => return Err("the table is not the planner's to make".into()),
        Op::AddCounter(name, counter) => {
            free(table.counters.insert(name.clone(), counter.clone()).is_none(), "counter exists")?;
        }
        Op::DeleteCounter(name) => {
            unused(rules(table).any(|rule| rule.expressions.contains(&Expr::CounterRef(name.clone()))))?;
            table.counters.remove(name).ok_or("no such counter")?;
        }
        Op::AddSet(name, spec) => {
            let set = Set { spec: spec.clone(), elements: BTreeMap::new() };
            free(table.sets.insert(name.clone(), set).is_none(), "set exists")?;
        }
        Op::DeleteSet(name) => {
            unused(rules(table).any(|rule| sets_of(rule).any(|used| used == name)))?;
            table.sets.remove(name).ok_or("no such set")?;
        }
        Op::AddElements(name, elements) => {
            free(!elements.is_empty(), "an empty list of elements")?;
            for (_, value) in elements {
                if let Value::Verdict(verdict) = value {
                    has_target(table, verdict)?;
                }
            }
            let set = table.sets.get_mut(name).ok_or("no such set")?;
            for (key, value) in elements {
                free(set.spec.verdict_map == matches!(value, Value::Verdict(_)), "a value of another kind")?;
                free(set.elements.insert(key.clone(), value.clone()).is_none(), "element exists")?;
            }
            free(!set.spec.interval || disjoint(set), "ranges overlap")?;
        }
        Op::DeleteElements(name, elements) => {
            let set = table.sets.get_mut(name).ok_or("no such set")?;
            for (key, value) in elements {
                let was = set.elements.remove(key).ok_or("no such element")?;
                free(was == *value, "the element has another value")?;
            }
        }
        Op::AddChain(name, base, comment) => {
            let chain = Chain { base: *base, comment: comment.clone(), rules: vec![] };
            free(table.chains.insert(name.clone(), chain).is_none(), "chain exists")?;
        }
        Op::DeleteChain(name) => {
            let jumps = rules(table).flat_map(|rule| &rule.expressions).any(
                |expression| matches!(expression, Expr::Verdict(verdict) if target(verdict) == Some(name)),
            );
            let mapped = table
                .sets
                .values()
                .flat_map(|set| set.elements.values())
                .any(|value| matches!(value, Value::Verdict(verdict) if target(verdict) == Some(name)));
            unused(jumps || mapped)?;
            table.chains.remove(name).ok_or("no such chain")?;
        }
        Op::FlushChain(name) => table.chains.get_mut(name).ok_or("no such chain")?.rules.clear(),
        Op::AddRule(name, rule) => {
            for set in sets_of(rule) {
                free(table.sets.contains_key(set), "the rule names a set that is not there")?;
            }
            for expression in &rule.expressions {
                match expression {
                    Expr::Verdict(verdict) => has_target(table, verdict)?,
                    Expr::CounterRef(name) => {
                        free(
                            table.counters.contains_key(name),
                            "the rule names a counter that is not there",
                        )?;
                    }
                    _ => {}
                }
            }
            table.chains.get_mut(name).ok_or("no such chain")?.rules.push(rule.clone());
        }
    }
    Ok(())
}

fn rules(table: &Ruleset) -> impl Iterator<Item = &Rule> {
    table.chains.values().flat_map(|chain| &chain.rules)
}

fn sets_of(rule: &Rule) -> impl Iterator<Item = &Name> {
    rule.expressions.iter().filter_map(|expression| match expression {
        Expr::Lookup { set, .. } => Some(set),
        _ => None,
    })
}

fn target(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Jump(name) | Verdict::Goto(name) => Some(name),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

fn has_target(table: &Ruleset, verdict: &Verdict) -> Result<(), String> {
    match target(verdict) {
        None => Ok(()),
        Some(name) => match table.chains.get(name) {
            None => Err("it leads to a chain that is not there".into()),
            Some(chain) => free(chain.base.is_none(), "it leads to a base chain"),
        },
    }
}

fn disjoint(set: &Set) -> bool {
    let ends: Vec<_> = set
        .elements
        .iter()
        .map(|(first, value)| (first, if let Value::Until(last) = value { last } else { first }))
        .collect();
    ends.iter().all(|(first, last)| first <= last) && ends.windows(2).all(|two| two[0].1 < two[1].0)
}

fn free(condition: bool, why: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(why.into()) }
}

fn unused(used: bool) -> Result<(), String> {
    free(!used, "it is still in use")
}
