//! The edge to nf_tables.
//!
//! ```text
//!   want: Ruleset ──┐
//!                   ├─ diff ─► [Op] ─ commit ─► kernel or Fake
//!   have: Ruleset ◄─┴────────────── observe ◄──┘
//! ```

pub mod builder;
pub mod expr;
pub mod ruleset;
pub mod transaction;

pub use expr::*;
pub use ruleset::*;
pub use transaction::{CommitError, Error, Nftables, Observed, Ownership, Transaction};
