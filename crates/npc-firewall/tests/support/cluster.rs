//! The firewalls of all the nodes of a cluster, each with its own ruleset, run by the interpreter: a
//! connection is made when every node on its way lets it pass.

use std::net::IpAddr;

use common_informer::object::{Change, Object, Protocol};
use kernel_nft::{Hook, Ruleset, TableFlags};
use npc_firewall::model::world::{Touched, World};
use npc_firewall::plan::{PlanConfig, Planner, Update};

use super::interpreter::{Fate, Outcome, Packet, run};
use super::oracle::{self, Connection, Direction};
use super::random::{NODE_ADDRESSES, NODES};

/// The pure part of the firewall of one node.
pub struct Firewall {
    pub world: World,
    pub planner: Planner,
}

impl Firewall {
    pub fn new(node: &str, config: PlanConfig) -> Self {
        Self { world: World::new(node.into()), planner: Planner::new(config, TableFlags::default()) }
    }

    /// One batch of changes, as the controller passes it on. The generation is not changed.
    pub fn update(&mut self, changes: &[Change]) -> Update {
        let mut touched = Touched::default();
        for change in changes {
            self.world.apply(change.clone(), &mut touched);
        }
        self.planner.update(&self.world, &touched)
    }

    /// The firewall of a node that is shown all objects at once.
    pub fn of(node: &str, config: &PlanConfig, objects: &[Object]) -> Self {
        let mut firewall = Self::new(node, config.clone());
        let changes: Vec<_> = objects.iter().cloned().map(Change::Applied).collect();
        firewall.update(&changes);
        firewall
    }

    pub fn ruleset(&self) -> &Ruleset {
        self.planner.ruleset()
    }
}

/// The rulesets of [`NODES`].
pub fn rulesets(config: &PlanConfig, objects: &[Object]) -> [Ruleset; 2] {
    NODES.map(|node| Firewall::of(node, config, objects).ruleset().clone())
}

/// Which of [`NODES`] an address is on, if any.
pub fn node_of(objects: &[Object], address: IpAddr) -> Option<usize> {
    let pod = oracle::pod_at(objects, address);
    pod.and_then(|pod| NODES.iter().position(|node| pod.node.as_deref() == Some(*node)))
}

/// Which of [`NODES`] has the address itself.
pub fn host_of(address: IpAddr) -> Option<usize> {
    NODE_ADDRESSES.iter().position(|addresses| addresses.iter().any(|text| text.parse() == Ok(address)))
}

/// What the oracle says, asked only of the ends that are pods of a known node: nobody speaks for the others.
/// A node and its own pods are left out: they are not forwarded.
pub fn expected(objects: &[Object], connection: &Connection) -> bool {
    let enforced = |address, direction| {
        node_of(objects, address).is_none() || oracle::allowed_at(objects, connection, direction)
    };
    enforced(connection.source, Direction::Egress) && enforced(connection.destination, Direction::Ingress)
}

/// The nodes that forward the connection, in order.
pub fn way(objects: &[Object], connection: &Connection) -> Vec<usize> {
    let mut way: Vec<_> =
        [connection.source, connection.destination].iter().filter_map(|end| node_of(objects, *end)).collect();
    way.dedup();
    way
}

/// Whether the connection is between a node and a pod on it.
pub fn stays_on_host(objects: &[Object], connection: &Connection) -> bool {
    let (source, destination) = (connection.source, connection.destination);
    let on_host =
        |host: IpAddr, pod: IpAddr| host_of(host).is_some() && host_of(host) == node_of(objects, pod);
    on_host(source, destination) || on_host(destination, source)
}

/// The first packet of the connection in the forward hook.
pub fn first_packet(connection: &Connection) -> Packet {
    let Connection { source, destination, protocol, port } = *connection;
    Packet::new(source, destination, Protocol::number(protocol), port)
}

/// What each node on the way makes of the first packet, up to the one that stops it.
pub fn forwarded(
    rulesets: &[Ruleset; 2],
    objects: &[Object],
    connection: &Connection,
) -> Vec<(usize, Outcome)> {
    let mut outcomes = vec![];
    for node in way(objects, connection) {
        let outcome = run(&rulesets[node], &first_packet(connection));
        let passed = outcome.fate == Fate::Accepted;
        outcomes.push((node, outcome));
        if !passed {
            break;
        }
    }
    outcomes
}

/// Whether every node on the way lets the first packet pass.
pub fn passes(rulesets: &[Ruleset; 2], objects: &[Object], connection: &Connection) -> bool {
    forwarded(rulesets, objects, connection).iter().all(|(_, outcome)| outcome.fate == Fate::Accepted)
}

/// The packet as the pod's own node sees it when the other end is the node itself.
pub fn on_host(connection: &Connection) -> Packet {
    let source_is_local = host_of(connection.source).is_some();
    Packet {
        hook: if source_is_local { Hook::Output } else { Hook::Input },
        source_is_local,
        destination_is_local: !source_is_local,
        ..first_packet(connection)
    }
}
