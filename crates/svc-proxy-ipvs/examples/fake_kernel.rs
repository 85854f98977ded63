//! The daemon on a kernel in memory: metrics, alerts and pages without privileges and without IPVS, on any machine.
//! Nothing is served. `deploy/check-metrics svc-proxy-ipvs` has Prometheus scrape it.
//!
//! ```sh
//! cargo run -p svc-proxy-ipvs --example fake_kernel -- --manifests deploy/testdata --node-name node-a
//! curl -s http://127.0.0.1:20246/state
//! ```

use std::convert::Infallible;

use common_informer::decode::ServiceDetail;
use common_informer::{Informer, Options, Source};
use kernel_nft::TableFlags;
use node_runtime::Daemon;
use svc_proxy_ipvs::args::{Cli, PROGRAM};
use svc_proxy_ipvs::controller::{Proxy, Surroundings};
use svc_proxy_ipvs::metrics::Metrics;
use svc_proxy_ipvs::run::KINDS;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Cli { common, proxy, .. } = node_runtime::args::parse::<Cli>(&PROGRAM).cli;
    let config = proxy.into_config()?;
    let Some(manifests) = common.manifests.clone() else {
        anyhow::bail!("a kernel in memory serves a folder: --manifests is needed");
    };
    let daemon = Daemon::start(&PROGRAM, &common)?;
    let node = common.resolve_node_name()?;
    let options = Options { services: ServiceDetail::Full, only_node: Some(node.clone()) };
    let informer = Informer::start_with(&Source::Manifests(manifests), &KINDS, options).await?;
    let surroundings = Surroundings {
        ipvs: kernel_netlink::ipvs::Fake::new(),
        netlink: kernel_netlink::route::Fake::new(),
        nft: kernel_nft::Fake::new(),
        connections: Box::new(kernel_netlink::conntrack::Fake::new()),
        health: None,
        sysctls: None,
        watch: None,
        metrics: Some((Metrics::new(&daemon.registry)?, daemon.registry.common().clone())),
        informer: Some(informer.status()),
    };
    let make = move || Ok::<_, Infallible>(Proxy::new(&node, config, TableFlags::default(), surroundings));
    Ok(daemon.run(&common, false, make, informer.into_stream()).await?)
}
