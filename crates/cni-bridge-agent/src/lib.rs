//! The agent of the CNI plugin, one on each node: installs the plugin, writes the network's configuration, and keeps
//! both right.
//!
//! ```text
//!  Node ──► model: pod CIDRs, addresses ──► plan::mtu, plan::conf ──► apply ──► plugin, configuration, sysctls,
//!  links ──────────────────────────────────────▲        ▲                       status of the node
//!  what stands in the configuration ────────────────────┘
//! ```
//!
//! ORDER: the plugin comes before the configuration, since a runtime calls a node's network ready as soon as it finds
//! one; the node's condition comes last.
//!
//! - [`model`]: what the Node says; JSON that keeps its order.
//! - [`plan`]: the configuration that should be, from the one that is.
//! - [`apply`]: files, links, sysctls, the node's status.
//! - [`owned`]: names.
//!
//! It is a crate of its own so that the plugin links neither an async runtime nor a client of the API server
//! (docs/adr/0014).

pub mod apply;
pub mod args;
pub mod cleanup;
pub mod controller;
pub mod metrics;
pub mod model;
pub mod owned;
pub mod plan;
pub mod run;
mod state;
