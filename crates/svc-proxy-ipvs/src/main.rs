//! Serves the Services of a cluster on one node; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match svc_proxy_ipvs::run::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("svc-proxy-ipvs: {error:#}");
            ExitCode::FAILURE
        }
    }
}
