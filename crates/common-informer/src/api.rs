//! The API server as a source.
//!
//! kube's client and watcher list in pages, watch with bookmarks, and resume or list anew as the API asks.
//! What they leave open is here:
//! - an item of the wrong shape costs only itself ([`trimmed`] accepts any JSON);
//! - objects that went while nobody watched are told as deleted (the hub knows the keys);
//! - failures are retried with jitter, and counted; the status shows an error exactly until the server
//!   answers again ([`answered`]).

mod answered;
mod client;
mod failure;
mod trimmed;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::task::JoinSet;

use crate::decode;
use crate::hub::Hub;
use crate::informer::{Options, StartError, feed};
use crate::object::{Kind, ObjectRef};
pub use failure::error_chain;
use trimmed::Trimmed;

/// Objects in one page of a list. kube holds a page as bytes and as text before it is parsed: with client-go's
/// 500, 15,000 pods of 6.5 kB raise the process to 29 MB, with 100 to 19 MB.
const PAGE: u32 = 100;
/// The first wait after a failure and the longest one; as client-go's reflector.
const WAIT: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));
/// A watch that has worked so long starts with the first wait again.
const STABLE: Duration = Duration::from_secs(10);

/// Starts to watch `kinds`; returns the URL of the API server.
pub(crate) async fn start(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    kinds: &[Kind],
    hub: &Arc<Hub>,
    tasks: &mut JoinSet<()>,
) -> Result<String, StartError> {
    let config = client::config(kubeconfig, master).await?;
    let url: Arc<str> = config.cluster_url.to_string().into();
    let client = client::connect(config, hub)?;
    for kind in kinds {
        feed(tasks, hub, run(client.clone(), *kind, url.clone(), hub.clone()));
    }
    Ok(url.to_string())
}

/// A client outside of any informer.
pub(crate) async fn client(kubeconfig: Option<&Path>, master: Option<&str>) -> Result<Client, StartError> {
    client::plain(client::config(kubeconfig, master).await?)
}

/// Objects that a list or watch leaves out.
fn selection(kind: Kind, options: &Options) -> watcher::Config {
    let config = watcher::Config::default().page_size(PAGE);
    match kind {
        // A finished pod has given its addresses back; it would only take up memory. When a pod finishes,
        // the API server tells a watch with this selector that it is deleted.
        Kind::Pod => config.fields("status.phase!=Succeeded,status.phase!=Failed"),
        // Nobody serves these; the controller that makes slices copies the label from the Service.
        Kind::EndpointSlice => config.labels("!service.kubernetes.io/headless"),
        Kind::Node => match &options.only_node {
            Some(name) => config.fields(&format!("metadata.name={name}")),
            None => config,
        },
        Kind::Namespace | Kind::NetworkPolicy | Kind::Service => config,
    }
}

/// Keeps the hub equal to what the API server has of `kind`.
async fn run(client: Client, kind: Kind, url: Arc<str>, hub: Arc<Hub>) {
    let mut waits = Waits::new();
    loop {
        let api = Api::<Trimmed>::all_with(client.clone(), &kind);
        let mut events = pin!(watcher::watcher(api, selection(kind, hub.options())));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if !matches!(event, Event::Init) {
                        waits.works();
                    }
                    handle(event, kind, &hub);
                }
                Err(error) => {
                    hub.update(|update| update.watch_error(kind, failure::describe(&error, kind, &url)));
                    tokio::time::sleep(waits.next()).await;
                    if failure::needs_list(&error) {
                        break;
                    }
                }
            }
        }
    }
}

fn handle(event: Event<Trimmed>, kind: Kind, hub: &Hub) {
    match event {
        Event::Init => hub.update(|update| update.begin_list(kind)),
        Event::InitApply(object) | Event::Apply(object) => {
            let detail = hub.options().services;
            let decoded = decode::object_of_with(detail, kind, &object.value, &mut hub.interner());
            hub.update(|update| update.apply(decoded));
        }
        Event::Delete(object) => {
            let key = decode::key_of(kind, &object.value, &mut hub.interner());
            hub.update(|update| update.delete(ObjectRef { kind, key }));
        }
        Event::InitDone => {
            hub.update(|update| update.end_list(kind));
            // A relist has replaced what was there; what is no longer used goes now.
            hub.interner().purge();
        }
    }
}

/// How long to wait after each failure.
struct Waits {
    waits: ExponentialBackoff,
    works_since: Option<Instant>,
}

impl Waits {
    fn new() -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(WAIT.0)
            .with_max_delay(WAIT.1)
            .with_jitter()
            .without_max_times();
        Self { waits: builder.build(), works_since: None }
    }

    fn works(&mut self) {
        self.works_since.get_or_insert_with(Instant::now);
    }

    fn next(&mut self) -> Duration {
        if self.works_since.take().is_some_and(|since| since.elapsed() >= STABLE) {
            *self = Self::new();
        }
        self.waits.next().unwrap_or(WAIT.1)
    }
}
