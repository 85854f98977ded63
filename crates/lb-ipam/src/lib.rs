//! Addresses for Services of type LoadBalancer, one program for the whole cluster.
//!
//! ```text
//! objects ──► model::World ──► plan::Planner ──► plan::writes ──► apply ──► status of Services, Events
//!             what is           who has what     steps to it                the only writes
//!    ▲                                                               ▲
//!    └── term: watches while it leads ◄── Lease ◄──► apply::lease ───┘ sends while it leads
//! ```
//!
//! An instance that does not lead watches nothing. One that begins to lead lists all Services *after* it has got
//! the Lease, so that it sees every status that the last leader wrote.

pub mod apply;
pub mod args;
pub mod controller;
pub mod metrics;
pub mod model;
pub mod owned;
pub mod plan;
mod repeats;
pub mod run;
mod state;
pub mod term;
