//! Installs the CNI plugin on its node; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match cni_bridge_agent::run::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cni-bridge-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
