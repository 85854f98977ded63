//! Links, addresses, routes and rules, by rtnetlink.
//!
//! ```text
//!   Link ◄── Address                Rule ──► Table ◄── Route ──► NextHop ──► Link
//! ```
//!
//! Sources of the rules told here and kept by [`Fake`]: include/uapi/linux/rtnetlink.h (the interface),
//! net/core/rtnetlink.c, net/core/fib_rules.c, net/ipv4/{devinet,fib_semantics,fib_trie}.c,
//! net/ipv6/{addrconf,route,ip6_fib}.c.

mod command;
mod entry;
mod fake;
#[cfg(test)]
mod fuzz;
mod link;
mod model;
mod monitor;
mod port;
mod socket;
mod uapi;
mod wire;

pub use command::Command;
pub use entry::*;
pub use fake::Fake;
pub use link::*;
pub use monitor::{Change, Event, Monitor, Watch};
pub use socket::Socket;

pub use crate::commit::{CommitError, Refusal};
pub use crate::family::Family;
pub use crate::netlink::Error;

/// A place that has links, addresses, routes and rules: a network namespace of the kernel ([`Socket`]) or a model
/// of one ([`Fake`]). Both refuse the same things; one contract suite runs on both.
pub trait Rtnetlink {
    /// All links.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_links(&mut self) -> Result<Vec<Link>, Error>;

    /// The link with a name; `None` when there is none.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_link(&mut self, name: &LinkName) -> Result<Option<Link>, Error>;

    /// The addresses of all links, of both families.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_addresses(&mut self) -> Result<Vec<Address>, Error>;

    /// The routes that a filter admits, in no particular order.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, Error>;

    /// The rules of a family, in the order in which they are asked.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    fn observe_rules(&mut self, family: Family) -> Result<Vec<Rule>, Error>;

    /// Carries out the commands in order. Each stands for itself: those that are refused cost the others
    /// nothing.
    ///
    /// # Errors
    /// [`CommitError`] when not all of them were, or may not have been, carried out.
    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError>;
}
