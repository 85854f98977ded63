//! The edge to the kernel's network configuration by netlink: so far IPVS.
//!
//! ```text
//!   typed entries ◄── observe ──┐
//!                               ├── ipvs::Socket ── generic netlink ── kernel
//!   typed commands ── commit ───┘   ipvs::Fake   (refuses what the kernel refuses)
//! ```
//!
//! Everything blocks and nothing here starts a thread: a conversation belongs to one thread, which also decides
//! the network namespace by being in it when the socket is opened.

mod genl;
pub mod ipvs;
mod netlink;
