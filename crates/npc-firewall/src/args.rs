//! Flags, validated to what the other parts take.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kernel_nft::IpVersion;
use node_runtime::{CommonArgs, NodeArgs, Program};

use crate::plan::{DenyAction, Established, PlanConfig};

/// This program.
pub static PROGRAM: Program = Program {
    name: "npc-firewall",
    version: env!("CARGO_PKG_VERSION"),
    health_port: 20244,
    sync_period_aliases: &["iptables-sync-period"],
};

/// Enforces the NetworkPolicies of a cluster on the pods of this node, with nftables.
#[derive(Debug, Parser)]
pub struct Cli {
    /// What to do; enforces policies until a signal if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Common flags.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Flags of what runs on each node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The firewall's own flags.
    #[command(flatten)]
    pub firewall: FirewallArgs,
}

/// Commands.
#[derive(Clone, Copy, Debug, Default, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Enforce policies until a signal
    #[default]
    Run,
    /// Print the wanted table as nft text; touch nothing
    Plan,
    /// Print what `run` would change now; touch nothing
    Diff,
    /// Remove the table from the kernel: all isolation ends. Or what kube-router left, once the table is in force
    Cleanup(CleanupArgs),
}

/// Flags of `cleanup`.
#[derive(Clone, Copy, Debug, Default, Args, PartialEq, Eq)]
pub struct CleanupArgs {
    /// Remove what kube-router's firewall left, and leave our own table as it is
    #[arg(long)]
    pub kube_router: bool,

    /// Print what would be removed; touch nothing
    #[arg(long)]
    pub dry_run: bool,

    /// With --kube-router: also where our table is not in force, so that nothing isolates pods any more
    #[arg(long, requires = "kube_router")]
    pub without_firewall: bool,
}

/// Flags of the firewall.
#[derive(Clone, Debug, Args)]
pub struct FirewallArgs {
    /// Apply once and exit 0 when all policies are in force
    #[arg(long)]
    pub once: bool,

    /// Filter IPv4
    #[arg(long, default_value_t = true)]
    pub enable_ipv4: bool,

    /// Filter IPv6
    #[arg(long, default_value_t = true)]
    pub enable_ipv6: bool,

    /// Answer to refused packets: reject (TCP reset, else ICMP admin-prohibited) or drop
    #[arg(long, value_enum, default_value = "reject", value_name = "ACTION")]
    pub deny_action: DenyArg,

    /// Established connections that policies no longer allow: recheck (cut them) or keep
    #[arg(long, value_enum, default_value = "recheck", value_name = "MODE")]
    pub established: EstablishedArg,

    /// Judge what pods send to their own node by their egress policies
    #[arg(long, default_value_t = true)]
    pub egress_to_node: bool,

    /// Bits of the connection mark that the firewall may use, contiguous; 0 for none
    #[arg(long, value_parser = mark_mask, default_value = "0x00ff0000", value_name = "MASK")]
    pub mark_mask: u32,

    /// NFLOG group that refused packets are logged to, or none
    #[arg(long, value_parser = nflog_group, default_value = "100", value_name = "GROUP")]
    pub nflog_group: NflogGroup,

    /// auto: own the nftables table where the kernel can (Linux 6.9), so that nobody else changes it; never
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    pub table_ownership: OwnershipArg,

    /// Where sysctls are set
    #[arg(long, default_value = "/proc/sys", value_name = "DIR")]
    pub sysctl_root: PathBuf,

    /// kube-router's switch of its firewall; this program is nothing else, so false is refused
    #[arg(long, default_value_t = true, hide = true)]
    pub run_firewall: bool,

    /// kube-router's switch to refuse pods until their rules are there; true is refused
    #[arg(long, hide = true)]
    pub netpol_default_deny: bool,
}

/// Values of `--deny-action`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DenyArg {
    /// Answer.
    Reject,
    /// Say nothing.
    Drop,
}

/// Values of `--established`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EstablishedArg {
    /// Cut.
    Recheck,
    /// Let live.
    Keep,
}

/// Values of `--table-ownership`.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum OwnershipArg {
    /// Where the kernel can.
    Auto,
    /// Not at all; changes by others are noticed and undone.
    Never,
}

/// Value of `--nflog-group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NflogGroup(pub Option<u16>);

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends after the first apply.
    pub once: bool,
    /// For the planner.
    pub plan: PlanConfig,
    /// Own the table where possible.
    pub own_table: bool,
    /// Where sysctls are set.
    pub sysctl_root: PathBuf,
}

/// Flags that contradict each other or this program.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Nothing left to do.
    #[error("--enable-ipv4=false and --enable-ipv6=false leave nothing to filter; give at most one of them")]
    NoFamily,
    /// `--run-firewall=false`
    #[error("--run-firewall=false: this program is only the firewall; do not deploy it on this node")]
    NotWanted,
    /// `--netpol-default-deny`
    #[error(
        "--netpol-default-deny: a pod is not known before its address is in status.podIPs, so its first packets cannot \
         be refused; leave the flag out, and isolate namespaces with a NetworkPolicy"
    )]
    NoDefaultDeny,
}

impl FirewallArgs {
    /// Validates them together.
    ///
    /// # Errors
    /// [`ArgsError`]
    pub fn into_config(self) -> Result<Config, ArgsError> {
        let Self {
            once,
            enable_ipv4,
            enable_ipv6,
            deny_action,
            established,
            egress_to_node,
            mark_mask,
            nflog_group,
            table_ownership,
            sysctl_root,
            run_firewall,
            netpol_default_deny,
        } = self;
        if !run_firewall {
            return Err(ArgsError::NotWanted);
        }
        if netpol_default_deny {
            return Err(ArgsError::NoDefaultDeny);
        }
        let wanted = [(enable_ipv4, IpVersion::V4), (enable_ipv6, IpVersion::V6)];
        let versions: Vec<_> = wanted.into_iter().filter_map(|(on, version)| on.then_some(version)).collect();
        if versions.is_empty() {
            return Err(ArgsError::NoFamily);
        }
        let plan = PlanConfig {
            versions,
            deny: match deny_action {
                DenyArg::Reject => DenyAction::Reject,
                DenyArg::Drop => DenyAction::Drop,
            },
            established: match established {
                EstablishedArg::Recheck => Established::Recheck,
                EstablishedArg::Keep => Established::Keep,
            },
            mark_mask,
            nflog_group: nflog_group.0,
            judge_egress_to_node: egress_to_node,
        };
        Ok(Config { once, plan, own_table: table_ownership == OwnershipArg::Auto, sysctl_root })
    }
}

fn mark_mask(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let mask = parsed.map_err(|error| format!("not a number: {error}"))?;
    let bits = mask.count_ones();
    if mask != 0 && (mask >> mask.trailing_zeros()).trailing_ones() != bits {
        return Err("the bits must be contiguous".into());
    }
    if mask != 0 && !(2..=16).contains(&bits) {
        return Err(format!("{bits} bits; give 2 to 16, or 0 for no mark"));
    }
    Ok(mask)
}

fn nflog_group(text: &str) -> Result<NflogGroup, String> {
    if text == "none" {
        return Ok(NflogGroup(None));
    }
    let group = text.parse().map_err(|_| "expected a number up to 65535, or none".to_owned())?;
    Ok(NflogGroup(Some(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Config, String> {
        let parsed =
            node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words).map_err(|e| e.to_string())?;
        parsed.cli.firewall.into_config().map_err(|e| e.to_string())
    }

    #[test]
    fn the_arguments_of_the_tke_manifest_are_accepted() {
        let words = [
            "npc-firewall",
            "--run-router=false",
            "--run-firewall=true",
            "--run-service-proxy=false",
            "--iptables-sync-period=5m",
            "--cache-sync-timeout=3m",
        ];
        let parsed = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words).unwrap();
        assert_eq!(parsed.cli.common.sync_period.as_secs(), 300);
        assert_eq!(parsed.cli.common.cache_sync_timeout.as_secs(), 180);
        assert_eq!(parsed.ignored.names().collect::<Vec<_>>().len(), 2);
        parsed.cli.firewall.into_config().unwrap();
    }

    #[test]
    fn marks_must_be_contiguous_and_leave_room_for_two_generations() {
        assert_eq!(mark_mask("0x0ff00000"), Ok(0x0ff0_0000));
        assert_eq!(mark_mask("0"), Ok(0));
        assert!(mark_mask("0x00f0f000").is_err());
        assert!(mark_mask("0x1").is_err());
        assert!(mark_mask("0xffffffff").is_err());
    }

    #[test]
    fn a_firewall_that_is_not_wanted_or_cannot_keep_a_promise_says_so() {
        assert!(parse(&["npc-firewall", "--run-firewall=false"]).unwrap_err().contains("only the firewall"));
        assert!(parse(&["npc-firewall", "--netpol-default-deny"]).unwrap_err().contains("status.podIPs"));
        assert!(parse(&["npc-firewall", "--netpol-default-deny=false"]).is_ok());
        assert!(parse(&["npc-firewall", "--enable-ipv4=false", "--enable-ipv6=false"]).is_err());
        assert_eq!(parse(&["npc-firewall", "--enable-ipv6=false"]).unwrap().plan.versions, [IpVersion::V4]);
    }
}
