//! The algebra of differences, on random rulesets.

use std::collections::{BTreeMap, HashSet};

use kernel_nft::{
    CommitError, Counter, Error, Expr, Fake, Family, Keeper, Name, Nftables, Observed, Op, Ruleset,
    Transaction, Value, Verdict, apply, create, diff,
};
use proptest::prelude::*;

use crate::random::Random;

fn two(seed: u64) -> (Ruleset, Ruleset) {
    let mut random = Random::new(seed);
    (random.ruleset("t"), random.ruleset("t"))
}

fn commit(fake: &mut Fake, ops: &[Op]) -> Result<(), CommitError> {
    let table = "t".into();
    fake.commit(&Transaction { family: Family::Inet, table: &table, ops, generation: None })
}

/// A model of the kernel that remembers what it was told, a list for each transaction.
struct Told {
    fake: Fake,
    transactions: Vec<Vec<Op>>,
    /// How many transactions there were when it was waited for packets.
    waited: Option<usize>,
}

impl Nftables for Told {
    fn observe(&mut self, family: Family, table: &str) -> Result<Option<Observed>, Error> {
        self.fake.observe(family, table)
    }

    fn observe_counters(&mut self, family: Family, table: &str) -> Result<BTreeMap<Name, Counter>, Error> {
        self.fake.observe_counters(family, table)
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), CommitError> {
        self.transactions.push(transaction.ops.to_vec());
        self.fake.commit(transaction)
    }

    fn wait_for_packets(&mut self) -> Result<(), CommitError> {
        self.waited = Some(self.transactions.len());
        Ok(())
    }

    fn portid(&self) -> u32 {
        self.fake.portid()
    }
}

/// The chains that a verdict leads to.
fn target(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

/// Names that ops make and names that they delete, of any kind of thing.
fn made_and_deleted(ops: &[Op]) -> (HashSet<&Name>, HashSet<&Name>) {
    let (mut made, mut deleted) = (HashSet::new(), HashSet::new());
    for op in ops {
        match op {
            Op::AddChain(name, ..) | Op::AddSet(name, _) | Op::AddCounter(name, _) => made.insert(name),
            Op::DeleteChain(name) | Op::DeleteSet(name) | Op::DeleteCounter(name) => deleted.insert(name),
            _ => false,
        };
    }
    (made, deleted)
}

/// Chains that a transaction makes and that what was there before it then leads to.
fn led_to_at_once(ops: &[Op]) -> Vec<&Name> {
    let (made, _) = made_and_deleted(ops);
    let mut targets = Vec::new();
    for op in ops {
        match op {
            Op::AddElements(set, elements) if !made.contains(set) => {
                targets.extend(elements.iter().filter_map(|(_, value)| match value {
                    Value::Verdict(verdict) => target(verdict),
                    _ => None,
                }));
            }
            Op::AddRule(chain, rule) if !made.contains(chain) => {
                targets.extend(rule.expressions.iter().filter_map(|expression| match expression {
                    Expr::Verdict(verdict) => target(verdict),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    targets.retain(|target| made.contains(target));
    targets
}

fn is_removal(op: &Op) -> bool {
    matches!(op, Op::FlushChain(_) | Op::DeleteChain(_) | Op::DeleteSet(_) | Op::DeleteCounter(_))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_differs_from_itself(seed: u64) {
        let (ruleset, _) = two(seed);
        prop_assert_eq!(diff(&ruleset, &ruleset), []);
    }

    #[test]
    fn applying_the_difference_makes_what_is_wanted(seed: u64) {
        let (want, have) = two(seed);
        let mut shadow = have.clone();
        apply(&mut shadow, &diff(&want, &have)).unwrap();
        prop_assert_eq!(shadow, want);
    }

    #[test]
    fn the_difference_is_a_valid_transaction(seed: u64) {
        let (want, have) = two(seed);
        let mut fake = Fake::new();
        commit(&mut fake, &create(&have)).unwrap();
        let ops = diff(&want, &have);
        if let Err(error) = commit(&mut fake, &ops) {
            return Err(TestCaseError::fail(format!("{error}: {ops:#?}")));
        }
        prop_assert_eq!(fake.ruleset(Family::Inet, "t"), Some(want));
    }

    #[test]
    fn a_chain_has_its_rules_as_long_as_something_leads_to_it(seed: u64) {
        let (want, have) = two(seed);
        let mut fake = Fake::new();
        commit(&mut fake, &create(&have)).unwrap();
        let generation = fake.observe(Family::Inet, "t").unwrap().map(|observed| observed.generation);
        let ops = diff(&want, &have);
        let mut keeper = Keeper::new(Told { fake, transactions: Vec::new(), waited: None }, Family::Inet, "t");
        keeper.commit(&ops, generation).unwrap();
        let told = keeper.nft();
        prop_assert_eq!(told.fake.ruleset(Family::Inet, "t"), Some(want));
        prop_assert_eq!(told.transactions.concat(), &ops[..]);
        prop_assert!(told.transactions.len() <= 3);
        let (made, deleted) = made_and_deleted(&ops);
        // Things that are renewed under their names leave no other way than one transaction.
        if made.is_disjoint(&deleted) {
            for transaction in &told.transactions {
                prop_assert_eq!(led_to_at_once(transaction), Vec::<&Name>::new());
            }
            let removes_chain = |ops: &Vec<Op>| ops.iter().any(|op| matches!(op, Op::DeleteChain(_)));
            let at = told.transactions.iter().position(removes_chain);
            prop_assert_eq!(told.waited, at);
            if let Some(at) = at {
                prop_assert_eq!(at, told.transactions.len() - 1);
                prop_assert!(told.transactions[at].iter().all(is_removal));
            }
        }
    }

    #[test]
    fn a_refused_op_changes_nothing(seed: u64, at in 0usize..200) {
        let (want, have) = two(seed);
        let mut fake = Fake::new();
        commit(&mut fake, &create(&have)).unwrap();
        let mut ops = diff(&want, &have);
        ops.insert(at.min(ops.len()), Op::DeleteChain("nowhere".into()));
        prop_assert!(commit(&mut fake, &ops).is_err());
        prop_assert_eq!(fake.ruleset(Family::Inet, "t"), Some(have));
    }
}

#[test]
fn one_more_rule_is_one_op() {
    let mut random = Random::new(7);
    let have = random.ruleset("t");
    let mut want = have.clone();
    let (name, chain) = want.chains.iter_mut().next().unwrap();
    let rule = kernel_nft::Rule::new().counter().accept();
    chain.rules.push(rule.clone());
    let op = Op::AddRule(name.clone(), rule);
    assert_eq!(diff(&want, &have), [op]);
}
