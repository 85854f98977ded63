//! The kernel I/O that is this program's own. IPVS, the table, connection tracking and sysctls are used as their
//! crates have them.

pub mod address;
pub mod dsr;
pub mod health;
pub mod sysctl;
