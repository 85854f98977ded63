//! Services to IPVS, for one node.
//!
//! ```text
//! objects ──► model::World ──► plan::Planner ──► wanted: virtual services, table, addresses
//!             what is           what should be          │
//! kernel ───► apply (observe) ─────────────────► steps ─┴─► apply (commit) ──► kernel
//! ```

pub mod apply;
pub mod args;
mod cleanup;
pub mod controller;
pub mod error;
pub mod metrics;
pub mod model;
pub mod owned;
pub mod plan;
mod report;
pub mod run;
