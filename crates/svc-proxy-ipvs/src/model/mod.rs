//! What the world is. Pure.
//!
//! ```text
//!   Service, EndpointSlice, Node ──► World ──► touched: which Services to plan anew
//!   the node's own addresses ──────► Addresses
//! ```

pub mod addresses;
pub mod admission;
pub mod problem;
pub mod world;
