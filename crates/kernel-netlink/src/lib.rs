//! The edge to the kernel's network configuration by netlink: links, addresses, routes, rules, IPVS,
//! tracked connections; by the file system: sysctls, namespaces.
//!
//! ```text
//!   typed entries ◄── observe ──┐   route::Socket ────── rtnetlink ──────── kernel
//!                               ├── ipvs::Socket ─────── generic netlink ── kernel
//!   typed commands ── commit ───┘   conntrack::Socket ── nfnetlink ──────── kernel
//!                                   route::Fake, ipvs::Fake, conntrack::Fake: refuse what the kernel refuses
//! ```
//!
//! Everything blocks: a conversation belongs to one thread, which also decides
//! the network namespace by being in it when the socket is opened. One thread of its own is started where work is to be done in
//! another namespace ([`namespace`]).

mod attribute;
mod commit;
pub mod conntrack;
mod family;
mod genl;
pub mod ipvs;
pub mod namespace;
mod netlink;
pub mod route;
mod script;
pub mod sysctl;

pub use commit::{CommitError, Refusal};
pub use family::{Family, Protocol};
pub use netlink::Error;
