//! What the world is, as far as the agent looks at it. Pure.

pub mod json;
pub mod node;
pub mod problem;
