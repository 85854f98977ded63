//! Makes a small cluster and holds it until its standard input ends: to look around in, and for the test
//! that kills it. Prints `<host>\t<path of its namespace>` for `nsenter --net=PATH`, and the process id of a
//! daemon that runs in the first node, then `ready`.

use std::io::Read;
use std::process::Stdio;

use anyhow::Result;
use test_netns::{Attachment, ClusterSpec, Family, Protocol};

fn main() -> Result<()> {
    let cluster = ClusterSpec::uniform(Attachment::Routed, &[Family::V4, Family::V6], 2, 2)
        .serve(Protocol::Tcp, 80)
        .serve(Protocol::Udp, 53)
        .build()?;
    for name in cluster.pods().iter().map(String::as_str).chain(cluster.nodes()).chain(["outside"]) {
        println!("{name}\t{}", cluster.namespace(name)?.path().display());
    }
    let node = cluster.namespace("n1")?;
    let mut daemon =
        node.daemon("sleep").arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    println!("daemon\t{}\nready", daemon.id());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    daemon.kill()?;
    daemon.wait()?;
    Ok(())
}
