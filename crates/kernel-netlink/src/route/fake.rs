//! Links, addresses, routes and rules in memory, for tests of what is built on this crate.
//!
//! It refuses what the kernel refuses, with the same `errno`; the contract suite of this crate runs on both.
//! Beyond that it can be told to refuse a command and to lose answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::command::Command;
use super::entry::*;
use super::link::*;
use super::model::Model;
use super::{CommitError, Error, Rtnetlink};
use crate::family::Family;
use crate::script::Script;

/// A network namespace in memory. Clones are the same namespace.
///
/// LIMIT: of the routes that the kernel makes by itself it makes those to addresses and their networks, not those
/// for broadcasts, multicasts and link-local addresses. It has no tunnels that nobody made (`tunl0`). Links that
/// move to another namespace are gone.
#[derive(Clone, Default)]
pub struct Fake {
    kernel: Arc<Mutex<Kernel>>,
}

#[derive(Default)]
struct Kernel {
    model: Model,
    script: Script<Command>,
}

impl Fake {
    /// A new namespace: `lo`, down, and the rules that kernels start with.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device of a driver (a network card), up; its number.
    pub fn plug_in(&self, name: &LinkName) -> LinkIndex {
        self.kernel().model.plug_in(name)
    }

    /// Lets the next `times` commands that `applies` picks (or all of them, with `None`) be refused.
    pub fn refuse(
        &self,
        applies: impl Fn(&Command) -> bool + Send + 'static,
        errno: i32,
        times: Option<usize>,
    ) {
        self.kernel().script.refuse(applies, errno, times);
    }

    /// Ends all refusals asked for by [`Fake::refuse`].
    pub fn refuse_nothing(&self) {
        self.kernel().script.refuse_nothing();
    }

    /// Lets the next commit be carried out and end with [`CommitError::Unconfirmed`].
    pub fn lose_next_answers(&self) {
        self.kernel().script.lose_next_answers();
    }

    /// Commands tried, by anybody.
    pub fn commands(&self) -> usize {
        self.kernel().script.commands()
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        // A test that panicked elsewhere leaves whole commands only.
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rtnetlink for Fake {
    fn observe_links(&mut self) -> Result<Vec<Link>, Error> {
        Ok(self.kernel().model.links())
    }

    fn observe_link(&mut self, name: &LinkName) -> Result<Option<Link>, Error> {
        Ok(self.kernel().model.links().into_iter().find(|link| link.name == *name))
    }

    fn observe_addresses(&mut self) -> Result<Vec<Address>, Error> {
        Ok(self.kernel().model.addresses.clone())
    }

    fn observe_routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, Error> {
        let kernel = self.kernel();
        Ok(kernel.model.routes.values().filter(|route| filter.admits(route)).cloned().collect())
    }

    fn observe_rules(&mut self, family: Family) -> Result<Vec<Rule>, Error> {
        let kernel = self.kernel();
        Ok(kernel.model.rules.iter().filter(|rule| rule.family == family).cloned().collect())
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        let Kernel { model, script } = &mut *self.kernel();
        script.commit(commands, |command| model.carry_out(command))
    }
}
