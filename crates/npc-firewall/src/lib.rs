//! NetworkPolicy to nftables, for one node.
//!
//! ```text
//! objects ──► model::World ──► plan::Planner ──► ops ──► apply ──► kernel
//!             what is           what should be           the only kernel I/O
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
pub mod run;
