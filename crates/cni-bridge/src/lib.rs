//! The CNI plugin of a node: bridge, veth, addresses.

pub mod ipam;
pub mod spec;
