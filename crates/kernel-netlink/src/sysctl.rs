//! Sysctls: settings of the kernel that are files.
//!
//! KERNEL: those below `net` are of the network namespace of the thread that looks them up, so work in another
//! namespace goes through [`Namespace::run`](crate::namespace::Namespace::run), as sockets do.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of a sysctl, as the components of its path: `net`, `ipv4`, `conf`, `eth0.100`, `rp_filter`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<String>);

impl Name {
    /// A name with dots or slashes between its components, as `sysctl(8)` takes it: the character that comes
    /// first separates, and the other stands for it inside a component. `net.ipv4.conf.eth0/100.rp_filter` and
    /// `net/ipv4/conf/eth0.100/rp_filter` are the same. `None` if it is no relative path without `..`.
    pub fn parse(text: &str) -> Option<Self> {
        let separator = text.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
        let other = if separator == '.' { '/' } else { '.' };
        let components = text.split(separator);
        match separator {
            '.' => Self::of(components.map(|component| component.replace(other, "."))),
            _ => Self::of(components.map(str::to_owned)),
        }
    }

    /// A name of components; dots in them are what they are. `None` if one of them is empty, `.` or `..`, or has a
    /// slash or NUL.
    ///
    /// ```
    /// use kernel_netlink::sysctl::Name;
    /// let device = "eth0.100";
    /// let name = Name::of(["net", "ipv4", "conf", device, "rp_filter"]);
    /// assert_eq!(name, Name::parse("net/ipv4/conf/eth0.100/rp_filter"));
    /// ```
    pub fn of(components: impl IntoIterator<Item = impl Into<String>>) -> Option<Self> {
        let components: Vec<String> = components.into_iter().map(Into::into).collect();
        let bad =
            |part: &String| part.is_empty() || part == "." || part == ".." || part.contains(['/', '\0']);
        (!components.is_empty() && !components.iter().any(bad)).then_some(Self(components))
    }
}

/// As `sysctl(8)` writes it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, component) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            f.write_str(&component.replace('.', "/"))?;
        }
        Ok(())
    }
}

/// What was found when a sysctl was to have a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has the value.
    On,
    /// It had this value, and now has the wanted one.
    Changed(String),
    /// There is no such sysctl: a module is not loaded, or the kernel is too old.
    Missing,
    /// It has another value (if it can be read) and does not take the wanted one.
    Stuck {
        /// The value that it has.
        value: Option<String>,
        /// What was tried and what the system said.
        reason: String,
    },
}

impl State {
    /// Whether it has the wanted value.
    pub const fn is_on(&self) -> bool {
        matches!(self, Self::On | Self::Changed(_))
    }
}

/// Where sysctls are.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::new("/proc/sys")
    }
}

impl Sysctls {
    /// Sysctls below a folder, `/proc/sys` unless it is mounted elsewhere.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value, without the end of its line; `None` if there is no such sysctl.
    ///
    /// # Errors
    /// [`io::Error`] when it is there and can't be read.
    pub fn read(&self, name: &Name) -> io::Result<Option<String>> {
        match fs::read_to_string(self.path(name)) {
            Ok(value) => Ok(Some(value.trim_end().to_owned())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of what is in a folder, such as the devices in `net.ipv6.conf`; none if there is no such folder.
    ///
    /// # Errors
    /// [`io::Error`] when it is there and can't be read.
    pub fn list(&self, folder: &Name) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.path(folder)) {
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Sets the value.
    ///
    /// # Errors
    /// [`io::Error`]: `NotFound` if there is no such sysctl, `InvalidInput` if the kernel does not take the value,
    /// `PermissionDenied` also where `/proc/sys` is mounted read-only, as in containers without privileges.
    pub fn write(&self, name: &Name, value: &str) -> io::Result<()> {
        // KERNEL: a value is taken from one write(2) at the start of the file.
        let mut file = fs::OpenOptions::new().write(true).open(self.path(name))?;
        io::Write::write_all(&mut file, format!("{value}\n").as_bytes())
    }

    /// Sets the value if it is another, and looks whether it is there then. Values are compared by their words:
    /// the kernel tells several with tabs between them.
    pub fn ensure(&self, name: &Name, value: &str) -> State {
        let found = match self.read(name) {
            Ok(None) => return State::Missing,
            Ok(Some(found)) if same(&found, value) => return State::On,
            Ok(Some(found)) => Some(found),
            // Some can only be written.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => return State::Stuck { value: None, reason: format!("reading failed: {error}") },
        };
        if let Err(error) = self.write(name, value) {
            return State::Stuck { value: found, reason: format!("writing {value} failed: {error}") };
        }
        match (found, self.read(name)) {
            (found, Ok(Some(now))) if same(&now, value) => State::Changed(found.unwrap_or_default()),
            (_, Ok(Some(now))) => {
                let reason = format!("it is still {now} after {value} was written");
                State::Stuck { value: Some(now), reason }
            }
            (_, Ok(None)) => State::Missing,
            (None, Err(_)) => State::On,
            (_, Err(error)) => State::Stuck { value: None, reason: format!("reading failed: {error}") },
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        name.0.iter().fold(self.root.clone(), |path, component| path.join(Path::new(component)))
    }
}

/// KERNEL: `ENOTDIR` where a component is no folder.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysctls) {
        let folder = tempfile::tempdir().unwrap();
        for (path, value) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        let sysctls = Sysctls::new(folder.path());
        (folder, sysctls)
    }

    #[test]
    fn what_is_another_is_set_and_what_is_missing_is_told() {
        let (_folder, sysctls) = folder(&[("net/ipv4/ip_forward", "0\n"), ("net/ipv4/vs/conntrack", "1\n")]);
        let forward = name("net.ipv4.ip_forward");
        assert_eq!(sysctls.ensure(&forward, "1"), State::Changed("0".to_owned()));
        assert_eq!(sysctls.ensure(&forward, "1"), State::On);
        assert_eq!(sysctls.read(&forward).unwrap().as_deref(), Some("1"));
        assert_eq!(sysctls.ensure(&name("net.ipv4.vs.conntrack"), "1"), State::On);
        assert_eq!(sysctls.ensure(&name("net.ipv4.vs.other"), "1"), State::Missing);
        assert_eq!(sysctls.ensure(&name("net.ipv4.ip_forward.more"), "1"), State::Missing);
        let missing = sysctls.write(&name("net.ipv4.vs.other"), "1").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn devices_with_dots_are_named_by_components_or_by_slashes() {
        let (_folder, sysctls) = folder(&[("net/ipv4/conf/eth0.100/rp_filter", "2\n")]);
        for name in [
            Name::of(["net", "ipv4", "conf", "eth0.100", "rp_filter"]),
            Name::parse("net/ipv4/conf/eth0.100/rp_filter"),
            Name::parse("net.ipv4.conf.eth0/100.rp_filter"),
        ] {
            let name = name.unwrap();
            assert_eq!(sysctls.read(&name).unwrap().as_deref(), Some("2"));
            assert_eq!(name.to_string(), "net.ipv4.conf.eth0/100.rp_filter");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for text in ["", "net..ipv4", "/net/ipv4", "net/../../etc/passwd", "net.ipv4.conf.//.x", "net/"] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
        assert_eq!(Name::of(["net", "a/b"]), None);
    }

    #[test]
    fn values_of_several_words_are_compared_word_by_word() {
        let (_folder, sysctls) = folder(&[("net/ipv4/ip_local_port_range", "32768\t60999\n")]);
        assert_eq!(sysctls.ensure(&name("net.ipv4.ip_local_port_range"), "32768 60999"), State::On);
    }

    #[test]
    fn what_cannot_be_written_is_stuck() {
        let (folder, sysctls) = folder(&[("net/a", "0\n")]);
        fs::create_dir(folder.path().join("net/b")).unwrap();
        let State::Stuck { value: None, reason } = sysctls.ensure(&name("net.b"), "1") else {
            panic!("a folder is no sysctl")
        };
        assert!(reason.contains("reading failed"), "{reason}");
    }
}
