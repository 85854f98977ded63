//! Writes the node's condition NetworkUnavailable.
//!
//! The controller's thread waits for the answer; a task beside it owns the client.
//!
//! K8S: a strategic merge patch of `status`, as kube-controller-manager's `SetNodeCondition` (component-helpers,
//! node/util) sends it: conditions are merged by their type, so none of others is touched.

use std::sync::mpsc as blocking;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::owned;

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the API server did not take it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// It will not take it, however often it is asked.
    #[error("refused: {0}")]
    Refused(String),
    /// It cannot now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        match &error {
            // Overload, and RBAC or tokens that are being mended.
            kube::Error::Api(status) if !matches!(status.code, 401 | 403 | 409 | 429 | 500..) => {
                Self::Refused(format!("{} ({})", status.message, status.code))
            }
            kube::Error::Api(status) => Self::Unavailable(format!("{} ({})", status.message, status.code)),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

/// The node's status, as the controller writes it.
pub trait NodeStatus {
    /// Says that the node's network is there. Blocks.
    ///
    /// # Errors
    /// [`WriteError`]
    fn set_available(&mut self) -> Result<(), WriteError>;
}

type Job = blocking::Sender<Result<(), WriteError>>;

/// The controller's end.
pub struct Bridge(mpsc::Sender<Job>);

/// The end that sends requests.
pub struct Writer {
    client: Client,
    node: String,
    jobs: mpsc::Receiver<Job>,
}

/// Both ends.
pub fn bridge(client: Client, node: String) -> (Bridge, Writer) {
    let (jobs, wanted) = mpsc::channel(1);
    (Bridge(jobs), Writer { client, node, jobs: wanted })
}

impl NodeStatus for Bridge {
    fn set_available(&mut self) -> Result<(), WriteError> {
        let lost = || WriteError::Unavailable("the writer has ended".to_owned());
        let (answer, answered) = blocking::channel();
        // The channel is empty: the last job was answered before this one is made.
        self.0.try_send(answer).map_err(|_| lost())?;
        answered.recv().unwrap_or_else(|_| Err(lost()))
    }
}

impl Writer {
    /// Sends what the controller wants sent, until that has ended.
    pub async fn run(mut self) {
        while let Some(answer) = self.jobs.recv().await {
            let late = || WriteError::Unavailable(format!("no answer within {TIMEOUT:?}"));
            let result = tokio::time::timeout(TIMEOUT, self.patch()).await.unwrap_or_else(|_| Err(late()));
            // Nobody waits for it any more if the loop has ended.
            let _ = answer.send(result);
        }
    }

    async fn patch(&self) -> Result<(), WriteError> {
        let api = Api::<Node>::all(self.client.clone());
        let params =
            PatchParams { field_manager: Some(owned::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch_status(&self.node, &params, &Patch::Strategic(available(Timestamp::now()))).await?;
        Ok(())
    }
}

/// What is merged.
fn available(now: Timestamp) -> Value {
    // RFC 3339 without fractions, as the API server keeps times.
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": owned::CONDITION,
        "status": "False",
        "reason": owned::CONDITION_REASON,
        "message": "the CNI plugin cni-bridge and its configuration are in place",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}})
}
