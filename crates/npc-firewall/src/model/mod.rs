//! What the world is: the objects that matter to the firewall, validated, and who owns which address.
//!
//! Pure: no clock, no I/O. `World` takes changes and says what they touched; `policy` turns a NetworkPolicy
//! into rules that can only mean one thing; `ranges` does the arithmetic of ipBlocks; `index` finds the
//! selectors that match a label set without trying them all.

pub mod index;
pub mod policy;
pub mod ranges;
pub mod world;
