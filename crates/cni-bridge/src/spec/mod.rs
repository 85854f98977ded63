//! The CNI specification, on the wire: versions, calls, errors, results.
//!
//! Source: <https://www.cni.dev/docs/spec/> (1.1.0) and, for what it leaves open, the reference
//! (containernetworking/cni `pkg/skel`, `pkg/types`): runtimes know its words.

pub mod call;
pub mod error;
pub mod result;
pub mod version;

pub use call::{Call, Verb};
pub use error::{CniError, Code};
pub use result::{Dns, Interface, IpConfig, Outcome, Route};
pub use version::Version;
