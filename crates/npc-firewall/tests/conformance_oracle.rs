//! All of cyclonus and of Kubernetes' network policy e2e, every cell: on the oracle, which so earns the right
//! to judge, and on the rules that the planner compiles, run by the interpreter.
//!
//! `make test-conformance` runs this; the suites are not part of the project (see `support/conformance.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use npc_firewall::plan::PlanConfig;
use support::cluster;
use support::conformance::{self, Case, Wrong};
use support::oracle::{self, Connection};

/// Judges every cell of every step; `judge` is made anew for each step. Returns how many cells there were.
fn every_cell<F: Fn(&Connection) -> bool>(
    cases: &[Case],
    judge: impl Fn(Vec<common_informer::object::Object>) -> F,
) -> usize {
    let (mut count, mut wrong) = (0, vec![]);
    for case in cases {
        for (number, step) in case.steps.iter().enumerate() {
            let judge = judge(step.objects());
            for (connection, expected) in step.cells() {
                count += 1;
                if judge(&connection) != expected {
                    wrong.push(Wrong { case, step: number, connection, expected }.to_string());
                }
            }
        }
    }
    println!("{} cases, {count} cells, {} wrong", cases.len(), wrong.len());
    assert!(wrong.is_empty(), "{} of {count} cells are wrong, the first:\n{}", wrong.len(), wrong[0]);
    count
}

fn oracle_agrees(cases: &[Case]) -> usize {
    every_cell(cases, |objects| move |connection| oracle::allowed(&objects, connection))
}

fn compiled_rules_agree(cases: &[Case]) -> usize {
    every_cell(cases, |objects| {
        let rulesets = cluster::rulesets(&PlanConfig::default(), &objects);
        move |connection| {
            connection.source == connection.destination || cluster::passes(&rulesets, &objects, connection)
        }
    })
}

/// So that a suite that was lost on the way does not count as passed.
const CYCLONUS: (usize, usize) = (1242, 639_279);
const E2E: (usize, usize) = (96, 1422);

#[test]
fn the_oracle_agrees_with_every_cell_of_cyclonus() {
    let cases = conformance::cyclonus();
    assert_eq!((cases.len(), oracle_agrees(&cases)), CYCLONUS);
}

#[test]
fn the_oracle_agrees_with_every_cell_of_the_e2e_suite() {
    let cases = conformance::e2e();
    assert_eq!((cases.len(), oracle_agrees(&cases)), E2E);
}

#[test]
fn compiled_rules_agree_with_every_cell_of_cyclonus() {
    let cases = conformance::cyclonus();
    assert_eq!((cases.len(), compiled_rules_agree(&cases)), CYCLONUS);
}

#[test]
fn compiled_rules_agree_with_every_cell_of_the_e2e_suite() {
    let cases = conformance::e2e();
    assert_eq!((cases.len(), compiled_rules_agree(&cases)), E2E);
}
