//! What should be: which Service has which address, who leads, and the steps to it. Pure.

pub mod book;
pub mod election;
pub mod planner;
mod queue;
pub mod writes;

use common_informer::object::ObjectKey;
use smallvec::SmallVec;

pub use planner::{Eviction, PlanConfig, Planner, Update};

/// Addresses of a Service, at most one of each family.
pub type Addresses = SmallVec<[std::net::IpAddr; 2]>;

/// Services' keys, mostly one.
pub(crate) type Keys = SmallVec<[ObjectKey; 1]>;
