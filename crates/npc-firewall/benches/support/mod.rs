//! Clusters of any size, and a stand-in for the API server.

pub(crate) mod cluster;
pub(crate) mod server;
