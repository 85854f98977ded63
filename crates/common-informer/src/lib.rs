//! The edge to the API server: one watch per kind that a controller asks for, tolerant decoding, projection
//! to small types, and a stream of changes.
//!
//! ```text
//!   Source::Api ──────► api ───────┐
//!                                  ├─ decode ─► hub ─► Informer::next ─► Batch of Change
//!   Source::Manifests ► manifests ─┘             └───► Status
//! ```
//!
//! What two controllers must agree on lives here once; so far that is [`selector`].

mod api;
pub mod decode;
mod hub;
mod informer;
pub mod intern;
pub mod manifests;
pub mod object;
mod pending;
pub mod selector;
mod status;

pub use informer::{Informer, Source, StartError};
pub use status::{KindStatus, Snapshot, Status, SyncTimeout};
