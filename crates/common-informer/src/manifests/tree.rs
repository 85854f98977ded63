//! What a directory holds, and what has changed since the last look.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::inotify::WatchDescriptor;

use super::document::{Documents, parse_json, parse_with};
use super::watch::Watch;
use crate::decode::{Decoded, Excluded};
use crate::hub::Hub;
use crate::object::{Kind, ObjectRef};

/// The files of a directory as they were at the last look.
pub(super) struct Tree {
    root: PathBuf,
    kinds: BTreeSet<Kind>,
    files: BTreeMap<PathBuf, File>,
}

struct File {
    version: Version,
    /// It was changed so shortly before it was read that a further change may have the same version.
    racy: bool,
    documents: Documents,
    /// Objects that it held when it was last free of mistakes, and since.
    held: BTreeSet<ObjectRef>,
}

/// A file with the same version has the same content, unless it is racy.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The kernel's clock for file times ticks every 1 to 10 ms; some file systems store less.
const RACY: Duration = Duration::from_millis(1100);

/// One walk through the directories.
#[derive(Default)]
struct Walk {
    files: BTreeMap<PathBuf, Version>,
    watches: HashSet<WatchDescriptor>,
    faults: BTreeMap<String, String>,
    /// Directories on the way to where the walk is, against symbolic links that go round in circles.
    within: Vec<(u64, u64)>,
}

type Objects<'a> = BTreeMap<ObjectRef, (&'a Path, Result<Decoded, Excluded>)>;

impl Tree {
    pub(super) fn new(root: &Path, kinds: &[Kind]) -> Self {
        Self { root: root.to_owned(), kinds: kinds.iter().copied().collect(), files: BTreeMap::new() }
    }

    /// Looks at the whole directory and tells the hub what there is; false if the directory cannot be read.
    pub(super) fn look(&mut self, watch: &mut Watch, hub: &Hub) -> bool {
        watch.root();
        let mut walk = Walk::default();
        if let Err(error) = walk.directory(&self.root, watch) {
            let error = format!("cannot read {}: {error}", self.root.display());
            hub.update(|update| {
                for kind in &self.kinds {
                    update.watch_error(*kind, error.clone());
                }
            });
            return false;
        }
        watch.keep(std::mem::take(&mut walk.watches));
        self.read(&walk.files, hub);
        let mut faults = walk.faults;
        let objects = self.merge(&mut faults);
        hub.update(|update| {
            for kind in &self.kinds {
                update.watch_works(*kind);
                update.begin_list(*kind);
            }
            for (object, (_, decoded)) in objects {
                if hub.options().wants(&object) {
                    update.apply(decoded);
                }
            }
            for kind in &self.kinds {
                update.end_list(*kind);
            }
            update.set_faults(faults);
        });
        true
    }

    /// Reads the files that are new or changed, and forgets those that are gone.
    fn read(&mut self, found: &BTreeMap<PathBuf, Version>, hub: &Hub) {
        self.files.retain(|path, _| found.contains_key(path));
        for (path, version) in found {
            let earlier = self.files.get(path);
            if earlier.is_some_and(|file| !file.racy && file.version == *version) {
                continue;
            }
            let racy = version.is_young();
            let detail = hub.options().services;
            let documents = match fs::read_to_string(path) {
                Ok(text) if path.extension() == Some(OsStr::new("json")) => {
                    parse_json(detail, &text, &mut hub.interner())
                }
                Ok(text) => parse_with(detail, &text, &mut hub.interner()),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.files.remove(path);
                    continue;
                }
                Err(error) => {
                    Documents { objects: Vec::new(), malformed: vec![format!("cannot be read: {error}")] }
                }
            };
            let mut held: BTreeSet<_> = documents.objects.iter().map(object_ref).collect();
            if let Some(earlier) = self.files.remove(path)
                && !documents.malformed.is_empty()
            {
                held.extend(earlier.held);
            }
            self.files.insert(path.clone(), File { version: *version, racy, documents, held });
        }
    }

    /// The objects of all files; what is reported about files is added to `faults`.
    fn merge(&self, faults: &mut BTreeMap<String, String>) -> Objects<'_> {
        let mut objects = Objects::new();
        let mut report = |path: &Path, fault: String| {
            let faults = faults.entry(path.display().to_string()).or_default();
            let separator = if faults.is_empty() { "" } else { "; " };
            faults.push_str(separator);
            faults.push_str(&fault);
        };
        for (path, file) in &self.files {
            for fault in &file.documents.malformed {
                report(path, fault.clone());
            }
            for decoded in &file.documents.objects {
                let object = object_ref(decoded);
                if object.key.name.is_empty() {
                    if let Err(excluded) = decoded {
                        report(path, excluded.to_string());
                    }
                } else if self.kinds.contains(&object.kind) {
                    let winner = path.as_path();
                    if let Some((loser, _)) = objects.insert(object.clone(), (winner, decoded.clone())) {
                        report(loser, format!("{object} is overridden by {}", winner.display()));
                    }
                }
            }
        }
        for (path, file) in self.files.iter().filter(|(_, file)| !file.documents.malformed.is_empty()) {
            for object in file.held.iter().filter(|object| self.kinds.contains(&object.kind)) {
                objects.entry(object.clone()).or_insert_with(|| {
                    let fault = file.documents.malformed.join("; ");
                    let reason = format!("was in {}, which has a mistake: {fault}", path.display());
                    (path.as_path(), Err(Excluded { object: object.clone(), reason }))
                });
            }
        }
        objects
    }
}

fn object_ref(decoded: &Result<Decoded, Excluded>) -> ObjectRef {
    match decoded {
        Ok(decoded) => decoded.object.object_ref(),
        Err(excluded) => excluded.object.clone(),
    }
}

impl Walk {
    fn directory(&mut self, path: &Path, watch: &Watch) -> io::Result<()> {
        let metadata = fs::metadata(path)?;
        let identity = (metadata.dev(), metadata.ino());
        if self.within.contains(&identity) {
            return Ok(());
        }
        // ORDER: watched before it is read, so that no change falls between.
        match watch.directory(path) {
            Ok(descriptor) => {
                self.watches.insert(descriptor);
            }
            Err(error) => {
                let fault = format!("cannot be watched, changes are noticed late: {error}");
                self.faults.insert(path.display().to_string(), fault);
            }
        }
        self.within.push(identity);
        let result = self.entries(path, watch);
        self.within.pop();
        result
    }

    fn entries(&mut self, path: &Path, watch: &Watch) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if let Err(error) = self.entry(&path, watch)
                // It went while we looked.
                && error.kind() != ErrorKind::NotFound
            {
                self.faults.insert(path.display().to_string(), format!("cannot be read: {error}"));
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, watch: &Watch) -> io::Result<()> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return self.directory(path, watch);
        }
        let extension = path.extension().and_then(OsStr::to_str);
        if metadata.is_file() && matches!(extension, Some("yaml" | "yml" | "json")) {
            self.files.insert(path.to_owned(), Version::of(&metadata));
        }
        Ok(())
    }
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_young(&self) -> bool {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(self.changed.0.max(self.modified.0).try_into().unwrap_or_default());
        since_epoch.saturating_sub(changed) < RACY + Duration::from_secs(1)
    }
}
