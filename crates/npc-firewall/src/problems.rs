//! What is wrong with objects and with where they come from: logged once, counted, shown.

use std::collections::{BTreeMap, BTreeSet};

use common_informer::Snapshot;
use common_informer::object::ObjectRef;
use node_runtime::Degradation;

use crate::model::policy::Problem;
use crate::model::world::World;
use crate::plan::Planner;

/// How many names a message for people lists.
const SHOWN: usize = 5;

/// Objects that are not wholly in force.
#[derive(Debug, Default)]
pub struct Problems {
    known: BTreeMap<ObjectRef, Vec<Problem>>,
}

impl Problems {
    /// Finds what is wrong now and logs what was not wrong before.
    pub fn update(&mut self, world: &World, planner: &Planner) {
        let mut problems = world.problems();
        for (object, more) in planner.problems(world) {
            problems.entry(object).or_default().extend(more);
        }
        for (object, list) in &problems {
            let known = self.known.get(object);
            for problem in list.iter().filter(|problem| !known.is_some_and(|known| known.contains(problem))) {
                tracing::warn!(
                    object = %object,
                    reason = problem.reason.as_str(),
                    problem = %problem.message,
                    "part of an object is not in force"
                );
            }
        }
        self.known = problems;
    }

    /// Each object with what is wrong with it.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectRef, &[Problem])> {
        self.known.iter().map(|(object, problems)| (object, problems.as_slice()))
    }

    /// Each object's kind with each reason, once.
    pub fn reasons(&self) -> impl Iterator<Item = (String, &'static str)> {
        self.iter().flat_map(|(object, problems)| {
            let reasons: BTreeSet<_> = problems.iter().map(|problem| problem.reason.as_str()).collect();
            reasons.into_iter().map(|reason| (object.kind.to_string(), reason))
        })
    }

    /// For the operator, if there are any.
    pub fn degradation(&self) -> Option<Degradation> {
        let list = listed(self.known.keys())?;
        Some(Degradation {
            reason: "excluded_objects",
            message: format!("not wholly in force, see /state: {list}"),
        })
    }
}

/// What keeps the objects in the cache from being those of the cluster.
pub fn of_source(snapshot: &Snapshot) -> Vec<Degradation> {
    let failing = snapshot.kinds.iter().filter_map(|(kind, status)| {
        Some(Degradation {
            reason: "watch_failing",
            message: format!(
                "{kind} objects of {} are not up to date: {}",
                snapshot.source,
                status.last_error.as_ref()?
            ),
        })
    });
    let unusable = listed(snapshot.faults.iter().map(|(place, why)| format!("{place}: {why}"))).map(|list| {
        Degradation {
            reason: "source_faults",
            message: format!("parts of {} are not used: {list}", snapshot.source),
        }
    });
    let in_part = snapshot
        .kinds
        .iter()
        .flat_map(|(kind, status)| status.notes.keys().map(move |key| format!("{kind} {key}")));
    let in_part = listed(in_part).map(|list| Degradation {
        reason: "objects_read_in_part",
        message: format!("fields that cannot be read were left out, see /state: {list}"),
    });
    failing.chain(unusable).chain(in_part).collect()
}

fn listed(names: impl Iterator<Item = impl ToString>) -> Option<String> {
    let mut names = names.map(|name| name.to_string()).peekable();
    names.peek()?;
    let shown: Vec<_> = names.by_ref().take(SHOWN).collect();
    let more = names.count();
    let list = shown.join(", ");
    Some(if more == 0 { list } else { format!("{list}, and {more} more") })
}
