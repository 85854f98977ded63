//! Gives addresses to Services of type LoadBalancer; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match lb_ipam::run::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-ipam: {error:#}");
            ExitCode::FAILURE
        }
    }
}
