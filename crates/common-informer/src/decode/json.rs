//! Reading fields of a JSON object, with errors that name the path.
//!
//! `null` is the same as absent everywhere, as it is to the API server.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::intern::Interner;
use crate::object::Str;

/// What is wrong at which path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    path: String,
    reason: String,
}

impl Fault {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    fn wrong_type(path: impl Into<String>, expected: &str, found: &Value) -> Self {
        Self::new(path, format!("expected {expected}, got {}", describe(found)))
    }

    /// The same fault seen from the parent of the value in which it was found.
    pub(crate) fn below(mut self, parent: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{parent}{dot}{}", self.path);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

/// `[index]`, the path of an element.
pub(crate) fn element(index: usize) -> String {
    format!("[{index}]")
}

/// The value of a field, if it is there and not `null`.
pub(crate) fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// `value` as an object.
pub(crate) fn as_object(value: &Value) -> Result<&Map<String, Value>, Fault> {
    value.as_object().ok_or_else(|| Fault::wrong_type("", "an object", value))
}

/// A field that is an object.
pub(crate) fn object<'a>(
    parent: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Map<String, Value>>, Fault> {
    field(parent, name).map(|value| as_object(value).map_err(|fault| fault.below(name))).transpose()
}

/// A field that is a list; absent is empty.
pub(crate) fn list<'a>(parent: &'a Map<String, Value>, name: &str) -> Result<&'a [Value], Fault> {
    match field(parent, name) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(Fault::wrong_type(name, "a list", other)),
    }
}

/// A field that is a string.
pub(crate) fn text<'a>(parent: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Fault> {
    field(parent, name).map(|value| as_text(value).map_err(|fault| fault.below(name))).transpose()
}

/// `value` as a string.
pub(crate) fn as_text(value: &Value) -> Result<&str, Fault> {
    let quote = |value: &Value| {
        // YAML reads an unquoted y, no or 8080 so, as it does for kubectl.
        let hint = if value.is_boolean() || value.is_number() { " (put it in quotes)" } else { "" };
        Fault::new("", format!("expected a string, got {}{hint}", describe(value)))
    };
    value.as_str().ok_or_else(|| quote(value))
}

/// A field that is `true` or `false`; absent is `false`.
pub(crate) fn boolean(parent: &Map<String, Value>, name: &str) -> Result<bool, Fault> {
    optional_boolean(parent, name).map(Option::unwrap_or_default)
}

/// A field that is `true` or `false`.
pub(crate) fn optional_boolean(parent: &Map<String, Value>, name: &str) -> Result<Option<bool>, Fault> {
    field(parent, name)
        .map(|value| value.as_bool().ok_or_else(|| Fault::wrong_type(name, "true or false", value)))
        .transpose()
}

/// A field that is an integer.
pub(crate) fn integer(parent: &Map<String, Value>, name: &str) -> Result<Option<i64>, Fault> {
    field(parent, name)
        .map(|value| value.as_i64().ok_or_else(|| Fault::wrong_type(name, "an integer", value)))
        .transpose()
}

/// A field that is a port number, 1–65535. Go cannot tell 0 from absent, so 0 is absent here too where
/// `zero_is_absent`.
pub(crate) fn port(
    parent: &Map<String, Value>,
    name: &str,
    zero_is_absent: bool,
) -> Result<Option<u16>, Fault> {
    match integer(parent, name)? {
        None => Ok(None),
        Some(0) if zero_is_absent => Ok(None),
        Some(number) => match u16::try_from(number) {
            Ok(port @ 1..) => Ok(Some(port)),
            _ => Err(Fault::new(name, format!("{number} is not a port number (1 to 65535)"))),
        },
    }
}

/// A field that maps strings to strings; absent is empty, a `null` value is `""`, as in Go.
pub(crate) fn string_map(
    parent: &Map<String, Value>,
    name: &str,
    interner: &mut Interner,
) -> Result<BTreeMap<Str, Str>, Fault> {
    let Some(map) = object(parent, name)? else { return Ok(BTreeMap::new()) };
    let pair = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Null => "",
            value => as_text(value).map_err(|fault| fault.below(&format!("{name}[{key}]")))?,
        };
        Ok((interner.string(key), interner.string(value)))
    };
    map.iter().map(pair).collect()
}

/// What kind of value it is, with short ones shown.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.len() <= 40 => format!("the string {text:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
