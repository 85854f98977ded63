//! What a failed list or watch means: for people, and for what to do next.

use std::error::Error as StdError;

use kube::core::Resource as _;
use kube::core::response::Status;
use kube::runtime::watcher::Error;

use super::trimmed::Trimmed;
use crate::object::Kind;

/// HTTP: the resource version is older than what the server remembers.
const GONE: u16 = 410;

/// The error in one line: what was tried where, why it failed, and what may help.
pub(super) fn describe(error: &Error, kind: Kind, url: &str) -> String {
    let plural = Trimmed::plural(&kind).into_owned();
    let what = format!("{plural} from {url}");
    match status(error) {
        Some(status) => {
            let advice = match status.code {
                401 => "; is the token or certificate still valid?".to_owned(),
                403 => {
                    let group = Trimmed::group(&kind).into_owned();
                    format!("; RBAC must allow list and watch of {plural} in the API group {group:?}")
                }
                404 => "; is this the URL of a Kubernetes API server?".to_owned(),
                _ => String::new(),
            };
            format!("{what}: {} ({}){advice}", status.message, status.code)
        }
        None if matches!(error, Error::NoResourceVersion) => format!("{what}: an object has no version"),
        None => format!("{what}: {}; is the API server up, and the URL right?", error_chain(error)),
    }
}

/// Whether the watcher would go on as if nothing were lost, where something may be.
pub(super) fn needs_list(error: &Error) -> bool {
    match error {
        // The watcher expects this as an event and would try the same version for ever.
        Error::WatchStartFailed(kube::Error::Api(status)) => status.code == GONE,
        // An event that is no JSON is passed over.
        Error::WatchFailed(error) => matches!(error, kube::Error::SerdeError(_)),
        _ => false,
    }
}

fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error and its causes in one line, without those whose text is already there. For the errors of the client, of
/// which most say by themselves no more than that a request failed.
pub fn error_chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
