//! The edge to nf_tables.

pub mod expr;
pub mod ruleset;
