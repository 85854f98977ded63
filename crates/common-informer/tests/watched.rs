//! What a service proxy watches: whole Services, slices, and the node that it is on; from an API server and from
//! a directory, with the same result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod fake;

use std::collections::BTreeMap;
use std::time::Duration;

use common_informer::decode::ServiceDetail;
use common_informer::object::{Change, Kind, Object};
use common_informer::{Informer, Options, Source};
use fake::{Server, Verb};
use serde_json::{Value, json};
use tokio::time::timeout;

/// Bound of every wait: far above what anything takes, since the machine may be busy. Below the time after which a
/// directory is looked at without a notification.
const PATIENCE: Duration = Duration::from_secs(25);
const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

fn options() -> Options {
    Options { services: ServiceDetail::Full, only_node: Some("n1".to_owned()) }
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "x",
            "annotations": {"kube-router.io/service.scheduler": "sh"}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}})
}

fn slice(address: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [address], "nodeName": "n1"}]})
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z1"}}, "spec": {}})
}

struct Consumer {
    informer: Informer,
    objects: BTreeMap<String, Object>,
}

impl Consumer {
    async fn start(source: Source, options: Options) -> Self {
        let informer = Informer::start_with(&source, &KINDS, options).await.unwrap();
        Self { informer, objects: BTreeMap::new() }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<String, Object>) -> bool) {
        let wait = async {
            while !holds(&self.objects) {
                for change in self.informer.next().await.expect("the source goes on").changes {
                    let name = change.object_ref().to_string();
                    match change {
                        Change::Applied(object) => self.objects.insert(name, object),
                        Change::Deleted(_) => self.objects.remove(&name),
                        Change::Excluded { reason, .. } => panic!("{name}: {reason}"),
                    };
                }
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("{what}: {:?}, {:?}", self.objects, self.informer.status().snapshot());
        }
    }
}

/// What both sources must come to.
fn assert_is_what_a_proxy_needs(objects: &BTreeMap<String, Object>) {
    let names: Vec<&str> = objects.keys().map(String::as_str).collect();
    assert_eq!(names, ["EndpointSlice x/web-1", "Node n1", "Service x/web"]);
    let Object::FullService(service) = &objects["Service x/web"] else { panic!("{objects:?}") };
    assert_eq!(
        (&*service.ports[0].name, service.settings.annotation("service.scheduler")),
        ("http", Some("sh"))
    );
    let Object::EndpointSlice(slice) = &objects["EndpointSlice x/web-1"] else { panic!("{objects:?}") };
    assert_eq!((slice.service.as_deref(), slice.endpoints.len()), (Some("web"), 1));
    let Object::Node(node) = &objects["Node n1"] else { panic!("{objects:?}") };
    assert_eq!(node.zone.as_deref(), Some("z1"));
}

fn has_address(objects: &BTreeMap<String, Object>, address: &str) -> bool {
    matches!(objects.get("EndpointSlice x/web-1"),
        Some(Object::EndpointSlice(slice)) if slice.endpoints.iter().next().unwrap().address.to_string() == address)
}

#[tokio::test]
async fn a_proxy_watches_whole_services_slices_and_its_own_node() {
    let server = Server::start().await;
    server.put("services", "x", "web", service());
    server.put("endpointslices", "x", "web-1", slice("10.1.0.1"));
    server.put("nodes", "", "n1", node("n1"));
    let source = Source::Api { kubeconfig: None, master: Some(server.url()) };
    let mut consumer = Consumer::start(source, options()).await;
    consumer.until("everything", |objects| objects.len() == 3).await;
    assert_is_what_a_proxy_needs(&consumer.objects);
    server.put("endpointslices", "x", "web-1", slice("10.1.0.2"));
    consumer.until("the other endpoint", |objects| has_address(objects, "10.1.0.2")).await;
    server.delete("endpointslices", "x", "web-1");
    consumer.until("the slice to go", |objects| objects.len() == 2).await;
    // The server leaves out what is not for us, in lists and in watches.
    for (plural, selector) in [
        ("nodes", "fieldSelector=metadata.name%3Dn1"),
        ("endpointslices", "labelSelector=%21service.kubernetes.io%2Fheadless"),
    ] {
        for verb in [Verb::List, Verb::Watch] {
            let requested = async {
                while server.requests(plural, verb).is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, requested).await.expect("a request");
            let requests = server.requests(plural, verb);
            assert!(requests.iter().all(|query| query.contains(selector)), "{requests:?}");
        }
    }
    let status = consumer.informer.status().snapshot();
    assert!(status.kinds.values().all(|kind| kind.synced && kind.last_error.is_none()), "{status:?}");
}

#[tokio::test]
async fn a_directory_gives_what_the_api_server_gives() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, objects: &[Value]| {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let temporary = directory.path().join(".new");
        std::fs::write(&temporary, list.to_string()).unwrap();
        std::fs::rename(temporary, directory.path().join(name)).unwrap();
    };
    write("all.json", &[service(), slice("10.1.0.1"), node("n1"), node("n2")]);
    let source = Source::Manifests(directory.path().to_owned());
    let mut consumer = Consumer::start(source.clone(), options()).await;
    consumer.until("everything", |objects| objects.len() == 3).await;
    assert_is_what_a_proxy_needs(&consumer.objects);
    write("all.json", &[service(), slice("10.1.0.2"), node("n1"), node("n2")]);
    consumer.until("the other endpoint", |objects| has_address(objects, "10.1.0.2")).await;
    assert_is_what_a_proxy_needs(&consumer.objects);

    let mut all = Consumer::start(source, Options::default()).await;
    all.until("both nodes", |objects| objects.len() == 4).await;
    assert!(
        matches!(all.objects["Service x/web"], Object::Service(_)),
        "only addresses unless asked for more"
    );
}
