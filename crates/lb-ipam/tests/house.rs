//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, reason = "a broken test ends in a panic")]

use test_netns::house;

#[test]
fn model_and_plan_have_no_clock_and_no_input_or_output() {
    house::pure(env!("CARGO_MANIFEST_DIR"), 8, &[]).unwrap();
}
