//! Enforces NetworkPolicies on one node; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match npc_firewall::run::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("npc-firewall: {error:#}");
            ExitCode::FAILURE
        }
    }
}
