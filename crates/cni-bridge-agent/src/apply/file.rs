//! Files that are replaced as a whole: whoever reads one sees the old one or the new one, also after a power failure.
//!
//! ```text
//!   draft in the same folder ─► content, mode, fsync ─► rename(2) over the old one ─► fsync of the folder
//! ```
//!
//! A program that runs goes on with the old file (no `ETXTBSY`); a process that is killed leaves a draft that nobody
//! reads, and that the next one removes.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::owned::DRAFT_PREFIX;

/// A draft that nobody has finished for so long is nobody's.
const ABANDONED: Duration = Duration::from_secs(600);

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Makes an error of a step.
pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { what, path, source }
}

/// Puts a new file in the place of `path`, with a mode. Folders that are missing are made.
///
/// # Errors
/// [`FileError`]; the old file is there then, unless only the last step (that it lasts) failed.
pub fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    let folder = folder_of(path)?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed("making", folder))?;
    let draft = Draft::new(path)?;
    draft.fill(mode, write).map_err(failed("writing", &draft.0))?;
    draft.put(path)
}

/// Keeps what is at `path` under a second name too.
///
/// # Errors
/// [`FileError`]
pub fn keep_as(path: &Path, second: &Path) -> Result<(), FileError> {
    let draft = Draft::new(second)?;
    fs::hard_link(path, &draft.0).map_err(failed("keeping", path))?;
    draft.put(second)
}

/// Removes drafts of a file that a process that is gone has left.
pub fn remove_abandoned(path: &Path) {
    remove_drafts(path, ABANDONED);
}

/// Removes drafts of a file that are of an age. Nobody reads them, so it does not matter if it fails.
pub fn remove_drafts(path: &Path, age: Duration) {
    let (Ok(folder), Some(prefix)) = (folder_of(path), draft_prefix(path)) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_draft = entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if is_draft && modified.is_ok_and(|at| at.elapsed().is_ok_and(|since| since >= age)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes a file; false if there is none.
///
/// # Errors
/// [`FileError`]
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("removing", path)(error)),
    }
}

fn folder_of(path: &Path) -> Result<&Path, FileError> {
    let none = || failed("writing", path)(io::Error::new(io::ErrorKind::InvalidInput, "it has no folder"));
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).ok_or_else(none)
}

fn draft_prefix(path: &Path) -> Option<String> {
    Some(format!("{DRAFT_PREFIX}{}.", path.file_name()?.to_str()?))
}

fn sync_folder(path: &Path) -> Result<(), FileError> {
    let folder = folder_of(path)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("syncing", folder))
}

/// The name of a draft; removed with it unless it was put in its place.
struct Draft(PathBuf);

impl Draft {
    fn new(path: &Path) -> Result<Self, FileError> {
        let invalid = || failed("writing", path)(io::Error::from(io::ErrorKind::InvalidFilename));
        let prefix = draft_prefix(path).ok_or_else(invalid)?;
        // Two agents at once, while one is replaced by the next, write two drafts.
        let random = RandomState::new().build_hasher().finish();
        Ok(Self(path.with_file_name(format!("{prefix}{random:016x}"))))
    }

    fn fill(&self, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0)?;
        write(&mut file)?;
        // Not by open(2), which takes the umask off.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    }

    fn put(self, path: &Path) -> Result<(), FileError> {
        fs::rename(&self.0, path).map_err(failed("replacing", path))?;
        sync_folder(path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It fails where the draft has been put in its place.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_reader_sees_the_old_or_the_new_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/x.conflist");
        let text = |number: u32| format!("{number}:{}", "x".repeat((number as usize % 7) * 5000));
        replace(&path, 0o644, |file| file.write_all(text(0).as_bytes())).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = std::collections::BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    let found = fs::read_to_string(&path).unwrap();
                    let number = found.split(':').next().unwrap().parse().unwrap();
                    assert_eq!(found, text(number));
                    seen.insert(number);
                }
                seen.len()
            });
            for number in 1..300 {
                replace(&path, 0o644, |file| {
                    // In pieces, as a writer that is slow.
                    text(number).as_bytes().chunks(1000).try_for_each(|piece| file.write_all(piece))
                })
                .unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 1, "the reader saw one only");
        });
        assert_eq!(names(path.parent().unwrap()), ["x.conflist"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_draft() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        let error = replace(&path, 0o644, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("no room"))
        });
        assert!(error.unwrap_err().to_string().contains("no room"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn drafts_of_the_dead_are_removed_and_those_of_the_living_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(folder.path().join(".cni-bridge-agent.x.00"), "").unwrap();
        fs::write(folder.path().join(".cni-bridge-agent.y.00"), "").unwrap();
        remove_abandoned(&path);
        assert_eq!(names(folder.path()).len(), 2);
        remove_drafts(&path, Duration::ZERO);
        assert_eq!(names(folder.path()), [".cni-bridge-agent.y.00"]);
    }

    #[test]
    fn what_is_kept_under_a_second_name_is_never_missed_under_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let (path, second) = (folder.path().join("bridge"), folder.path().join("bridge.upstream"));
        fs::write(&path, "theirs").unwrap();
        fs::write(&second, "older").unwrap();
        keep_as(&path, &second).unwrap();
        replace(&path, 0o755, |file| file.write_all(b"ours")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
        assert_eq!(fs::read_to_string(&second).unwrap(), "theirs");
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
    }
}
