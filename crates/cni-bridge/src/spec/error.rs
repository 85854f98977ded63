//! Errors, as runtimes read them.

use std::fmt;

use serde::Serialize;

use super::version::Version;

/// `code` of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1: the version of the configuration is not spoken here, or does not have the command.
    Version,
    /// 2: a field of the configuration is not supported.
    Field,
    /// 3: the container is unknown, or does not exist; nothing has to be cleaned up.
    Container,
    /// 4: a variable of the environment is missing or not valid.
    Environment,
    /// 5: reading or writing failed.
    Io,
    /// 6: something cannot be decoded.
    Decode,
    /// 7: the network configuration is not valid.
    Config,
    /// 8: the network namespace is not one of a container. The reference's own.
    Namespace,
    /// 11: it may work if tried again later.
    TryAgain,
    /// 50: the plugin cannot serve ADD.
    Unavailable,
    /// 999: what the reference says for everything else.
    Other,
}

impl Code {
    /// The number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::Field => 2,
            Self::Container => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::Namespace => 8,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::Other => 999,
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// What kind of failure.
    pub code: Code,
    /// What was tried, on what, and how it failed.
    pub message: String,
    /// More, if there is more.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// One that the specification has no code for.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Code::Other, message)
    }

    /// Adds details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Says what was being done.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The JSON that goes to the standard output.
    pub fn to_json(&self, version: Option<Version>) -> String {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
            version: Option<&'static str>,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let wire = Wire {
            version: version.map(Version::as_str),
            code: self.code.number(),
            msg: &self.message,
            details: &self.details,
        };
        // Strings and numbers can always be written.
        serde_json::to_string_pretty(&wire).unwrap_or_default()
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, " ({})", self.details) }
    }
}

impl std::error::Error for CniError {}
