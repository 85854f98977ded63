//! Which endpoints of a Service may serve which packets, seen from one node, and why the others may not.
//!
//! ```text
//!   EndpointSlices ─► Slices ── of one Service ──┐
//!   port, family, node and zone ─────────────────┴► select ─► Selection: for each endpoint a Verdict,
//!   FullService ─► Policies: Internal, External, Inside ─► Cluster or Local ─┘       and a Fate for each policy
//!   FullService ─► Services: whose an address and port is, where several Services want it
//! ```
//!
//! The service proxy programs these endpoints and route-bgp announces addresses by them, so it is here, once.
//! Everything is a pure function of objects, independent of the order in which they come.
//!
//! The rules are those of the API (discovery/v1 and core/v1), of KEP-1669 (terminating endpoints), KEP-2433
//! and KEP-3015 (hints), and of kube-proxy where these are silent (`CategorizeEndpoints` in
//! `pkg/proxy/topology.go`). What kube-proxy leaves to chance is decided here: see [`select`] for an endpoint
//! that is in several slices, and [`Services`] for those that share an address.

mod explain;
mod policy;
mod select;
mod services;
mod slices;

pub use explain::explain;
pub use policy::{PassedOver, Policies, Traffic, passed_over};
pub use select::{
    Candidate, Condition, Fate, Place, PortKey, Selection, Topology, Verdict, ready_addresses_here, select,
};
pub use services::{Frontend, Origin, Services, frontends};
pub use slices::Slices;
