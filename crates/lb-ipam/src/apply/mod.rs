//! The only writes: statuses of Services, Events about them, and the Lease.

pub mod lease;
pub mod service;

use common_informer::error_chain;

/// Why the API server did not take a write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// This process does not lead, so the write was not sent.
    #[error("this process no longer leads")]
    NotLeading,
    /// The object is gone, or is another one of that name.
    #[error("the object is gone")]
    Gone,
    /// Another field manager has written the field last, or the object was changed meanwhile.
    #[error("conflict: {0}")]
    Conflict(String),
    /// It will not take it, however often it is asked.
    #[error("refused: {0}")]
    Refused(String),
    /// It cannot now.
    #[error("{0}")]
    Unavailable(String),
}

impl WriteError {
    /// The word in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotLeading => "not_leading",
            Self::Gone => "gone",
            Self::Conflict(_) => "conflict",
            Self::Refused(_) => "refused",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else { return Self::Unavailable(error_chain(&error)) };
        let text = format!("{} ({})", status.message, status.code);
        match status.code {
            404 => Self::Gone,
            // K8S: the uid in an applied object is a precondition; where it fails depends on the version.
            409 if text.contains("Precondition failed") || text.contains("uid mismatch") => Self::Gone,
            422 if text.contains("metadata.uid") => Self::Gone,
            409 => Self::Conflict(text),
            // Overload, and RBAC or tokens that are being mended.
            401 | 403 | 429 | 500.. => Self::Unavailable(text),
            _ => Self::Refused(text),
        }
    }
}
