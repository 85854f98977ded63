//! Writes that had to be repeated: two controllers that each want another status shall not keep the API server
//! busy with it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common_informer::object::ObjectKey;

use crate::plan::writes::{StatusChange, Write};

/// So often the same may be written to one Service within [`WINDOW`].
const TIMES: u32 = 5;
/// After so long the count begins anew.
const WINDOW: Duration = Duration::from_secs(60);

/// What was written lately.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    written: HashMap<ObjectKey, Written>,
}

#[derive(Debug)]
struct Written {
    change: StatusChange,
    since: Instant,
    times: u32,
}

impl Repeats {
    /// A write has succeeded.
    pub(crate) fn count(&mut self, write: &Write, now: Instant) {
        match self.written.get_mut(&write.key) {
            Some(written) if written.change == write.change => written.times += 1,
            _ => {
                let written = Written { change: write.change.clone(), since: now, times: 1 };
                self.written.insert(write.key.clone(), written);
            }
        }
    }

    /// Until when a write shall wait, because it was made too often.
    pub(crate) fn pause(&self, write: &Write, now: Instant) -> Option<Instant> {
        let written = self.written.get(&write.key).filter(|written| written.change == write.change)?;
        let until = written.since + WINDOW;
        (written.times >= TIMES && now < until).then_some(until)
    }

    /// Services whose status somebody else keeps changing.
    pub(crate) fn contested(&self) -> impl Iterator<Item = &ObjectKey> {
        self.written.iter().filter(|(_, written)| written.times >= TIMES).map(|(key, _)| key)
    }

    /// Forgets what was long ago.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        self.written.retain(|_, written| now < written.since + WINDOW);
        if self.written.is_empty() {
            self.written = HashMap::new();
        }
    }
}
