//! Addresses for Services of type LoadBalancer, one program for the whole cluster.
//!
//! ```text
//! objects ──► model::World ──► plan::Planner ──► plan::writes ──► apply ──► status of Services, Events
//!             what is           who has what     steps to it                the only writes
//!                                                   ▲
//! Lease ◄──► apply::lease ◄── plan::election ───────┘ only while this process leads
//! ```

pub mod model;
pub mod owned;
pub mod plan;
