//! What the world is: pools of addresses, Services, and what each Service claims. Pure.

pub mod claim;
pub mod pool;
pub mod range;
pub mod world;
