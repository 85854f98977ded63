//! The CNI plugin; see the library.

use std::env;
use std::io::{stderr, stdin, stdout};
use std::process::ExitCode;

use cni_bridge::{exec, verbs};

/// What is shipped is linked with musl (docs/performance.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let variable = |name: &str| env::var(name).ok();
    let mut streams = verbs::Streams { input: &mut stdin(), output: &mut stdout(), error: &mut stderr() };
    let code = match arguments.get(1).map(String::as_str) {
        Some("exec") => exec::run(&arguments[2..], &mut streams),
        _ => verbs::run(verbs::Program::named(arguments.first()), &variable, &mut streams),
    };
    ExitCode::from(code)
}
