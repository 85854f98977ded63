//! The plugin's program, in the folder where runtimes look for plugins.
//!
//! kube-router's `cni-install` copies what is missing and never upgrades. Here what differs is replaced, as a whole.
//! A program of others that gives way (`--install-as bridge`) stays beside it as `bridge.upstream`, and comes back
//! with `cleanup`; one of our own, of any version, does not.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::file::{self, FileError, failed};
use crate::owned::{PLUGIN_MARK, REPLACED_SUFFIX};

const MODE: u32 = 0o755;
const PIECE: usize = 64 * 1024;

/// What was done with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was there.
    AsItWas,
    /// It was not there, or was another version.
    New,
    /// It took the place of a program of others.
    InPlaceOfAnother,
}

/// Where the plugin is if nobody says: beside this program.
///
/// # Errors
/// When nobody knows where this program is.
pub fn beside_this_program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(crate::owned::PLUGIN))
}

/// Installs the plugin by a name.
///
/// # Errors
/// [`FileError`]; what was there before is there then.
pub fn install(plugin: &Path, folder: &Path, name: &str) -> Result<Installed, FileError> {
    let target = folder.join(name);
    let mut done = Installed::New;
    match File::open(&target) {
        Ok(found) => {
            let mode = found.metadata().map_err(failed("reading", &target))?.permissions().mode();
            let wanted = File::open(plugin).map_err(failed("reading", plugin))?;
            if same(wanted, found).map_err(failed("reading", &target))? && mode & 0o7777 == MODE {
                return Ok(Installed::AsItWas);
            }
            if !is_ours(&target)? {
                file::keep_as(&target, &kept(&target))?;
                done = Installed::InPlaceOfAnother;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading", &target)(error)),
    }
    file::remove_abandoned(&target);
    let mut source = File::open(plugin).map_err(failed("reading", plugin))?;
    file::replace(&target, MODE, |draft| io::copy(&mut source, draft).map(drop))?;
    Ok(done)
}

/// Installs the plugin by a name unless a program of others has it.
///
/// # Errors
/// [`FileError`]; what was there before is there then.
pub fn install_if_missing(plugin: &Path, folder: &Path, name: &str) -> Result<Installed, FileError> {
    let target = folder.join(name);
    match is_ours(&target) {
        Ok(false) => return Ok(Installed::AsItWas),
        Ok(true) => {}
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    install(plugin, folder, name)
}

/// Whether a program that can be started is there by a name.
pub fn is_there(folder: &Path, name: &str) -> bool {
    let found = fs::metadata(folder.join(name));
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Removes the plugin by a name, if it is ours; what it has replaced comes back. False if nothing was ours.
///
/// # Errors
/// [`FileError`]
pub fn uninstall(folder: &Path, name: &str) -> Result<bool, FileError> {
    let target = folder.join(name);
    file::remove_drafts(&target, std::time::Duration::ZERO);
    match is_ours(&target) {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let kept = kept(&target);
    match fs::rename(&kept, &target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => file::remove(&target),
        Err(error) => Err(failed("bringing back", &kept)(error)),
    }
}

fn kept(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(REPLACED_SUFFIX);
    name.into()
}

/// Whether two files hold the same.
fn same(mut one: File, mut other: File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        a.clear();
        b.clear();
        (&mut one).take(PIECE as u64).read_to_end(&mut a)?;
        (&mut other).take(PIECE as u64).read_to_end(&mut b)?;
        if a != b {
            return Ok(false);
        }
        if a.is_empty() {
            return Ok(true);
        }
    }
}

/// Whether a file is a version of our plugin.
fn is_ours(path: &Path) -> Result<bool, FileError> {
    let mut file = File::open(path).map_err(failed("reading", path))?;
    let mut window = Vec::with_capacity(2 * PIECE);
    loop {
        let before = window.len();
        (&mut file).take(PIECE as u64).read_to_end(&mut window).map_err(failed("reading", path))?;
        if window.windows(PLUGIN_MARK.len()).any(|bytes| bytes == PLUGIN_MARK) {
            return Ok(true);
        }
        if window.len() == before {
            return Ok(false);
        }
        // What may be the beginning of it.
        window.drain(..window.len().saturating_sub(PLUGIN_MARK.len() - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new(plugin: &str) -> Self {
            let lab = Self(tempfile::tempdir().unwrap());
            fs::create_dir(lab.bin()).unwrap();
            lab.release(plugin);
            lab
        }

        fn bin(&self) -> PathBuf {
            self.0.path().join("bin")
        }

        fn plugin(&self) -> PathBuf {
            self.0.path().join("cni-bridge")
        }

        /// A version of ours: the mark lies across the end of a piece.
        fn release(&self, version: &str) {
            let mark = String::from_utf8(PLUGIN_MARK.to_vec()).unwrap();
            fs::write(self.plugin(), format!("{}{mark}{version}", "x".repeat(PIECE - 9))).unwrap();
        }

        fn install(&self, name: &str) -> Installed {
            install(&self.plugin(), &self.bin(), name).unwrap()
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.bin().join(name)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.bin()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn what_is_missing_or_older_is_installed_and_what_is_the_same_is_left() {
        let lab = Lab::new("1");
        assert_eq!(lab.install("cni-bridge"), Installed::New);
        assert!(is_there(&lab.bin(), "cni-bridge") && !is_there(&lab.bin(), "bridge"));
        assert_eq!(lab.install("cni-bridge"), Installed::AsItWas);
        lab.release("2");
        assert_eq!(lab.install("cni-bridge"), Installed::New);
        assert!(lab.text("cni-bridge").ends_with('2'));
        fs::set_permissions(lab.bin().join("cni-bridge"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!is_there(&lab.bin(), "cni-bridge"));
        assert_eq!(lab.install("cni-bridge"), Installed::New);
        assert_eq!(lab.names(), ["cni-bridge"]);
    }

    #[test]
    fn a_program_of_others_is_kept_once_and_comes_back() {
        let lab = Lab::new("1");
        fs::write(lab.bin().join("bridge"), "theirs").unwrap();
        assert_eq!(lab.install("bridge"), Installed::InPlaceOfAnother);
        lab.release("2");
        // An older one of ours is not kept in the place of theirs.
        assert_eq!(lab.install("bridge"), Installed::New);
        assert_eq!(lab.text("bridge.upstream"), "theirs");
        assert!(uninstall(&lab.bin(), "bridge").unwrap());
        assert_eq!(lab.text("bridge"), "theirs");
        assert_eq!(lab.names(), ["bridge"]);
        assert!(!uninstall(&lab.bin(), "bridge").unwrap());
        assert!(!uninstall(&lab.bin(), "cni-bridge").unwrap());
        assert_eq!(lab.text("bridge"), "theirs");
    }

    #[test]
    fn the_program_can_be_replaced_while_it_runs() {
        let lab = Lab::new("1");
        fs::copy("/bin/sleep", lab.bin().join("cni-bridge")).unwrap();
        let mut running = std::process::Command::new(lab.bin().join("cni-bridge")).arg("60").spawn().unwrap();
        assert_eq!(lab.install("cni-bridge"), Installed::InPlaceOfAnother);
        assert!(running.try_wait().unwrap().is_none());
        running.kill().unwrap();
        running.wait().unwrap();
    }

    #[test]
    fn what_is_only_missing_takes_nobodys_place_and_follows_upgrades() {
        let lab = Lab::new("1");
        let installed = || install_if_missing(&lab.plugin(), &lab.bin(), "loopback").unwrap();
        assert_eq!(installed(), Installed::New);
        assert_eq!(installed(), Installed::AsItWas);
        lab.release("2");
        assert_eq!(installed(), Installed::New);
        let path = lab.bin().join("loopback");
        assert_eq!(fs::read(&path).unwrap(), fs::read(lab.plugin()).unwrap());
        fs::write(&path, "of others").unwrap();
        assert_eq!(installed(), Installed::AsItWas);
        assert_eq!(fs::read(&path).unwrap(), b"of others");
        assert!(!uninstall(&lab.bin(), "loopback").unwrap());
    }

    #[test]
    fn without_a_plugin_to_install_what_is_there_stays() {
        let lab = Lab::new("1");
        lab.install("cni-bridge");
        fs::remove_file(lab.plugin()).unwrap();
        let error = install(&lab.plugin(), &lab.bin(), "cni-bridge").unwrap_err();
        assert!(error.to_string().contains("reading"), "{error}");
        assert!(lab.text("cni-bridge").ends_with('1'));
    }
}
