//! How much memory the program takes, fed by a stand-in for the API server.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common_informer::object::Kind;
use test_netns::api_server::{ApiServer, Collection, Memory};

use super::cluster::{Cluster, pod};

/// Pods of one namespace that come and go.
const CHANGES: usize = 2_000;
const LIMIT: Duration = Duration::from_secs(120);

/// Memory of the program with so many pods in its cache.
pub(crate) fn weigh(binary: &str, pods: usize) -> Memory {
    let mut cluster = Cluster::new(pods, 100);
    cluster.spread = (pods / 110).max(1);
    let cluster = Arc::new(cluster);
    let collection = |resource, version, kind: Kind, name| {
        let cluster = cluster.clone();
        Collection::new(resource, version, name, cluster.count(kind), move |number| {
            cluster.json(kind, number)
        })
    };
    let collections = vec![
        collection("namespaces", "v1", Kind::Namespace, "Namespace"),
        collection("networkpolicies", "networking.k8s.io/v1", Kind::NetworkPolicy, "NetworkPolicy"),
        collection("services", "v1", Kind::Service, "Service"),
        collection("pods", "v1", Kind::Pod, "Pod").changing(CHANGES, |number| {
            let what = if number % 2 == 0 { "ADDED" } else { "DELETED" };
            (what, pod(0, 200_000 + number / 2, "n2"))
        }),
    ];
    let mut command = Command::new(binary);
    command.args(["--node-name", "n1", "--table-ownership", "never"]);
    let server = ApiServer::start(collections).expect("a stand-in for the API server");
    server.weigh(&mut command, LIMIT).expect("npc-firewall at rest")
}
