//! The informer against a real kube-apiserver with etcd. Run by `make test-apiserver`.
//!
//! One cluster is started for all tests of this file, in a throw-away directory, on free ports of 127.0.0.1.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common_informer::decode::ServiceDetail;
use common_informer::node_events::NodeEvents;
use common_informer::object::{Change, Family, Kind, Object, TrafficPolicy};
use common_informer::{Informer, Options, Source};
use futures::stream::{self, StreamExt as _};
use http::{Method, Request, StatusCode};
use kube::client::Body;
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "informer-test";

/// The folder with `etcd` and `kube-apiserver`.
fn assets() -> PathBuf {
    let directory = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "KUBEBUILDER_ASSETS is not set. This test needs a folder with the programs `etcd` and `kube-apiserver`, and \
             `openssl` in PATH. `make test-apiserver` builds them from Debian's sources; for newer ones fetch the \
             folder with\n  go run sigs.k8s.io/controller-runtime/tools/setup-envtest@latest use -p path\n\
             and run: KUBEBUILDER_ASSETS=<that path> make test-apiserver"
        )
    });
    for program in ["etcd", "kube-apiserver"] {
        let path = directory.join(program);
        assert!(
            path.is_file(),
            "KUBEBUILDER_ASSETS is {}, but there is no {}",
            directory.display(),
            path.display()
        );
    }
    directory
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A process that ends with its owner.
struct Process(Child);

impl Process {
    fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// etcd and kube-apiserver.
struct Cluster {
    assets: PathBuf,
    directory: TempDir,
    port: u16,
    etcd_port: u16,
    more_flags: Vec<&'static str>,
    starts: usize,
    server: Option<Process>,
    _etcd: Process,
}

impl Cluster {
    async fn start() -> Self {
        let assets = assets();
        let directory = tempfile::tempdir().unwrap();
        let (etcd_port, peer_port) = (free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd = [
            format!("--data-dir={}", directory.path().join("etcd").display()),
            format!("--listen-client-urls={}", url(etcd_port)),
            format!("--advertise-client-urls={}", url(etcd_port)),
            format!("--listen-peer-urls={}", url(peer_port)),
            format!("--initial-advertise-peer-urls={}", url(peer_port)),
            format!("--initial-cluster=default={}", url(peer_port)),
            "--unsafe-no-fsync=true".to_owned(),
        ];
        let etcd = Process::start(&assets.join("etcd"), &etcd, &directory.path().join("etcd.log"));
        let tokens = format!("{TOKEN},admin,admin,system:masters\n");
        fs::write(directory.path().join("tokens.csv"), tokens).unwrap();
        let key = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(directory.path().join("sa.key"))
            .arg("2048")
            .output()
            .expect("openssl makes the key that signs service account tokens: install openssl");
        assert!(key.status.success(), "{key:?}");
        let mut cluster = Self {
            assets,
            directory,
            port: free_port(),
            etcd_port,
            more_flags: Vec::new(),
            starts: 0,
            server: None,
            _etcd: etcd,
        };
        cluster.start_server().await;
        cluster.have_endpoint_slices().await;
        cluster
    }

    /// kube-apiserver 1.20, which Debian 12 has the sources of, knows no discovery.k8s.io/v1. There it serves it as a
    /// custom resource: without defaults and validation, but listed and watched as the real one.
    async fn have_endpoint_slices(&mut self) {
        if self.serves_endpoint_slices().await {
            return;
        }
        // Of a group that the server has itself it takes no custom resource.
        self.more_flags.push("--runtime-config=discovery.k8s.io/v1beta1=false");
        self.stop_server();
        self.start_server().await;
        let client = self.client().await.unwrap();
        let names = json!({"plural": "endpointslices", "singular": "endpointslice", "kind": "EndpointSlice",
            "listKind": "EndpointSliceList"});
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "endpointslices.discovery.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
            "spec": {"group": "discovery.k8s.io", "scope": "Namespaced", "names": names,
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        must(
            &client,
            Method::POST,
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            Some(&definition),
        )
        .await;
        let deadline = Instant::now() + PATIENCE;
        while !self.serves_endpoint_slices().await {
            assert!(Instant::now() < deadline, "kube-apiserver does not serve the custom resource");
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn serves_endpoint_slices(&self) -> bool {
        let client = self.client().await.unwrap();
        let path = "/apis/discovery.k8s.io/v1/endpointslices";
        request(&client, Method::GET, path, None).await.is_ok_and(|status| status == StatusCode::OK)
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Starts kube-apiserver, again on the same port, and waits until it is ready.
    async fn start_server(&mut self) {
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--secure-port={}", self.port),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--cert-dir={}", self.path("certificates")),
            format!("--token-auth-file={}", self.path("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-account-key-file={}", self.path("sa.key")),
            format!("--service-account-signing-key-file={}", self.path("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            // No controllers run here that would make service accounts.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        arguments.extend(self.more_flags.iter().map(|flag| (*flag).to_owned()));
        self.starts += 1;
        let log = self.directory.path().join(format!("kube-apiserver-{}.log", self.starts));
        self.server = Some(Process::start(&self.assets.join("kube-apiserver"), &arguments, &log));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = match self.client().await {
                Some(client) => {
                    request(&client, Method::GET, "/readyz", None).await.is_ok_and(|status| status == 200)
                }
                None => false,
            };
            if ready {
                return;
            }
            let text = || fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < deadline, "kube-apiserver is not ready:\n{}", text());
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn stop_server(&mut self) {
        self.server = None;
    }

    /// The certificate is signed by itself; kube-apiserver writes it at its first start.
    fn kubeconfig(&self) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"https://127.0.0.1:{}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: {TOKEN}}}}}]\n",
            self.port
        );
        let path = self.directory.path().join("kubeconfig");
        fs::write(&path, text).unwrap();
        path
    }

    async fn client(&self) -> Option<Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.ok()?;
        config.connect_timeout = Some(Duration::from_secs(2));
        Client::try_from(config).ok()
    }

    async fn informer(&self) -> Informer {
        let source = Source::Api { kubeconfig: Some(self.kubeconfig()), master: None };
        let options = Options { services: ServiceDetail::Full, only_node: None };
        Informer::start_with(&source, &Kind::ALL, options).await.unwrap()
    }
}

async fn request(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<StatusCode, kube::Error> {
    let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(|value| Body::from(value.to_string().into_bytes())).unwrap_or_else(Body::empty);
    let request =
        Request::builder().method(method).uri(path).header("content-type", content).body(body).unwrap();
    Ok(client.send(request).await?.status())
}

async fn must(client: &Client, method: Method, path: &str, body: Option<&Value>) {
    let status = request(client, method.clone(), path, body).await.unwrap();
    assert!(status.is_success(), "{method} {path}: {status}");
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i",
            "ports": [{"name": "http", "containerPort": 80}]}]}})
}

struct Consumer {
    informer: Informer,
    objects: BTreeMap<String, Object>,
}

impl Consumer {
    async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<String, Object>) -> bool) {
        let wait = async {
            while !holds(&self.objects) {
                for change in self.informer.next().await.expect("the source goes on").changes {
                    let name = change.object_ref().to_string();
                    match change {
                        Change::Applied(object) => {
                            self.objects.insert(name, object);
                        }
                        Change::Deleted(_) => {
                            self.objects.remove(&name).expect("only what is known is deleted");
                        }
                        Change::Excluded { reason, .. } => panic!("{name}: {reason}"),
                    }
                }
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("{what}: {} objects, {:?}", self.objects.len(), self.informer.status().snapshot());
        }
    }
}

fn pods(objects: &BTreeMap<String, Object>) -> usize {
    objects.values().filter(|object| matches!(object, Object::Pod(_))).count()
}

#[tokio::test]
async fn informer_follows_a_real_api_server_through_restarts() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await.unwrap();
    let mut consumer = Consumer { informer: cluster.informer().await, objects: BTreeMap::new() };
    consumer.informer.status().wait_synced(PATIENCE).await.unwrap();
    let has = |name: &'static str| move |objects: &BTreeMap<String, Object>| objects.contains_key(name);
    consumer.until("what every cluster has", has("Namespace default")).await;
    consumer.until("what every cluster has", has("Service default/kubernetes")).await;

    follows_changes(&client, &mut consumer).await;
    reads_a_service_with_its_defaults(&client, &mut consumer).await;
    takes_an_event_of_the_node(&cluster, &client).await;
    lists_two_thousand_pods(&cluster, &client, &mut consumer).await;

    // One pod goes and one comes right after the restart, before the informer's wait has passed.
    cluster.stop_server();
    sleep(Duration::from_secs(2)).await;
    cluster.start_server().await;
    let client = cluster.client().await.unwrap();
    let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    must(&client, Method::DELETE, "/api/v1/namespaces/default/pods/p7", Some(&now)).await;
    must(&client, Method::POST, "/api/v1/namespaces/default/pods", Some(&pod("late"))).await;
    consumer
        .until("the changes around the restart", |objects| {
            !objects.contains_key("Pod default/p7") && objects.contains_key("Pod default/late")
        })
        .await;
    assert_eq!(pods(&consumer.objects), 2000);
    let status = consumer.informer.status().snapshot();
    for (kind, status) in &status.kinds {
        assert!(status.synced && status.excluded.is_empty(), "{kind}: {status:?}");
    }
}

/// Create, relabel, finish and delete; a policy as the API server stores it.
async fn follows_changes(client: &Client, consumer: &mut Consumer) {
    let pods_path = "/api/v1/namespaces/default/pods";
    must(client, Method::POST, pods_path, Some(&pod("a"))).await;
    consumer.until("the pod", |objects| objects.contains_key("Pod default/a")).await;
    let relabel = json!({"metadata": {"labels": {"app": "db"}}});
    must(client, Method::PATCH, &format!("{pods_path}/a"), Some(&relabel)).await;
    consumer
        .until("the new label", |objects| {
            matches!(&objects["Pod default/a"], Object::Pod(pod) if pod.labels.get("app").map(|app| &**app) == Some("db"))
        })
        .await;
    let address =
        json!({"status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}});
    must(client, Method::PATCH, &format!("{pods_path}/a/status"), Some(&address)).await;
    consumer
        .until("the address", |objects| {
            matches!(&objects["Pod default/a"], Object::Pod(pod) if pod.ips.len() == 1 && pod.ports.len() == 1)
        })
        .await;
    let finished = json!({"status": {"phase": "Succeeded"}});
    must(client, Method::PATCH, &format!("{pods_path}/a/status"), Some(&finished)).await;
    consumer.until("the finished pod to go", |objects| !objects.contains_key("Pod default/a")).await;

    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
        "spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}});
    must(
        client,
        Method::POST,
        "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
        Some(&policy),
    )
    .await;
    consumer
        .until("the policy with its defaults", |objects| {
            matches!(objects.get("NetworkPolicy default/p"),
                Some(Object::NetworkPolicy(policy)) if policy.isolates_ingress && policy.isolates_egress)
        })
        .await;
}

/// What the API server adds to a Service, a slice and a node is read.
async fn reads_a_service_with_its_defaults(client: &Client, consumer: &mut Consumer) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "ports": [{"name": "http", "port": 80}]}});
    must(client, Method::POST, "/api/v1/namespaces/default/services", Some(&service)).await;
    consumer
        .until("the service with its defaults", |objects| {
            matches!(objects.get("Service default/web"), Some(Object::FullService(service))
                if service.cluster_ips.len() == 1 && service.settings.families[..] == [Family::V4]
                    && service.ports[0].node_port.is_some() && service.health_check_node_port.is_some()
                    && service.settings.affinity_seconds == Some(10_800) && service.settings.allocate_node_ports
                    && service.settings.external_policy == TrafficPolicy::Local && service.uid.is_some()
                    && service.created > 0)
        })
        .await;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.1.0.1"]}]});
    must(client, Method::POST, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", Some(&slice))
        .await;
    consumer
        .until("the slice with its defaults", |objects| {
            matches!(objects.get("EndpointSlice default/web-1"), Some(Object::EndpointSlice(slice))
                if slice.service.as_deref() == Some("web") && slice.ports[0].port == Some(8080)
                    && slice.endpoints.iter().all(|one| one.ready && one.serving && !one.terminating))
        })
        .await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.1.0.0/24"}});
    must(client, Method::POST, "/api/v1/nodes", Some(&node)).await;
    consumer
        .until(
            "the node",
            |objects| matches!(objects.get("Node n1"), Some(Object::Node(node)) if node.pod_cidrs.len() == 1),
        )
        .await;
}

/// What is told of a node is found by the field that `kubectl describe node` asks by.
async fn takes_an_event_of_the_node(cluster: &Cluster, client: &Client) {
    let source = Source::Api { kubeconfig: Some(cluster.kubeconfig()), master: None };
    let mut events = NodeEvents::new(source, "npc-firewall", "n1".to_owned());
    let wrong = [("bridge_not_filtered", "bridge-nf-call-iptables is 0".to_owned())];
    let start = std::time::Instant::now();
    events.look(start, &wrong).await.unwrap();
    events.look(start + Duration::from_secs(60), &wrong).await.unwrap();
    let path =
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.kind=Node,involvedObject.uid=n1";
    let list: Value = client.request(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["items"][0]["reason"], "BridgeNotFiltered");
}

/// The running informer sees them by watching, a new one by listing pages.
async fn lists_two_thousand_pods(cluster: &Cluster, client: &Client, consumer: &mut Consumer) {
    stream::iter(0..2000)
        .for_each_concurrent(32, |index| async move {
            must(client, Method::POST, "/api/v1/namespaces/default/pods", Some(&pod(&format!("p{index}"))))
                .await;
        })
        .await;
    consumer.until("2000 pods by watching", |objects| pods(objects) == 2000).await;
    let mut other = Consumer { informer: cluster.informer().await, objects: BTreeMap::new() };
    other.until("2000 pods by listing", |objects| pods(objects) == 2000).await;
}
