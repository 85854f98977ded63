//! Memory that is free, given back to the system.
//!
//! A first sync and an audit need for a moment about as much as all that is kept: the state of the kernel, messages,
//! JSON. glibc keeps what is freed between what stays, for good. Pages in which nothing is left are given back here,
//! in a few milliseconds.

/// Gives pages back in which nothing is left.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    trim();
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "malloc_trim is glibc's own, so nobody wraps it")]
fn trim() {
    // SAFETY: it takes a number, may be called at any time by any thread, and touches only memory that is free
    // (malloc_trim(3): MT-Safe).
    unsafe { nix::libc::malloc_trim(0) };
}
