//! The configuration's file, and the others of its folder.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{self, FileError, failed};
use crate::model::json::Json;
use crate::plan::conf::{self, Unusable};

/// Of a file that there was not: it has no secrets, and tools of others read it.
const MODE: u32 = 0o644;
/// LIMIT: what is read; more is no configuration.
const LIMIT: u64 = 1 << 20;
/// A file that ends in the middle may be about to be written; so long nobody may change it before it counts.
const SETTLE: Duration = Duration::from_millis(300);
/// How often it is waited for that.
const LOOKS: usize = 10;

/// What is in the file.
#[derive(Debug)]
pub enum Found {
    /// There is none, or nothing is in it.
    Nothing,
    /// This.
    Conf(Json),
    /// Something that must not be overwritten.
    Unusable(Unusable),
}

/// Where the file is, behind symbolic links: these stay.
fn place(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Reads it. Blocks for some time if it looks as if somebody were writing it.
///
/// # Errors
/// [`FileError`]
pub fn read(path: &Path) -> Result<Found, FileError> {
    read_when_settled(path, || std::thread::sleep(SETTLE))
}

/// Reads it, and calls `wait` before it looks again.
fn read_when_settled(path: &Path, mut wait: impl FnMut()) -> Result<Found, FileError> {
    let mut before = None;
    for _ in 0..LOOKS {
        let Some(text) = text(path)? else { return Ok(Found::Nothing) };
        match conf::parse(&text) {
            Ok(Some(conf)) => return Ok(Found::Conf(conf)),
            Err(unusable) => return Ok(Found::Unusable(unusable)),
            Ok(None) if before.as_ref() == Some(&text) => return Ok(Found::Nothing),
            Ok(None) => before = Some(text),
        }
        wait();
    }
    Err(failed("reading", path)(io::Error::other("it is being written all the time")))
}

fn text(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let read = || {
        if fs::metadata(path)?.len() > LIMIT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large for a configuration"));
        }
        fs::read(path)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

/// Writes it. Its mode stays.
///
/// # Errors
/// [`FileError`]
pub fn write(path: &Path, conf: &Json) -> Result<(), FileError> {
    let place = place(path);
    let mode = fs::metadata(&place).map_or(MODE, |metadata| metadata.permissions().mode() & 0o7777);
    file::remove_abandoned(&place);
    file::replace(&place, mode, |file| file.write_all(conf.render().as_bytes()))
}

/// The names of all files of its folder.
pub fn names(path: &Path) -> Vec<String> {
    let folder = path.parent().map(fs::read_dir);
    let entries = folder.into_iter().flatten().flatten().flatten();
    let files = entries.filter(|entry| !entry.file_type().is_ok_and(|kind| kind.is_dir()));
    files.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(found: Result<Found, FileError>) -> String {
        match found.unwrap() {
            Found::Nothing => "nothing".to_owned(),
            Found::Conf(conf) => serde_json::to_string(&conf).unwrap(),
            Found::Unusable(unusable) => unusable.word().to_owned(),
        }
    }

    fn found(path: &Path) -> String {
        word(read(path))
    }

    #[test]
    fn what_is_being_written_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.conflist");
        assert_eq!(found(&path), "nothing");
        fs::write(&path, r#"{"a": 1"#).unwrap();
        assert_eq!(found(&path), "nothing");
        let mut parts = [r#"{"a": 1, "b""#, r#"{"a": 1, "b": 2}"#].into_iter();
        let write_on = || fs::write(&path, parts.next().unwrap()).unwrap();
        assert_eq!(word(read_when_settled(&path, write_on)), r#"{"a":1,"b":2}"#);
        fs::write(&path, "[").unwrap();
        let mut length = 0;
        let write_without_end = || {
            length += 1;
            fs::write(&path, format!("[{}", " ".repeat(length))).unwrap();
        };
        let error = read_when_settled(&path, write_without_end).unwrap_err().to_string();
        assert!(error.contains("reading"), "{error}");
        fs::write(&path, "{]").unwrap();
        assert_eq!(found(&path), "not_json");
    }

    #[test]
    fn mode_and_symbolic_links_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("x.conflist"), folder.path().join("elsewhere"));
        fs::write(&target, "{}").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        write(&path, &Json::text("x")).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "\"x\"\n");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        fs::create_dir(folder.path().join("a.conf")).unwrap();
        let mut names = names(&path);
        names.sort();
        assert_eq!(names, ["elsewhere", "x.conflist"]);
    }
}
