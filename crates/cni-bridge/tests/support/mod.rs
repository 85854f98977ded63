//! Calls of the plugin as a runtime makes them, in this process.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};

use cni_bridge::verbs::{self, Program, Streams};
use serde_json::Value;

/// What a call has answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) output: String,
    pub(crate) error: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        if self.output.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {}", self.output))
    }

    /// `code` and `msg` of an error.
    pub(crate) fn refusal(&self) -> (u64, String) {
        assert_eq!(self.code, 1, "{self:?}");
        let json = self.json();
        (json["code"].as_u64().unwrap(), json["msg"].as_str().unwrap().to_owned())
    }

    pub(crate) fn success(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// Calls the plugin in the network namespace of the calling thread.
pub(crate) fn call(program: Program, variables: &[(&str, &str)], input: &str) -> Answer {
    let variable = |name: &str| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let (mut output, mut error) = (Vec::new(), Vec::new());
    let mut streams = Streams { input: &mut input.as_bytes(), output: &mut output, error: &mut error };
    let code = verbs::run(program, &variable, &mut streams);
    Answer { code, output: String::from_utf8(output).unwrap(), error: String::from_utf8(error).unwrap() }
}

/// A file of the suites, `../shared/conformance` beside the project or in `CONFORMANCE_DIR`.
pub(crate) fn suite(name: &str) -> String {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance");
    let folder = std::env::var_os("CONFORMANCE_DIR").map_or_else(beside, PathBuf::from);
    let path = folder.join("cni").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; CONFORMANCE_DIR must name the folder with the suites", path.display())
    })
}

/// The lines of a suite.
pub(crate) fn exchanges(name: &str) -> Vec<Value> {
    suite(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Puts a file with the name servers of a recorded result where `resolvConf` points to, and its own folder in place of
/// `dataDir`.
pub(crate) fn localise(stdin: &mut Value, recorded: &Value, folder: &Path, servers: &mut Vec<Value>) {
    let Some(ipam) = stdin.get_mut("ipam").and_then(Value::as_object_mut) else { return };
    if let Some(data) = ipam.get("dataDir").and_then(Value::as_str) {
        let name = Path::new(data).file_name().unwrap();
        ipam["dataDir"] = folder.join(name).to_str().unwrap().into();
    }
    let resolv = ipam.get("resolvConf").and_then(Value::as_str).filter(|path| !path.is_empty());
    if let Some(path) = resolv {
        let name = path.replace('/', "_");
        if let Some(found) = recorded.pointer("/dns/nameservers").and_then(Value::as_array) {
            *servers = found.clone();
        }
        let text: String =
            servers.iter().map(|ip| format!("nameserver {}\n", ip.as_str().unwrap())).collect();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        ipam["resolvConf"] = path.to_str().unwrap().into();
    }
}
