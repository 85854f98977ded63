//! From the text of a file to objects.

use serde_json::Value;

use crate::decode::{self, Decoded, Excluded, ServiceDetail};
use crate::intern::Interner;
use crate::object::Kind;

/// What a text holds. Objects of kinds that are never watched are passed over.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// Objects in order.
    pub objects: Vec<Result<Decoded, Excluded>>,
    /// Documents that are no objects: where and why.
    pub malformed: Vec<String>,
}

/// [`parse_with`] only the addresses of Services.
pub fn parse(text: &str, interner: &mut Interner) -> Documents {
    parse_with(ServiceDetail::Addresses, text, interner)
}

/// Reads YAML (of which JSON is a part): documents separated by `---`, and `List` kinds.
pub fn parse_with(detail: ServiceDetail, text: &str, interner: &mut Interner) -> Documents {
    let mut documents = Documents::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, document) in split(text) {
        match serde_saphyr::from_str::<Value>(document) {
            Ok(value) => documents.add(detail, &value, interner),
            Err(_) => documents.malformed.push(explain(line, document)),
        }
    }
    documents
}

/// Reads JSON: values one after another. What follows a mistake is lost.
pub(super) fn parse_json(detail: ServiceDetail, text: &str, interner: &mut Interner) -> Documents {
    let mut documents = Documents::default();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match value {
            Ok(value) => documents.add(detail, &value, interner),
            Err(error) => documents.malformed.push(error.to_string()),
        }
    }
    documents
}

/// Why a document that begins at `line` is not YAML.
fn explain(line: usize, document: &str) -> String {
    // Read once more below as many empty lines as the file has above it: then the error's line is the file's.
    let shifted = "\n".repeat(line - 1) + document;
    match serde_saphyr::from_str::<Value>(&shifted) {
        Ok(_) => format!("the document at line {line} is not YAML"),
        Err(error) => format!("the document at line {line} is not YAML: {}", error.without_snippet()),
    }
}

/// The documents of a text with the number of their first line, without those that have no content.
///
/// A line that begins with `---` separates documents wherever it stands: in every kind of scalar such a line
/// is either forbidden or ends it (YAML 1.2 §9.1.2, c-forbidden).
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut empty) = (0, 1, true);
    let mut end = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end();
        let marker = content == "---" || content.starts_with("--- ") || content.starts_with("---\t");
        if marker {
            if !empty {
                documents.push((start_line, &text[start..end]));
            }
            (start, start_line) = (end, index + 1);
            empty = content[3..].trim_start().is_empty() || content[3..].trim_start().starts_with('#');
        } else if !(content.is_empty() || content.trim_start().starts_with('#') || content.starts_with('%')) {
            empty &= content == "...";
        }
        end += line.len();
    }
    if !empty {
        documents.push((start_line, &text[start..]));
    }
    documents
}

impl Documents {
    fn add(&mut self, detail: ServiceDetail, value: &Value, interner: &mut Interner) {
        if value.is_null() {
            return;
        }
        if !value.is_object() {
            self.malformed.push("a document is not an object".to_owned());
            return;
        }
        let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
        match (text("kind").strip_suffix("List"), value.get("items")) {
            (Some(item_kind), Some(Value::Array(items))) => {
                let item_kind = Kind::of(text("apiVersion"), item_kind);
                for item in items {
                    self.add_item(detail, item_kind, item, interner);
                }
            }
            _ => self.objects.extend(decode::object_with(detail, value, interner).transpose()),
        }
    }

    /// Items of a typed list, such as a `PodList`, need not say their kind.
    fn add_item(&mut self, detail: ServiceDetail, kind: Option<Kind>, item: &Value, interner: &mut Interner) {
        match kind {
            Some(kind) if item.get("kind").is_none() => {
                self.objects.push(decode::object_of_with(detail, kind, item, interner));
            }
            _ => self.add(detail, item, interner),
        }
    }
}
