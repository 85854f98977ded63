//! The verbs, as a runtime calls them: environment and standard input in, standard output and exit code out.
//!
//! What is looked at in which order is the reference's (`pkg/skel`), as tests of runtimes know it.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::attach::{self, Attachment};
use crate::conf::{self, NetConf};
use crate::ipam::allocate::io;
use crate::ipam::{Owner, Store, allocate};
use crate::spec::{Call, CniError, Code, Verb, Version};
use crate::{check, detach, gc, link, loopback, steps};

/// LIMIT: what is read of the standard input; more is no configuration.
const INPUT_LIMIT: u64 = 16 << 20;
const FAILURE: u8 = 1;

/// Which plugin it is called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Links, and addresses if the configuration has `ipam`.
    Bridge,
    /// Addresses alone, for other plugins.
    HostLocal,
    /// The container's loopback, and nothing else.
    Loopback,
}

impl Program {
    /// By the name of the program: installed as `host-local` or `loopback` it is that.
    pub fn named(path: Option<&String>) -> Self {
        let name = path.and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
        match name {
            Some("host-local") => Self::HostLocal,
            Some("loopback") => Self::Loopback,
            _ => Self::Bridge,
        }
    }
}

/// Where the program reads and writes.
pub struct Streams<'a> {
    /// The configuration.
    pub input: &'a mut dyn Read,
    /// The result, or the error.
    pub output: &'a mut dyn Write,
    /// For people.
    pub error: &'a mut dyn Write,
}

/// Serves one call; returns the exit code.
pub fn run(program: Program, variable: &dyn Fn(&str) -> Option<String>, streams: &mut Streams<'_>) -> u8 {
    let call = match Call::from_env(variable) {
        Ok(Some(call)) => call,
        Ok(None) => {
            about(streams.error);
            return 0;
        }
        Err(error) => return fail(streams, &error, None),
    };
    if call.verb == Verb::Version {
        return succeed(streams, &supported_versions());
    }
    let mut input = String::new();
    if let Err(error) = (&mut *streams.input).take(INPUT_LIMIT).read_to_string(&mut input) {
        let error = CniError::new(Code::Io, format!("error reading from stdin: {error}"));
        return fail(streams, &error, None);
    }
    let mut version = None;
    match serve(program, &call, &input, &mut version) {
        Ok(output) => succeed(streams, &output),
        Err(error) => fail(streams, &error, version),
    }
}

/// Does what is asked; gives what goes to the standard output.
fn serve(
    program: Program,
    call: &Call,
    input: &str,
    version: &mut Option<Version>,
) -> Result<String, CniError> {
    let value = conf::parse_json(input)?;
    let spoken = conf::version(&value)?;
    *version = Some(spoken);
    let since = match call.verb {
        Verb::Check => Some((Version::V0_4_0, "CHECK")),
        Verb::Gc => Some((Version::V1_1_0, "GC")),
        Verb::Status => Some((Version::V1_1_0, "STATUS")),
        Verb::Add | Verb::Del | Verb::Version => None,
    };
    if let Some((since, verb)) = since
        && spoken < since
    {
        return Err(CniError::new(Code::Version, format!("config version does not allow {verb}")));
    }
    match program {
        Program::Bridge => bridge(call, &value, spoken),
        Program::HostLocal => host_local(call, &value, spoken),
        Program::Loopback => loopback::run(call, &value, spoken),
    }
}

fn bridge(call: &Call, value: &Value, version: Version) -> Result<String, CniError> {
    let nothing = |()| String::new();
    match call.verb {
        Verb::Add => {
            let conf = NetConf::parse(value, call)?;
            let ipam = conf::ipam(value, version, call)?;
            let mut attachment = Attachment::new(conf, ipam, call)?;
            steps::run(&attach::STEPS, &mut attachment)?;
            attachment.into_outcome().to_json(version)
        }
        Verb::Del => detach::run(value, call).map(nothing),
        Verb::Check => check::run(&NetConf::parse(value, call)?, value, call).map(nothing),
        Verb::Gc => gc::run(value).map(nothing),
        Verb::Status => status(&NetConf::parse(value, call)?, value, call).map(nothing),
        Verb::Version => Ok(supported_versions()),
    }
}

/// Whether ADD can be served.
fn status(conf: &NetConf, value: &Value, call: &Call) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: Code::Unavailable, ..error };
    reservations(value, &conf.name, call).map_err(unavailable)?;
    let bridge = link::find(&mut link::open().map_err(unavailable)?, &conf.bridge).map_err(unavailable)?;
    match bridge {
        Some(found) if found.kind != kernel_netlink::route::LinkKind::Bridge => {
            let words = format!("\"{}\" already exists but is not a bridge", conf.bridge);
            Err(CniError::new(Code::Unavailable, words))
        }
        _ => Ok(()),
    }
}

/// Whether addresses can be reserved.
fn reservations(value: &Value, network: &str, call: &Call) -> Result<(), CniError> {
    match conf::ipam(value, Version::NEWEST, call)? {
        Some(ipam) => Store::open(&ipam.data_dir, network).map(drop).map_err(io),
        None => Ok(()),
    }
}

fn host_local(call: &Call, value: &Value, version: Version) -> Result<String, CniError> {
    // The rest of the configuration is another plugin's.
    let name = conf::name(value);
    let owner = Owner::new(&call.container_id, &call.ifname);
    match call.verb {
        Verb::Add => {
            let missing = || CniError::other("IPAM config missing 'ipam' key");
            let ipam = conf::ipam(value, version, call)?.ok_or_else(missing)?;
            // Before anything is reserved: it may fail.
            let mut outcome = attach::outcome(&ipam, std::iter::empty())?;
            let store = Store::open(&ipam.data_dir, name).map_err(io)?;
            let given = allocate(&store, &ipam, &owner)?;
            let given = given.iter().map(|given| (given.address, given.gateway));
            outcome.ips = attach::outcome(&ipam, given)?.ips;
            outcome.to_json(version)
        }
        Verb::Del => {
            if let Some(folder) = conf::data_dir(value) {
                Store::open(&folder, name).and_then(|store| store.release(&owner)).map_err(io)?;
            }
            Ok(String::new())
        }
        Verb::Check => check::reservation(value, name, call).map(|()| String::new()),
        Verb::Gc => gc::reservations(value).map(|()| String::new()),
        Verb::Status => reservations(value, name, call).map(|()| String::new()),
        Verb::Version => Ok(supported_versions()),
    }
}

fn supported_versions() -> String {
    let versions = Version::ALL.map(Version::as_str);
    json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": versions }).to_string()
}

fn about(error: &mut dyn Write) {
    let versions = Version::ALL.map(Version::as_str).join(", ");
    let version = env!("CARGO_PKG_VERSION");
    // Nobody listens, and nothing depends on it.
    let _ = writeln!(
        error,
        "CNI bridge plugin cni-bridge {version}\nCNI protocol versions supported: {versions}"
    );
}

fn succeed(streams: &mut Streams<'_>, output: &str) -> u8 {
    if output.is_empty() {
        return 0;
    }
    match writeln!(streams.output, "{output}").and_then(|()| streams.output.flush()) {
        Ok(()) => 0,
        Err(error) => {
            // The runtime has not got the result, so for it there is none; its DEL follows.
            let _ = writeln!(streams.error, "cni-bridge: writing the result: {error}");
            FAILURE
        }
    }
}

fn fail(streams: &mut Streams<'_>, error: &CniError, version: Option<Version>) -> u8 {
    let written =
        writeln!(streams.output, "{}", error.to_json(version)).and_then(|()| streams.output.flush());
    if written.is_err() {
        let _ = writeln!(streams.error, "cni-bridge: {error}");
    }
    FAILURE
}
