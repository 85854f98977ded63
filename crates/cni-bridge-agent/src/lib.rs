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
//! - [`model`] is what the Node says, and JSON that keeps its order.
//! - [`plan`] makes the configuration that should be from the one that is.
//! - [`apply`] does files, links, sysctls, the node's status.
//! - [`owned`] has the names.
//!
//! What it leaves to the plugin: forwarding (a bridge that is a gateway switches it on), and addresses of containers
//! that are gone. Those of before a reboot the plugin forgets in its first call; which of the others live only the
//! runtime knows, and tells the plugin by GC. By what can be seen from here (`/run/netns`, libcni's cache) a pod that
//! is just being started cannot be told from one that has gone.
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
