//! Flags, validated to what the other parts take.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use node_runtime::{CommonArgs, NodeArgs, Program};

use crate::owned;
use crate::plan::mtu::{Encapsulation, Overlay, Wanted};
use crate::plan::{Form, PlanConfig};

/// This program.
pub static PROGRAM: Program = Program {
    name: "cni-bridge-agent",
    version: env!("CARGO_PKG_VERSION"),
    health_port: 20247,
    sync_period_aliases: &[],
};

/// Plugins of others whose work the plugin can do too, by the name that it is called by.
const ADDRESSES_ONLY: &str = "host-local";

/// Installs the CNI plugin cni-bridge on this node, and writes its configuration.
#[derive(Debug, Parser)]
pub struct Cli {
    /// What to do; installs and keeps right until a signal if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Common flags.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Flags of what runs on each node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The agent's own flags.
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// Commands.
#[derive(Clone, Copy, Debug, Default, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Install the plugin and its configuration, and keep them right until a signal
    #[default]
    Run,
    /// Print the configuration that would be written; touch nothing
    Plan,
    /// Remove the configuration, or our part of it, and the plugin from this node; pods keep their network
    Cleanup,
}

/// Flags of the agent.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Install and write once and exit 0 when all is in place
    #[arg(long)]
    pub once: bool,

    /// The network's configuration; what others have written into it stays
    #[arg(long, env = "KUBE_ROUTER_CNI_CONF_FILE", default_value = owned::CONF_FILE, value_parser = conf_file, value_name = "FILE")]
    pub cni_conf_file: PathBuf,

    /// Where the runtime looks for plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,

    /// The plugin to install [default: cni-bridge beside this program]
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,

    /// Names to install it by; repeatable. `bridge` or `host-local` put it in the place of upstream's, which is
    /// kept as NAME.upstream
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = owned::PLUGIN, action = clap::ArgAction::Append)]
    pub install_as: Vec<String>,

    /// Take the MTU from the link that has the node's internal address, less what the overlay needs; with false
    /// and without --mtu the configuration's own stays
    #[arg(long, default_value_t = true)]
    pub auto_mtu: bool,

    /// MTU of pods, as it is: nothing is taken off it for the overlay
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65535))]
    pub mtu: Option<u32>,

    /// Whether packets to other nodes may go through tunnels
    #[arg(long, default_value_t = true)]
    pub enable_overlay: bool,

    /// What the tunnels are: ipip (IPIP, for IPv6 ip6tnl), or fou (the same in GUE)
    #[arg(long, value_enum, default_value = "ipip", value_name = "KIND")]
    pub overlay_encap: EncapArg,

    /// Say in the node's status that its network is there (condition NetworkUnavailable=False)
    #[arg(long, default_value_t = true)]
    pub set_network_available: bool,

    /// Have packets on bridges pass the firewall (sysctls net.bridge.bridge-nf-call-*; needs the module br_netfilter)
    #[arg(long, default_value_t = true)]
    pub bridge_nf: bool,

    /// Where sysctls are set
    #[arg(long, default_value = "/proc/sys", value_name = "DIR")]
    pub sysctl_root: PathBuf,

    /// kube-router's switch of this work; this program does nothing else, so false is refused
    #[arg(long, default_value_t = true, hide = true)]
    pub enable_cni: bool,
}

/// Values of `--overlay-encap`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EncapArg {
    /// IP in IP.
    Ipip,
    /// IP in GUE in UDP in IP.
    Fou,
}

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends after the first apply.
    pub once: bool,
    /// For the planner.
    pub plan: PlanConfig,
    /// Files.
    pub files: Files,
    /// Whether the node's status is written.
    pub set_network_available: bool,
    /// Where the bridge sysctls are set; `None` leaves them alone.
    pub sysctl_root: Option<PathBuf>,
}

/// Where things are on the node.
#[derive(Clone, Debug)]
pub struct Files {
    /// The configuration.
    pub conf: PathBuf,
    /// The folder of plugins.
    pub bin_dir: PathBuf,
    /// What is installed; `None` is beside this program.
    pub plugin: Option<PathBuf>,
    /// The names that it is installed by, each once.
    pub names: Vec<String>,
}

/// Flags that contradict each other or this program.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// `--enable-cni=false`
    #[error("--enable-cni=false: this program only installs the CNI plugin; do not deploy it on this node")]
    NotWanted,
    /// A configuration that no runtime would read.
    #[error(
        "--cni-conf-file {}: give the absolute path of a file that ends in .conflist (or .conf, .json: one plugin \
         alone)",
        .0.display()
    )]
    ConfFile(PathBuf),
    /// A name that is none.
    #[error("--install-as {0:?}: give the name of a file, without folders")]
    Name(String),
    /// Nothing that a network could be made by.
    #[error("--install-as host-local: that gives out addresses only; add --install-as cni-bridge")]
    AddressesOnly,
}

impl AgentArgs {
    /// Validates them together.
    ///
    /// # Errors
    /// [`ArgsError`]
    pub fn into_config(self) -> Result<Config, ArgsError> {
        let Self {
            once,
            cni_conf_file,
            cni_bin_dir,
            plugin,
            install_as,
            auto_mtu,
            mtu,
            enable_overlay,
            overlay_encap,
            set_network_available,
            bridge_nf,
            sysctl_root,
            enable_cni,
        } = self;
        if !enable_cni {
            return Err(ArgsError::NotWanted);
        }
        let form = form_of(&cni_conf_file).ok_or_else(|| ArgsError::ConfFile(cni_conf_file.clone()))?;
        let names = names(install_as)?;
        let plugin_type = plugin_type(&names)?.to_owned();
        let overlay = enable_overlay.then_some(match overlay_encap {
            EncapArg::Ipip => Overlay { encapsulation: Encapsulation::IpIp },
            EncapArg::Fou => Overlay { encapsulation: Encapsulation::Gue },
        });
        let mtu = match (mtu, auto_mtu) {
            (Some(mtu), _) => Wanted::Given(mtu),
            (None, true) => Wanted::OfTheLink(overlay),
            (None, false) => Wanted::Untouched,
        };
        Ok(Config {
            once,
            plan: PlanConfig { plugin_type, form, mtu },
            files: Files { conf: cni_conf_file, bin_dir: cni_bin_dir, plugin, names },
            set_network_available,
            sysctl_root: bridge_nf.then_some(sysctl_root),
        })
    }
}

/// An empty variable is none, as kube-router has it.
fn conf_file(text: &str) -> Result<PathBuf, Infallible> {
    Ok(if text.is_empty() { owned::CONF_FILE.into() } else { text.into() })
}

/// libcni (`ConfFiles`) reads these endings only, and tells a list by its ending.
fn form_of(path: &Path) -> Option<Form> {
    path.file_stem()?;
    if !path.is_absolute() {
        return None;
    }
    match path.extension()?.to_str()? {
        "conflist" => Some(Form::List),
        "conf" | "json" => Some(Form::Single),
        _ => None,
    }
}

fn names(given: Vec<String>) -> Result<Vec<String>, ArgsError> {
    let mut names = Vec::new();
    for name in given {
        let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
        if !is_name {
            return Err(ArgsError::Name(name));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The type in the configuration: the plugin's own name if it is installed by that, else the first by which it makes
/// networks.
fn plugin_type(names: &[String]) -> Result<&str, ArgsError> {
    let own = names.iter().find(|name| *name == owned::PLUGIN);
    let other = || names.iter().find(|name| *name != ADDRESSES_ONLY);
    own.or_else(other).map(String::as_str).ok_or(ArgsError::AddressesOnly)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Config, String> {
        let words = [&["cni-bridge-agent"], words].concat();
        let parsed =
            node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words).map_err(|e| e.to_string())?;
        parsed.cli.agent.into_config().map_err(|e| e.to_string())
    }

    #[test]
    fn the_arguments_of_kube_routers_manifests_are_accepted() {
        let words = [
            "cni-bridge-agent",
            "--run-router=true",
            "--run-firewall=true",
            "--run-service-proxy=false",
            "--enable-cni=true",
            "--auto-mtu=true",
            "--enable-overlay",
            "--overlay-type=full",
            "--overlay-encap=fou",
            "--overlay-encap-port=5556",
            "--bgp-graceful-restart=true",
        ];
        let parsed = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words).unwrap();
        let ignored: Vec<_> = parsed.ignored.names().collect();
        assert!(ignored.contains(&"overlay-type") && !ignored.contains(&"overlay-encap"), "{ignored:?}");
        let config = parsed.cli.agent.into_config().unwrap();
        let gue = Overlay { encapsulation: Encapsulation::Gue };
        assert_eq!(config.plan.mtu, Wanted::OfTheLink(Some(gue)));
        assert_eq!(config.files.conf, Path::new(owned::CONF_FILE));
    }

    #[test]
    fn an_mtu_that_is_given_is_stronger_than_the_links() {
        assert_eq!(parse(&["--mtu=1400"]).unwrap().plan.mtu, Wanted::Given(1400));
        assert_eq!(parse(&["--auto-mtu=false"]).unwrap().plan.mtu, Wanted::Untouched);
        assert_eq!(parse(&["--enable-overlay=false"]).unwrap().plan.mtu, Wanted::OfTheLink(None));
        assert!(parse(&["--mtu=67"]).is_err());
    }

    #[test]
    fn the_type_of_the_plugin_is_a_name_that_it_is_installed_by() {
        let kind = |words: &[&str]| parse(words).map(|config| config.plan.plugin_type);
        assert_eq!(kind(&[]).unwrap(), "cni-bridge");
        assert_eq!(kind(&["--install-as=bridge,cni-bridge,bridge"]).unwrap(), "cni-bridge");
        assert_eq!(kind(&["--install-as=host-local", "--install-as=bridge"]).unwrap(), "bridge");
        assert!(kind(&["--install-as=host-local"]).unwrap_err().contains("add --install-as cni-bridge"));
        assert!(kind(&["--install-as=../x"]).unwrap_err().contains("without folders"));
    }

    #[test]
    fn files_that_no_runtime_reads_are_refused() {
        assert_eq!(parse(&["--cni-conf-file=/a/10-x.conf"]).unwrap().plan.form, Form::Single);
        assert_eq!(parse(&["--cni-conf-file="]).unwrap().files.conf, Path::new(owned::CONF_FILE));
        for path in ["10-x.conflist", "/a/10-x", "/a/10-x.yaml", "/"] {
            let error = parse(&[&format!("--cni-conf-file={path}")]).unwrap_err();
            assert!(error.contains("--cni-conf-file"), "{error}");
        }
        assert!(parse(&["--enable-cni=false"]).unwrap_err().contains("do not deploy it"));
    }
}
