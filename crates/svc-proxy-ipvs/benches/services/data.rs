//! What a connection through a Service costs, by the number of Services.
//!
//! ```text
//!  client ──veth── node ──veth── pods
//!  10.244.1.2      IPVS          every address of every pod
//! ```
//!
//! Client and server are a thread each: what the kernel does for a packet it does in the thread that sends it, unless
//! it has so much else to do that `ksoftirqd` takes over. On a machine of one processor nothing of that is missed: one
//! of the two always has something to do, so the time that passes is what a connection costs.
//!
//! Connections without a Service take turns with those through one, so that what else the machine does hits both.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;
use test_netns::Namespace;
use test_netns::cost::thread_cpu;

use super::{cluster, node};

const ROUNDS: usize = 7;
const SLOT: Duration = Duration::from_millis(1000);
/// Services that are used: each second one, and pods of the others.
const USED: usize = 10;

/// Medians: CPU of both ends for a connection.
pub(crate) struct Connections {
    pub(crate) services: usize,
    pub(crate) direct: Duration,
    pub(crate) served: Duration,
}

/// What a connection costs on a node with so many Services.
pub(crate) fn connections(services: usize) -> Result<Connections> {
    let (node, client, pods) = (node::node()?, Namespace::new("client")?, Namespace::new("pods")?);
    connect(&node, &client, &pods)?;
    let changes = cluster::changes(services);
    node.run(|| node::cold_sync(changes).map(drop))??;
    let listener = pods.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)))??;
    let cpu = Arc::new(AtomicU64::new(0));
    let server_cpu = cpu.clone();
    std::thread::spawn(move || serve(&listener, &server_cpu));
    // Spread over all of them. A client that comes to a pod by a Service and without one, from one port, is two
    // connections with one answer: connection tracking drops the second for ten seconds.
    let used = (0..USED).map(|number| number * services / USED);
    let (direct, served): (Vec<_>, Vec<_>) = used.enumerate().partition(|(place, _)| place % 2 == 0);
    let direct: Vec<SocketAddr> =
        direct.into_iter().map(|(_, service)| (cluster::pods(service)[0].ip, 8080).into()).collect();
    let served: Vec<SocketAddr> =
        served.into_iter().map(|(_, service)| (cluster::cluster_ip(service), 80).into()).collect();
    let medians = client.run(|| -> Result<_> {
        let (mut without, mut through) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let costs = (slot(&direct, &cpu)?, slot(&served, &cpu)?);
            // The first fills caches: routes, neighbours, the emulator's.
            if round > 0 {
                without.push(costs.0);
                through.push(costs.1);
            }
        }
        without.sort();
        through.sort();
        Ok((without[ROUNDS / 2], through[ROUNDS / 2]))
    })??;
    node.run(node::clear)??;
    Ok(Connections { services, direct: medians.0, served: medians.1 })
}

fn connect(node: &Namespace, client: &Namespace, pods: &Namespace) -> Result<()> {
    let link = |name: &str, to: &Namespace| {
        format!(
            "link add {name} type veth peer name eth0 netns {}\nlink set {name} up\n",
            to.path().display()
        )
    };
    node.ip(&[link("client", client), link("pods", pods)].concat())?;
    node.ip("address add 10.244.1.1/24 dev client\naddress add 169.254.1.1/30 dev pods\nroute add 10.128.0.0/10 via 169.254.1.2\n")?;
    client.ip("link set eth0 up\naddress add 10.244.1.2/24 dev eth0\nroute add default via 10.244.1.1\n")?;
    pods.ip("link set eth0 up\naddress add 169.254.1.2/30 dev eth0\nroute add default via 169.254.1.1\n\
         route add local 10.128.0.0/10 dev lo\n")
}

/// Answers a byte with a byte, on one connection after the other.
fn serve(listener: &TcpListener, cpu: &AtomicU64) {
    let begun = thread_cpu();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut byte = [0];
        // A client that never says anything, since its packets were lost, must not keep the others waiting.
        let patient = stream.set_read_timeout(Some(Duration::from_secs(1)));
        if patient.is_ok() && stream.read_exact(&mut byte).is_ok() {
            // Told before the client can know that its connection is over.
            let used = thread_cpu() - begun;
            cpu.store(u64::try_from(used.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
            // A client that is gone needs no answer.
            let _ = stream.write_all(&byte);
        }
    }
}

/// CPU, or on one processor time, for each of the connections that fit into a slot.
fn slot(to: &[SocketAddr], server_cpu: &AtomicU64) -> Result<Duration> {
    let one_processor = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    let (start, own, server) = (Instant::now(), thread_cpu(), server_cpu.load(Ordering::Acquire));
    let mut count = 0;
    for address in to.iter().cycle() {
        let mut stream = TcpStream::connect_timeout(address, Duration::from_secs(10))
            .with_context(|| format!("connect to {address}"))?;
        // Ends at once, in IPVS and connection tracking too: the tables stay as they are.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        count += 1;
        if start.elapsed() > SLOT {
            break;
        }
    }
    let elapsed = start.elapsed();
    let server = server_cpu.load(Ordering::Acquire) - server;
    let cpu = thread_cpu() - own + Duration::from_nanos(server);
    Ok(if one_processor { elapsed } else { cpu } / count)
}
