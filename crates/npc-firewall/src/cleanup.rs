//! The command `cleanup`: removes what this program put into the kernel, or what kube-router's firewall left there.
//!
//! These two are never removed at once: on a node that goes over to this program, its table has to be in force before
//! kube-router's goes, so that no packet passes unjudged.

use std::io::Write;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, bail};
use kernel_nft::ipset::Ipsets;
use kernel_nft::{Family, Name, Nftables, Op, Socket, Traces, Transaction, legacy};
use node_runtime::tell;

use crate::args::CleanupArgs;
use crate::owned;

/// What kube-router's firewall makes, in its modes iptables and nftables. Its service proxy has other names.
const KUBE_ROUTER: Traces = Traces {
    tables: &[(Family::Ip, "kube-router-filter-ipv4"), (Family::Ip6, "kube-router-filter-ipv6")],
    shared: &[(Family::Ip, "filter"), (Family::Ip6, "filter")],
    is_chain: is_kube_router_chain,
    is_ipset: is_kube_router_ipset,
};
/// The same chains as an extended regular expression.
const CHAINS: &str = "KUBE-(ROUTER-(INPUT|FORWARD|OUTPUT)|POD-FW-|NWPLCY-)";
const PROGRAM: &str = "kube-router";

fn is_kube_router_chain(name: &str) -> bool {
    matches!(name, "KUBE-ROUTER-INPUT" | "KUBE-ROUTER-FORWARD" | "KUBE-ROUTER-OUTPUT")
        || name.starts_with("KUBE-POD-FW-")
        || name.starts_with("KUBE-NWPLCY-")
}

fn is_kube_router_ipset(name: &str) -> bool {
    let name = name.strip_prefix("inet6:").unwrap_or(name);
    name == "kube-router-local-pods" || name.starts_with("KUBE-SRC-") || name.starts_with("KUBE-DST-")
}

/// Carries out the command.
pub(crate) fn run(nft: &mut Socket, args: CleanupArgs) -> anyhow::Result<()> {
    if args.kube_router { kube_router(nft, args) } else { own(nft, args.dry_run) }
}

/// Removes what `owned` lists: the table. The bridge sysctls stay, since others need them as well.
fn own(nft: &mut Socket, dry_run: bool) -> anyhow::Result<()> {
    let table: Name = owned::TABLE.into();
    if nft.observe(Family::Inet, &table)?.is_none() {
        tell(format_args!("table inet {table} is not there"));
        return Ok(());
    }
    if dry_run {
        tell(format_args!("would remove: table inet {table}"));
        return Ok(());
    }
    nft.commit(&Transaction {
        family: Family::Inet,
        table: &table,
        ops: &[Op::DeleteTable],
        generation: None,
    })
    .with_context(|| format!("removing table inet {table}; is npc-firewall still running on this node?"))?;
    tell(format_args!("table inet {table} removed"));
    Ok(())
}

fn kube_router(nft: &mut Socket, args: CleanupArgs) -> anyhow::Result<()> {
    if !args.dry_run && !args.without_firewall && !is_in_force(nft)? {
        bail!(
            "the table inet {} is not in force on this node, so nothing would isolate its pods. Start npc-firewall, \
             run this once it is ready; or give --without-firewall",
            owned::TABLE
        );
    }
    for process in running(Path::new("/proc")).context("looking for kube-router among the processes")? {
        let _ = writeln!(
            io::stderr(),
            "warning: kube-router is running on this node, process {process}. Its firewall makes everything anew at \
             its next sync; stop it first, or give it --run-firewall=false"
        );
    }
    let mut ipsets = Ipsets::open().context("opening a netlink socket for ipsets")?;
    let (count, errors) = if args.dry_run {
        let (found, errors) = KUBE_ROUTER.find(nft, &mut ipsets);
        found.iter().for_each(|trace| tell(format_args!("would remove: {trace}")));
        (found.len(), errors)
    } else {
        let mut removed = 0;
        let errors = KUBE_ROUTER.remove(nft, &mut ipsets, |trace| {
            removed += 1;
            tell(format_args!("removed: {trace}"));
        });
        (removed, errors)
    };
    let of_legacy = legacy::remaining(PROGRAM, &["filter"], CHAINS);
    if count == 0 && errors.is_empty() && of_legacy.is_empty() {
        tell("kube-router's firewall left nothing here");
    }
    of_legacy.lines().for_each(tell);
    if errors.is_empty() {
        return Ok(());
    }
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    bail!("kube-router's firewall is not removed as a whole:\n{}", errors.join("\n"))
}

fn is_in_force(nft: &mut Socket) -> anyhow::Result<bool> {
    let table = nft
        .observe(Family::Inet, owned::TABLE)
        .with_context(|| format!("reading the nftables table inet {}", owned::TABLE))?;
    Ok(table.is_some_and(|found| !found.ruleset.table.flags.dormant && !found.ruleset.chains.is_empty()))
}

/// Processes of kube-router in this network namespace whose firewall is on. From within a container only those of its
/// own pid namespace are seen.
fn running(proc: &Path) -> io::Result<Vec<String>> {
    let here = fs::read_link(proc.join("thread-self/ns/net"))?;
    let is_one = |process: &str| {
        let process = proc.join(process);
        let is_named = fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == PROGRAM);
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let off = command.split(|byte| *byte == 0).any(|word| word == b"--run-firewall=false");
        // Of a process with more privileges the namespace cannot be read: taken for one of ours.
        let elsewhere = fs::read_link(process.join("ns/net")).is_ok_and(|theirs| theirs != here);
        is_named && !off && !elsewhere
    };
    let names = fs::read_dir(proc)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let processes = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    Ok(processes.filter(|process| is_one(process)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_router_s_firewall_is_told_from_its_proxy_and_from_kube_proxy() {
        for name in ["KUBE-ROUTER-INPUT", "KUBE-ROUTER-OUTPUT", "KUBE-POD-FW-ABC", "KUBE-NWPLCY-DEFAULT"] {
            assert!(is_kube_router_chain(name), "{name}");
        }
        for name in
            ["KUBE-ROUTER-SERVICES", "KUBE-ROUTER-HAIRPIN", "KUBE-SERVICES", "KUBE-FIREWALL", "KUBE-POD-FW"]
        {
            assert!(!is_kube_router_chain(name), "{name}");
        }
        for name in
            ["KUBE-SRC-ABC", "inet6:KUBE-DST-ABC", "kube-router-local-pods", "inet6:kube-router-local-pods"]
        {
            assert!(is_kube_router_ipset(name), "{name}");
        }
        for name in
            ["kube-router-svip", "inet6:kube-router-local-ips", "KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "x"]
        {
            assert!(!is_kube_router_ipset(name), "{name}");
        }
    }
}
