//! What is wrong with objects and with where they come from: logged once, counted, shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::ObjectRef;
use crate::status::Snapshot;

/// How many names a message for people lists.
const SHOWN: usize = 5;

/// Why part of an object is not in force, as a controller tells it.
pub trait Problem: PartialEq {
    /// A fixed word, for metrics.
    fn reason(&self) -> &'static str;

    /// Field and explanation, for people.
    fn message(&self) -> &str;
}

/// Objects that are not wholly in force.
#[derive(Debug)]
pub struct Problems<P> {
    known: BTreeMap<ObjectRef, Vec<P>>,
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// A fixed word, for metrics.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl<P> Default for Problems<P> {
    fn default() -> Self {
        Self { known: BTreeMap::new() }
    }
}

impl<P: Problem> Problems<P> {
    /// Takes what is wrong now, and logs what was not wrong before.
    pub fn update(&mut self, problems: BTreeMap<ObjectRef, Vec<P>>) {
        for (object, list) in &problems {
            let known = self.known.get(object);
            for problem in list.iter().filter(|problem| !known.is_some_and(|known| known.contains(problem))) {
                tracing::warn!(
                    object = %object,
                    reason = problem.reason(),
                    problem = %problem.message(),
                    "part of an object is not in force"
                );
            }
        }
        self.known = problems;
    }

    /// Each object with what is wrong with it.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectRef, &[P])> {
        self.known.iter().map(|(object, problems)| (object, problems.as_slice()))
    }

    /// Each object's kind with each reason, once.
    pub fn reasons(&self) -> impl Iterator<Item = (String, &'static str)> {
        self.iter().flat_map(|(object, problems)| {
            let reasons: BTreeSet<_> = problems.iter().map(P::reason).collect();
            reasons.into_iter().map(|reason| (object.kind.to_string(), reason))
        })
    }

    /// For the operator, if there are any.
    pub fn complaint(&self) -> Option<Complaint> {
        let list = listed(self.known.keys())?;
        Some(Complaint {
            reason: "excluded_objects",
            message: format!("not wholly in force, see /state: {list}"),
        })
    }
}

impl Snapshot {
    /// What keeps the objects in the cache from being those of the cluster.
    pub fn complaints(&self) -> Vec<Complaint> {
        let failing = self.kinds.iter().filter_map(|(kind, status)| {
            let error = status.last_error.as_ref()?;
            let message = format!("{kind} objects of {} are not up to date: {error}", self.source);
            Some(Complaint { reason: "watch_failing", message })
        });
        let unusable = listed(self.faults.iter().map(|(place, why)| format!("{place}: {why}"))).map(|list| {
            let message = format!("parts of {} are not used: {list}", self.source);
            Complaint { reason: "source_faults", message }
        });
        let in_part = self
            .kinds
            .iter()
            .flat_map(|(kind, status)| status.notes.keys().map(move |key| format!("{kind} {key}")));
        let in_part = listed(in_part).map(|list| Complaint {
            reason: "objects_read_in_part",
            message: format!("fields that cannot be read were left out, see /state: {list}"),
        });
        failing.chain(unusable).chain(in_part).collect()
    }
}

fn listed(names: impl Iterator<Item = impl ToString>) -> Option<String> {
    let mut names = names.map(|name| name.to_string()).peekable();
    names.peek()?;
    let shown: Vec<_> = names.by_ref().take(SHOWN).collect();
    let more = names.count();
    let list = shown.join(", ");
    Some(if more == 0 { list } else { format!("{list}, and {more} more") })
}
