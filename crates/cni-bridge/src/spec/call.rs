//! A call: what the runtime says in the environment.

use super::error::{CniError, Code};

/// `CNI_COMMAND`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it attached as it was?
    Check,
    /// Forget attachments that are not listed.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What to do.
    pub verb: Verb,
    /// `CNI_CONTAINERID`; empty if the verb has none.
    pub container_id: String,
    /// `CNI_NETNS`; empty if there is none (any more).
    pub netns: String,
    /// `CNI_IFNAME`; empty if the verb has none.
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE` pairs.
    pub args: Vec<(String, String)>,
}

/// Which variables each verb needs, in the order in which the reference names them.
const NEEDED: [(&str, &[Verb]); 4] = [
    ("CNI_CONTAINERID", &[Verb::Add, Verb::Del, Verb::Check]),
    ("CNI_NETNS", &[Verb::Add, Verb::Check]),
    ("CNI_IFNAME", &[Verb::Add, Verb::Del, Verb::Check]),
    ("CNI_PATH", &[Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status]),
];

/// LIMIT: `IFNAMSIZ` is 16 with the NUL.
const IFNAME_LIMIT: usize = 15;

impl Call {
    /// Reads the call from the environment. `None` if there is no command: somebody looks at the program.
    ///
    /// # Errors
    /// [`Code::Environment`]; all missing variables are named together.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, CniError> {
        let value = |name: &str| get(name).unwrap_or_default();
        let word = value("CNI_COMMAND");
        let verb = match word.as_str() {
            "" => return Ok(None),
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            _ => return Err(environment(format!("unknown CNI_COMMAND: {word}"))),
        };
        let missing: Vec<_> = NEEDED
            .iter()
            .filter(|(name, verbs)| verbs.contains(&verb) && value(name).is_empty())
            .map(|(name, _)| *name)
            .collect();
        if !missing.is_empty() {
            return Err(environment(format!("required env variables [{}] missing", missing.join(","))));
        }
        let call = Self {
            verb,
            container_id: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            ifname: value("CNI_IFNAME"),
            args: args(&value("CNI_ARGS"))?,
        };
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            check_container_id(&call.container_id)?;
            check_ifname(&call.ifname)?;
        }
        Ok(Some(call))
    }

    /// An argument of `CNI_ARGS`.
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn environment(message: impl Into<String>) -> CniError {
    CniError::new(Code::Environment, message)
}

fn args(text: &str) -> Result<Vec<(String, String)>, CniError> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty()).map(|pair| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(environment(format!("CNI_ARGS: invalid pair {pair:?}"))),
    });
    pairs.collect()
}

/// SPEC: alphanumeric, then alphanumeric, `_`, `.` or `-`.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    if is_name(id) {
        return Ok(());
    }
    Err(environment("invalid characters in containerID").with_details(id))
}

fn check_ifname(name: &str) -> Result<(), CniError> {
    if name.len() > IFNAME_LIMIT {
        return Err(environment("interface name is too long")
            .with_details("interface name should be less than 16 characters"));
    }
    if name == "." || name == ".." {
        return Err(environment("interface name is . or .."));
    }
    if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(environment("interface name contains / or : or whitespace characters"));
    }
    Ok(())
}

/// The name of a network; it becomes part of paths.
///
/// # Errors
/// [`Code::Config`] if it is missing or has other characters than those of a container's ID.
pub fn check_network_name(name: &str) -> Result<(), CniError> {
    if name.is_empty() {
        return Err(CniError::new(Code::Config, "missing network name"));
    }
    if !is_name(name) {
        let error = CniError::new(Code::Config, "invalid characters found in network name");
        return Err(error.with_details(name));
    }
    Ok(())
}
