//! The commands: what is connected to what in each of them.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use common_informer::decode::ServiceDetail;
use common_informer::object::Kind;
use common_informer::{Informer, Options, Source};
use node_runtime::controller_loop::from_channel;
use node_runtime::shutdown::CancellationToken;
use node_runtime::{CommonArgs, Daemon, DaemonError, LoopError};
use tokio::sync::mpsc;

use crate::apply::lease::{Elector, Leadership, random};
use crate::apply::service;
use crate::args::{Cli, Command, Config, LeaseConfig, PROGRAM};
use crate::controller::{Allocator, Message};
use crate::metrics::Metrics;
use crate::model::world::{Touched, World, shown};
use crate::plan::{PlanConfig, Planner};
use crate::term::{self, Watch};

/// Batches that wait for the controller; the informer coalesces what does not fit.
const MESSAGES: usize = 4;

/// Carries out the command line.
///
/// # Errors
/// With what was tried, for the operator.
pub fn run() -> anyhow::Result<()> {
    let parsed = node_runtime::args::parse::<Cli>(&PROGRAM);
    let Cli { command, common, allocator } = parsed.cli;
    let config = allocator.into_config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command.unwrap_or_default() {
            Command::Run => {
                if let Some(folder) = &common.manifests {
                    bail!(
                        "--manifests {}: files have no status that addresses could be written to; only `plan` \
                         works with them",
                        folder.display()
                    );
                }
                let daemon = Daemon::start(&PROGRAM, &common)?;
                parsed.ignored.warn();
                allocate(daemon, &common, config).await
            }
            Command::Plan => {
                node_runtime::log::init(common.log_format, common.verbosity)?;
                parsed.ignored.warn();
                plan(&common, config.plan).await
            }
        }
    })
}

/// Gives addresses until a signal.
///
/// ```text
///  Elector ── leadership ──► term ── messages ──► loop ── jobs ──► Writer
///                 └─────────────────────────────────────────────────► (sends only as the leader)
/// ```
///
/// ORDER: the loop ends first, with it the writes; then the Lease is given back.
async fn allocate(daemon: Daemon, common: &CommonArgs, config: Config) -> anyhow::Result<()> {
    let Config { once, plan, lease } = config;
    let LeaseConfig { name, namespace, timing, instance } = lease;
    let client = common_informer::client(common.kubeconfig.as_deref(), common.master.as_deref()).await?;
    let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let instance = match instance {
        Some(instance) => instance,
        None => common.resolve_node_name()?,
    };
    let identity = format!("{instance}_{:016x}", random());
    let elector = Elector::new(client.clone(), &namespace, &name, identity, timing);
    let leadership = elector.leadership();
    let metrics = Metrics::new(&daemon.registry)?;
    let counted = metrics.clone();
    let count = Box::new(move |write, result| counted.count_write(write, result));
    let (bridge, writer) = service::bridge(client, leadership.clone(), timing.write_timeout(), count);
    let watch = watch(common, &plan);
    let (messages, received) = mpsc::channel(MESSAGES);
    let shown_metrics = Some((metrics, daemon.registry.common().clone()));
    let stop_election = CancellationToken::new();
    let stopped = stop_election.clone();
    let election = tokio::spawn(elector.run(async move { stopped.cancelled().await }));
    let mut writing = tokio::spawn(writer.run());
    let shutdown = daemon.shutdown.clone();
    let feeding = {
        let leadership = leadership.clone();
        async move {
            let result = term::run(&watch, leadership, messages, once).await;
            if result.is_err() {
                shutdown.cancel();
            }
            result
        }
    };
    let make = move || Ok::<_, anyhow::Error>(Allocator::new(plan, once, bridge, shown_metrics));
    let looping = daemon.run(common, once, make, from_channel::<Message>(received));
    let (looped, fed) = both(looping, feeding).await;
    // The bridge went with the loop: there are no writes any more, only Events that wait to be sent.
    if tokio::time::timeout(timing.write_timeout(), &mut writing).await.is_err() {
        writing.abort();
    }
    stop_election.cancel();
    let _ = election.await;
    fed.context("this instance cannot lead")?;
    let lease = format!("{namespace}/{name}");
    looped.map_err(|error| explained(error, &lease, &leadership.borrow()))
}

/// The error for people: an instance that was never ready mostly could not get the Lease.
fn explained(error: DaemonError, lease: &str, seen: &Leadership) -> anyhow::Error {
    if !matches!(error, DaemonError::Loop(LoopError::CacheSyncTimeout(_))) {
        return error.into();
    }
    let why = match (&seen.error, &seen.holder) {
        (Some(error), _) => format!("lease {lease}: {error}"),
        (None, Some(holder)) => format!("{holder} holds the lease {lease}"),
        (None, None) => format!("the lease {lease} was not to be had"),
    };
    anyhow::Error::new(error).context(why)
}

/// Waits for the loop. The feeder ends by itself when nobody listens; an error of it comes before.
async fn both<L, F>(
    looping: impl Future<Output = L>,
    feeding: impl Future<Output = Result<(), F>>,
) -> (L, Result<(), F>) {
    let (mut looping, mut feeding) = (std::pin::pin!(looping), std::pin::pin!(feeding));
    tokio::select! {
        looped = &mut looping => (looped, Ok(())),
        fed = &mut feeding => (looping.await, fed),
    }
}

fn watch(common: &CommonArgs, plan: &PlanConfig) -> Watch {
    let mut kinds = vec![Kind::Service];
    if plan.pools.read_namespaces() {
        kinds.push(Kind::Namespace);
    }
    Watch {
        source: source(common),
        kinds,
        options: Options { services: ServiceDetail::Labelled, only_node: None },
        limit: common.cache_sync_timeout,
    }
}

fn source(common: &CommonArgs) -> Source {
    Source::chosen(common.manifests.as_deref(), common.kubeconfig.as_deref(), common.master.as_deref())
}

/// Prints who would have which address. Needs no Lease, and writes nothing.
async fn plan(common: &CommonArgs, config: PlanConfig) -> anyhow::Result<()> {
    let Watch { source, kinds, options, limit } = watch(common, &config);
    let limit: Duration = limit;
    let mut world = World::default();
    let mut touched = Touched::new();
    for batch in Informer::collect(&source, &kinds, options, limit).await? {
        batch.changes.into_iter().for_each(|change| world.apply(change, &mut touched));
    }
    let text = render(&world, &Planner::desired(&world, config));
    node_runtime::print(&text).context("writing to the standard output")
}

/// One line for each Service of ours, and one below it for each of its problems.
pub fn render(world: &World, planner: &Planner) -> String {
    let mut text = String::new();
    for (key, ips, problems) in planner.iter() {
        let list =
            |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let shown: Vec<_> = world.service(key).map(|service| shown(service).collect()).unwrap_or_default();
        let ours = planner.addresses(key).is_some();
        let change = match (ours, shown.as_slice()) {
            (false, _) => "left alone".to_owned(),
            (true, shown) if shown.len() == ips.len() && ips.iter().all(|ip| shown.contains(ip)) => {
                "as it is".to_owned()
            }
            (true, []) => "new".to_owned(),
            (true, shown) => format!("instead of {}", list(shown)),
        };
        let addresses = if ips.is_empty() { "none".to_owned() } else { list(ips) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key} {addresses} ({change})");
        for problem in problems {
            let _ = writeln!(text, "  {problem}");
        }
    }
    text
}
