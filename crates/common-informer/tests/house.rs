//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::Path;

#[test]
fn endpoints_are_chosen_without_a_clock_and_without_input_or_output() {
    let forbidden = [
        "tokio",
        "kube::",
        "std::fs",
        "std::env",
        "std::io",
        "std::thread",
        "Instant",
        "SystemTime",
        "tracing",
    ];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.join("endpoints.rs")];
    files.extend(fs::read_dir(source.join("endpoints")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(files.len() >= 6, "the sources are elsewhere: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in forbidden {
            assert!(!text.contains(word), "{} has {word}", file.display());
        }
    }
}
