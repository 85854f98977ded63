//! Where the sources and the consumer meet: what is known of each kind, and what is still to be told.
//!
//! ```text
//!   API server ─ list/watch ─┐                       ┌─ Informer::next ── consumer
//!                            ├─ decode ─ Hub::update ┤
//!   manifests ── inotify ────┘                       └─ Status ── /state, metrics
//! ```
//!
//! What was told of each object last is [`Known`]: so a relist of 15,000 pods, or a heartbeat in a field that nobody
//! reads, passes without a change, and after a relist it is seen what has gone meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::decode::{Decoded, Excluded};
use crate::informer::Options;
use crate::intern::Interner;
use crate::known::{Known, Novelty};
use crate::object::{Batch, Change, Kind, ObjectKey, ObjectRef};
use crate::pending::Pending;
use crate::status::KindStatus;

/// Shared by the sources of one informer and its consumer.
pub(crate) struct Hub {
    state: Mutex<State>,
    interner: Mutex<Interner>,
    options: Options,
    changed: Notify,
    synced: watch::Sender<bool>,
}

struct State {
    kinds: BTreeMap<Kind, KindState>,
    pending: Pending,
    /// Why parts of the source could not be read that belong to no object, by place.
    faults: BTreeMap<String, String>,
    /// Tasks that still feed the hub.
    feeders: usize,
}

#[derive(Default)]
struct KindState {
    known: Known,
    /// Those that the list in progress has not had yet.
    unlisted: BTreeSet<ObjectKey>,
    status: KindStatus,
}

impl Hub {
    pub(crate) fn new(kinds: &[Kind], options: Options) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind, KindState::default())).collect();
        Self {
            state: Mutex::new(State {
                kinds,
                pending: Pending::default(),
                faults: BTreeMap::new(),
                feeders: 0,
            }),
            interner: Mutex::new(Interner::new()),
            options,
            changed: Notify::new(),
            synced: watch::Sender::new(false),
        }
    }

    /// The interner that every object of this informer shares.
    pub(crate) fn interner(&self) -> MutexGuard<'_, Interner> {
        self.interner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of the kinds is wanted.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes several changes that the consumer sees in one batch.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Update<'_>) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut Update { state: &mut state });
        let synced = state.synced();
        drop(state);
        self.changed.notify_one();
        self.synced.send_if_modified(|value| std::mem::replace(value, synced) != synced);
        result
    }

    /// What the consumer has not been told, if there is any: changes, or for the first time that the kinds
    /// are in sync.
    pub(crate) fn take(&self, told_synced: bool) -> Option<Batch> {
        let mut state = self.state();
        let synced = state.synced();
        let news = !state.pending.is_empty() || (synced && !told_synced);
        news.then(|| Batch { changes: state.pending.take(), synced })
    }

    /// Returns when there may be something to take, or the feeders have ended. For one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns when every kind has been listed.
    pub(crate) async fn synced(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub(crate) fn kinds(&self) -> BTreeMap<Kind, KindStatus> {
        self.state().kinds.iter().map(|(kind, state)| (*kind, state.status())).collect()
    }

    pub(crate) fn faults(&self) -> BTreeMap<String, String> {
        self.state().faults.clone()
    }

    /// Whether nothing feeds the hub any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().feeders == 0
    }

    /// Registers a feeder. [`Hub::feeder_ended`] must follow.
    pub(crate) fn feeder_started(&self) {
        self.state().feeders += 1;
    }

    pub(crate) fn feeder_ended(&self) {
        self.state().feeders -= 1;
        self.changed.notify_one();
    }
}

impl State {
    fn synced(&self) -> bool {
        self.kinds.values().all(|kind| kind.status.synced)
    }
}

impl KindState {
    fn status(&self) -> KindStatus {
        let named = self.status.excluded.keys().filter(|key| !key.name.is_empty()).count();
        KindStatus { objects: self.known.len() - named, ..self.status.clone() }
    }
}

/// A change of the hub in progress. Kinds that nobody asked for are ignored.
pub(crate) struct Update<'a> {
    state: &'a mut State,
}

impl Update<'_> {
    /// A full list of `kind` begins. One that was begun before and not ended is forgotten.
    pub(crate) fn begin_list(&mut self, kind: Kind) {
        let Some(state) = self.state.kinds.get_mut(&kind) else { return };
        state.unlisted = state.known.keys().cloned().collect();
        state.status.lists += 1;
        state.status.excluded.retain(|key, _| !key.name.is_empty());
    }

    /// Every object of `kind` has been applied since [`Update::begin_list`]; the others are gone.
    pub(crate) fn end_list(&mut self, kind: Kind) {
        let Some(state) = self.state.kinds.get_mut(&kind) else { return };
        state.status.synced = true;
        for key in std::mem::take(&mut state.unlisted) {
            self.delete(ObjectRef { kind, key });
        }
    }

    /// An object is there, readable or not.
    pub(crate) fn apply(&mut self, decoded: Result<Decoded, Excluded>) {
        let (change, notes) = match decoded {
            Ok(Decoded { object, notes }) => (Change::Applied(object), notes),
            Err(Excluded { object, reason }) => (Change::Excluded { object, reason }, Vec::new()),
        };
        let ObjectRef { kind, key } = change.object_ref();
        let Some(state) = self.state.kinds.get_mut(&kind) else { return };
        state.note(kind, &key, &change, notes);
        if key.name.is_empty() {
            // It cannot be told which object it is: it is in the status, but nothing known changes.
            return;
        }
        state.unlisted.remove(&key);
        match state.known.set(&key, &change) {
            Novelty::Same => {}
            novelty => self.state.pending.push(change, novelty == Novelty::Changed),
        }
    }

    /// An object is gone.
    pub(crate) fn delete(&mut self, object: ObjectRef) {
        let Some(state) = self.state.kinds.get_mut(&object.kind) else { return };
        state.status.excluded.remove(&object.key);
        state.status.notes.remove(&object.key);
        state.unlisted.remove(&object.key);
        if state.known.remove(&object.key) {
            self.state.pending.push(Change::Deleted(object), true);
        }
    }

    /// Getting at the objects of `kind` failed. Logged when the error is another one than before.
    pub(crate) fn watch_error(&mut self, kind: Kind, error: String) {
        let Some(state) = self.state.kinds.get_mut(&kind) else { return };
        state.status.watch_errors += 1;
        if state.status.last_error.as_ref() != Some(&error) {
            warn!(kind = %kind, error, "cannot watch");
            state.status.last_error = Some(error);
        }
    }

    /// Getting at the objects of `kind` works.
    pub(crate) fn watch_works(&mut self, kind: Kind) {
        let Some(state) = self.state.kinds.get_mut(&kind) else { return };
        if state.status.last_error.take().is_some() {
            info!(kind = %kind, "watching again");
        }
    }

    /// Replaces the faults of the source that belong to no object. New ones are logged.
    pub(crate) fn set_faults(&mut self, faults: BTreeMap<String, String>) {
        for (place, fault) in &faults {
            if self.state.faults.get(place) != Some(fault) {
                warn!(place, fault, "cannot be used");
            }
        }
        self.state.faults = faults;
    }
}

impl KindState {
    /// Keeps for the status what could not be read of an object, and logs it once.
    fn note(&mut self, kind: Kind, key: &ObjectKey, change: &Change, notes: Vec<String>) {
        match change {
            Change::Excluded { reason, .. } => {
                if self.status.excluded.get(key) != Some(reason) {
                    warn!(kind = %kind, object = %key, reason, "object excluded");
                    self.status.excluded.insert(key.clone(), reason.clone());
                }
            }
            _ => {
                self.status.excluded.remove(key);
            }
        }
        if notes.is_empty() {
            self.status.notes.remove(key);
        } else if self.status.notes.get(key) != Some(&notes) {
            warn!(kind = %kind, object = %key, left_out = notes.join("; "), "object read in part");
            self.status.notes.insert(key.clone(), notes);
        }
    }
}
