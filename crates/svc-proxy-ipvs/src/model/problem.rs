//! What is wrong with an object.

/// Why something that an object asks for is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The object could not be read at all.
    Unreadable,
    /// An address is outside the operator's ranges.
    AddressNotAllowed,
    /// Another Service has the address and port.
    AddressTaken,
    /// An annotation has a value that means nothing.
    BadAnnotation,
    /// It asks for something that IPVS cannot do.
    Unsupported,
    /// The kernel refused what the object asks for.
    KernelRefused,
    /// A port could not be listened on.
    PortInUse,
    /// An endpoint on this node is not ready for what its Service asks for.
    EndpointNotSetUp,
}

impl Reason {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::AddressTaken => "address_taken",
            Self::BadAnnotation => "bad_annotation",
            Self::Unsupported => "unsupported",
            Self::KernelRefused => "kernel_refused",
            Self::PortInUse => "port_in_use",
            Self::EndpointNotSetUp => "endpoint_not_set_up",
        }
    }
}

/// Something that is not in force, for the log, the metrics and `/state`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Why.
    pub reason: Reason,
    /// Field path and explanation, for people.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
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
