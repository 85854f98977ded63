//! What tests of other crates can make the fake do.

use kernel_nft::{CommitError, Fake, Family, Nftables, Op, TableFlags, Transaction, create};
use nix::libc;

use crate::layout::layout;

fn commit(fake: &mut Fake, ops: &[Op]) -> Result<(), CommitError> {
    let table = "npc".into();
    fake.commit(&Transaction { family: Family::Inet, table: &table, ops, generation: None })
}

fn delete_ok() -> Vec<Op> {
    vec![Op::FlushChain("ok".into())]
}

fn loaded() -> Fake {
    let mut fake = Fake::new();
    commit(&mut fake, &create(&layout("npc", TableFlags::default()))).unwrap();
    fake
}

#[test]
fn an_op_can_be_refused_once() {
    let mut fake = loaded();
    fake.refuse(|op| matches!(op, Op::FlushChain(_)), libc::ENOMEM, Some(1));
    let error = commit(&mut fake, &delete_ok()).unwrap_err();
    assert!(matches!(error, CommitError::Refused { op: 0, errno: libc::ENOMEM, .. }), "{error:?}");
    assert_eq!(error.to_string(), "flush chain ok: Cannot allocate memory (os error 12)");
    commit(&mut fake, &delete_ok()).unwrap();
    assert_eq!((fake.commits(), fake.attempts()), (2, 3));
}

#[test]
fn an_op_can_be_refused_until_further_notice() {
    let mut fake = loaded();
    fake.refuse(|op| matches!(op, Op::FlushChain(name) if &**name == "ok"), libc::EINVAL, None);
    for _ in 0..3 {
        commit(&mut fake, &delete_ok()).unwrap_err();
    }
    commit(&mut fake, &[Op::FlushChain("dispatch".into())]).unwrap();
    fake.refuse_nothing();
    commit(&mut fake, &delete_ok()).unwrap();
}

#[test]
fn an_unconfirmed_commit_may_have_been_carried_out_or_not() {
    for carried_out in [true, false] {
        let mut fake = loaded();
        fake.break_next_commit(carried_out);
        let error = commit(&mut fake, &delete_ok()).unwrap_err();
        assert!(matches!(error, CommitError::Unconfirmed) && error.is_retryable());
        let ok = &fake.ruleset(Family::Inet, "npc").unwrap().chains["ok"];
        assert_eq!(ok.rules.is_empty(), carried_out);
    }
}

#[test]
fn observations_can_fail_and_are_counted() {
    let mut fake = loaded();
    fake.break_observations(1);
    fake.observe(Family::Inet, "npc").unwrap_err();
    fake.observe(Family::Inet, "npc").unwrap().unwrap();
    assert_eq!(fake.observations(), 2);
}

#[test]
fn a_stranger_can_flush_what_has_no_owner() {
    let mut fake = loaded();
    let generation = fake.observe(Family::Inet, "npc").unwrap().unwrap().generation;
    fake.flush_by_stranger();
    assert_eq!(fake.ruleset(Family::Inet, "npc"), None);
    let table = "npc".into();
    let ops = [Op::AddTable(layout("npc", TableFlags::default()).table)];
    let stale = Transaction { family: Family::Inet, table: &table, ops: &ops, generation: Some(generation) };
    assert!(matches!(fake.commit(&stale), Err(CommitError::GenerationChanged)));
}

#[test]
fn a_kernel_without_persist_says_so() {
    assert!(!Fake::without_persist().supports_persist().unwrap());
}

#[test]
fn packets_can_be_counted() {
    let mut fake = loaded();
    assert!(fake.count(Family::Inet, "npc", "deny_in", 3, 300));
    assert!(!fake.count(Family::Inet, "npc", "nothing", 3, 300));
    let counters = fake.observe_counters(Family::Inet, "npc").unwrap();
    assert_eq!((counters["deny_in"].packets, counters["deny_in"].bytes), (3, 300));
}
