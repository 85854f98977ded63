//! What is wrong on a node, as the API server is told it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::time::{Duration, Instant};

use common_informer::Source;
use common_informer::node_events::{NodeEvents, Wrong};
use fake::{Fault, Server, Verb};
use serde_json::json;

fn events(server: &Server) -> NodeEvents {
    let source = Source::Api { kubeconfig: None, master: Some(server.url()) };
    NodeEvents::new(source, "npc-firewall", "n1".to_owned())
}

fn wrong(message: &str) -> [Wrong; 1] {
    [("bridge_not_filtered", message.to_owned())]
}

#[tokio::test]
async fn what_is_wrong_for_long_is_an_event_of_the_node() {
    let server = Server::start().await;
    let (mut events, start) = (events(&server), Instant::now());
    let long = "ä".repeat(2_000);
    events.look(start, &wrong(&long)).await.unwrap();
    assert_eq!(server.created(), [] as [serde_json::Value; 0], "it may mend itself");
    for seconds in [30, 40] {
        events.look(start + Duration::from_secs(seconds), &wrong(&long)).await.unwrap();
    }
    let created = server.created();
    let [event] = &created[..] else { panic!("{created:?}") };
    assert_eq!(event["metadata"], json!({"namespace": "default", "generateName": "n1."}));
    let node = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"});
    assert_eq!(event["involvedObject"], node);
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("BridgeNotFiltered")));
    assert_eq!(event["source"], json!({"component": "npc-firewall", "host": "n1"}));
    assert_eq!(event["message"], "ä".repeat(512), "no longer than the API allows");
}

#[tokio::test]
async fn an_event_that_could_not_be_sent_is_sent_later_unless_it_is_forbidden() {
    let mut server = Server::start().await;
    let (mut events, start) = (events(&server), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    events.look(at(0), &wrong("because")).await.unwrap();
    server.stop().await;
    events.look(at(30), &wrong("because")).await.unwrap();
    server.listen().await;
    server.fail("events", Verb::Create, Fault::Status(500));
    events.look(at(40), &wrong("because")).await.unwrap();
    assert_eq!(server.created().len(), 0);
    server.fail("events", Verb::Create, Fault::Status(403));
    let forbidden = events.look(at(50), &wrong("because")).await.unwrap_err().to_string();
    assert!(forbidden.contains("RBAC must allow create of events"), "{forbidden}");
    events.look(at(60), &wrong("because")).await.unwrap();
    assert_eq!(server.created().len(), 1);
}
