//! What an informer knows about itself, for `/state`, metrics and the gate at start.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::hub::Hub;
use crate::object::{Kind, ObjectKey};

/// A handle to the state of an informer, usable from any thread.
#[derive(Clone)]
pub struct Status {
    pub(crate) hub: Arc<Hub>,
    pub(crate) source: Arc<str>,
}

/// The state of an informer at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Where the objects come from: a URL or a directory.
    pub source: Arc<str>,
    /// Each watched kind.
    pub kinds: BTreeMap<Kind, KindStatus>,
    /// Parts of the source that could not be used and belong to no object, e.g. a file: place and reason.
    pub faults: BTreeMap<String, String>,
}

/// The state of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KindStatus {
    /// It has been listed completely at least once.
    pub synced: bool,
    /// Objects that are there and could be read.
    pub objects: usize,
    /// Objects that could not be read, and why.
    pub excluded: BTreeMap<ObjectKey, String>,
    /// Objects that could be read in part: what was left out.
    pub notes: BTreeMap<ObjectKey, Vec<String>>,
    /// How often a full list was begun, the first one included.
    pub lists: u64,
    /// How often listing or watching failed.
    pub watch_errors: u64,
    /// Why listing or watching does not work; `None` when it does.
    pub last_error: Option<String>,
}

/// The caches did not get in sync in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SyncTimeout {
    /// Where the objects should have come from.
    pub source_name: Arc<str>,
    /// How long it was waited.
    pub waited: Duration,
    /// Kinds that have not been listed completely.
    pub missing: Vec<Kind>,
    /// The latest error of the first of them that has one.
    pub last_error: Option<String>,
}

impl fmt::Display for SyncTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source_name, waited, missing, last_error } = self;
        let missing: Vec<String> = missing.iter().map(Kind::to_string).collect();
        write!(f, "after {waited:?} {source_name} had not listed {}", missing.join(", "))?;
        match last_error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

impl Status {
    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { source: self.source.clone(), kinds: self.hub.kinds(), faults: self.hub.faults() }
    }

    /// Waits until every kind has been listed completely, at most for `timeout`. The consumer must take
    /// batches meanwhile or afterwards; this does not take them.
    ///
    /// # Errors
    /// The time passed. The informer goes on trying.
    pub async fn wait_synced(&self, timeout: Duration) -> Result<(), SyncTimeout> {
        match tokio::time::timeout(timeout, self.hub.synced()).await {
            Ok(()) => Ok(()),
            Err(_) => self.missing(timeout).map_or(Ok(()), Err),
        }
    }

    /// Returns if not every kind has been listed completely within `limit` (0 is no limit), else never.
    pub async fn late(&self, limit: Duration) -> SyncTimeout {
        if !limit.is_zero()
            && let Err(late) = self.wait_synced(limit).await
        {
            return late;
        }
        std::future::pending().await
    }

    /// What is missing now, after somebody has `waited` for it; `None` if every kind has been listed completely.
    pub fn missing(&self, waited: Duration) -> Option<SyncTimeout> {
        let mut kinds = self.hub.kinds();
        kinds.retain(|_, status| !status.synced);
        (!kinds.is_empty()).then(|| SyncTimeout {
            source_name: self.source.clone(),
            waited,
            last_error: kinds.values().find_map(|status| status.last_error.clone()),
            missing: kinds.into_keys().collect(),
        })
    }
}
