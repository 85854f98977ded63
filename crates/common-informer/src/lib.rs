//! The edge to the API server: one watch per kind that a controller asks for, tolerant decoding, projection
//! to small types, and a stream of changes.
//!
//! ```text
//!   Source::Api ──────► api ───────┐
//!                                  ├─ decode ─► hub ─► Informer::next ─► Batch of Change
//!   Source::Manifests ► manifests ─┘             └───► Status
//! ```
//!
//! What two controllers must agree on lives here once: [`selector`], which objects a label selector means, and
//! [`endpoints`], who may serve a Service.

mod api;
mod consume;
pub mod decode;
pub mod endpoints;
pub mod event;
mod hub;
mod informer;
pub mod intern;
mod known;
pub mod manifests;
pub mod node_events;
pub mod object;
mod pending;
pub mod problem;
pub mod selector;
mod status;

pub use api::error_chain;
pub use consume::CollectError;
pub use informer::{Informer, Options, Source, StartError, client};
pub use status::{KindStatus, Snapshot, Status, SyncTimeout};
