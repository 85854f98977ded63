//! The flags that all daemons have, and the way in which all of their flags are read.
//!
//! [`parse`] takes a clap derive struct and adds what is the same for every binary:
//! - each flag has an environment variable, `<BINARY>_<FLAG>` (`NPC_FIREWALL_SYNC_PERIOD`); only
//!   `--node-name` has `NODE_NAME`, as in kube-router's manifests. The command line wins;
//! - booleans are given as in Go: `--flag`, `--flag=true`, `--flag=false`; so plain `bool` fields will do;
//! - of a flag given twice the last counts, and flags may stand before or after a subcommand;
//! - `-v`, `-vv`, `-v=2`, `-v 2`, `-v2` and `--v=2` all set the verbosity;
//! - kube-router's flags that the binary has no use for are accepted, see [`crate::kube_router_flag`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Args, Command, Parser};

use crate::kube_router_flag;
pub use crate::kube_router_flag::Ignored;
use crate::{Program, log};

/// The common flags; `#[command(flatten)]` them into the flags of a binary.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Kubeconfig file of the cluster; without it and --master, the pod's service account is used
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// URL of the API server; wins over the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// Name of the Node object of this machine [default: the host name, in lower case]
    #[arg(long, visible_alias = "hostname-override", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Take objects from YAML and JSON files in this folder, and not from an API server
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"])]
    pub manifests: Option<PathBuf>,

    /// How long the first listing of all objects may take before the process gives up; 0 for no limit
    #[arg(long, default_value = "1m", value_parser = duration, value_name = "DURATION")]
    pub cache_sync_timeout: Duration,

    /// Time between two full audits of the kernel's state; 0 for none
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub sync_period: Duration,

    /// Address to serve metrics on; empty for all
    #[arg(long, default_value = "", value_name = "IP", hide_default_value = true)]
    pub metrics_addr: ListenAddr,

    /// Port to serve metrics on; with 0 they are served on the health port, to clients on this node only
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub metrics_port: u16,

    /// Path of the metrics
    #[arg(long, default_value = "/metrics", value_parser = metrics_path, value_name = "PATH")]
    pub metrics_path: String,

    /// Address to serve /healthz and /readyz on; empty for all
    #[arg(long, default_value = "", value_name = "IP", hide_default_value = true)]
    pub health_addr: ListenAddr,

    /// Port to serve /healthz and /readyz on; 0 for none
    #[arg(long, default_value_t = 20244, value_name = "PORT")]
    pub health_port: u16,

    /// Form of the log lines
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: log::Format,

    /// More log lines: 1 debug, 4 trace; RUST_LOG wins
    #[arg(short = 'v', long, alias = "v", default_value_t = 0, value_name = "LEVEL")]
    pub verbosity: u8,
}

/// Flags of the daemons that run on each node.
#[derive(Debug, Clone, Copy, Args)]
pub struct NodeArgs {
    /// Tell what is wrong for long as Events about the Node too; takes create on events
    #[arg(long)]
    pub node_events: bool,
}

impl CommonArgs {
    /// The node's name by flag or `NODE_NAME`, else the host name in lower case, as the kubelet does it.
    ///
    /// # Errors
    /// When there is no flag and no host name.
    pub fn resolve_node_name(&self) -> io::Result<String> {
        if let Some(name) = self.node_name.as_deref().map(str::trim).filter(|name| !name.is_empty()) {
            return Ok(name.to_owned());
        }
        let name = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase();
        if name.is_empty() || name == "(none)" {
            return Err(io::Error::other("this machine has no host name; give --node-name"));
        }
        Ok(name)
    }

    /// The listeners that the flags ask for: none, one for both, or two.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        let health = Listener { addr: self.health_addr, port: self.health_port, metrics: false };
        let metrics = Listener { addr: self.metrics_addr, port: self.metrics_port, metrics: true };
        let shared = (health.addr, health.port) == (metrics.addr, metrics.port);
        let wanted = if shared { vec![metrics] } else { vec![health, metrics] };
        wanted.into_iter().filter(|listener| listener.port != 0).collect()
    }
}

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Address.
    pub addr: ListenAddr,
    /// Port, not 0.
    pub port: u16,
    /// Whether metrics are served here to everybody.
    pub metrics: bool,
}

/// A local address: an IPv4 or IPv6 literal (brackets allowed), `localhost`, or empty for all of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddr {
    /// All addresses of the machine.
    Any,
    /// One address (or all of one family: `0.0.0.0`).
    Ip(IpAddr),
}

impl FromStr for ListenAddr {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self::Any),
            "localhost" => Ok(Self::Ip(Ipv4Addr::LOCALHOST.into())),
            _ => {
                let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                inner.unwrap_or(text).parse().map(Self::Ip)
            }
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("*"),
            Self::Ip(ip) => ip.fmt(formatter),
        }
    }
}

/// A duration as Go writes it: `5m`, `1h30m`, `1.5s`, `100ms`, `0`. For `value_parser`.
///
/// # Errors
/// When it is not one, is negative, or has a unit that Go has not: `5M` would be months in other notations.
pub fn duration(text: &str) -> Result<Duration, String> {
    let go_units = text.chars().all(|c| c.is_ascii_digit() || ".hmsunµμ".contains(c));
    let parsed = go_units.then(|| humantime::parse_duration(&text.replace('μ', "µ")));
    match parsed {
        Some(Ok(duration)) => Ok(duration),
        _ => Err("expected a duration such as 90s, 5m, 1h30m or 0".to_owned()),
    }
}

fn metrics_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.contains(['?', '#']) || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("expected a path that starts with /".to_owned());
    }
    if ["/", "/healthz", "/readyz", "/state"].contains(&text) {
        return Err("this path serves something else".to_owned());
    }
    Ok(text.to_owned())
}

/// A binary's flags, and kube-router's flags among them that have no effect.
#[derive(Debug)]
pub struct Parsed<C> {
    /// The binary's flags.
    pub cli: C,
    /// To be shown by [`Ignored::warn`] as soon as there is a log.
    pub ignored: Ignored,
}

/// Reads the process's flags. On a mistake, `--help` and `--version`: prints and exits, as clap does.
#[must_use]
pub fn parse<C: Parser>(program: &'static Program) -> Parsed<C> {
    try_parse_from(program, std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// [`parse`] of given words, the first of which is the program's name.
///
/// # Errors
/// A mistake in the words, or a request for help or version.
pub fn try_parse_from<C, I>(program: &'static Program, words: I) -> Result<Parsed<C>, clap::Error>
where
    C: Parser,
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut command = command::<C>(program);
    let words = spell_out_verbosity(words.into_iter().map(Into::into));
    let mut matches = command.try_get_matches_from_mut(words)?;
    let ignored = kube_router_flag::take_ignored(program, &mut command, &matches)?;
    let cli = C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    Ok(Parsed { cli, ignored })
}

/// The command as [`parse`] reads it, e.g. to generate the reference of flags.
#[must_use]
pub fn command<C: Parser>(program: &'static Program) -> Command {
    let adapt = |arg: Arg| go_boolean(with_program(program, arg));
    let command = C::command()
        .name(program.name)
        .version(program.version)
        .args_override_self(true)
        .mut_args(|arg| {
            let is_flag = arg.get_long().is_some();
            adapt(arg).global(is_flag)
        })
        .mut_subcommands(|subcommand| subcommand.mut_args(adapt).args_override_self(true));
    kube_router_flag::accept(command)
}

fn with_program(program: &'static Program, arg: Arg) -> Arg {
    let arg = match arg.get_id().as_str() {
        "health_port" => arg.default_value(program.health_port.to_string()),
        "sync_period" => arg.visible_aliases(program.sync_period_aliases),
        _ => arg,
    };
    match arg.get_long().map(|flag| program.env_name(flag)) {
        Some(name) if arg.get_env().is_none() => arg.env(name),
        _ => arg,
    }
}

/// Has a switch accept `--flag=true|false` too.
pub(crate) fn go_boolean(arg: Arg) -> Arg {
    let is_bool = matches!(arg.get_action(), ArgAction::SetTrue)
        || arg.get_value_parser().type_id() == std::any::TypeId::of::<bool>();
    if !is_bool || arg.get_long().is_none() {
        return arg;
    }
    let has_default = !arg.get_default_values().is_empty();
    let arg = if has_default { arg } else { arg.default_value("false") };
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .hide_possible_values(true)
        .value_name("true|false")
        .value_parser(BoolishValueParser::new())
}

/// Rewrites the short forms of the verbosity to `--verbosity=N`: clap cannot tell `-v 2` from a `-v` followed
/// by a word. Each bare `v` adds one.
fn spell_out_verbosity(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.peekable();
    let mut result = Vec::new();
    let mut level: u8 = 0;
    while let Some(word) = words.next() {
        if word == "--" {
            result.push(word);
            result.extend(words);
            return result;
        }
        match word.to_str().and_then(short_verbosity) {
            Some(Verbosity::Repeated(times)) => {
                let follows = words.next_if(|next| times == 1 && to_level(next).is_some());
                let given = follows.as_deref().and_then(to_level);
                level = given.unwrap_or_else(|| level.saturating_add(times));
                result.push(format!("--verbosity={level}").into());
            }
            Some(Verbosity::Level(given)) => {
                level = given;
                result.push(format!("--verbosity={level}").into());
            }
            None => result.push(word),
        }
    }
    result
}

enum Verbosity {
    Repeated(u8),
    Level(u8),
}

fn short_verbosity(word: &str) -> Option<Verbosity> {
    let rest = word.strip_prefix("-v")?;
    if let Ok(level) = rest.strip_prefix('=').unwrap_or(rest).parse() {
        return Some(Verbosity::Level(level));
    }
    let repeated = rest.bytes().all(|byte| byte == b'v');
    repeated.then(|| Verbosity::Repeated(u8::try_from(rest.len() + 1).unwrap_or(u8::MAX)))
}

fn to_level(word: &OsStr) -> Option<u8> {
    word.to_str()?.parse().ok()
}
