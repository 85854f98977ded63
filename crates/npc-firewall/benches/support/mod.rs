//! Clusters of any size, and a stand-in for the API server.

pub mod cluster;
pub mod server;
