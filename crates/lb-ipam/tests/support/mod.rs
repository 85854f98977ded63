//! What several test targets need.

#![allow(dead_code, reason = "each test target uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

pub(crate) mod apiserver;
pub(crate) mod objects;
pub(crate) mod process;
