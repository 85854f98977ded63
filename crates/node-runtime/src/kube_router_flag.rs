//! The flags of kube-router v2.11 (pkg/options/options.go), so that an existing DaemonSet starts with only the
//! image changed.
//!
//! A binary that has a use for one declares it as its own, and [`crate::args::parse`] leaves it to that. All
//! others are accepted, do nothing, and are each told about in one warning.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use crate::Program;
use crate::args::go_boolean;

/// What a flag is about, which says why a controller has no use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Firewall,
    Proxy,
    Routing,
    LoadBalancer,
    Cni,
    /// kube-router's process: which of its parts run, profiling.
    Process,
    /// Removes kube-router's state and exits. To ignore that would be wrong.
    Cleanup,
}

#[derive(Debug)]
struct Flag {
    name: &'static str,
    is_switch: bool,
    about: About,
}

const fn switch(name: &'static str, about: About) -> Flag {
    Flag { name, is_switch: true, about }
}

const fn value(name: &'static str, about: About) -> Flag {
    Flag { name, is_switch: false, about }
}

/// All of kube-router's flags, but those that every daemon here has too.
const FLAGS: &[Flag] = {
    use About::{Cleanup, Cni, Firewall, LoadBalancer, Process, Proxy, Routing};
    &[
        switch("advertise-cluster-ip", Routing),
        switch("advertise-external-ip", Routing),
        switch("advertise-loadbalancer-ip", Routing),
        switch("advertise-pod-cidr", Routing),
        switch("auto-mtu", Cni),
        value("bfd-desired-min-tx-interval", Routing),
        value("bfd-detection-multiplier", Routing),
        value("bfd-port", Routing),
        value("bfd-required-min-rx-interval", Routing),
        switch("bgp-graceful-restart", Routing),
        value("bgp-graceful-restart-deferral-time", Routing),
        value("bgp-graceful-restart-time", Routing),
        value("bgp-holdtime", Routing),
        value("bgp-port", Routing),
        switch("cleanup-config", Cleanup),
        value("cluster-asn", Routing),
        switch("disable-source-dest-check", Routing),
        switch("enable-bfd", Routing),
        switch("enable-cni", Cni),
        switch("enable-ibgp", Routing),
        switch("enable-ipv4", Process),
        switch("enable-ipv6", Process),
        switch("enable-overlay", Routing),
        switch("enable-pod-egress", Routing),
        switch("enable-pprof", Process),
        value("excluded-cidrs", Proxy),
        value("gobgp-admin-address", Routing),
        value("gobgp-admin-port", Routing),
        switch("hairpin-mode", Proxy),
        value("injected-routes-sync-period", Routing),
        value("iptables-sync-period", Firewall),
        value("ipvs-graceful-period", Proxy),
        switch("ipvs-graceful-termination", Proxy),
        switch("ipvs-permit-all", Proxy),
        value("ipvs-sync-period", Proxy),
        switch("loadbalancer-default-class", LoadBalancer),
        value("loadbalancer-ip-range", LoadBalancer),
        value("loadbalancer-sync-period", LoadBalancer),
        switch("masquerade-all", Proxy),
        switch("netpol-default-deny", Firewall),
        switch("nodeport-bindon-all-ip", Proxy),
        switch("nodes-full-mesh", Routing),
        value("overlay-encap", Routing),
        value("overlay-encap-port", Routing),
        value("overlay-type", Routing),
        switch("override-nexthop", Routing),
        value("peer-router-asns", Routing),
        value("peer-router-ips", Routing),
        value("peer-router-multihop-ttl", Routing),
        value("peer-router-passwords", Routing),
        value("peer-router-passwords-file", Routing),
        value("peer-router-ports", Routing),
        value("router-id", Routing),
        value("routes-sync-period", Routing),
        switch("run-firewall", Process),
        switch("run-loadbalancer", Process),
        switch("run-router", Process),
        switch("run-service-proxy", Process),
        value("runtime-endpoint", Proxy),
        value("service-cluster-ip-range", Firewall),
        value("service-external-ip-range", Firewall),
        value("service-node-port-range", Firewall),
        value("service-tcp-timeout", Proxy),
        value("service-tcpfin-timeout", Proxy),
        value("service-udp-timeout", Proxy),
        switch("strict-external-ip-validation", Proxy),
        switch("use-nftables-for-netpol", Firewall),
    ]
};

impl About {
    const fn why_ignored(self) -> &'static str {
        match self {
            Self::Firewall => "it sets kube-router's firewall; npc-firewall has what is left of it",
            Self::Proxy => "it sets kube-router's service proxy; see svc-proxy-ipvs",
            Self::Routing => "it sets kube-router's routing; see route-bgp",
            Self::LoadBalancer => "it sets kube-router's load balancer allocator; see lb-ipam",
            Self::Cni => "it sets kube-router's CNI configuration; see cni-bridge",
            Self::Process => "it switches parts of kube-router's one process; here each is its own program",
            Self::Cleanup => "it removes kube-router's state",
        }
    }
}

/// Flags that were given and have no effect.
#[derive(Debug, Default)]
pub struct Ignored(Vec<&'static Flag>);

impl Ignored {
    /// The flags' names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|flag| flag.name)
    }

    /// One warning each.
    pub fn warn(&self) {
        for flag in &self.0 {
            tracing::warn!(flag = flag.name, why = flag.about.why_ignored(), "flag has no effect here");
        }
    }
}

/// Adds all flags that `command` does not have, hidden.
pub(crate) fn accept(command: Command) -> Command {
    let own: Vec<String> = command
        .get_arguments()
        .chain(command.get_subcommands().flat_map(Command::get_arguments))
        .flat_map(|arg| arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default()))
        .map(str::to_owned)
        .collect();
    let foreign = FLAGS.iter().filter(|flag| !own.iter().any(|name| name == flag.name));
    command.args(foreign.map(|flag| {
        let arg = Arg::new(flag.name).long(flag.name).hide(true).global(true);
        if flag.is_switch { go_boolean(arg.action(clap::ArgAction::SetTrue)) } else { arg.num_args(1) }
    }))
}

/// Which of the flags that [`accept`] added were given.
pub(crate) fn take_ignored(
    program: &Program,
    command: &mut Command,
    matches: &ArgMatches,
) -> Result<Ignored, clap::Error> {
    let mut ignored = Vec::new();
    for flag in FLAGS {
        // `try_contains_id` fails for what `accept` left to the binary.
        let ours = matches.try_contains_id(flag.name).is_ok();
        if !ours || matches.value_source(flag.name) != Some(ValueSource::CommandLine) {
            continue;
        }
        if flag.about == About::Cleanup && matches.get_flag(flag.name) {
            let message = format!("--{} is a command here: `{} cleanup`", flag.name, program.name);
            return Err(command.error(ErrorKind::InvalidValue, message));
        }
        ignored.push(flag);
    }
    Ok(Ignored(ignored))
}
