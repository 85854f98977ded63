//! Objects as files, in the form in which the API server would hand them out.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use test_netns::Cluster;

use crate::scenario::NAMESPACES;

/// The folder that the firewalls watch.
pub(crate) struct Manifests {
    folder: PathBuf,
    /// Files are written here first: a rename shows the firewalls a whole file or none.
    staging: PathBuf,
    logs: PathBuf,
}

impl Manifests {
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let [folder, staging, logs] = ["manifests", "staging", "logs"].map(|name| parent.join(name));
        for path in [&folder, &staging, &logs] {
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(Self { folder, staging, logs })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    pub(crate) fn put(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.staging.join(name);
        fs::write(&staged, text).with_context(|| format!("write {}", staged.display()))?;
        fs::rename(&staged, self.folder.join(name)).with_context(|| format!("move {name} into place"))
    }

    /// Removes a file; that it isn't there is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {name}"))
            }
            _ => Ok(()),
        }
    }
}

/// The Namespace objects.
pub(crate) fn namespaces() -> String {
    let document = |name: &&str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
             kubernetes.io/metadata.name: {name}\n    app: {name}\n"
        )
    };
    NAMESPACES.iter().map(document).collect::<Vec<_>>().join("---\n")
}

/// The Pod objects, with the addresses that the cluster gave them.
pub(crate) fn pods(cluster: &Cluster) -> Result<String> {
    let mut text = String::new();
    for pod in cluster.pods() {
        let host = cluster.host(pod)?;
        let (namespace, name) = pod.split_once('/').context("pods are named namespace/name")?;
        let node = host.node.as_deref().unwrap_or_default();
        write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
             labels: {{app: {name}}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: {name}\n    \
             ports:\n    - {{name: http, containerPort: 80}}\nstatus:\n  phase: Running\n  podIPs:\n"
        )?;
        for address in &host.addresses {
            writeln!(text, "  - ip: \"{address}\"")?;
        }
    }
    Ok(text)
}
