//! What is wrong with a program, as Events about its Node: for those who look at `kubectl describe node` first.
//!
//! Each is one more write to the API server, so what mends itself is not told, and what stays is told twice an hour:
//! the API server keeps an Event for one (`--event-ttl`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{EventSource, ObjectReference};
use k8s_openapi::jiff::Timestamp;

use crate::informer::Source;
use crate::{api, event};

/// What lasts so long is told.
const SETTLED: Duration = Duration::from_secs(20);
/// And of each reason not more than one Event in so long.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// Between two looks at what is wrong, and so between two attempts to tell it.
const LOOK: Duration = Duration::from_secs(10);
/// An API server that has not answered by then is tried again.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is wrong: a fixed word in the style of metrics' labels, and a sentence.
pub type Wrong = (&'static str, String);

/// Tells what is wrong with one program on one node.
#[derive(Debug)]
pub struct NodeEvents {
    source: Source,
    program: &'static str,
    node: String,
    seen: BTreeMap<&'static str, Seen>,
}

/// Since when a reason holds, if it does, and when it was told.
#[derive(Debug, Default)]
struct Seen {
    since: Option<Instant>,
    told: Option<Instant>,
}

/// The service account may not make Events.
#[derive(Debug, thiserror::Error)]
#[error("RBAC must allow create of events in the namespace default: {0}")]
pub struct Forbidden(String);

impl NodeEvents {
    /// Tells nothing yet. With a directory of manifests there is nobody to tell.
    pub fn new(source: Source, program: &'static str, node: String) -> Self {
        Self { source, program, node, seen: BTreeMap::new() }
    }

    /// Looks at what is wrong again and again, and tells it. Ends when that is forbidden.
    pub async fn run(mut self, wrong: impl Fn() -> Vec<Wrong>) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.look(Instant::now(), &wrong()).await {
                tracing::warn!(%error, "what is wrong is not told as Events");
                return;
            }
        }
    }

    /// Tells of what is wrong at `now` what is due. What could not be told is due again at the next look.
    ///
    /// # Errors
    /// When it is forbidden.
    pub async fn look(&mut self, now: Instant, wrong: &[Wrong]) -> Result<(), Forbidden> {
        for (reason, message) in self.due(now, wrong) {
            match tokio::time::timeout(TIMEOUT, self.tell(reason, message)).await {
                Ok(Ok(())) => self.seen.entry(reason).or_default().told = Some(now),
                Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                    return Err(Forbidden(status.message.clone()));
                }
                Ok(Err(error)) => {
                    tracing::debug!(reason, error = %api::error_chain(&error), "an Event could not be sent");
                }
                Err(_) => tracing::debug!(reason, "an Event was not answered within {TIMEOUT:?}"),
            }
        }
        Ok(())
    }

    fn due<'a>(&mut self, now: Instant, wrong: &'a [Wrong]) -> Vec<(&'static str, &'a str)> {
        for (reason, seen) in &mut self.seen {
            if !wrong.iter().any(|(holds, _)| holds == reason) {
                seen.since = None;
            }
        }
        let mut due = Vec::new();
        for (reason, message) in wrong {
            let seen = self.seen.entry(reason).or_default();
            let since = *seen.since.get_or_insert(now);
            let is_told = seen.told.is_some_and(|told| now < told + REPEAT);
            if now >= since + SETTLED && !is_told {
                due.push((*reason, message.as_str()));
            }
        }
        due
    }

    /// With a client of its own: one that is kept would cost more memory than all Events are worth.
    async fn tell(&self, reason: &str, message: &str) -> Result<(), kube::Error> {
        let Source::Api { kubeconfig, master } = &self.source else { return Ok(()) };
        let client = api::client(kubeconfig.as_deref(), master.as_deref()).await;
        let client = client.map_err(|error| kube::Error::Service(error.into()))?;
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            // K8S: the kubelet's Events have the name here, and `kubectl describe node` asks for these.
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        let source = EventSource { component: Some(self.program.to_owned()), host: Some(self.node.clone()) };
        event::send(&client, &event::warning(about, &camel_case(reason), message, source, Timestamp::now()))
            .await
    }
}

/// `bridge_not_filtered` as Events' reasons are written: `BridgeNotFiltered`.
fn camel_case(word: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect::<String>()
    };
    word.split('_').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> NodeEvents {
        NodeEvents::new(Source::Manifests("/nowhere".into()), "npc-firewall", "n1".to_owned())
    }

    fn told(events: &mut NodeEvents, now: Instant, wrong: &[&'static str]) -> Vec<&'static str> {
        let wrong: Vec<_> = wrong.iter().map(|reason| (*reason, "because".to_owned())).collect();
        let due: Vec<_> = events.due(now, &wrong).into_iter().map(|(reason, _)| reason).collect();
        for reason in &due {
            events.seen.entry(reason).or_default().told = Some(now);
        }
        due
    }

    #[test]
    fn what_mends_itself_is_not_told_and_what_stays_is_told_once_in_half_an_hour() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut events = events();
        let mut at =
            |seconds: u32, wrong: &[&'static str]| told(&mut events, start + seconds * second, wrong);
        assert_eq!(at(0, &["sync"]), [""; 0]);
        assert_eq!(at(19, &["sync"]), [""; 0]);
        assert_eq!(at(20, &[]), [""; 0], "it has mended itself");
        assert_eq!(at(21, &["sync"]), [""; 0]);
        assert_eq!(at(41, &["sync"]), ["sync"]);
        assert_eq!(at(51, &["sync", "sysctl"]), [""; 0]);
        assert_eq!(at(71, &["sync", "sysctl"]), ["sysctl"]);
        assert_eq!(at(90, &[]), [""; 0]);
        assert_eq!(at(100, &["sync"]), [""; 0]);
        assert_eq!(at(130, &["sync"]), [""; 0], "told lately");
        assert_eq!(at(41 + 1_799, &["sync"]), [""; 0]);
        assert_eq!(at(41 + 1_800, &["sync"]), ["sync"]);
    }

    #[test]
    fn reasons_are_written_as_in_other_events() {
        assert_eq!(camel_case("bridge_not_filtered"), "BridgeNotFiltered");
        assert_eq!(camel_case("sync"), "Sync");
    }
}
