//! The commands: what is connected to what in each of them.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use common_informer::decode::ServiceDetail;
use common_informer::endpoints::{Place, explain};
use common_informer::node_events::NodeEvents;
use common_informer::object::{Batch, Change, Kind, Object, ObjectKey};
use common_informer::problem::Problems;
use common_informer::{CollectError, Informer, Options, Source};
use kernel_netlink::conntrack;
use kernel_netlink::ipvs;
use kernel_netlink::route::{self, Event, RouteFilter, RouteProtocol, Scope};
use kernel_netlink::sysctl::Sysctls;
use kernel_nft::{Family, Monitor, Nftables, Socket, TableFlags};
use node_runtime::{Cause, CommonArgs, Daemon, NodeArgs, Waker};
use tokio::runtime::Handle;

use crate::apply::health::Health;
use crate::args::{Cli, Command, Config, PROGRAM};
use crate::controller::{Proxy, Surroundings, Watch};
use crate::metrics::Metrics;
use crate::model::addresses::{Addresses, LocalAddress};
use crate::model::world::{Touched, World};
use crate::plan::{Planner, text};
use crate::{cleanup, owned};

/// Between two changes of the table by others that are looked into; each is mended within a second.
const PAUSE: Duration = Duration::from_millis(400);

/// What the proxy watches; its RBAC names just these.
pub const KINDS: [Kind; 3] = [Kind::EndpointSlice, Kind::Node, Kind::Service];

/// Carries out the command line.
///
/// # Errors
/// With what was tried, for the operator.
pub fn run() -> anyhow::Result<()> {
    let parsed = node_runtime::args::parse::<Cli>(&PROGRAM);
    let Cli { command, common, node, proxy } = parsed.cli;
    let config = proxy.into_config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let command = command.unwrap_or_default();
        if command == Command::Run {
            let daemon = Daemon::start(&PROGRAM, &common)?;
            parsed.ignored.warn();
            return serve(daemon, &common, node, config).await;
        }
        node_runtime::log::init(common.log_format, common.verbosity)?;
        parsed.ignored.warn();
        match command {
            Command::Run => Ok(()),
            Command::Plan => plan(&common, config).await,
            Command::Diff => difference(&common, config).await,
            Command::Explain { service } => tell(&common, &config, &service).await,
            Command::Cleanup { kube_router, kube_proxy } => {
                cleanup::run(&config, cleanup::Leftovers { kube_router, kube_proxy })
            }
        }
    })
}

async fn serve(daemon: Daemon, common: &CommonArgs, flags: NodeArgs, config: Config) -> anyhow::Result<()> {
    let node = common.resolve_node_name()?;
    let informer = Informer::start_with(&source(common), &KINDS, options(&node)).await?;
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
    // On this runtime, which is never blocked: the loop's own is while it talks to the kernel.
    let health = Health::new(Handle::current(), daemon.health.clone(), waker.clone());
    let health = (!once).then(|| health.serve_healthz(config.healthz_port, config.plan.families.clone()));
    let make = move || -> anyhow::Result<_> {
        let mut nft = open_nftables()?;
        let owned = nft.supports_persist().context("asking the kernel what tables can be")?;
        let netlink = open_netlink()?;
        let ports = (nft.portid(), netlink.port());
        let watch: Watch = Box::new(move |waker| watch_kernel(waker, ports.0, ports.1));
        let surroundings = Surroundings {
            ipvs: open_ipvs()?,
            netlink,
            nft,
            connections: Box::new(open_conntrack()?),
            health,
            sysctls: Some(Sysctls::new(&config.sysctl_root)),
            watch: (!once).then_some((watch, waker)),
            metrics: Some((metrics, common_metrics)),
            informer: Some(shown),
        };
        let flags = TableFlags { owner: owned, persist: owned, ..TableFlags::default() };
        Ok(Proxy::new(&node, config, flags, surroundings))
    };
    let outcome = daemon.run(common, once, make, informer.into_stream()).await;
    Ok(outcome.map_err(|error| error.explained(|waited| status.missing(waited)))?)
}

/// Prints what is wanted. Needs the objects and nothing else: the node's addresses are those that the Node object
/// names.
async fn plan(common: &CommonArgs, config: Config) -> anyhow::Result<()> {
    let node = common.resolve_node_name()?;
    let mut world = World::new(
        node.as_str().into(),
        config.proxy_name.clone(),
        config.admission.clone(),
        config.pod_cidrs.clone(),
    );
    let mut touched = Touched::default();
    for batch in everything(common, &node).await? {
        batch.changes.into_iter().for_each(|change| world.apply(change, &mut touched));
    }
    let local: Vec<_> = world
        .node_addresses()
        .iter()
        .map(|address| LocalAddress { ip: address.ip, device: String::new() })
        .collect();
    let addresses = Addresses::of(&config.plan.node_ports, &local, world.node_addresses());
    let mut planner = Planner::new(config.plan, TableFlags::default());
    planner.update(&world, &addresses, &touched);
    let mut problems = Problems::default();
    problems.update(planner.problems());
    let virtuals = text::render(planner.virtuals().values().map(|wanted| &**wanted));
    print(&format!("# ipvsadm -R\n{virtuals}\n# nft -f -\n{}", kernel_nft::text::render(planner.ruleset())))
}

/// Prints what `run` would change in the kernel.
async fn difference(common: &CommonArgs, config: Config) -> anyhow::Result<()> {
    let surroundings = Surroundings {
        ipvs: open_ipvs()?,
        netlink: open_netlink()?,
        nft: open_nftables()?,
        connections: Box::new(open_conntrack()?),
        health: None,
        sysctls: None,
        watch: None,
        metrics: None,
        informer: None,
    };
    let node = common.resolve_node_name()?;
    let mut proxy = Proxy::new(&node, config, TableFlags::default(), surroundings);
    for batch in everything(common, &node).await? {
        node_runtime::Controller::receive(&mut proxy, batch);
    }
    let difference = proxy.difference(Instant::now())?;
    let mut out = text::render_commands(&difference.commands);
    for ip in &difference.new_addresses {
        out += &format!(
            "ip route add local {ip} dev {} table local proto {}\n",
            owned::DEVICE,
            owned::ROUTE_PROTOCOL
        );
    }
    for ip in &difference.gone_addresses {
        out += &format!(
            "ip route del local {ip} dev {} table local proto {}\n",
            owned::DEVICE,
            owned::ROUTE_PROTOCOL
        );
    }
    for command in &difference.direct {
        out += &format!("# {command}\n");
    }
    out += &kernel_nft::text::render_ops(proxy.planner().ruleset(), &difference.table);
    print(&out)
}

/// Says which endpoints serve a Service, and why.
async fn tell(common: &CommonArgs, config: &Config, key: &ObjectKey) -> anyhow::Result<()> {
    let node = common.resolve_node_name()?;
    let mut place = Place { node: node.as_str().into(), zone: None };
    let (mut service, mut slices) = (None, Vec::new());
    for batch in everything(common, &node).await? {
        for change in batch.changes {
            match change {
                Change::Applied(Object::FullService(found)) if found.key == *key => service = Some(found),
                Change::Applied(Object::EndpointSlice(slice))
                    if slice.key.namespace == key.namespace && slice.service.as_ref() == Some(&key.name) =>
                {
                    slices.push(slice);
                }
                Change::Applied(Object::Node(found)) if *found.name == node => {
                    place.zone = found.zone.clone();
                }
                Change::Excluded { object, reason } if object.kind == Kind::Service && object.key == *key => {
                    anyhow::bail!("Service {key} cannot be read: {reason}");
                }
                _ => {}
            }
        }
    }
    let service = service.with_context(|| format!("there is no Service {key}"))?;
    print(&explain(&service, &config.proxy_name, &place, &slices))
}

fn print(text: &str) -> anyhow::Result<()> {
    node_runtime::print(text).context("writing to the standard output")
}

fn options(node: &str) -> Options {
    Options { services: ServiceDetail::Full, only_node: Some(node.to_owned()) }
}

/// All objects that there are now.
async fn everything(common: &CommonArgs, node: &str) -> Result<Vec<Batch>, CollectError> {
    Informer::collect(&source(common), &KINDS, options(node), common.cache_sync_timeout).await
}

fn source(common: &CommonArgs) -> Source {
    Source::chosen(common.manifests.as_deref(), common.kubeconfig.as_deref(), common.master.as_deref())
}

/// Tells the loop of changes of the table, of addresses and of our routes by others, for as long as the process
/// lives.
fn watch_kernel(waker: Waker, table_port: u32, route_port: u32) {
    let table_waker = waker.clone();
    let changed = move || table_waker.wake(Cause::Kernel);
    Monitor::spawn(Family::Inet, owned::TABLE, &[table_port], PAUSE, changed);
    let watch = move || {
        if let Err(error) = watch_addresses(&waker, route_port) {
            tracing::error!(error = %error, "changes of addresses are noticed only by the periodic audit");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("address-monitor".into()).spawn(watch) {
        tracing::error!(error = %error, "no thread to watch addresses; only the periodic audit notices changes");
    }
}

fn watch_addresses(waker: &Waker, own_port: u32) -> io::Result<()> {
    // Those of virtual addresses, and those of marked packets.
    let routes =
        RouteFilter { protocol: Some(RouteProtocol(owned::ROUTE_PROTOCOL)), ..RouteFilter::default() };
    let watch = route::Watch { links: true, addresses: true, routes: Some(routes), rules: true };
    let mut monitor = route::Monitor::open(watch)?;
    monitor.ignore(own_port);
    loop {
        let Some(change) = monitor.wait(None)? else { continue };
        if change.perhaps_more || change.events.iter().any(concerns_us) {
            waker.wake(Cause::Kernel);
            std::thread::sleep(PAUSE);
        }
    }
}

/// Every pod that comes or goes brings links and link-local addresses: these are nobody's node ports.
fn concerns_us(event: &Event) -> bool {
    match event {
        Event::Address(address) | Event::AddressGone(address) => address.scope != Scope::LINK,
        Event::LinkGone(link) => link.name.as_str() == owned::DEVICE,
        Event::RouteGone(_) => true,
        Event::RuleGone(rule) => rule.preference == owned::MARK_RULE,
        Event::Link(_) | Event::Route(_) | Event::Rule(_) => false,
    }
}

pub(crate) fn open_nftables() -> anyhow::Result<Socket> {
    Socket::open().context("opening a netlink socket for nftables; is the capability CAP_NET_ADMIN missing?")
}

pub(crate) fn open_ipvs() -> anyhow::Result<ipvs::Socket> {
    ipvs::Socket::open()
        .context("opening a netlink socket for IPVS; is the capability CAP_NET_ADMIN missing?")
}

pub(crate) fn open_netlink() -> anyhow::Result<route::Socket> {
    route::Socket::open().context("opening a netlink socket for addresses and routes")
}

fn open_conntrack() -> anyhow::Result<conntrack::Socket> {
    conntrack::Socket::open()
        .context("opening a netlink socket for connection tracking; is the capability CAP_NET_ADMIN missing?")
}
