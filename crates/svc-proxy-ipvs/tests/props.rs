//! Properties of the pure part, on random clusters and histories: packets go where the API says, an incremental
//! plan is a full one, and differences lead where they should.
//!
//! `PROPTEST_CASES=5000 cargo test --release --test props` looks longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use common_informer::object::{Change, Object};
use kernel_nft::{Fake, Nftables, Op, Ruleset, Transaction};
use proptest::prelude::*;
use proptest::sample::Index;
use support::node::{Connection, fate};
use support::oracle::{self, Objects, Oracle};
use support::{Pure, config, random};

/// Connections tried on a cluster; spread evenly over all of them.
const CONNECTIONS: usize = 400;

fn cases(default: u32) -> ProptestConfig {
    let config =
        ProptestConfig { failure_persistence: None, max_shrink_iters: 3_000, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        ProptestConfig { cases: default, ..config }
    }
}

fn sample(objects: &Objects, start: Index) -> Vec<Connection> {
    let all = random::connections(objects);
    let step = all.len() / CONNECTIONS + 1;
    all.into_iter().skip(start.index(step)).step_by(step).collect()
}

fn by_key(cluster: Vec<Object>) -> Objects {
    cluster.into_iter().map(|object| (object.object_ref(), object)).collect()
}

/// A node that is shown all objects at once.
fn shown(flags: &[String], objects: &Objects) -> Pure {
    let mut node = Pure::new("n1", config(flags));
    node.update(objects.values().cloned().map(Change::Applied).collect());
    node
}

proptest! {
    #![proptest_config(cases(250))]

    #[test]
    fn packets_go_where_the_api_says(
        cluster in random::cluster(), flags in random::flags(), start: Index,
    ) {
        let objects = by_key(cluster);
        let node = shown(&flags, &objects);
        let addresses = node.addresses();
        let oracle = Oracle { objects: &objects, config: &node.config, addresses: &addresses, node: "n1" };
        for connection in sample(&objects, start) {
            prop_assert_eq!(fate(&node, &connection), oracle.fate(&connection), "{:?}", connection);
        }
    }
}

fn first_difference(one: &Ruleset, other: &Ruleset) -> String {
    let names = |a: &Ruleset| a.chains.keys().chain(a.sets.keys()).cloned().collect::<Vec<_>>();
    for name in names(one).into_iter().chain(names(other)) {
        if one.chains.get(&name) != other.chains.get(&name) {
            return format!("{name}: {:#?} != {:#?}", one.chains.get(&name), other.chains.get(&name));
        }
        if one.sets.get(&name) != other.sets.get(&name) {
            return format!("{name}: {:#?} != {:#?}", one.sets.get(&name), other.sets.get(&name));
        }
    }
    "the table or its counters".into()
}

/// Carries out a transaction. What the kernel refuses is a failure.
fn commit(fake: &mut Fake, table: &Ruleset, ops: &[Op]) -> Result<(), TestCaseError> {
    let transaction =
        Transaction { family: table.table.family, table: &table.table.name, ops, generation: None };
    fake.commit(&transaction).map_err(|error| TestCaseError::fail(format!("refused: {error}")))
}

fn held(fake: &Fake, table: &Ruleset) -> Ruleset {
    fake.ruleset(table.table.family, &table.table.name).expect("the table is there")
}

/// A kernel that holds just this table.
fn kernel_with(table: &Ruleset) -> Result<Fake, TestCaseError> {
    let mut fake = Fake::new();
    commit(&mut fake, table, &kernel_nft::create(table))?;
    Ok(fake)
}

macro_rules! prop_assert_same {
    ($one:expr, $other:expr, $when:expr) => {
        prop_assert!($one == $other, "{}: {}", $when, first_difference(&$one, &$other));
    };
}

fn same(running: &Pure, fresh: &Pure, when: &str) -> Result<(), TestCaseError> {
    prop_assert_same!(*running.ruleset(), *fresh.ruleset(), when);
    prop_assert_eq!(running.planner.virtuals(), fresh.planner.virtuals(), "{}", when);
    let vips = |node: &Pure| node.planner.vips().collect::<Vec<_>>();
    prop_assert_eq!(vips(running), vips(fresh), "{}", when);
    prop_assert_eq!(running.planner.health(), fresh.planner.health(), "{}", when);
    prop_assert_eq!(running.planner.problems(), fresh.planner.problems(), "{}", when);
    Ok(())
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn an_incremental_plan_is_a_full_plan(
        cluster in random::cluster(), history in random::history(), flags in random::flags(),
    ) {
        let mut objects = by_key(cluster);
        let mut node = shown(&flags, &objects);
        let mut kernel = kernel_with(node.ruleset())?;
        for batch in history {
            let mut changes = Vec::new();
            for edit in batch {
                let Some(change) = edit.change(&objects) else { continue };
                oracle::apply(&mut objects, &change);
                changes.push(change);
            }
            let before = node.planner.virtuals().clone();
            let vips_before: Vec<_> = node.planner.vips().collect();
            let update = node.update(changes);
            commit(&mut kernel, node.ruleset(), &update.table)?;
            prop_assert_same!(held(&kernel, node.ruleset()), *node.ruleset(), "the steps lead to another table");
            same(&node, &shown(&flags, &objects), "a restart leads elsewhere")?;
            let now = node.planner.virtuals();
            for key in before.keys().chain(now.keys()) {
                prop_assert_eq!(update.services.contains(key), before.get(key) != now.get(key), "{}", key);
            }
            for ip in vips_before.iter().copied().chain(node.planner.vips()) {
                prop_assert_eq!(update.vips.gone.contains(&ip), !node.planner.wants_vip(ip));
                prop_assert_eq!(update.vips.new.contains(&ip), !vips_before.contains(&ip));
            }
        }
    }

    #[test]
    fn a_table_left_behind_is_adopted_by_its_difference(
        cluster in random::cluster(), earlier in random::cluster(), flags in random::flags(),
        other_flags in random::flags(),
    ) {
        let want = shown(&flags, &by_key(cluster)).ruleset().clone();
        let have = shown(&other_flags, &by_key(earlier)).ruleset().clone();
        let mut kernel = kernel_with(&have)?;
        commit(&mut kernel, &want, &kernel_nft::diff(&want, &have))?;
        prop_assert_same!(held(&kernel, &want), want, "the difference leads to another table");
        prop_assert_eq!(kernel_nft::diff(&want, &want), vec![]);
    }

    #[test]
    fn what_changed_nothing_changes_nothing(cluster in random::cluster(), which: Index) {
        let objects = by_key(cluster);
        let mut node = shown(&[], &objects);
        let all: Vec<_> = objects.into_values().collect();
        let update = node.update(vec![Change::Applied(which.get(&all).clone())]);
        prop_assert!(update.table.is_empty() && update.services.is_empty(), "{:?}", update);
        prop_assert!(update.vips.new.is_empty() && update.vips.gone.is_empty(), "{:?}", update);
    }
}
