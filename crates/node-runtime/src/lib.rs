//! node-runtime
