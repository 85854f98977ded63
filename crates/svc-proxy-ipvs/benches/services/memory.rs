//! How much memory the program takes, fed by a stand-in for the API server.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use common_informer::{Informer, Options, Source, decode::ServiceDetail};
use kernel_netlink::conntrack;
use node_runtime::Daemon;
use svc_proxy_ipvs::args::{Cli, PROGRAM};
use svc_proxy_ipvs::controller::{Proxy, Surroundings};
use svc_proxy_ipvs::run::KINDS;
use test_netns::api_server::{ApiServer, Collection, Memory};

use super::cluster::{self, NODE};
use super::kernel::Accepting;

/// The argument with which this program is [`serve`].
pub(crate) const SERVE: &str = "--serve-without-kernel";
/// How many slices change.
const CHANGES: usize = 2_000;
/// For a listing under emulation.
const LIMIT: Duration = Duration::from_secs(300);

/// The API server of a cluster. Its changes: a pod of a Service is replaced.
fn api_server(services: usize) -> Result<ApiServer> {
    let slices = "discovery.k8s.io/v1";
    ApiServer::start(vec![
        Collection::new("nodes", "v1", "Node", 1, |_| cluster::node()),
        Collection::new("services", "v1", "Service", services, cluster::service),
        Collection::new("endpointslices", slices, "EndpointSlice", services, |number| {
            cluster::slice(number, &cluster::pods(number))
        })
        .changing(CHANGES, move |number| {
            let service = (number * 7919) % services;
            let mut pods = cluster::pods(service);
            pods[1] = cluster::other_pod(number);
            ("MODIFIED", cluster::slice(service, &pods))
        }),
    ])
}

/// Memory of a program that serves so many Services.
pub(crate) fn weigh(program: &str, services: usize) -> Result<Memory> {
    let mut command = Command::new(program);
    if program != env!("CARGO_BIN_EXE_svc-proxy-ipvs") {
        command.arg(SERVE);
    }
    command.args([
        "--node-name",
        NODE,
        "--service-cluster-ip-range",
        "10.96.0.0/12",
        "--proxy-healthz-port=0",
    ]);
    command.args(["--cache-sync-timeout", "5m"]);
    api_server(services)?.weigh(&mut command, LIMIT)
}

/// What the program does, on a kernel that takes everything and keeps nothing: its memory without what netlink
/// takes, where there is no IPVS.
pub(crate) fn serve(words: Vec<String>) -> Result<()> {
    let parsed = node_runtime::args::try_parse_from::<Cli, _>(&PROGRAM, words)?;
    let (common, config) = (parsed.cli.common, parsed.cli.proxy.into_config()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let daemon = Daemon::start(&PROGRAM, &common)?;
        let source = Source::Api { kubeconfig: None, master: common.master.clone() };
        let options = Options { services: ServiceDetail::Full, only_node: Some(NODE.to_owned()) };
        let informer = Informer::start_with(&source, &KINDS, options).await?;
        let make = move || -> Result<_> {
            let surroundings = Surroundings {
                ipvs: Accepting::default(),
                netlink: Accepting::default(),
                nft: Accepting::default(),
                connections: Box::new(conntrack::Fake::new()),
                health: None,
                sysctls: None,
                watch: None,
                metrics: None,
                informer: None,
            };
            Ok(Proxy::new(NODE, config, kernel_nft::TableFlags::default(), surroundings))
        };
        Ok(daemon.run(&common, false, make, informer.into_stream()).await?)
    })
}
