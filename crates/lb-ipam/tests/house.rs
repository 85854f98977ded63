//! Rules of the house that a compiler does not check.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::fs;
use std::path::Path;

#[test]
fn model_and_plan_have_no_clock_and_no_input_or_output() {
    let forbidden = [
        "tokio",
        "kube::",
        "std::fs",
        "std::env",
        "std::net::Tcp",
        "std::net::Udp",
        "std::io",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "std::process",
    ];
    let mut files = Vec::new();
    for folder in ["model", "plan"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
        files.extend(fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    }
    assert!(files.len() >= 8, "the sources are elsewhere: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in forbidden {
            assert!(!code.contains(word), "{} uses {word}", file.display());
        }
    }
}
