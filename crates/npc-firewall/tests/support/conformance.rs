//! The public suites: cyclonus and Kubernetes' network policy e2e, as data that `../shared/conformance`
//! holds (or `CONFORMANCE_DIR`). Each step becomes manifests, as `kubectl get -o json` would print them, and
//! the table of who reaches whom.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use common_informer::decode;
use common_informer::intern::Interner;
use common_informer::object::{Object, Protocol};
use serde::Deserialize;
use serde_json::{Value, json};

use super::oracle::Connection;

/// One test of a suite.
#[derive(Debug)]
pub struct Case {
    /// Suite, layout and number.
    pub id: String,
    /// What it is about.
    pub name: String,
    pub steps: Vec<Step>,
}

/// The whole state of a cluster, and who reaches whom then.
#[derive(Debug)]
pub struct Step {
    /// Namespaces, pods and policies.
    pub manifests: Vec<Value>,
    /// `namespace/name` of each pod, in order of the rows and columns.
    pub order: Vec<String>,
    /// Address of each pod, in the same order.
    pub addresses: Vec<IpAddr>,
    /// Node of each pod.
    pub nodes: Vec<String>,
    pub tables: Vec<Table>,
}

/// Who reaches whom on one port.
#[derive(Debug)]
pub struct Table {
    pub protocol: Protocol,
    pub port: u16,
    /// Row = source, column = destination; `.` connects, `X` does not.
    pub rows: Vec<String>,
}

/// A cell that is not as the suite says.
pub struct Wrong<'a> {
    pub case: &'a Case,
    pub step: usize,
    pub connection: Connection,
    pub expected: bool,
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { source, destination, protocol, port } = self.connection;
        let verb = if self.expected { "must reach" } else { "must not reach" };
        let Case { id, name, .. } = self.case;
        write!(f, "{id} ({name}), step {}: {source} {verb} {destination} {protocol}/{port}", self.step)
    }
}

impl Step {
    /// Each cell that says something, as a connection and whether it is made.
    pub fn cells(&self) -> impl Iterator<Item = (Connection, bool)> + '_ {
        self.tables.iter().flat_map(move |table| {
            table.rows.iter().zip(&self.addresses).flat_map(move |(row, &source)| {
                assert_eq!(row.len(), self.addresses.len(), "a row has a cell for each pod");
                row.chars().zip(&self.addresses).filter_map(move |(cell, &destination)| {
                    let Table { protocol, port, .. } = *table;
                    let connection = Connection { source, destination, protocol, port };
                    match cell {
                        '.' => Some((connection, true)),
                        'X' => Some((connection, false)),
                        '?' | '-' => None,
                        other => panic!("unknown cell {other:?}"),
                    }
                })
            })
        })
    }

    /// The manifests as the firewall sees them. Nothing in the suites is malformed.
    pub fn objects(&self) -> Vec<Object> {
        let mut interner = Interner::new();
        let decode = |manifest| {
            let decoded = decode::object(manifest, &mut interner).unwrap().expect("a watched kind");
            assert_eq!(decoded.notes, Vec::<String>::new(), "nothing is left out");
            decoded.object
        };
        self.manifests.iter().map(decode).collect()
    }
}

/// Where the suites are.
///
/// # Panics
/// They are nowhere: a conformance run without suites must not pass.
pub fn folder() -> PathBuf {
    let beside_the_project = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance");
    let folder = std::env::var_os("CONFORMANCE_DIR").map_or_else(beside_the_project, PathBuf::from);
    assert!(
        folder.is_dir(),
        "the conformance suites are not at {}: put them there or set CONFORMANCE_DIR",
        folder.display()
    );
    folder
}

// The suites' own form.

#[derive(Deserialize)]
struct RawPod {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    ip: IpAddr,
    node: String,
    ports: Option<Value>,
}

#[derive(Deserialize)]
struct Topology {
    #[serde(rename = "podPorts")]
    pod_ports: Value,
}

#[derive(Deserialize)]
struct CyclonusCase {
    id: String,
    description: String,
    steps: Vec<CyclonusStep>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CyclonusStep {
    namespaces_after: BTreeMap<String, Value>,
    pods_after: Vec<RawPod>,
    policies_after: Vec<Value>,
    order: Vec<String>,
    expected: Vec<CyclonusTable>,
}

#[derive(Deserialize)]
struct CyclonusTable {
    port: u16,
    protocol: String,
    effective: Vec<String>,
}

#[derive(Deserialize)]
struct E2eCase {
    id: String,
    name: String,
    steps: Vec<E2eStep>,
}

#[derive(Deserialize)]
struct E2eStep {
    namespaces: BTreeMap<String, Value>,
    pods: Vec<RawPod>,
    policies: Vec<Value>,
    port: u16,
    protocol: String,
    order: Vec<String>,
    effective: Vec<String>,
}

/// All cyclonus cases: three layouts and the two-port extras, in order of their names.
pub fn cyclonus() -> Vec<Case> {
    let path = folder().join("cyclonus-cases.tar.xz");
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut archive = tar::Archive::new(lzma_rust2::XzReader::new(std::io::BufReader::new(file), true));
    let (mut topologies, mut cases) = (BTreeMap::new(), BTreeMap::new());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let (Some(layout), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            continue;
        };
        let mut read = |text: &mut String| entry.read_to_string(text).unwrap();
        let mut text = String::new();
        match name {
            "topology.json" => {
                read(&mut text);
                topologies
                    .insert(layout.to_owned(), serde_json::from_str::<Topology>(&text).unwrap().pod_ports);
            }
            "index.json" => {}
            _ if name.ends_with(".json") => {
                read(&mut text);
                cases.insert(
                    path.clone(),
                    (layout.to_owned(), serde_json::from_str::<CyclonusCase>(&text).unwrap()),
                );
            }
            _ => {}
        }
    }
    cases.into_values().map(|(layout, case)| cyclonus_case(case, &topologies[&layout])).collect()
}

fn cyclonus_case(case: CyclonusCase, ports: &Value) -> Case {
    let step = |step: CyclonusStep| {
        let tables = step.expected.into_iter().map(|t| table(t.port, &t.protocol, t.effective)).collect();
        let manifests = manifests(&step.namespaces_after, &step.pods_after, step.policies_after, ports);
        let (addresses, nodes) = in_order(&step.pods_after, &step.order);
        Step { manifests, order: step.order, addresses, nodes, tables }
    };
    Case { id: case.id, name: case.description, steps: case.steps.into_iter().map(step).collect() }
}

/// The e2e cases, on IPv4 and on IPv6.
pub fn e2e() -> Vec<Case> {
    let path = folder().join("netpol-e2e-cases.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: Vec<E2eCase> = serde_json::from_str(&text).unwrap();
    let step = |step: E2eStep| {
        let (addresses, nodes) = in_order(&step.pods, &step.order);
        let manifests = manifests(&step.namespaces, &step.pods, step.policies, &json!([]));
        let tables = vec![table(step.port, &step.protocol, step.effective)];
        Step { manifests, order: step.order, addresses, nodes, tables }
    };
    let case = |case: E2eCase| Case {
        id: case.id,
        name: case.name,
        steps: case.steps.into_iter().map(step).collect(),
    };
    cases.into_iter().map(case).collect()
}

fn table(port: u16, protocol: &str, rows: Vec<String>) -> Table {
    Table { port, protocol: Protocol::parse(protocol).expect("a protocol"), rows }
}

fn in_order(pods: &[RawPod], order: &[String]) -> (Vec<IpAddr>, Vec<String>) {
    let find = |name: &String| {
        let pod = pods.iter().find(|pod| format!("{}/{}", pod.namespace, pod.name) == *name);
        let pod = pod.unwrap_or_else(|| panic!("{name} is no pod of the step"));
        (pod.ip, pod.node.clone())
    };
    order.iter().map(find).unzip()
}

fn manifests(
    namespaces: &BTreeMap<String, Value>,
    pods: &[RawPod],
    policies: Vec<Value>,
    ports: &Value,
) -> Vec<Value> {
    let namespace = |(name, labels): (&String, &Value)| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let pod = |pod: &RawPod| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels},
            "spec": {
                "nodeName": pod.node,
                "containers": [{"name": "server", "ports": pod.ports.as_ref().unwrap_or(ports)}],
            },
            "status": {"phase": "Running", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}]},
        })
    };
    namespaces.iter().map(namespace).chain(pods.iter().map(pod)).chain(policies).collect()
}
