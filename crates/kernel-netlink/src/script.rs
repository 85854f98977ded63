//! What a test has told a model of the kernel to do beside what the kernel does: to refuse commands, to lose answers.

use std::fmt;

use crate::commit::{CommitError, outcome};
use crate::netlink::Answers;

/// See the module. `C` is a command.
pub(crate) struct Script<C> {
    refusals: Vec<ScriptedRefusal<C>>,
    lose_answers: bool,
    commands: usize,
}

struct ScriptedRefusal<C> {
    applies: Box<dyn Fn(&C) -> bool + Send>,
    errno: i32,
    /// How often it still happens; `None` is always.
    remaining: Option<usize>,
}

impl<C> Default for Script<C> {
    fn default() -> Self {
        Self { refusals: Vec::new(), lose_answers: false, commands: 0 }
    }
}

impl<C: fmt::Display> Script<C> {
    /// Lets the next `times` commands that `applies` picks (or all of them, with `None`) be refused.
    pub(crate) fn refuse(
        &mut self,
        applies: impl Fn(&C) -> bool + Send + 'static,
        errno: i32,
        times: Option<usize>,
    ) {
        self.refusals.push(ScriptedRefusal { applies: Box::new(applies), errno, remaining: times });
    }

    /// Ends all refusals asked for by [`Script::refuse`].
    pub(crate) fn refuse_nothing(&mut self) {
        self.refusals.clear();
    }

    /// Lets the next commit be carried out and end with [`CommitError::Unconfirmed`].
    pub(crate) const fn lose_next_answers(&mut self) {
        self.lose_answers = true;
    }

    /// Commands tried.
    pub(crate) const fn commands(&self) -> usize {
        self.commands
    }

    /// Lets the model carry out the commands in order, but for those that are to be refused.
    ///
    /// # Errors
    /// As those of the kernel.
    pub(crate) fn commit(
        &mut self,
        commands: &[C],
        mut carry_out: impl FnMut(&C) -> Result<(), i32>,
    ) -> Result<(), CommitError> {
        self.commands += commands.len();
        let mut refused = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            if let Err(errno) = self.refused(command).map_or_else(|| carry_out(command), Err) {
                refused.push((index, errno));
            }
        }
        if std::mem::take(&mut self.lose_answers) {
            return outcome(commands, Answers { lost: true, ..Answers::default() });
        }
        outcome(commands, Answers { refused, ..Answers::default() })
    }

    /// The `errno` of a command that is to be refused; `None` for any other.
    fn refused(&mut self, command: &C) -> Option<i32> {
        let mut all = self.refusals.iter_mut();
        let refusal = all.find(|refusal| refusal.remaining != Some(0) && (refusal.applies)(command))?;
        if let Some(remaining) = &mut refusal.remaining {
            *remaining -= 1;
        }
        Some(refusal.errno)
    }
}
