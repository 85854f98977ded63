//! The objects of a lab, as files of manifests have them. Names are in quotes: `y` is a boolean in YAML 1.1.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use test_netns::{Cluster, Host};

/// Namespaces, pods, and whatever else is put beside them.
pub(crate) struct Objects {
    pub(crate) namespaces: BTreeMap<String, Meta>,
    pub(crate) pods: BTreeMap<String, Pod>,
    /// Policies by `namespace/name`: the text of their `spec`.
    pub(crate) policies: BTreeMap<String, String>,
    /// Whole documents.
    pub(crate) others: Vec<String>,
}

/// Labels and annotations.
#[derive(Clone, Default)]
pub(crate) struct Meta {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) meta: Meta,
    pub(crate) node: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) phase: &'static str,
    pub(crate) host_network: bool,
    pub(crate) created: &'static str,
    /// It is being deleted.
    pub(crate) terminating: bool,
    /// YAML of `containers`.
    pub(crate) containers: String,
    /// YAML of `initContainers`.
    pub(crate) init_containers: String,
}

impl Meta {
    pub(crate) fn label(&mut self, key: &str, value: &str) -> &mut Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    fn yaml(&self) -> String {
        let map = |map: &BTreeMap<String, String>| serde_json::to_string(map).expect("JSON");
        format!("labels: {}, annotations: {}", map(&self.labels), map(&self.annotations))
    }
}

impl Pod {
    /// A running pod as the kubelet would describe it.
    pub(crate) fn of(host: &Host) -> Self {
        Self::new(host.node.as_deref().expect("a pod"), &host.addresses)
    }

    pub(crate) fn new(node: &str, ips: &[IpAddr]) -> Self {
        Self {
            meta: Meta::default(),
            node: node.into(),
            ips: ips.into(),
            phase: "Running",
            host_network: false,
            created: "2024-01-01T00:00:00Z",
            terminating: false,
            containers: "[]".into(),
            init_containers: "[]".into(),
        }
    }

    fn yaml(&self, key: &str) -> String {
        let (namespace, name) = key.split_once('/').expect("namespace/name");
        let deleted = if self.terminating { "deletionTimestamp: '2024-06-01T00:00:00Z', " } else { "" };
        let ips: Vec<_> = self.ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: '{name}', namespace: '{namespace}', \
             creationTimestamp: '{}', {deleted}{}}}, spec: {{nodeName: {}, hostNetwork: {}, containers: {}, \
             initContainers: {}}}, status: {{phase: {}, podIPs: [{}]}}}}",
            self.created,
            self.meta.yaml(),
            self.node,
            self.host_network,
            self.containers,
            self.init_containers,
            self.phase,
            ips.join(", ")
        )
    }
}

impl Objects {
    /// Pods labelled `pod: <name>` in namespaces labelled `ns: <name>`, as in the public suites.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut objects = Self {
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            others: Vec::new(),
        };
        for name in cluster.pods() {
            objects.add(name, Pod::of(cluster.host(name).expect("a pod")));
        }
        objects
    }

    /// Adds a pod with its label, and its namespace.
    pub(crate) fn add(&mut self, key: &str, mut pod: Pod) {
        let (namespace, name) = key.split_once('/').expect("namespace/name");
        pod.meta.label("pod", name);
        self.pods.insert(key.into(), pod);
        let labels = self.namespaces.entry(namespace.into()).or_default();
        labels.label("ns", namespace).label("kubernetes.io/metadata.name", namespace);
    }

    pub(crate) fn pod(&mut self, key: &str) -> &mut Pod {
        self.pods.get_mut(key).expect("a pod")
    }

    pub(crate) fn namespace(&mut self, name: &str) -> &mut Meta {
        self.namespaces.get_mut(name).expect("a namespace")
    }

    /// Sets a policy; `spec` is YAML in flow style.
    pub(crate) fn policy(&mut self, key: &str, spec: &str) {
        self.policies.insert(key.into(), spec.into());
    }

    /// Adds a Service with one port.
    pub(crate) fn service(
        &mut self,
        name: &str,
        address: &str,
        protocol: &str,
        port: u16,
        node_port: Option<u16>,
    ) {
        let (kind, node_port) = match node_port {
            Some(number) => ("NodePort", format!(", nodePort: {number}")),
            None => ("ClusterIP", String::new()),
        };
        self.others.push(format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: default}}, spec: {{type: {kind}, \
             clusterIPs: ['{address}'], ports: [{{protocol: {protocol}, port: {port}{node_port}}}]}}}}"
        ));
    }

    /// One document each.
    pub(crate) fn yaml(&self) -> String {
        let mut text = String::new();
        let mut put = |document: &str| writeln!(text, "---\n{document}").expect("a string");
        for (name, meta) in &self.namespaces {
            put(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: '{name}', {}}}}}",
                meta.yaml()
            ));
        }
        for (key, pod) in &self.pods {
            put(&pod.yaml(key));
        }
        for (key, spec) in &self.policies {
            let (namespace, name) = key.split_once('/').expect("namespace/name");
            put(&format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: '{name}', \
                 namespace: '{namespace}'}}, spec: {spec}}}"
            ));
        }
        for document in &self.others {
            put(document);
        }
        text
    }
}
