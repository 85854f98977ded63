//! Steps that are done one after another, or not at all.

use crate::spec::CniError;

/// A step of some work on a `C`.
pub struct Step<C> {
    /// What it does, for messages and tests.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&mut C) -> Result<(), CniError>,
    /// Undoes whatever of it was done, be it nothing. It goes on where something cannot be undone.
    pub undo: fn(&mut C),
}

/// Nothing to be undone: what was made is shared with others, or goes with what another step made.
pub fn nothing<C>(_: &mut C) {}

/// Does the steps in order. When one fails, that one (which may be half done) and all before it are undone, last
/// first.
///
/// # Errors
/// That of the step that failed.
pub fn run<C>(steps: &[Step<C>], context: &mut C) -> Result<(), CniError> {
    for (index, step) in steps.iter().enumerate() {
        if let Err(error) = (step.run)(context) {
            undo(&steps[..=index], context);
            return Err(error);
        }
    }
    Ok(())
}

/// Undoes steps, last first.
pub fn undo<C>(steps: &[Step<C>], context: &mut C) {
    for step in steps.iter().rev() {
        (step.undo)(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Vec<String>;

    fn step(name: &'static str, run: fn(&mut Log) -> Result<(), CniError>, undo: fn(&mut Log)) -> Step<Log> {
        Step { name, run, undo }
    }

    fn note(log: &mut Log, word: &str) -> Result<(), CniError> {
        log.push(word.to_owned());
        Ok(())
    }

    #[test]
    fn what_was_done_is_undone_the_other_way_round_and_the_failed_step_too() {
        let steps = [
            step("a", |log| note(log, "a"), |log| log.push("-a".to_owned())),
            step("b", |log| note(log, "b"), nothing),
            step("c", |_| Err(CniError::other("no c")), |log| log.push("-c".to_owned())),
            step("d", |log| note(log, "d"), |log| log.push("-d".to_owned())),
        ];
        let mut log = Vec::new();
        assert_eq!(run(&steps, &mut log).unwrap_err().message, "no c");
        assert_eq!(log, ["a", "b", "-c", "-a"]);
        log.clear();
        run(&steps[..2], &mut log).unwrap();
        assert_eq!(log, ["a", "b"]);
    }
}
