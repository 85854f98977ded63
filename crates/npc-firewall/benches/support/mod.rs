//! Clusters of any size, and what the program weighs that watches one.

pub(crate) mod cluster;
pub(crate) mod memory;
