//! The commands: what is connected to what in each of them.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use common_informer::node_events::NodeEvents;
use common_informer::object::Kind;
use common_informer::{Informer, Options, Source};
use kernel_netlink::route::Socket;
use kernel_netlink::sysctl::Sysctls;
use node_runtime::{Cause, CommonArgs, Controller, Daemon, Health, NodeArgs, Waker};

use crate::apply::plugin;
use crate::apply::status::{self, Bridge};
use crate::apply::watch::Watched;
use crate::args::{Cli, Command, Config, Files, PROGRAM};
use crate::cleanup;
use crate::controller::{Agent, Surroundings};
use crate::metrics::Metrics;
use crate::plan::PlanConfig;

/// What the agent watches; its RBAC names just this, and `patch` of `nodes/status`.
pub const KINDS: [Kind; 1] = [Kind::Node];

/// Carries out the command line.
///
/// # Errors
/// With what was tried, for the operator.
pub fn run() -> anyhow::Result<()> {
    let parsed = node_runtime::args::parse::<Cli>(&PROGRAM);
    let Cli { command, common, node, agent } = parsed.cli;
    let config = agent.into_config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command.unwrap_or_default() {
            Command::Run => {
                let daemon = Daemon::start(&PROGRAM, &common)?;
                parsed.ignored.warn();
                keep(daemon, &common, node, config).await
            }
            Command::Plan => {
                node_runtime::log::init(common.log_format, common.verbosity)?;
                parsed.ignored.warn();
                plan(&common, config).await
            }
            Command::Cleanup => {
                cleanup::run(&config)?.iter().for_each(node_runtime::tell);
                Ok(())
            }
        }
    })
}

/// Installs, writes, and keeps it right until a signal.
async fn keep(daemon: Daemon, common: &CommonArgs, flags: NodeArgs, config: Config) -> anyhow::Result<()> {
    let Config { once, plan, files, set_network_available, sysctl_root } = config;
    let name = common.resolve_node_name()?;
    let plugin = plugin_of(&files)?;
    let informer = Informer::start_with(&source(common), &KINDS, only(&name)).await?;
    let status = informer.status();
    let shown = status.clone();
    // Files have no status that could be written to.
    let writes = if set_network_available && common.manifests.is_none() {
        let client = common_informer::client(common.kubeconfig.as_deref(), common.master.as_deref()).await?;
        let (bridge, writer) = status::bridge(client, name.clone());
        tokio::spawn(writer.run());
        Some(bridge)
    } else {
        None
    };
    let metrics = Metrics::new(&daemon.registry)?;
    let common_metrics = daemon.registry.common().clone();
    let (waker, health) = (daemon.waker.clone(), daemon.health.clone());
    if flags.node_events && !once {
        let health = daemon.health.clone();
        let events = NodeEvents::new(source(common), PROGRAM.name, name.clone());
        tokio::spawn(events.run(move || health.report(Instant::now()).degraded));
    }
    let make = move || -> anyhow::Result<_> {
        if !once {
            watch(&files, waker, health);
        }
        let surroundings = Surroundings {
            kernel: open()?,
            status: writes,
            sysctls: sysctl_root.map(Sysctls::new),
            metrics: Some((metrics, common_metrics)),
            informer: Some(shown),
        };
        Ok(Agent::new(&name, plan, files, plugin, surroundings))
    };
    let outcome = daemon.run(common, once, make, informer.into_stream()).await;
    Ok(outcome.map_err(|error| error.explained(|waited| status.missing(waited)))?)
}

/// Prints the configuration that would be written. Needs no privileges.
async fn plan(common: &CommonArgs, config: Config) -> anyhow::Result<()> {
    let Config { once: _, plan, files, set_network_available: _, sysctl_root: _ } = config;
    let mut agent = reader(common, plan, files)?;
    let limit = common.cache_sync_timeout;
    let name = common.resolve_node_name()?;
    for batch in Informer::collect(&source(common), &KINDS, only(&name), limit).await? {
        agent.receive(batch);
    }
    let (_, planned) = agent.planned()?;
    for problem in agent.complaints() {
        tracing::warn!(problem, "not all is as it should be");
    }
    node_runtime::print(&planned.render()).context("writing to the standard output")
}

/// An agent that only looks.
fn reader(common: &CommonArgs, plan: PlanConfig, files: Files) -> anyhow::Result<Agent<Socket, Bridge>> {
    let surroundings =
        Surroundings { kernel: open()?, status: None, sysctls: None, metrics: None, informer: None };
    Ok(Agent::new(&common.resolve_node_name()?, plan, files, PathBuf::new(), surroundings))
}

fn open() -> anyhow::Result<Socket> {
    Socket::open().context("opening a netlink socket for links and addresses")
}

fn plugin_of(files: &Files) -> anyhow::Result<PathBuf> {
    match &files.plugin {
        Some(path) => Ok(path.clone()),
        None => {
            plugin::beside_this_program().context("finding the plugin beside this program; give --plugin")
        }
    }
}

/// Tells the loop of changes by others, for as long as the process lives. Without it, audits find them.
fn watch(files: &Files, waker: Waker, health: Health) {
    let conf = files.conf.parent().map(ToOwned::to_owned).unwrap_or_default();
    let bin = files.bin_dir.clone();
    let watching = move || {
        let result =
            Watched::open(&[&conf, &bin]).and_then(|watched| watched.run(|| waker.wake(Cause::Kernel)));
        if let Err(error) = result {
            tracing::warn!(%error, "changes by others are only noticed by audits");
            health.degrade("watch_failing", format!("files and links are not watched: {error}"));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("watch".to_owned()).spawn(watching) {
        tracing::warn!(%error, "changes by others are only noticed by audits");
    }
}

fn only(name: &str) -> Options {
    Options { only_node: Some(name.to_owned()), ..Options::default() }
}

fn source(common: &CommonArgs) -> Source {
    Source::chosen(common.manifests.as_deref(), common.kubeconfig.as_deref(), common.master.as_deref())
}
