//! Golden cases: the smallest objects, and the table that they make on node `n1`.
//!
//! Each folder of `tests/golden` has `case.md` (what it pins, and why), `objects.yaml` and `expect.nft`.
//! `UPDATE_GOLDEN=1` rewrites the expectations; read the difference before you commit it.

use std::fs;
use std::path::PathBuf;

use common_informer::manifests::document;
use common_informer::object::Change;
use kernel_nft::TableFlags;
use npc_firewall::model::world::{Touched, World};
use npc_firewall::plan::{PlanConfig, Planner};
use test_netns::golden;

#[expect(clippy::unwrap_used, reason = "a helper of a test")]
fn table_of(yaml: &str) -> String {
    let mut interner = common_informer::intern::Interner::new();
    let documents = document::parse(yaml, &mut interner);
    let mut world = World::new("n1".into());
    let mut touched = Touched::default();
    for decoded in documents.objects {
        world.apply(Change::Applied(decoded.unwrap().object), &mut touched);
    }
    let mut planner = Planner::new(PlanConfig::default(), TableFlags::default());
    planner.update(&world, &touched);
    kernel_nft::text::render(planner.ruleset())
}

#[test]
fn every_golden_case_makes_the_expected_table() {
    let table = |case: PathBuf| {
        let table = table_of(&fs::read_to_string(case.join("objects.yaml")).unwrap());
        (case.join("expect.nft"), table)
    };
    golden::check(golden::cases(env!("CARGO_MANIFEST_DIR"), 20).into_iter().map(table));
}
