//! What the allocator keeps of memory that is free, as small as it can be.
//!
//! A first sync and an audit need for a moment about as much as all that is kept: the state of the kernel, messages,
//! JSON. glibc would keep what is freed between what stays, for good. With twenty thousand Services svc-proxy-ipvs
//! took nearly a fifth less for it; jemalloc and mimalloc took more.

/// Blocks of so many bytes are mapped each by itself, and go back when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED: nix::libc::c_int = 128 << 10;

/// To be called first thing.
pub(crate) fn prepare() {
    #[cfg(target_env = "gnu")]
    glibc::fix_threshold();
}

/// Gives pages back in which nothing is left; takes a few milliseconds.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    glibc::trim();
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "glibc's own functions, which nobody wraps")]
mod glibc {
    use nix::libc;

    /// It is glibc's own at the start. Left alone, glibc raises it to the largest block that was ever freed.
    pub(super) fn fix_threshold() {
        // SAFETY: it takes two numbers and takes the allocator's own lock (malloc/malloc.c, __libc_mallopt); that it
        // may fail is no harm.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, super::MAPPED) };
    }

    pub(super) fn trim() {
        // SAFETY: it takes a number, may be called at any time by any thread, and touches only memory that is free
        // (malloc_trim(3): MT-Safe).
        unsafe { libc::malloc_trim(0) };
    }
}
