//! The only kernel I/O beside the table, which [`kernel_nft::Keeper`] keeps: the connection marks and the bridge
//! sysctls.

pub mod sysctl;

use std::io;

/// Clears connection marks that belong to generations long gone.
pub trait Marks {
    /// Zeroes the bits of `mask` in the mark of every connection where they are neither zero nor `keep`.
    ///
    /// # Errors
    /// When connection tracking cannot be read or written.
    fn clear(&mut self, mask: u32, keep: u32) -> io::Result<()>;
}
