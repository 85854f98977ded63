//! The command `cleanup`: removes what this program put into the kernel, and on demand what its predecessors left.
//!
//! What others left is recognised by where it is: virtual services on addresses of their device, or on addresses
//! of the node at node ports; kube-router's chains and ipsets by their names. kube-proxy's chains are left to its own
//! clean-up, which knows them all.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use kernel_netlink::ipvs::{Command, Ipvs, ServiceKey};
use kernel_netlink::route::{self, LinkName, RouteFilter, Rtnetlink, RuleAction, Table};
use kernel_netlink::sysctl::Sysctls;
use kernel_nft::ipset::Ipsets;
use kernel_nft::{Family, Keeper, Nftables, Op, Traces, legacy};
use node_runtime::tell;

use crate::apply::address::VirtualAddresses;
use crate::apply::dsr;
use crate::apply::dsr::pod::{Pods, Wanted};
use crate::args::Config;
use crate::owned;
use crate::plan::planner::DirectNeeds;
use crate::plan::rules;
use crate::run::{open_ipvs, open_netlink, open_nftables};

/// kube-router's tables of DSR, and the preferences of the rules that lead to them.
const KUBE_ROUTER_TABLES: [(u32, u32); 2] = [(32764, 78), (32765, 79)];
/// What kube-router's service proxy makes in netfilter, in chains and sets of its own. Its firewall has other names.
const KUBE_ROUTER: Traces = Traces {
    tables: &[],
    shared: &[(Family::Ip, "filter"), (Family::Ip6, "filter"), (Family::Ip, "nat"), (Family::Ip6, "nat")],
    is_chain: |name| matches!(name, "KUBE-ROUTER-SERVICES" | "KUBE-ROUTER-HAIRPIN"),
    is_ipset: is_kube_router_ipset,
};
/// The same chains as an extended regular expression.
const KUBE_ROUTER_CHAINS: &str = "KUBE-ROUTER-(SERVICES|HAIRPIN)";
/// kube-proxy's table in its mode nftables, one for each family.
const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// Whose leftovers are removed as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leftovers {
    /// kube-router's service proxy.
    pub(crate) kube_router: bool,
    /// kube-proxy.
    pub(crate) kube_proxy: bool,
}

/// Removes our own state: virtual services that our table or our addresses tell, the addresses, the table. Sysctls
/// stay, since others need them as well.
pub(crate) fn run(config: &Config, leftovers: Leftovers) -> anyhow::Result<()> {
    let mut table = Keeper::new(open_nftables()?, Family::Inet, owned::TABLE);
    let observed = table.read()?.observed;
    let mut vips = VirtualAddresses::new(open_netlink()?);
    vips.observe()?;
    let addresses: BTreeSet<_> = vips.held().collect();
    vips.remove(addresses.iter().copied())?;
    let record: BTreeSet<_> = observed
        .iter()
        .flat_map(|observed| rules::fronts(&observed.ruleset))
        .map(|front| front.service_key())
        .collect();
    let ours = |key: &ServiceKey| match key {
        ServiceKey::Address { address, .. } => record.contains(key) || addresses.contains(address),
        ServiceKey::Mark { mark, .. } => mark.get() & owned::MARK_MASK == owned::MARK,
    };
    let services = remove_services(config, ours)?;
    tell(format_args!("{services} virtual services and {} virtual addresses removed", addresses.len()));
    let had_marks = observed.iter().any(|observed| rules::marks(&observed.ruleset).next().is_some());
    direct_return(config, had_marks)?;
    if leftovers.kube_router {
        kube_router(config)?;
    }
    if leftovers.kube_proxy {
        kube_proxy(config)?;
    }
    if vips.remove_device()? {
        tell(format_args!("device {} removed", owned::DEVICE));
    }
    if observed.is_some() {
        table.commit(&[Op::DeleteTable], None).with_context(|| {
            format!("removing table inet {}; is svc-proxy-ipvs still running on this node?", owned::TABLE)
        })?;
        tell(format_args!("table inet {} removed", owned::TABLE));
    }
    if leftovers.kube_router {
        kube_router_chains()?;
    }
    Ok(())
}

/// Removes what direct return left: rules, the routing table, tunnels in pods. Pods are looked at only if there was
/// any: that takes more than network privileges.
fn direct_return(config: &Config, had_marks: bool) -> anyhow::Result<()> {
    let mut netlink = open_netlink()?;
    let leading = dsr::leading(&mut netlink, &DirectNeeds::default())?;
    let changes = dsr::lead(&mut netlink, &leading)?;
    if !had_marks && !leading.was_led {
        return Ok(());
    }
    tell(format_args!("direct return: {changes} rules and routes of table {} removed", owned::MARK_TABLE));
    let mut pods = Pods::new(config.netns_dirs.clone(), Sysctls::new(&config.sysctl_root));
    pods.expect_leftovers();
    let outcome = pods.ensure(&Wanted::new(), true, Instant::now(), Duration::ZERO);
    tell(format_args!("direct return: {} tunnels in pods removed", outcome.changes));
    Ok(())
}

/// Removes the virtual services that `which` takes, but none in `--excluded-cidrs`.
fn remove_services(config: &Config, which: impl Fn(&ServiceKey) -> bool) -> anyhow::Result<usize> {
    let mut ipvs = open_ipvs()?;
    let found = ipvs.observe_services()?;
    let excluded = |key: &ServiceKey| match key {
        ServiceKey::Address { address, .. } => config.admission.is_excluded(*address),
        ServiceKey::Mark { .. } => false,
    };
    let keys = found.iter().map(|state| state.service.key).filter(|key| which(key) && !excluded(key));
    let commands: Vec<_> = keys.map(Command::DeleteService).collect();
    ipvs.commit(&commands)?;
    Ok(commands.len())
}

/// Removes the virtual services on the addresses of a device, and on node ports of the node's other addresses.
fn remove_services_of(config: &Config, device: &str) -> anyhow::Result<usize> {
    let mut netlink = open_netlink()?;
    let name = LinkName::new(device).context("no device can have that name")?;
    let Some(link) = netlink.observe_link(&name)? else { return Ok(0) };
    let (virtual_ones, own): (Vec<_>, Vec<_>) =
        netlink.observe_addresses()?.into_iter().partition(|address| address.link == link.index);
    let ips = |list: Vec<route::Address>| -> BTreeSet<IpAddr> {
        list.into_iter().map(|address| address.address.addr()).collect()
    };
    let (virtual_ones, own) = (ips(virtual_ones), ips(own));
    remove_services(config, |key| match key {
        ServiceKey::Address { address, port, .. } => {
            virtual_ones.contains(address) || (own.contains(address) && config.node_ports.contains(port))
        }
        ServiceKey::Mark { .. } => false,
    })
}

fn kube_router(config: &Config) -> anyhow::Result<()> {
    // Its device is ours too and is removed with ours.
    let services = remove_services_of(config, owned::DEVICE)?;
    tell(format_args!("kube-router: {services} virtual services removed"));
    let mut netlink = open_netlink()?;
    for (preference, table) in KUBE_ROUTER_TABLES {
        let table = Table(table);
        let mut commands = Vec::new();
        for family in [route::Family::Ipv4, route::Family::Ipv6] {
            let rules = netlink.observe_rules(family)?.into_iter();
            let rules = rules
                .filter(|rule| rule.preference == preference && rule.action == RuleAction::Lookup(table));
            commands.extend(rules.map(route::Command::DeleteRule));
        }
        let routes = netlink.observe_routes(&RouteFilter { table: Some(table), ..RouteFilter::default() })?;
        commands.extend(routes.into_iter().map(route::Command::DeleteRoute));
        netlink.commit(&commands)?;
        tell(format_args!("kube-router: {} rules and routes of table {} removed", commands.len(), table.0));
    }
    Ok(())
}

/// kube-router's chains, the rules that lead to them, and its ipsets. Its rules in chains that are not its own (SNAT in nat, marks
/// in mangle) have nothing that tells them from a user's.
fn kube_router_chains() -> anyhow::Result<()> {
    let mut ipsets = Ipsets::open().context("opening a netlink socket for ipsets")?;
    let errors = KUBE_ROUTER.remove(&mut open_nftables()?, &mut ipsets, |trace| {
        tell(format_args!("kube-router: {trace} removed"));
    });
    legacy::remaining("kube-router", &["filter", "nat"], KUBE_ROUTER_CHAINS).lines().for_each(tell);
    tell("kube-router: its rules in POSTROUTING (nat) stay, see docs/guides/svc-proxy-ipvs.md");
    if errors.is_empty() {
        return Ok(());
    }
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    anyhow::bail!("what kube-router left is not removed as a whole:\n{}", errors.join("\n"))
}

fn is_kube_router_ipset(name: &str) -> bool {
    let name = name.strip_prefix("inet6:").unwrap_or(name);
    matches!(name, "kube-router-local-ips" | "kube-router-svip" | "kube-router-svip-prt")
}

fn kube_proxy(config: &Config) -> anyhow::Result<()> {
    let services = remove_services_of(config, owned::KUBE_PROXY_DEVICE)?;
    tell(format_args!("kube-proxy: {services} virtual services removed"));
    let mut netlink = open_netlink()?;
    let name = LinkName::new(owned::KUBE_PROXY_DEVICE).context("no device can have that name")?;
    if let Some(link) = netlink.observe_link(&name)? {
        netlink.commit(&[route::Command::DeleteLink(link.index)])?;
        tell(format_args!("kube-proxy: device {} removed", owned::KUBE_PROXY_DEVICE));
    }
    for family in [Family::Ip, Family::Ip6] {
        let mut nft = open_nftables()?;
        if nft.observe(family, KUBE_PROXY_TABLE)?.is_some() {
            Keeper::new(nft, family, KUBE_PROXY_TABLE).commit(&[Op::DeleteTable], None)?;
            tell(format_args!("kube-proxy: table {family} {KUBE_PROXY_TABLE} removed"));
        }
    }
    tell("kube-proxy: its iptables chains KUBE-* stay; remove them with `kube-proxy --cleanup`");
    Ok(())
}
