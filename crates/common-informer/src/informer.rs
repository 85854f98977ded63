//! An informer: one source, the kinds that a controller asked for, one stream of changes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::decode::ServiceDetail;
use crate::hub::Hub;
use crate::object::{Batch, Kind, ObjectRef};
use crate::status::Status;
use crate::{api, manifests};

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests, watched.
    Manifests(PathBuf),
    /// The API server.
    Api {
        /// A kubeconfig file; `None` is the service account of the pod.
        kubeconfig: Option<PathBuf>,
        /// URL of the API server, instead of the one that the kubeconfig or the pod's environment names.
        master: Option<String>,
    },
}

impl Source {
    /// The directory of manifests if there is one, else the API server.
    pub fn chosen(manifests: Option<&Path>, kubeconfig: Option<&Path>, master: Option<&str>) -> Self {
        match manifests {
            Some(directory) => Self::Manifests(directory.to_owned()),
            None => {
                Self::Api { kubeconfig: kubeconfig.map(Path::to_owned), master: master.map(str::to_owned) }
            }
        }
    }
}

/// What of the watched kinds is wanted, where there is a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How much of each Service.
    pub services: ServiceDetail,
    /// Only the node of this name; `None` is all of them. Every node changes each few minutes.
    pub only_node: Option<String>,
}

impl Options {
    /// Whether an object of a watched kind is wanted.
    pub(crate) fn wants(&self, object: &ObjectRef) -> bool {
        object.kind != Kind::Node || self.only_node.as_ref().is_none_or(|name| **name == *object.key.name)
    }
}

/// An informer cannot start. To try again without changing anything does not help.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory of manifests cannot be read.
    #[error("cannot read the directory of manifests {path}: {source}", path = path.display())]
    Manifests {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not let us watch directories.
    #[error("cannot watch directories (inotify): {0}")]
    Inotify(io::Error),
    /// There is no usable configuration for the API server.
    #[error("{0}")]
    Api(String),
}

/// A client of the API server for those who also write, with the flags and limits of an informer's
/// [`Source::Api`]. Nothing is retried in it.
///
/// # Errors
/// There is no usable configuration for the API server.
pub async fn client(kubeconfig: Option<&Path>, master: Option<&str>) -> Result<kube::Client, StartError> {
    api::client(kubeconfig, master).await
}

/// A running informer. Dropping it ends its tasks.
pub struct Informer {
    hub: Arc<Hub>,
    status: Status,
    told_synced: bool,
    /// Aborted on drop.
    _tasks: JoinSet<()>,
}

impl Informer {
    /// [`Informer::start_with`] the default options.
    ///
    /// # Errors
    /// The directory of manifests is missing, or there is no usable configuration for the API server.
    pub async fn start(source: &Source, kinds: &[Kind]) -> Result<Self, StartError> {
        Self::start_with(source, kinds, Options::default()).await
    }

    /// Starts to watch `kinds`. Must be called in a tokio runtime with I/O and time enabled.
    ///
    /// An API server that cannot be reached is no error: it is tried again, see [`Status`].
    ///
    /// # Errors
    /// The directory of manifests is missing, or there is no usable configuration for the API server.
    pub async fn start_with(source: &Source, kinds: &[Kind], options: Options) -> Result<Self, StartError> {
        let hub = Arc::new(Hub::new(kinds, options));
        let mut tasks = JoinSet::new();
        let name = match source {
            Source::Manifests(directory) => manifests::start(directory, kinds, &hub, &mut tasks)?,
            Source::Api { kubeconfig, master } => {
                api::start(kubeconfig.as_deref(), master.as_deref(), kinds, &hub, &mut tasks).await?
            }
        };
        let status = Status { hub: hub.clone(), source: name.into() };
        Ok(Self { hub, status, told_synced: false, _tasks: tasks })
    }

    /// The next changes, as soon as there are any; while the consumer is busy they are coalesced. The first
    /// batch with `synced` may have no changes. `None` when the source has ended, which it does not by
    /// itself.
    ///
    /// Cancel safe: a batch is returned or stays.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            if let Some(batch) = self.hub.take(self.told_synced) {
                self.told_synced = batch.synced;
                return Some(batch);
            }
            if self.hub.is_closed() {
                return None;
            }
            self.hub.changed().await;
        }
    }

    /// A handle to the informer's state.
    pub fn status(&self) -> Status {
        self.status.clone()
    }
}

/// Runs a task that feeds the hub, and tells the consumer when it ends, however it ends.
pub(crate) fn feed(tasks: &mut JoinSet<()>, hub: &Arc<Hub>, task: impl Future<Output = ()> + Send + 'static) {
    struct Feeder(Arc<Hub>);
    impl Drop for Feeder {
        fn drop(&mut self) {
            self.0.feeder_ended();
        }
    }
    hub.feeder_started();
    let feeder = Feeder(hub.clone());
    tasks.spawn(async move {
        let _feeder = feeder;
        task.await;
    });
}
