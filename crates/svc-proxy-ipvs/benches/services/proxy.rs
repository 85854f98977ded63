//! The proxy under test, and what it has a change cost.

use std::time::{Duration, Instant};

use common_informer::object::{Batch, Change};
use kernel_netlink::conntrack;
use kernel_netlink::ipvs::Ipvs;
use kernel_netlink::route::Rtnetlink;
use kernel_nft::{Nftables, TableFlags};
use node_runtime::{Cause, Controller};
use svc_proxy_ipvs::args::{Cli, Config, PROGRAM};
use svc_proxy_ipvs::controller::{Proxy, Surroundings};
use test_netns::cost::{Cost, measure, median};

use super::cluster::{self, NODE, Pod};
use super::kernel::{Clocked, Sent};

/// How often each change is made.
const ROUNDS: usize = 21;
/// The change that the bars are about.
pub(crate) const ONE_ENDPOINT: &str = "a pod elsewhere is replaced";
/// Longer than any drain.
const LATER: Duration = Duration::from_secs(100);
/// Longer than between two looks at what drains.
const POLL: Duration = Duration::from_secs(3);

/// The proxy on a clocked kernel.
pub(crate) type Clockwork<V, R, N> = Proxy<Clocked<V>, Clocked<R>, Clocked<N>>;

/// The flags' defaults.
pub(crate) fn config() -> Config {
    let words = ["svc-proxy-ipvs", "--service-cluster-ip-range", "10.96.0.0/12"];
    let parsed = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words).expect("valid flags");
    parsed.cli.proxy.into_config().expect("valid flags")
}

/// A proxy that knows nothing.
pub(crate) fn proxy<V: Ipvs, R: Rtnetlink, N: Nftables>(ipvs: V, netlink: R, nft: N) -> Clockwork<V, R, N> {
    let surroundings = Surroundings {
        ipvs: Clocked(ipvs),
        netlink: Clocked(netlink),
        nft: Clocked(nft),
        connections: Box::new(conntrack::Fake::new()),
        health: None,
        sysctls: None,
        watch: None,
        metrics: None,
        informer: None,
    };
    Proxy::new(NODE, config(), TableFlags::default(), surroundings)
}

/// Has the proxy take changes and apply them.
pub(crate) fn sync<V: Ipvs, R: Rtnetlink, N: Nftables>(
    proxy: &mut Clockwork<V, R, N>,
    cause: Cause,
    changes: Vec<Change>,
    now: Instant,
) {
    proxy.receive(Batch { changes, synced: true });
    if let Err(error) = proxy.sync(cause, now) {
        panic!("sync failed: {}", error.error);
    }
}

/// A change, what it costs, and the most messages that it took.
pub(crate) struct Row {
    pub(crate) change: &'static str,
    pub(crate) cost: Cost,
    pub(crate) sent: Sent,
}

/// One row for each kind of change, on a proxy that serves so many Services.
pub(crate) fn changes<V: Ipvs, R: Rtnetlink, N: Nftables>(
    proxy: &mut Clockwork<V, R, N>,
    services: usize,
) -> Vec<Row> {
    let start = Instant::now();
    // Far apart, so that what was touched before is not what is touched now.
    let service = |round: usize| (round * 7919) % services;
    let mut rows = Vec::new();
    let mut row = |change, rounds, round: &mut dyn FnMut(usize) -> Sample| {
        let mut samples: Vec<_> = (0..rounds).map(round).collect();
        let sent =
            samples.iter().map(|sample| sample.sent).max_by_key(|sent| sent.messages()).unwrap_or_default();
        let mut costs: Vec<_> = samples.drain(..).map(|sample| sample.cost).collect();
        rows.push(Row { change, cost: median(&mut costs), sent });
    };
    let replaced = |round: usize, number: usize| {
        let mut pods = cluster::pods(service(round));
        pods[number] = cluster::other_pod(round);
        cluster::changed(service(round), &pods)
    };
    row(ONE_ENDPOINT, ROUNDS, &mut |round| sample(proxy, Cause::Change, replaced(round, 1), start));
    row("the drain of one of its endpoints ends", ROUNDS, &mut |round| {
        let now = start + LATER * (2 * round as u32 + 1);
        // Two looks end the drains that are left, and then none is awaited.
        (1..3).for_each(|number| sync(proxy, Cause::Timer, Vec::new(), now + POLL * number));
        sync(proxy, Cause::Change, replaced(round, 2), now + LATER);
        sample(proxy, Cause::Timer, Vec::new(), now + LATER + POLL)
    });
    row("a pod of this node comes or goes", ROUNDS, &mut |round| {
        let mut pods = cluster::pods(service(0));
        if round.is_multiple_of(2) {
            pods.push(Pod { node: 0, ..cluster::other_pod(5000) });
        }
        sample(proxy, Cause::Change, cluster::changed(service(0), &pods), start)
    });
    row("a Service with five endpoints comes", ROUNDS, &mut |round| {
        sample(proxy, Cause::Change, cluster::added(services + round), start)
    });
    row("nothing changes: the audit", 3, &mut |_| sample(proxy, Cause::Periodic, Vec::new(), start));
    rows
}

struct Sample {
    cost: Cost,
    sent: Sent,
}

fn sample<V: Ipvs, R: Rtnetlink, N: Nftables>(
    proxy: &mut Clockwork<V, R, N>,
    cause: Cause,
    changes: Vec<Change>,
    now: Instant,
) -> Sample {
    let before = Sent::so_far();
    let cost = measure(|| sync(proxy, cause, changes, now));
    Sample { cost, sent: Sent::since(before) }
}
