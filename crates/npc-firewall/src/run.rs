//! The commands: what is connected to what in each of them.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use common_informer::node_events::NodeEvents;
use common_informer::object::{Batch, Kind};
use common_informer::problem::Problems;
use common_informer::{CollectError, Informer, Options, Source};
use kernel_nft::{Family, Monitor, Nftables, Socket, TableFlags, conntrack};
use node_runtime::{Cause, CommonArgs, Controller, Daemon, NodeArgs, Waker};

use crate::apply::Marks;
use crate::apply::sysctl::Sysctls;
use crate::args::{Cli, Command, Config, PROGRAM};
use crate::controller::{self, Firewall, Surroundings, WatchTable};
use crate::metrics::Metrics;
use crate::model::world::{Touched, World};
use crate::plan::Planner;
use crate::{cleanup, owned};

/// Between two changes of the table by others that are looked into; each is mended within a second.
const PAUSE: Duration = Duration::from_millis(400);

/// What the firewall watches; its RBAC names just these.
pub const KINDS: [Kind; 4] = [Kind::Namespace, Kind::NetworkPolicy, Kind::Pod, Kind::Service];

/// Carries out the command line.
///
/// # Errors
/// With what was tried, for the operator.
pub fn run() -> anyhow::Result<()> {
    let parsed = node_runtime::args::parse::<Cli>(&PROGRAM);
    let Cli { command, common, node, firewall } = parsed.cli;
    let config = firewall.into_config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command.unwrap_or_default() {
            Command::Run => {
                let daemon = Daemon::start(&PROGRAM, &common)?;
                parsed.ignored.warn();
                enforce(daemon, &common, node, config).await
            }
            Command::Plan => {
                look(&common)?;
                parsed.ignored.warn();
                plan(&common, config).await
            }
            Command::Diff => {
                look(&common)?;
                parsed.ignored.warn();
                difference(&common, config).await
            }
            Command::Cleanup(args) => cleanup::run(&mut open_nftables()?, args),
        }
    })
}

async fn enforce(daemon: Daemon, common: &CommonArgs, flags: NodeArgs, config: Config) -> anyhow::Result<()> {
    let node = common.resolve_node_name()?;
    let informer = Informer::start(&source(common), &KINDS).await?;
    let status = informer.status();
    let shown = status.clone();
    let metrics = Metrics::new(&daemon.registry)?;
    let common_metrics = daemon.registry.common().clone();
    let waker = daemon.waker.clone();
    let once = config.once;
    if flags.node_events && !once {
        let health = daemon.health.clone();
        let events = NodeEvents::new(source(common), PROGRAM.name, node.clone());
        tokio::spawn(events.run(move || health.report(Instant::now()).degraded));
    }
    let make = move || -> anyhow::Result<_> {
        let mut nft = open_nftables()?;
        let owned =
            config.own_table && nft.supports_persist().context("asking the kernel what tables can be")?;
        let port = nft.portid();
        let watch: WatchTable = Box::new(move |waker| watch_table(waker, port));
        let surroundings = Surroundings {
            nft,
            marks: Box::new(ConnectionMarks),
            sysctls: Some(Sysctls::new(config.sysctl_root)),
            watch: (!once).then_some((watch, waker)),
            metrics: Some((metrics, common_metrics)),
            informer: Some(shown),
        };
        let flags = TableFlags { owner: owned, persist: owned, ..TableFlags::default() };
        Ok(Firewall::new(&node, config.plan, flags, surroundings))
    };
    let outcome = daemon.run(common, once, make, informer.into_stream()).await;
    Ok(outcome.map_err(|error| error.explained(|waited| status.missing(waited)))?)
}

/// Prepares a command that only prints.
fn look(common: &CommonArgs) -> anyhow::Result<()> {
    Ok(node_runtime::log::init(common.log_format, common.verbosity)?)
}

/// Prints the wanted table. Needs the objects and nothing else: no privileges, not even nftables.
async fn plan(common: &CommonArgs, config: Config) -> anyhow::Result<()> {
    let mut world = World::new(common.resolve_node_name()?.as_str().into());
    let mut touched = Touched::default();
    for batch in everything(common).await? {
        batch.changes.into_iter().for_each(|change| world.apply(change, &mut touched));
    }
    let mut planner = Planner::new(config.plan, TableFlags::default());
    planner.update(&world, &touched);
    let mut problems = Problems::default();
    problems.update(controller::problems(&world, &planner));
    print(&kernel_nft::text::render(planner.ruleset()))
}

/// Prints what `run` would change in the kernel.
async fn difference(common: &CommonArgs, config: Config) -> anyhow::Result<()> {
    let surroundings = Surroundings {
        nft: open_nftables()?,
        marks: Box::new(ConnectionMarks),
        sysctls: None,
        watch: None,
        metrics: None,
        informer: None,
    };
    let node = common.resolve_node_name()?;
    let mut firewall = Firewall::new(&node, config.plan, TableFlags::default(), surroundings);
    everything(common).await?.into_iter().for_each(|batch| firewall.receive(batch));
    let ops = firewall.difference()?;
    print(&kernel_nft::text::render_ops(firewall.planner().ruleset(), &ops))
}

fn print(text: &str) -> anyhow::Result<()> {
    node_runtime::print(text).context("writing to the standard output")
}

/// All objects that there are now.
async fn everything(common: &CommonArgs) -> Result<Vec<Batch>, CollectError> {
    Informer::collect(&source(common), &KINDS, Options::default(), common.cache_sync_timeout).await
}

fn source(common: &CommonArgs) -> Source {
    Source::chosen(common.manifests.as_deref(), common.kubeconfig.as_deref(), common.master.as_deref())
}

/// Tells the loop of changes of the table by others, for as long as the process lives.
fn watch_table(waker: Waker, own_port: u32) {
    Monitor::spawn(Family::Inet, owned::TABLE, &[own_port], PAUSE, move || waker.wake(Cause::Kernel));
}

fn open_nftables() -> anyhow::Result<Socket> {
    Socket::open().map_err(|error| {
        let what = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "nftables cannot be read or changed; the capability CAP_NET_ADMIN is missing"
            }
            _ => "opening a netlink socket for nftables",
        };
        anyhow::Error::new(error).context(what)
    })
}

struct ConnectionMarks;

impl Marks for ConnectionMarks {
    fn clear(&mut self, mask: u32, keep: u32) -> io::Result<()> {
        let cleared = conntrack::clear_marks(mask, keep)?;
        tracing::debug!(cleared, "marks of old generations cleared");
        Ok(())
    }
}
