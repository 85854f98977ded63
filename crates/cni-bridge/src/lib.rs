//! The CNI plugin of a node: bridge, veth, addresses, masquerade, host ports; one process, which executes no other.
//!
//! ```text
//!   environment, stdin ─► spec::Call, conf::NetConf ─► verbs ─┬─ ADD ───► attach: steps, each with its undo
//!                                                             ├─ DEL ───► detach ┐
//!                                                             ├─ GC ────► gc     ├─ by what is found, not by notes
//!                                                             ├─ CHECK ─► check  ┘
//!                                                             └─ STATUS, VERSION
//!   attach, detach, gc ─► ipam (files) · link, pod (rtnetlink) · masquerade, portmap ─► table (nf_tables)
//! ```
//!
//! - [`spec`]: the specification on the wire. [`conf`]: a network's configuration.
//! - [`ipam`]: addresses, as `host-local` gives them out.
//! - [`loopback`]: the other plugin that runtimes call for every container.
//! - [`steps`]: what is done one after another, and undone the other way round.
//! - [`owned`]: names and numbers in the kernel.
//!
//! What belongs to an attachment is found again by its name alone: the reservation by container and interface, the
//! link of the host by a digest of them ([`link::host_link_name`]), elements of maps by the reserved addresses.
//! So an ADD that was killed at any point leaves nothing that the next DEL or GC does not find.

pub mod attach;
pub mod check;
pub mod conf;
pub mod detach;
pub mod exec;
pub mod gateway;
pub mod gc;
pub mod ipam;
pub mod link;
pub mod loopback;
pub mod masquerade;
pub mod names;
pub mod owned;
pub mod pod;
pub mod portmap;
pub mod spec;
pub mod steps;
pub mod table;
pub mod verbs;
pub mod vlan;
