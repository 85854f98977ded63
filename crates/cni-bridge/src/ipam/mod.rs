//! Addresses, with the configuration, files and semantics of the reference's `host-local`, in this process.
//!
//! ```text
//!   ipam conf ─► RangeSets ─┐
//!   asked-for addresses ────┼─► allocate ─► one address of each set ─► ips, routes, dns
//!   Store (files, locked) ──┘
//! ```

pub mod allocate;
pub mod conf;
pub mod range;
pub mod resolv;
pub mod store;

pub use allocate::{Allocation, allocate};
pub use conf::IpamConf;
pub use range::{Range, RangeSet};
pub use store::{Owner, Store};
