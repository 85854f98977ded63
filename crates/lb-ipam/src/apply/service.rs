//! Writes of Services' statuses and of Events about them.
//!
//! The controller's thread blocks until its writes are answered; a task beside it owns the client:
//!
//! ```text
//!  thread "reconcile"                       task on the main thread
//!   Bridge::commit ── Job (one at a time) ──► Writer::run ── up to 8 requests at once ──► API server
//!          ▲──────────── answers ──────────────┘     each only while this process leads
//!   Bridge::tell ──── Notes, not waited for ─► (a second task, so that no status waits for an Event)
//! ```

use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Client, Resource as _};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::WriteError;
use super::lease::Leadership;
use crate::model::claim::Problem;
use crate::owned::FIELD_MANAGER;
use crate::plan::writes::{StatusChange, Write};
use common_informer::event;
use common_informer::object::{ObjectKey, Uid};

/// Requests at the same time.
const REQUESTS: usize = 8;
/// Attempts of one write before the loop's own backoff takes over, and the first wait between them.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Events that wait to be sent; more are dropped.
const NOTES: usize = 1024;

/// The API server, as the controller writes to it.
pub trait ServiceStatus {
    /// Carries out writes, and says of each what became of it, in their order. Blocks.
    fn commit(&mut self, writes: &[Write]) -> Vec<Result<(), WriteError>>;

    /// Tells people about a Service. Not waited for.
    fn tell(&mut self, note: Note);
}

/// Something to be told about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which Service.
    pub key: ObjectKey,
    /// And no other of that name.
    pub uid: Option<Uid>,
    /// What.
    pub problem: Problem,
}

struct Job {
    writes: Vec<Write>,
    answers: blocking::Sender<(usize, Result<(), WriteError>)>,
}

/// The controller's end.
pub struct Bridge {
    jobs: mpsc::Sender<Job>,
    notes: mpsc::Sender<Note>,
}

/// The end that sends requests.
pub struct Writer {
    client: Client,
    leadership: watch::Receiver<Leadership>,
    timeout: Duration,
    jobs: mpsc::Receiver<Job>,
    notes: mpsc::Receiver<Note>,
    count: Count,
}

/// Called for each request that was answered: what it was, and the word of its result.
pub type Count = Box<dyn Fn(&'static str, &'static str) + Send + Sync>;

/// Both ends. No request lasts longer than `timeout`, so that the last one ends before another process leads.
pub fn bridge(
    client: Client,
    leadership: watch::Receiver<Leadership>,
    timeout: Duration,
    count: Count,
) -> (Bridge, Writer) {
    let (jobs, wanted) = mpsc::channel(1);
    let (notes, told) = mpsc::channel(NOTES);
    let writer = Writer { client, leadership, timeout, jobs: wanted, notes: told, count };
    (Bridge { jobs, notes }, writer)
}

impl ServiceStatus for Bridge {
    fn commit(&mut self, writes: &[Write]) -> Vec<Result<(), WriteError>> {
        let lost = || Err(WriteError::Unavailable("the writer has ended".to_owned()));
        let mut results: Vec<_> = writes.iter().map(|_| lost()).collect();
        let (answers, answered) = blocking::channel();
        // The channel is empty: the last job was answered before this one is made.
        if self.jobs.try_send(Job { writes: writes.to_vec(), answers }).is_ok() {
            for (index, result) in answered {
                if let Some(place) = results.get_mut(index) {
                    *place = result;
                }
            }
        }
        results
    }

    fn tell(&mut self, note: Note) {
        if let Err(error) = self.notes.try_send(note) {
            tracing::debug!(%error, "an Event was dropped");
        }
    }
}

impl Writer {
    /// Sends what the controller wants sent, until that has ended.
    pub async fn run(self) {
        let Self { client, leadership, timeout, mut jobs, mut notes, count } = self;
        let sender = Sender { client, leadership, timeout };
        let statuses = async {
            while let Some(Job { writes, answers }) = jobs.recv().await {
                let requests = writes.into_iter().enumerate().map(|(index, write)| {
                    let (sender, answers, count) = (&sender, answers.clone(), &count);
                    async move {
                        let result = sender.write(&write).await;
                        count(write.change.word(), result.as_ref().err().map_or("success", WriteError::word));
                        // Nobody waits for it any more if the loop has ended.
                        let _ = answers.send((index, result));
                    }
                });
                stream::iter(requests).buffer_unordered(REQUESTS).collect::<()>().await;
            }
        };
        let events = async {
            while let Some(note) = notes.recv().await {
                let result = sender.event(&note).await;
                count("event", result.as_ref().err().map_or("success", WriteError::word));
                if let Err(error) = result {
                    tracing::warn!(service = %note.key, %error, "an Event could not be written");
                }
            }
        };
        tokio::join!(statuses, events);
    }
}

struct Sender {
    client: Client,
    leadership: watch::Receiver<Leadership>,
    timeout: Duration,
}

impl Sender {
    async fn write(&self, write: &Write) -> Result<(), WriteError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..ATTEMPTS {
            match self.limited(self.patch(write)).await {
                Err(WriteError::Conflict(_) | WriteError::Unavailable(_)) => {}
                result => return result,
            }
            tokio::time::sleep(wait).await;
            wait *= 4;
        }
        self.limited(self.patch(write)).await
    }

    /// Sends a request if this process leads, and waits for its answer.
    async fn limited(&self, request: impl Future<Output = Result<(), WriteError>>) -> Result<(), WriteError> {
        if !self.leadership.borrow().leads(Instant::now()) {
            return Err(WriteError::NotLeading);
        }
        match tokio::time::timeout(self.timeout, request).await {
            Ok(result) => result,
            Err(_) => Err(WriteError::Unavailable(format!("no answer within {:?}", self.timeout))),
        }
    }

    async fn patch(&self, write: &Write) -> Result<(), WriteError> {
        let (body, force) = applied(write);
        let params = PatchParams { force, ..PatchParams::apply(FIELD_MANAGER) };
        let path = Service::url_path(&(), Some(&write.key.namespace));
        let request = kube::core::Request::new(path)
            .patch_subresource("status", &write.key.name, &params, &Patch::Apply(body))
            .map_err(|error| WriteError::Refused(error.to_string()))?;
        self.client.request::<IgnoredAny>(request).await?;
        Ok(())
    }

    async fn event(&self, note: &Note) -> Result<(), WriteError> {
        let event = event(note, Timestamp::now());
        self.limited(async { Ok(event::send(&self.client, &event).await?) }).await
    }
}

/// What is applied, and whether with force. The uid is a precondition.
fn applied(write: &Write) -> (Value, bool) {
    let mut metadata = json!({"namespace": write.key.namespace, "name": write.key.name});
    if let Some(uid) = write.uid {
        metadata["uid"] = uid.to_string().into();
    }
    let (status, force) = match &write.change {
        StatusChange::Show { ips, force } => {
            let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            (json!({"loadBalancer": {"ingress": ingress}}), *force)
        }
        // Fields that are applied no longer, and that nobody else applies, go.
        StatusChange::Withdraw => (json!({}), false),
    };
    (json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "status": status}), force)
}

fn event(note: &Note, now: Timestamp) -> Event {
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(note.key.namespace.to_string()),
        name: Some(note.key.name.to_string()),
        uid: note.uid.map(|uid| uid.to_string()),
        ..ObjectReference::default()
    };
    let source = EventSource { component: Some(FIELD_MANAGER.to_owned()), ..EventSource::default() };
    event::warning(about, note.problem.reason.as_str(), &note.problem.message, source, now)
}
