//! The algebra of differences, on random rulesets.

use kernel_nft::{Fake, Family, Nftables, Op, Ruleset, Transaction, apply, create, diff};
use proptest::prelude::*;

use crate::random::Random;

fn two(seed: u64) -> (Ruleset, Ruleset) {
    let mut random = Random::new(seed);
    (random.ruleset("t"), random.ruleset("t"))
}

fn commit(fake: &mut Fake, ops: &[Op]) -> Result<(), kernel_nft::CommitError> {
    let table = "t".into();
    fake.commit(&Transaction { family: Family::Inet, table: &table, ops, generation: None })
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
