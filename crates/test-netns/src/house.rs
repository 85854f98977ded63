//! Rules of the house that a compiler does not check: what documents say, and what pure code may use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What no code may use that has neither a clock nor input or output.
const IMPURE: [&str; 11] = [
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

/// What docs/kernel-ownership.md says that a program owns, sorted, as `what: value`. `manifest` is the
/// `CARGO_MANIFEST_DIR` of its crate.
///
/// # Errors
/// When there is no such document or section, or a row has no value in backticks.
pub fn owned(manifest: &str, program: &str) -> Result<Vec<String>> {
    let path = Path::new(manifest).join("../../docs/kernel-ownership.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let section = text.split(&format!("\n## {program}\n")).nth(1);
    let section = section.and_then(|rest| rest.split("\n## ").next()).context("no section of that name")?;
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what"));
    let mut owned = rows
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let value = cells.get(2).and_then(|cell| cell.split('`').nth(1));
            Ok(format!("{}: {}", cells[1], value.with_context(|| format!("no value in backticks: {line}"))?))
        })
        .collect::<Result<Vec<_>>>()?;
    owned.sort();
    Ok(owned)
}

/// That the modules `model` and `plan` of a crate, tests aside, use neither clock nor input nor output, nor any of
/// `more`. `least` is how many files there are at least: else they are elsewhere and nothing was looked at.
///
/// # Errors
/// Which file uses what.
pub fn pure(manifest: &str, least: usize, more: &[&str]) -> Result<()> {
    let mut files = Vec::new();
    for folder in ["model", "plan"] {
        sources(&Path::new(manifest).join("src").join(folder), &mut files)?;
    }
    ensure!(files.len() >= least, "the sources are elsewhere: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in IMPURE.iter().chain(more) {
            ensure!(!code.contains(word), "{} uses {word}", file.display());
        }
    }
    Ok(())
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
