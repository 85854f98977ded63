//! Clusters made of network namespaces, for tests with real packets.
//!
//! ```no_run
//! use test_netns::{Attachment, ClusterSpec, Family, Protocol};
//! # fn main() -> anyhow::Result<()> {
//! let cluster = ClusterSpec::uniform(Attachment::Routed, &[Family::V4, Family::V6], 2, 3)
//!     .serve(Protocol::Tcp, 80)
//!     .build()?;
//! cluster.namespace("n1")?.nft("table inet t { chain c { type filter hook forward priority 0; policy drop; }; }")?;
//! let to = cluster.address("y/a", Family::V4)?;
//! println!("{}", cluster.probe("x/a", to, Protocol::Tcp, 80)?);
//! # Ok(())
//! # }
//! ```
//!
//! - [`namespace`]: one throw-away namespace, without a name, gone with the process.
//! - [`topology`], [`cluster`]: nodes, pods, an outside host, and the links and routes between them.
//! - [`outcome`], [`probe`]: what a probe is and finds; thousands at once.
//! - [`matrix`]: who reaches whom, as a table, against the expected table.
//! - [`flow`]: a connection that is kept, to see whether it is cut.
//! - [`hammer`]: connections without pause, to find the one that should not have been.
//! - [`daemon`]: a program that stays on a node: its process, log, admin port.
//! - [`api_server`], [`cost`]: for benchmarks, what feeds a program and what its work costs.
//! - [`interpreter`]: what an nftables ruleset makes of a packet, without a kernel.
//! - [`golden`]: folders of cases with the text that must come out.
//! - [`house`]: rules of the project that a compiler does not check.
//! - [`sctp`]: the packets of an association's first half, for kernels without SCTP sockets.
//! - `server`, `conn`: both ends of the wire; `batch`: what `ip` is told.
//!
//! Needs root, `ip`, `nsenter`, `setpriv` (iproute2, util-linux), and `nft` for rules. On an emulated machine
//! `TEST_NETNS_SLOWNESS=5` makes probes wait five times as long.

pub mod api_server;
mod batch;
pub mod cluster;
mod conn;
pub mod cost;
pub mod daemon;
pub mod flow;
pub mod golden;
pub mod hammer;
pub mod house;
pub mod interpreter;
pub mod matrix;
pub mod namespace;
pub mod outcome;
pub mod probe;
pub mod sctp;
mod server;
pub mod topology;

pub use cluster::{Cluster, Host};
pub use daemon::Daemon;
pub use flow::Flow;
pub use hammer::{Expect, Hammer, HammerSpec, Report};
pub use matrix::{Expected, Matrix, Wrong};
pub use namespace::Namespace;
pub use outcome::{Answer, Family, Icmp, Outcome, Protocol};
pub use probe::{Probe, TIMEOUT};
pub use topology::{Attachment, ClusterSpec, NodeSpec, PodSpec};
