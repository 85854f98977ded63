//! A directory of manifests as a source: YAML or JSON, several documents in a file, `List` kinds, nested
//! folders.
//!
//! Every change of the directory leads to one new look at the whole of it (only changed files are read
//! again), whose result replaces the earlier one as a relist does. So renames, swapped symbolic links
//! (the `..data` of a mounted ConfigMap), folders that come and go need no rules of their own.
//!
//! - Names that begin with a dot are passed over: editors' and kubelet's own.
//! - An object that is in two places: the last one in the order of paths, then of documents, wins, and the
//!   other is reported.
//! - A document that cannot be read costs only itself. Objects that were in its file before and are not found
//!   now are [`Excluded`](crate::object::Change::Excluded) rather than deleted: the file may still mean them.
//! - A directory that disappears is a source that cannot be reached, not an empty cluster: what was known
//!   stays until it is back.
//!
//! Writers should rename complete files into place; a file that is written in parts may be seen in parts.

pub mod document;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::hub::Hub;
use crate::informer::{StartError, feed};
use crate::object::Kind;
pub use document::{Documents, parse, parse_with};
use tree::Tree;
use watch::Watch;

/// A change is followed by others: the look is taken when there was none for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … but after so long at the latest.
const PATIENCE: Duration = Duration::from_millis(500);
/// A look without a notification, for file systems that do not notify (network file systems, overflows).
const AUDIT: Duration = Duration::from_secs(30);
/// A missing directory is looked for so often.
const RETRY: Duration = Duration::from_millis(250);

/// Starts to watch `directory`; returns its name for people.
pub(crate) fn start(
    directory: &Path,
    kinds: &[Kind],
    hub: &Arc<Hub>,
    tasks: &mut JoinSet<()>,
) -> Result<String, StartError> {
    std::fs::read_dir(directory)
        .map_err(|source| StartError::Manifests { path: directory.to_owned(), source })?;
    let watch = Watch::new(directory).map_err(StartError::Inotify)?;
    let tree = Tree::new(directory, kinds);
    feed(tasks, hub, run(tree, watch, hub.clone()));
    Ok(directory.display().to_string())
}

async fn run(mut tree: Tree, mut watch: Watch, hub: Arc<Hub>) {
    loop {
        let hub = hub.clone();
        let look = move || {
            let found = tree.look(&mut watch, &hub);
            (tree, watch, found)
        };
        // Reading files blocks.
        let Ok(result) = tokio::task::spawn_blocking(look).await else { return };
        let found;
        (tree, watch, found) = result;
        let wait = if found { AUDIT } else { RETRY };
        if timeout(wait, watch.changed()).await.is_ok() {
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && timeout(QUIET, watch.changed()).await.is_ok() {}
        }
    }
}
