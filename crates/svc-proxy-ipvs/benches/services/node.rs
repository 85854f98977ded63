//! A node made of a network namespace, in a kernel with IPVS.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common_informer::object::Change;
use kernel_netlink::{ipvs, route};
use node_runtime::Cause;
use svc_proxy_ipvs::owned;
use svc_proxy_ipvs::plan::text;
use test_netns::Namespace;
use test_netns::cost::{Cost, measure};

use super::cluster::NODE_ADDRESS;
use super::kernel::Sent;
use super::proxy::{self, Clockwork};

/// The proxy in the kernel.
pub(crate) type Served = Clockwork<ipvs::Socket, route::Socket, kernel_nft::Socket>;

/// Whether there is a kernel with IPVS to talk to.
pub(crate) fn has_ipvs() -> bool {
    ipvs::Socket::open().is_ok()
}

/// A namespace with the node's address and the sysctls of a node.
pub(crate) fn node() -> Result<Namespace> {
    let node = Namespace::new("node")?;
    node.ip(&format!(
        "link set lo up\nlink add eth0 type dummy\nlink set eth0 up\naddress add {NODE_ADDRESS}/24 dev eth0\n"
    ))?;
    // The sysctls of IPVS exist from its first socket on.
    node.run(|| ipvs::Socket::open().map(drop))?.context("a kernel with IPVS")?;
    for (name, value) in owned::SYSCTLS {
        node.sysctl(name, value)?;
    }
    Ok(node)
}

/// A proxy that has touched nothing, in the namespace of the calling thread.
pub(crate) fn proxy() -> Result<Served> {
    Ok(proxy::proxy(ipvs::Socket::open()?, route::Socket::open()?, kernel_nft::Socket::open()?))
}

/// Removes what proxies have left in the namespace of the calling thread.
pub(crate) fn clear() -> Result<()> {
    for words in ["ipvsadm -C", "nft delete table inet svc_proxy_ipvs", "ip link del kube-dummy-if"] {
        let mut words = words.split(' ');
        // There may be nothing.
        Command::new(words.next().unwrap_or_default()).args(words).stderr(Stdio::null()).status()?;
    }
    // The kernel frees later what is removed now; that is not to be part of what comes next.
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// A first sync.
pub(crate) struct Cold {
    pub(crate) cost: Cost,
    pub(crate) sent: Sent,
    pub(crate) proxy: Served,
}

/// Has a new proxy take a cluster and serve it.
pub(crate) fn cold_sync(changes: Vec<Change>) -> Result<Cold> {
    let mut proxy = proxy()?;
    let before = Sent::so_far();
    let cost = measure(|| proxy::sync(&mut proxy, Cause::Start, changes, Instant::now()));
    Ok(Cold { cost, sent: Sent::since(before), proxy })
}

/// The commands for `ipvsadm` that make what the proxy wants.
pub(crate) fn commands(proxy: &Served) -> String {
    text::render(proxy.planner().virtuals().values().map(|wanted| &**wanted))
}

/// How long `ipvsadm -R` takes for them.
pub(crate) fn restore(commands: &str) -> Result<Duration> {
    let start = Instant::now();
    let mut child = Command::new("ipvsadm").arg("-R").stdin(Stdio::piped()).spawn().context("ipvsadm")?;
    child.stdin.take().context("standard input")?.write_all(commands.as_bytes())?;
    ensure!(child.wait()?.success(), "ipvsadm -R failed");
    Ok(start.elapsed())
}

/// How many virtual services and destinations there are.
pub(crate) fn entries() -> Result<usize> {
    let list = Command::new("ipvsadm").arg("-Sn").output().context("ipvsadm")?;
    Ok(list.stdout.iter().filter(|byte| **byte == b'\n').count())
}
