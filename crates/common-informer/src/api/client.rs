//! From flags to a client of the API server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::answered::Answered;
use super::failure::error_chain;
use crate::hub::Hub;
use crate::informer::StartError;

/// A server that cannot be reached is known to be so after this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing arrives so long is given up. The server ends a watch after 290 s and sends a
/// bookmark each minute.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// The configuration that the flags stand for: `kubeconfig`, or the service account of the pod; `master`
/// replaces its URL, so that a node can reach the API server before the service network works.
pub(super) async fn config(kubeconfig: Option<&Path>, master: Option<&str>) -> Result<Config, StartError> {
    let master = master.map(url).transpose()?;
    let mut config = match (kubeconfig, &master) {
        (Some(path), _) => from_file(path).await?,
        (None, Some(url)) => Config::incluster().unwrap_or_else(|_| Config::new(url.clone())),
        (None, None) => Config::incluster().map_err(|error| {
            let error = error_chain(&error);
            StartError::Api(format!(
                "not in a pod with a service account ({error}), and neither a kubeconfig nor the URL of an \
                 API server nor a directory of manifests is given"
            ))
        })?,
    };
    if let Some(url) = master {
        config.cluster_url = url;
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Failures are counted and retried in one place, ours.
    config.default_retry = false;
    Ok(config)
}

async fn from_file(path: &Path) -> Result<Config, StartError> {
    let unusable = |error: &dyn std::error::Error| {
        StartError::Api(format!("kubeconfig {}: {}", path.display(), error_chain(error)))
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(&error))
}

fn url(text: &str) -> Result<http::Uri, StartError> {
    let url = text.parse::<http::Uri>().ok();
    url.filter(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()).ok_or_else(
        || StartError::Api(format!("{text:?} is no URL of an API server, e.g. https://10.0.0.1:6443")),
    )
}

/// A client.
pub(super) fn plain(config: Config) -> Result<Client, StartError> {
    let url = config.cluster_url.clone();
    ClientBuilder::try_from(config).map(ClientBuilder::build).map_err(|error| unusable(&url, &error))
}

/// A client that tells the hub when the server answers.
pub(super) fn connect(config: Config, hub: &Arc<Hub>) -> Result<Client, StartError> {
    let url = config.cluster_url.clone();
    let builder = ClientBuilder::try_from(config).map_err(|error| unusable(&url, &error))?;
    Ok(builder.with_layer(&Answered(hub.clone())).build())
}

fn unusable(url: &http::Uri, error: &kube::Error) -> StartError {
    StartError::Api(format!("API server {url}: {}", error_chain(error)))
}
