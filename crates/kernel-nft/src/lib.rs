//! The edge to nf_tables.
//!
//! ```text
//!   want: Ruleset ──┐
//!                   ├─ diff ─► [Op] ─ commit ─► kernel or Fake
//!   have: Ruleset ◄─┴────────────── observe ◄──┘
//! ```

pub mod builder;
mod describe;
pub mod expr;
mod netlink;
pub mod ruleset;
mod socket;
pub mod transaction;
mod wire;

pub use expr::*;
pub use ruleset::*;
pub use socket::Socket;
pub use transaction::{CommitError, Error, Nftables, Observed, Ownership, Transaction};
