//! What an API server can be made to do wrong, and that the state is right afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod fake;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use common_informer::object::{Change, Kind, Object};
use common_informer::{Informer, Source};
use fake::{Fault, Server, Verb};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Bound of every wait: far above two waits after failures, since the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"nodeName": node}})
}

/// What a consumer knows of pods: node of each, or `excluded`.
struct Consumer {
    informer: Informer,
    objects: BTreeMap<String, String>,
    changes: usize,
    synced: bool,
}

impl Consumer {
    async fn start(server: &Server, kinds: &[Kind]) -> Self {
        let source = Source::Api { kubeconfig: None, master: Some(server.url()) };
        let informer = Informer::start(&source, kinds).await.unwrap();
        Self { informer, objects: BTreeMap::new(), changes: 0, synced: false }
    }

    async fn batch(&mut self) -> bool {
        let batch = self.informer.next().await.expect("the source goes on");
        for change in batch.changes {
            self.changes += 1;
            let name = change.object_ref().to_string();
            match change {
                Change::Applied(Object::Pod(pod)) => {
                    self.objects.insert(name, pod.node.as_deref().unwrap_or_default().to_owned());
                }
                Change::Applied(_) => {
                    self.objects.insert(name, "applied".to_owned());
                }
                Change::Excluded { .. } => {
                    self.objects.insert(name, "excluded".to_owned());
                }
                Change::Deleted(_) => {
                    self.objects.remove(&name).expect("only what is known is deleted");
                }
            }
        }
        self.synced = batch.synced;
        batch.synced
    }

    async fn synced(&mut self) {
        timeout(PATIENCE, async {
            while !self.synced {
                self.batch().await;
            }
        })
        .await
        .expect("in sync");
    }

    async fn until(&mut self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = expected
            .iter()
            .map(|(name, value)| (format!("Pod default/{name}"), (*value).to_owned()))
            .collect();
        let reached = timeout(PATIENCE, async {
            while self.objects != expected {
                self.batch().await;
            }
        });
        if reached.await.is_err() {
            panic!("expected {expected:?}, have {:?}, {:?}", self.objects, self.informer.status().snapshot());
        }
    }

    fn pods(&self) -> common_informer::KindStatus {
        self.informer.status().snapshot().kinds[&Kind::Pod].clone()
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect(what);
}

#[tokio::test]
async fn all_pages_of_a_list_are_read_before_it_is_in_sync() {
    let server = Server::start().await;
    for index in 0..234 {
        server.put("pods", "default", &format!("p{index:04}"), pod(&format!("p{index:04}"), "n1"));
    }
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    assert_eq!(consumer.objects.len(), 234);
    let requests = server.requests("pods", Verb::List);
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert!(requests[0].contains("limit=100"), "{requests:?}");
    let selector = "fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    assert!(requests[0].contains(selector), "{requests:?}");
}

#[tokio::test]
async fn watch_events_are_applied_in_order_and_bookmarks_are_asked_for() {
    let server = Server::start().await;
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    consumer.until(&[("a", "n1")]).await;
    server.put("pods", "default", "a", pod("a", "n2"));
    server.put("pods", "default", "b", pod("b", "n1"));
    consumer.until(&[("a", "n2"), ("b", "n1")]).await;
    server.delete("pods", "default", "a");
    consumer.until(&[("b", "n1")]).await;
    let requests = server.requests("pods", Verb::Watch);
    assert!(requests[0].contains("allowWatchBookmarks=true"), "{requests:?}");
}

#[tokio::test]
async fn nothing_is_told_again_when_a_field_that_nobody_reads_changes() {
    let server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.until(&[("a", "n1")]).await;
    for beat in 0..5 {
        let mut object = pod("a", "n1");
        object["status"] = json!({"conditions": [{"lastProbeTime": beat}]});
        server.put("pods", "default", "a", object);
    }
    server.put("pods", "default", "b", pod("b", "n1"));
    consumer.until(&[("a", "n1"), ("b", "n1")]).await;
    assert_eq!(consumer.changes, 2);
}

#[tokio::test]
async fn informer_is_in_sync_only_when_every_kind_is_listed() {
    let server = Server::start().await;
    let release = Arc::new(Notify::new());
    server.fail("namespaces", Verb::List, Fault::Held(release.clone()));
    server.put("pods", "default", "a", pod("a", "n1"));
    let mut consumer = Consumer::start(&server, &[Kind::Pod, Kind::Namespace]).await;
    assert!(!consumer.batch().await);
    let status = consumer.informer.status();
    let error = status.wait_synced(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.missing, [Kind::Namespace]);
    assert_eq!(status.late(Duration::from_millis(50)).await, error);
    assert_eq!(status.missing(error.waited), Some(error));
    release.notify_one();
    consumer.synced().await;
    status.wait_synced(Duration::ZERO).await.unwrap();
    assert_eq!(status.missing(Duration::ZERO), None);
}

#[tokio::test]
async fn broken_watch_resumes_without_a_new_list() {
    let server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.until(&[("a", "n1")]).await;
    for round in 0..3 {
        eventually("watched", || async { server.requests("pods", Verb::Watch).len() > round }).await;
        server.interrupt();
        let node = format!("n{}", round + 2);
        server.put("pods", "default", "a", pod("a", &node));
        consumer.until(&[("a", &node)]).await;
    }
    assert_eq!(server.requests("pods", Verb::List).len(), 1);
    assert_eq!(consumer.pods().lists, 1);
}

#[tokio::test]
async fn bookmark_saves_a_new_list_after_old_versions_are_forgotten() {
    let server = Server::start().await;
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    eventually("watched", || async { server.requests("pods", Verb::Watch).len() == 1 }).await;
    server.forget_up_to_next_bookmark("pods").await;
    server.interrupt();
    server.put("pods", "default", "a", pod("a", "n1"));
    consumer.until(&[("a", "n1")]).await;
    assert_eq!(server.requests("pods", Verb::List).len(), 1);
}

#[tokio::test]
async fn gone_in_a_watch_leads_to_a_new_list_that_tells_what_went() {
    let mut server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.put("pods", "default", name, pod(name, "n1"));
    }
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.until(&[("a", "n1"), ("b", "n1"), ("c", "n1")]).await;
    let before = consumer.changes;
    server.stop().await;
    server.delete("pods", "default", "a");
    server.put("pods", "default", "b", pod("b", "n2"));
    server.put("pods", "default", "d", pod("d", "n1"));
    server.forget();
    server.listen().await;
    consumer.until(&[("b", "n2"), ("c", "n1"), ("d", "n1")]).await;
    assert_eq!(consumer.changes - before, 3, "c has not changed");
    assert_eq!(consumer.pods().lists, 2);
}

#[tokio::test]
async fn gone_as_the_answer_to_a_watch_leads_to_a_new_list() {
    let server = Server::start().await;
    server.fail("pods", Verb::Watch, Fault::Status(410));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    eventually("listed again", || async { server.requests("pods", Verb::List).len() == 2 }).await;
    server.put("pods", "default", "a", pod("a", "n1"));
    consumer.until(&[("a", "n1")]).await;
}

#[tokio::test]
async fn gone_in_the_middle_of_a_list_starts_it_again() {
    let server = Server::start().await;
    for index in 0..150 {
        server.put("pods", "default", &format!("p{index}"), pod(&format!("p{index}"), "n1"));
    }
    server.fail("pods", Verb::List, Fault::Nothing);
    server.fail("pods", Verb::List, Fault::Status(410));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    assert_eq!((consumer.objects.len(), consumer.changes), (150, 150));
    assert_eq!(consumer.pods().watch_errors, 1);
}

#[tokio::test]
async fn errors_are_counted_shown_and_over_when_the_server_answers() {
    let server = Server::start().await;
    server.fail("pods", Verb::List, Fault::Status(500));
    server.fail("pods", Verb::List, Fault::Close);
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    eventually("an error", || async { consumer.pods().last_error.is_some() }).await;
    let error = consumer.pods().last_error.unwrap();
    assert!(error.contains(&server.url()) && error.contains("refused with 500"), "{error}");
    consumer.synced().await;
    let status = consumer.pods();
    assert_eq!((status.watch_errors, status.last_error), (2, None));

    server.fail("pods", Verb::Watch, Fault::Status(500));
    eventually("watched", || async { server.requests("pods", Verb::Watch).len() == 1 }).await;
    server.interrupt();
    eventually("an error", || async { consumer.pods().last_error.is_some() }).await;
    // No event comes: the answer alone ends the error.
    eventually("no error", || async { consumer.pods().last_error.is_none() }).await;
}

#[tokio::test]
async fn refused_access_says_what_to_allow() {
    let server = Server::start().await;
    server.fail("networkpolicies", Verb::List, Fault::Status(403));
    let consumer = Consumer::start(&server, &[Kind::NetworkPolicy]).await;
    let status = consumer.informer.status();
    let failed = || async { status.snapshot().kinds[&Kind::NetworkPolicy].last_error.is_some() };
    eventually("an error", failed).await;
    let error = status.wait_synced(Duration::from_millis(10)).await.unwrap_err().to_string();
    assert!(error.contains("networkpolicies") && error.contains("networking.k8s.io"), "{error}");
    assert!(error.contains("RBAC must allow list and watch"), "{error}");
}

#[tokio::test]
async fn truncated_list_is_asked_for_again() {
    let server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    server.fail("pods", Verb::List, Fault::Truncate);
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.until(&[("a", "n1")]).await;
    assert_eq!(consumer.pods().watch_errors, 1);
}

#[tokio::test]
async fn event_that_is_no_json_leads_to_a_new_list() {
    let server = Server::start().await;
    server.fail("pods", Verb::Watch, Fault::Garbage);
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    consumer.until(&[("a", "n1")]).await;
    assert_eq!(server.requests("pods", Verb::List).len(), 2);
}

#[tokio::test]
async fn error_event_does_not_end_the_watch() {
    let server = Server::start().await;
    server.fail("pods", Verb::Watch, Fault::ErrorEvent(500));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    consumer.until(&[("a", "n1")]).await;
}

#[tokio::test]
async fn malformed_items_are_excluded_one_by_one() {
    let server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    server.put("pods", "default", "b", json!({"metadata": {"name": "b", "namespace": "default"}, "spec": 7}));
    server.put("pods", "default", "c", json!("not even an object"));
    server.put("pods", "default", "d", pod("d", "n1"));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.until(&[("a", "n1"), ("b", "excluded"), ("d", "n1")]).await;
    consumer.synced().await;
    let status = consumer.pods();
    assert_eq!(status.objects, 2);
    let reasons: Vec<&str> = status.excluded.values().map(String::as_str).collect();
    assert_eq!(
        reasons,
        [
            "expected an object, got the string \"not even an object\"",
            "spec: expected an object, got the number 7"
        ]
    );

    let mut bad = pod("a", "n1");
    bad["metadata"]["labels"] = json!(["x"]);
    server.put("pods", "default", "a", bad);
    consumer.until(&[("a", "excluded"), ("b", "excluded"), ("d", "n1")]).await;
    server.put("pods", "default", "a", pod("a", "n2"));
    server.delete("pods", "default", "b");
    consumer.until(&[("a", "n2"), ("d", "n1")]).await;
    assert_eq!(server.requests("pods", Verb::List).len(), 1, "the watch has gone on");
}

#[tokio::test]
async fn event_without_any_metadata_costs_at_most_a_new_list() {
    let server = Server::start().await;
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.synced().await;
    server.event("pods", json!({"type": "ADDED", "object": [1, 2]}));
    server.put("pods", "default", "a", pod("a", "n1"));
    consumer.until(&[("a", "n1")]).await;
}

#[tokio::test]
async fn server_that_is_not_there_at_start_is_waited_for() {
    let mut server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    server.stop().await;
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    eventually("an error", || async { consumer.pods().last_error.is_some() }).await;
    let error = consumer.pods().last_error.unwrap();
    assert!(error.contains(&server.url()) && error.contains("is the API server up"), "{error}");
    server.listen().await;
    consumer.until(&[("a", "n1")]).await;
}

#[tokio::test]
async fn restart_of_the_server_on_the_same_port_loses_nothing() {
    let mut server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    let mut consumer = Consumer::start(&server, &[Kind::Pod]).await;
    consumer.until(&[("a", "n1")]).await;
    server.stop().await;
    server.delete("pods", "default", "a");
    server.put("pods", "default", "b", pod("b", "n1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.listen().await;
    consumer.until(&[("b", "n1")]).await;
}

#[tokio::test]
async fn url_without_a_scheme_and_missing_kubeconfig_are_errors_at_start() {
    let start = async |kubeconfig: Option<&str>, master: Option<&str>| {
        let source =
            Source::Api { kubeconfig: kubeconfig.map(Into::into), master: master.map(str::to_owned) };
        Informer::start(&source, &[Kind::Pod]).await.err().expect("an error").to_string()
    };
    assert!(start(None, Some("10.0.0.1:6443")).await.contains("10.0.0.1:6443"));
    assert!(start(Some("/does/not/exist"), None).await.contains("/does/not/exist"));
    assert!(start(None, None).await.contains("neither a kubeconfig nor"));
}

#[tokio::test]
async fn kubeconfig_names_the_server_and_master_replaces_it() {
    let server = Server::start().await;
    server.put("pods", "default", "a", pod("a", "n1"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    let text = |url: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"{url}\"}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        )
    };
    for (in_file, master) in [(server.url(), None), ("http://127.0.0.1:1".to_owned(), Some(server.url()))] {
        std::fs::write(&path, text(&in_file)).unwrap();
        let source = Source::Api { kubeconfig: Some(path.clone()), master };
        let informer = Informer::start(&source, &[Kind::Pod]).await.unwrap();
        let mut consumer = Consumer { informer, objects: BTreeMap::new(), changes: 0, synced: false };
        consumer.until(&[("a", "n1")]).await;
    }
}
