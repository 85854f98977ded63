//! What is wrong with the Node, as people and metrics are told.

use std::fmt;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A pod CIDR is no network.
    MalformedPodCidr,
    /// A pod CIDR has no room, or is part of another one.
    UnusablePodCidr,
    /// The Node cannot be read, or is not there.
    Node,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub reason: Reason,
    /// Field and explanation.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl Reason {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MalformedPodCidr => "malformed_pod_cidr",
            Self::UnusablePodCidr => "unusable_pod_cidr",
            Self::Node => "unreadable",
        }
    }
}

impl common_informer::problem::Problem for Problem {
    fn reason(&self) -> &'static str {
        self.reason.as_str()
    }

    fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
