//! The edge to the API server: one watch per kind that a controller asks for, tolerant decoding, projection
//! to small types, and a stream of changes.

pub mod object;
pub mod selector;
