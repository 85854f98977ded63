//! Golden cases: each is a folder with what goes in and, in a file, the text that must come out.

#![allow(clippy::expect_used, reason = "what is not as expected ends a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// The cases of a crate, in order: the folders of its `tests/golden`. `manifest` is the crate's
/// `CARGO_MANIFEST_DIR`.
///
/// # Panics
/// If there are fewer than `at_least`.
#[must_use]
pub fn cases(manifest: &str, at_least: usize) -> Vec<PathBuf> {
    let root = Path::new(manifest).join("tests/golden");
    let entries = fs::read_dir(root).expect("a folder of golden cases");
    let mut cases: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(cases.len() >= at_least, "golden cases are missing");
    cases
}

/// Compares texts with the files that say what they must be. With `UPDATE_GOLDEN` in the environment it writes the
/// files instead; read the difference before you commit it.
///
/// # Panics
/// With all texts that are not as they must be.
pub fn check(texts: impl IntoIterator<Item = (PathBuf, String)>) {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for (expected, text) in texts {
        if update {
            fs::write(&expected, &text).expect("the expectation written");
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{}: is now\n{text}", expected.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "is now\nsomething")]
    fn a_text_that_is_not_what_its_file_says_ends_the_test() {
        check([(PathBuf::from("/proc/version"), "something".to_owned())]);
    }

    #[test]
    #[should_panic(expected = "golden cases are missing")]
    fn cases_that_are_missing_are_noticed() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder of crates");
        let _ = cases(&crates.join("npc-firewall").display().to_string(), 10_000);
    }
}
