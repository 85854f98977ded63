//! Events: what people read with `kubectl describe`.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::core::Request;
use kube::{Client, Error, Resource as _};
use serde::de::IgnoredAny;

/// Longest message. K8S: `NoteLengthLimit` in pkg/apis/core/validation/events.go.
const MESSAGE_LIMIT: usize = 1024;
/// Where Events about objects without a namespace are. K8S: client-go's tools/record does the same.
const NAMESPACE: &str = "default";

/// An Event of the type Warning, made at `now`. `source` is the program that tells it. A message that is longer than
/// the API allows is cut.
pub fn warning(
    about: ObjectReference,
    reason: &str,
    message: &str,
    source: EventSource,
    now: Timestamp,
) -> Event {
    let message = &message[..message.floor_char_boundary(MESSAGE_LIMIT)];
    Event {
        metadata: ObjectMeta {
            namespace: Some(about.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned())),
            generate_name: about.name.as_ref().map(|name| format!("{name}.")),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        source: Some(source),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        ..Event::default()
    }
}

/// Sends an Event. Nothing is retried, and no limit of time is set.
///
/// # Errors
/// The API server cannot be reached, or refuses it.
pub async fn send(client: &Client, event: &Event) -> Result<(), Error> {
    let body = serde_json::to_vec(event).map_err(Error::SerdeError)?;
    let path = Event::url_path(&(), event.metadata.namespace.as_deref());
    let request = Request::new(path).create(&PostParams::default(), body).map_err(Error::BuildRequest)?;
    client.request::<IgnoredAny>(request).await.map(drop)
}
