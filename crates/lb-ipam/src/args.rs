//! Flags, validated to what the other parts take.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use node_runtime::args::duration;
use node_runtime::{CommonArgs, Program};

use crate::model::pool::{Pool, Pools, PoolsError};
use crate::owned;
use crate::plan::PlanConfig;
use crate::plan::election::Timing;

/// This program.
pub static PROGRAM: Program = Program {
    name: "lb-ipam",
    version: env!("CARGO_PKG_VERSION"),
    health_port: 20248,
    sync_period_aliases: &["loadbalancer-sync-period"],
};

/// Gives addresses to the Services of type LoadBalancer of a cluster.
#[derive(Debug, Parser)]
pub struct Cli {
    /// What to do; gives addresses until a signal if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Common flags.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The allocator's own flags.
    #[command(flatten)]
    pub allocator: AllocatorArgs,
}

/// Commands.
#[derive(Clone, Copy, Debug, Default, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Give addresses until a signal, while this instance is the leader
    #[default]
    Run,
    /// Print who would have which address, and what keeps others from having one; touch nothing
    Plan,
}

/// Flags of the allocator.
#[derive(Clone, Debug, Args)]
pub struct AllocatorArgs {
    /// Bring all statuses up to date once, as the leader, and exit 0 when they are
    #[arg(long)]
    pub once: bool,

    /// Addresses for everybody: CIDRs (without network and broadcast address) or FIRST-LAST; repeatable
    #[arg(long, value_name = "RANGE", value_delimiter = ',', action = clap::ArgAction::Append)]
    pub loadbalancer_ip_range: Vec<String>,

    /// File of more pools, with selectors; see the guide
    #[arg(long, value_name = "FILE")]
    pub pools: Option<PathBuf>,

    /// Serve also Services without loadBalancerClass and those of class "default", not only "kube-router"
    #[arg(long, default_value_t = true)]
    pub loadbalancer_default_class: bool,

    /// Name of the Lease that the leader holds
    #[arg(long, default_value = owned::LEASE, value_name = "NAME")]
    pub lease_name: String,

    /// Namespace of the Lease [default: the pod's own, or the kubeconfig's]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub lease_namespace: Option<String>,

    /// Name of this instance in the Lease; a random number is added [default: the host name]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// For how long others believe a leader that does not renew its Lease; whole seconds
    #[arg(long, default_value = "15s", value_parser = duration, value_name = "DURATION")]
    pub lease_duration: Duration,

    /// For how long a leader that cannot renew its Lease goes on
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub lease_renew_deadline: Duration,

    /// Time between two attempts to take or renew the Lease
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub lease_retry_period: Duration,

    /// kube-router's switch of its allocator; this program is nothing else, so false is refused
    #[arg(long, default_value_t = true, hide = true)]
    pub run_loadbalancer: bool,
}

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends after the first apply.
    pub once: bool,
    /// For the planner.
    pub plan: PlanConfig,
    /// The election.
    pub lease: LeaseConfig,
}

/// The Lease, and who this is.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Its name.
    pub name: String,
    /// Its namespace; `None` is the client's own.
    pub namespace: Option<String>,
    /// Times.
    pub timing: Timing,
    /// First part of the identity; `None` is the host name.
    pub instance: Option<String>,
}

/// Flags that contradict each other or this program.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// `--run-loadbalancer=false`
    #[error("--run-loadbalancer=false: this program is only the allocator; do not deploy it")]
    NotWanted,
    /// No pool at all.
    #[error("there are no addresses to give: --loadbalancer-ip-range or --pools is needed")]
    NoPools,
    /// A pool cannot be used.
    #[error(transparent)]
    Pools(#[from] PoolsError),
    /// The file of pools cannot be read.
    #[error("--pools {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The election cannot work.
    #[error(
        "--lease-duration must be longer than --lease-renew-deadline, and that longer than 1.2 times \
         --lease-retry-period; the duration in whole seconds"
    )]
    Timing,
}

impl AllocatorArgs {
    /// Validates them together, and reads the file of pools.
    ///
    /// # Errors
    /// [`ArgsError`]
    pub fn into_config(self) -> Result<Config, ArgsError> {
        let Self {
            once,
            loadbalancer_ip_range,
            pools,
            loadbalancer_default_class,
            lease_name,
            lease_namespace,
            pod_name,
            lease_duration,
            lease_renew_deadline,
            lease_retry_period,
            run_loadbalancer,
        } = self;
        if !run_loadbalancer {
            return Err(ArgsError::NotWanted);
        }
        let mut list = match pools {
            Some(path) => {
                let text = fs::read_to_string(&path).map_err(|error| ArgsError::File { path, error })?;
                Pool::parse_file(&text)?
            }
            None => Vec::new(),
        };
        if !loadbalancer_ip_range.is_empty() {
            list.push(Pool::of_flag(loadbalancer_ip_range.iter().map(String::as_str))?);
        }
        if list.is_empty() {
            return Err(ArgsError::NoPools);
        }
        let timing =
            Timing { lease_duration, renew_deadline: lease_renew_deadline, retry_period: lease_retry_period };
        if !timing.is_sound() {
            return Err(ArgsError::Timing);
        }
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Config {
            once,
            plan: PlanConfig {
                pools: Arc::new(Pools::new(list)?),
                default_class: loadbalancer_default_class,
            },
            lease: LeaseConfig {
                name: lease_name,
                namespace: given(lease_namespace),
                timing,
                instance: given(pod_name),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Config, String> {
        let words = [&["lb-ipam"], words].concat();
        let parsed =
            node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words).map_err(|e| e.to_string())?;
        parsed.cli.allocator.into_config().map_err(|e| e.to_string())
    }

    fn sizes(config: &Config) -> Vec<usize> {
        config.plan.pools.iter().map(|(_, pool)| pool.ranges.len()).collect()
    }

    #[test]
    fn ranges_are_given_as_to_kube_router_repeated_or_with_commas() {
        let words = [
            "--run-router=false",
            "--run-loadbalancer",
            "--loadbalancer-ip-range=192.0.2.0/24,2001:db8::/112",
            "--loadbalancer-ip-range",
            "198.51.100.3-198.51.100.9",
            "--loadbalancer-sync-period=1m",
        ];
        let config = parse(&words).unwrap();
        assert_eq!(sizes(&config), [3]);
        assert!(config.plan.default_class);
        assert!(
            !parse(&[&words[..], &["--loadbalancer-default-class=false"]].concat())
                .unwrap()
                .plan
                .default_class
        );
    }

    #[test]
    fn pools_of_the_file_come_before_the_one_of_the_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "pools: [{name: a, ranges: [10.0.0.0/24, 10.0.2.0/24]}]").unwrap();
        let path = file.path().to_str().unwrap();
        let config = parse(&["--pools", path, "--loadbalancer-ip-range=10.0.1.0/24"]).unwrap();
        assert_eq!(sizes(&config), [2, 1]);
        assert!(
            parse(&["--pools", path, "--loadbalancer-ip-range=10.0.0.0/28"]).unwrap_err().contains("overlap")
        );
        assert!(parse(&["--pools", "/nowhere"]).unwrap_err().contains("--pools /nowhere"));
    }

    #[test]
    fn an_allocator_that_has_nothing_to_give_or_is_not_wanted_says_so() {
        assert!(parse(&[]).unwrap_err().contains("--loadbalancer-ip-range"));
        let range = "--loadbalancer-ip-range=10.0.0.0/24";
        assert!(parse(&[range, "--run-loadbalancer=false"]).unwrap_err().contains("only the allocator"));
        assert!(parse(&[range, "--lease-duration=5s"]).unwrap_err().contains("--lease-renew-deadline"));
        assert!(parse(&["--loadbalancer-ip-range=10.0.0.0"]).unwrap_err().contains("no range"));
    }
}
