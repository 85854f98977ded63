//! Flags, validated to what the other parts take.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use common_informer::object::{Family, ObjectKey};
use ipnet::IpNet;
use kernel_netlink::ipvs::{Scheduler, Timeouts};
use node_runtime::{CommonArgs, NodeArgs, Program};

use crate::model::addresses::NodePortAddresses;
use crate::model::admission::Admission;
use crate::plan::options::SCHEDULERS;
use crate::plan::{Drain, PlanConfig};

/// This program.
pub static PROGRAM: Program = Program {
    name: "svc-proxy-ipvs",
    version: env!("CARGO_PKG_VERSION"),
    health_port: 20246,
    sync_period_aliases: &["ipvs-sync-period"],
};

/// Serves the Services of a cluster on this node, with IPVS; replaces kube-proxy.
#[derive(Debug, Parser)]
pub struct Cli {
    /// What to do; serves until a signal if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Common flags.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Flags of what runs on each node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The proxy's own flags.
    #[command(flatten)]
    pub proxy: ProxyArgs,
}

/// Commands.
#[derive(Clone, Debug, Default, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Serve until a signal
    #[default]
    Run,
    /// Print what would be in the kernel, as `ipvsadm -Sn` and nft text; touch nothing
    Plan,
    /// Print what `run` would change now; touch nothing
    Diff,
    /// Say which endpoints serve a Service on this node, and why
    Explain {
        /// The Service
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object_key)]
        service: ObjectKey,
    },
    /// Remove from the kernel what this program put there: no Service is served on this node any more
    Cleanup {
        /// Also what kube-router's service proxy left: virtual services, kube-dummy-if, rules and tables of DSR
        #[arg(long)]
        kube_router: bool,
        /// Also what kube-proxy left in its modes ipvs and nftables: virtual services, kube-ipvs0, its tables
        #[arg(long)]
        kube_proxy: bool,
    },
}

/// Flags of the proxy.
#[derive(Clone, Debug, Args)]
pub struct ProxyArgs {
    /// Apply once and exit 0 when all Services are served
    #[arg(long)]
    pub once: bool,

    /// Serve IPv4
    #[arg(long, default_value_t = true)]
    pub enable_ipv4: bool,

    /// Serve IPv6
    #[arg(long, default_value_t = true)]
    pub enable_ipv6: bool,

    /// Scheduler of Services without the annotation kube-router.io/service.scheduler
    #[arg(long, default_value = "rr", value_parser = scheduler, value_name = "NAME")]
    pub ipvs_scheduler: Scheduler,

    /// Ranges of cluster IPs; what goes to an address there that no Service has is dropped
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = range, value_name = "CIDR")]
    pub service_cluster_ip_range: Vec<IpNet>,

    /// Ranges that spec.externalIPs may be in
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = range, value_name = "CIDR")]
    pub service_external_ip_range: Vec<IpNet>,

    /// Ranges that addresses of load balancers may be in
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = range, value_name = "CIDR")]
    pub loadbalancer_ip_range: Vec<IpNet>,

    /// Serve external and load balancer addresses only in these ranges, and in none of cluster IPs
    #[arg(long, default_value_t = true)]
    pub strict_external_ip_validation: bool,

    /// Ports that the API server gives out as node ports
    #[arg(long, default_value = "30000-32767", value_parser = port_range, value_name = "FIRST-LAST")]
    pub service_node_port_range: PortRange,

    /// Serve node ports on every address of the node that others can reach
    #[arg(long)]
    pub nodeport_bindon_all_ip: bool,

    /// Serve node ports on the node's addresses in these ranges [default: the node's InternalIPs]
    #[arg(
        long, value_delimiter = ',', action = ArgAction::Append, value_parser = range, value_name = "CIDR",
        conflicts_with = "nodeport_bindon_all_ip"
    )]
    pub nodeport_addresses: Vec<IpNet>,

    /// Ranges of the pods of this node [default: as the Node object says]
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = range, value_name = "CIDR")]
    pub pod_cidr: Vec<IpNet>,

    /// Give all that goes through a Service an address of this node as its source
    #[arg(long)]
    pub masquerade_all: bool,

    /// Refuse what goes to a port of a virtual address that no Service has
    #[arg(long, default_value_t = true)]
    pub ipvs_permit_all: bool,

    /// Let connections to endpoints that are removed come to their end
    #[arg(long, default_value_t = true)]
    pub ipvs_graceful_termination: bool,

    /// For how long at most, once the endpoint is gone
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub ipvs_graceful_period: Duration,

    /// Virtual services on addresses in these ranges are somebody else's and are left alone
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = range, value_name = "CIDR")]
    pub excluded_cidrs: Vec<IpNet>,

    /// Idle time after which IPVS forgets an established TCP connection; 0 leaves the kernel's (15 min)
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub service_tcp_timeout: Duration,

    /// The same after a FIN; 0 leaves the kernel's (2 min)
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub service_tcpfin_timeout: Duration,

    /// The same for UDP; 0 leaves the kernel's (5 min)
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub service_udp_timeout: Duration,

    /// Serve Services whose label service.kubernetes.io/service-proxy-name says this, and those without
    #[arg(long, default_value = "kube-router", value_name = "NAME")]
    pub service_proxy_name: String,

    /// Port of /healthz for load balancers, as kube-proxy's; 0 for none
    #[arg(long, default_value_t = 10256, value_name = "PORT")]
    pub proxy_healthz_port: u16,

    /// Where sysctls are set
    #[arg(long, default_value = "/proc/sys", value_name = "DIR")]
    pub sysctl_root: PathBuf,

    /// Folders with the network namespaces of the pods of this node; only direct return (kube-router.io/service.dsr)
    /// needs them
    #[arg(long, default_value = "/run/netns", value_delimiter = ',', action = ArgAction::Append, value_name = "DIR")]
    pub netns_dir: Vec<PathBuf>,

    /// kube-router's switch of its service proxy; this program is nothing else, so false is refused
    #[arg(long, default_value_t = true, hide = true)]
    pub run_service_proxy: bool,
}

/// Value of `--service-node-port-range`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends after the first apply.
    pub once: bool,
    /// For the planner.
    pub plan: PlanConfig,
    /// Which addresses are served.
    pub admission: Admission,
    /// `--pod-cidr`
    pub pod_cidrs: Vec<IpNet>,
    /// How destinations leave.
    pub drain: Drain,
    /// Of IPVS.
    pub timeouts: Timeouts,
    /// Ports on addresses of the node on which virtual services can only be ours.
    pub node_ports: RangeInclusive<u16>,
    /// `--service-proxy-name`
    pub proxy_name: String,
    /// `--proxy-healthz-port`
    pub healthz_port: u16,
    /// Where sysctls are set.
    pub sysctl_root: PathBuf,
    /// Where the network namespaces of pods are.
    pub netns_dirs: Vec<PathBuf>,
}

/// Flags that contradict each other or this program.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Nothing left to do.
    #[error("--enable-ipv4=false and --enable-ipv6=false leave nothing to serve; give at most one of them")]
    NoFamily,
    /// `--run-service-proxy=false`
    #[error(
        "--run-service-proxy=false: this program is only the service proxy; do not deploy it on this node"
    )]
    NotWanted,
    /// A range of a family that is off.
    #[error("--{flag}: {range} is of a family that is switched off")]
    FamilyOff {
        /// The flag.
        flag: &'static str,
        /// The range.
        range: IpNet,
    },
    /// A timeout that IPVS cannot have.
    #[error("--{flag}: IPVS takes whole seconds, at most 24 days")]
    BadTimeout {
        /// The flag.
        flag: &'static str,
    },
}

impl ProxyArgs {
    /// Validates them together.
    ///
    /// # Errors
    /// [`ArgsError`]
    pub fn into_config(self) -> Result<Config, ArgsError> {
        let Self {
            once,
            enable_ipv4,
            enable_ipv6,
            ipvs_scheduler,
            service_cluster_ip_range,
            service_external_ip_range,
            loadbalancer_ip_range,
            strict_external_ip_validation,
            service_node_port_range,
            nodeport_bindon_all_ip,
            nodeport_addresses,
            pod_cidr,
            masquerade_all,
            ipvs_permit_all,
            ipvs_graceful_termination,
            ipvs_graceful_period,
            excluded_cidrs,
            service_tcp_timeout,
            service_tcpfin_timeout,
            service_udp_timeout,
            service_proxy_name,
            proxy_healthz_port,
            sysctl_root,
            netns_dir,
            run_service_proxy,
        } = self;
        if !run_service_proxy {
            return Err(ArgsError::NotWanted);
        }
        let wanted = [(enable_ipv4, Family::V4), (enable_ipv6, Family::V6)];
        let families: Vec<_> = wanted.into_iter().filter_map(|(on, family)| on.then_some(family)).collect();
        if families.is_empty() {
            return Err(ArgsError::NoFamily);
        }
        // K8S: kube-router takes a range of a family that is off for a mistake too.
        for (flag, ranges) in [
            ("service-cluster-ip-range", &service_cluster_ip_range),
            ("service-external-ip-range", &service_external_ip_range),
            ("loadbalancer-ip-range", &loadbalancer_ip_range),
        ] {
            if let Some(range) = ranges.iter().find(|range| !families.contains(&Family::of(range.addr()))) {
                return Err(ArgsError::FamilyOff { flag, range: *range });
            }
        }
        let node_ports = match (nodeport_bindon_all_ip, nodeport_addresses.is_empty()) {
            (true, _) => NodePortAddresses::All,
            (false, true) => NodePortAddresses::Primary,
            (false, false) => NodePortAddresses::Ranges(nodeport_addresses),
        };
        Ok(Config {
            once,
            plan: PlanConfig {
                families,
                scheduler: ipvs_scheduler,
                node_ports,
                masquerade_all,
                guard_addresses: ipvs_permit_all,
                cluster_ranges: service_cluster_ip_range.clone(),
                node_port_range: service_node_port_range.0.clone(),
                excluded: excluded_cidrs.clone(),
            },
            admission: Admission {
                strict: strict_external_ip_validation,
                cluster: service_cluster_ip_range,
                external: service_external_ip_range,
                balancer: loadbalancer_ip_range,
                excluded: excluded_cidrs,
            },
            pod_cidrs: pod_cidr,
            drain: Drain { graceful: ipvs_graceful_termination, period: ipvs_graceful_period },
            timeouts: Timeouts {
                tcp: seconds("service-tcp-timeout", service_tcp_timeout)?,
                tcp_fin: seconds("service-tcpfin-timeout", service_tcpfin_timeout)?,
                udp: seconds("service-udp-timeout", service_udp_timeout)?,
            },
            node_ports: service_node_port_range.0,
            proxy_name: service_proxy_name,
            healthz_port: proxy_healthz_port,
            sysctl_root,
            netns_dirs: netns_dir,
        })
    }
}

/// KERNEL: timeouts are kept in jiffies, of which there may be 1000 a second, in an `int`.
fn seconds(flag: &'static str, duration: Duration) -> Result<u32, ArgsError> {
    let seconds = u32::try_from(duration.as_secs()).ok().filter(|seconds| *seconds <= 2_147_483);
    seconds.filter(|_| duration.subsec_nanos() == 0).ok_or(ArgsError::BadTimeout { flag })
}

fn scheduler(text: &str) -> Result<Scheduler, String> {
    let known = SCHEDULERS.contains(&text).then(|| Scheduler::new(text)).flatten();
    known.ok_or_else(|| format!("give one of {}", SCHEDULERS.join(", ")))
}

fn range(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| "expected a range such as 10.96.0.0/12".to_owned())
}

/// kube-router writes `30000-32767`, the API server also `30000+100`, `30000:32767` is iptables'.
fn port_range(text: &str) -> Result<PortRange, String> {
    let bad = || format!("{text:?} is no range of ports; expected FIRST-LAST");
    let (first, last) = text.split_once(['-', ':']).ok_or_else(bad)?;
    let (first, last) = (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
    if first == 0 || first > last {
        return Err(bad());
    }
    Ok(PortRange(first..=last))
}

fn object_key(text: &str) -> Result<ObjectKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectKey { namespace: namespace.into(), name: name.into() })
        }
        _ => Err("expected NAMESPACE/NAME".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Config, String> {
        let words = [&["svc-proxy-ipvs"], words].concat();
        let parsed = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words)
            .map_err(|error| error.to_string())?;
        parsed.cli.proxy.into_config().map_err(|error| error.to_string())
    }

    #[test]
    fn the_arguments_of_a_kube_router_manifest_are_accepted() {
        let config = parse(&[
            "--run-router=false",
            "--run-firewall=false",
            "--run-service-proxy=true",
            "--ipvs-sync-period=5m",
            "--hairpin-mode=true",
            "--masquerade-all",
            "--nodeport-bindon-all-ip",
            "--service-cluster-ip-range=10.96.0.0/12,fd00:96::/112",
            "--service-external-ip-range=203.0.113.0/24",
            "--service-external-ip-range=198.51.100.7",
            "--service-node-port-range=30000:32767",
            "--excluded-cidrs=192.0.2.0/24",
            "--ipvs-graceful-period=10s",
            "--service-tcp-timeout=2h",
        ])
        .unwrap();
        assert_eq!(config.admission.external.len(), 2);
        assert_eq!(config.plan.node_ports, NodePortAddresses::All);
        assert_eq!(config.timeouts, Timeouts { tcp: 7200, tcp_fin: 0, udp: 0 });
        assert_eq!(config.node_ports, 30000..=32767);
    }

    #[test]
    fn flags_that_cannot_be_meant_are_refused() {
        for (word, part) in [
            ("--run-service-proxy=false", "only the service proxy"),
            ("--service-cluster-ip-range=10.96.0.0/33", "expected a range"),
            ("--ipvs-scheduler=wrong", "rr, wrr"),
            ("--service-node-port-range=5-1", "no range of ports"),
            ("--service-tcp-timeout=100ms", "whole seconds"),
            ("--service-udp-timeout=100days", "at most 24 days"),
        ] {
            let error = parse(&[word]).unwrap_err();
            assert!(error.contains(part), "{word}: {error}");
        }
        let off = parse(&["--enable-ipv6=false", "--loadbalancer-ip-range=fd00::/64"]).unwrap_err();
        assert!(off.contains("switched off"), "{off}");
    }
}
