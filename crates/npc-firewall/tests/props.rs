//! Properties of the pure part, on random clusters and histories: the compiled rules do what the oracle says,
//! an incremental plan is a full one, and no connection outlives the rule that allowed it.
//!
//! `PROPTEST_CASES=20000 cargo test --release --test props` looks longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::BTreeMap;

use common_informer::object::{Change, Object, ObjectRef, Protocol, RuleSpec};
use kernel_nft::{Fake, Hook, IpVersion, Nftables, Op, Reject, Ruleset, Transaction};
use npc_firewall::plan::{DenyAction, Established, PlanConfig};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use support::cluster::{self, Firewall};
use support::interpreter::{CtState, Fate, Outcome, Packet, run};
use support::oracle::{self, Connection, Direction};
use support::random::{self, Edit, NODES, Objects};

/// Connections tried on a cluster; spread evenly over all of them.
const CONNECTIONS: usize = 150;

fn cases(default: u32) -> ProptestConfig {
    let config =
        ProptestConfig { failure_persistence: None, max_shrink_iters: 5_000, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        ProptestConfig { cases: default, ..config }
    }
}

fn sample(cluster: &[Object], start: Index) -> Vec<Connection> {
    let all = random::connections(cluster);
    let step = all.len() / CONNECTIONS + 1;
    all.into_iter().skip(start.index(step)).step_by(step).collect()
}

fn plan_config() -> impl Strategy<Value = PlanConfig> {
    let versions = prop_oneof![
        3 => Just(vec![IpVersion::V4, IpVersion::V6]),
        1 => select(vec![vec![IpVersion::V4], vec![IpVersion::V6]]),
    ];
    let deny = select(vec![DenyAction::Reject, DenyAction::Drop]);
    let established = select(vec![Established::Recheck, Established::Recheck, Established::Keep]);
    let marks = select(vec![0x00ff_0000, 0x00ff_0000, 0x0000_000f, 0xff00_0000, 0]);
    (versions, deny, established, marks, select(vec![None, Some(100)]), any::<bool>()).prop_map(
        |(versions, deny, established, mark_mask, nflog_group, judge_egress_to_node)| PlanConfig {
            versions,
            deny,
            established,
            mark_mask,
            nflog_group,
            judge_egress_to_node,
        },
    )
}

fn filtered(config: &PlanConfig, connection: &Connection) -> bool {
    let version = if connection.source.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    config.versions.contains(&version)
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn compiled_rules_pass_exactly_what_the_oracle_allows(cluster in random::cluster(), start: Index) {
        let config = PlanConfig::default();
        let rulesets = cluster::rulesets(&config, &cluster);
        for connection in sample(&cluster, start) {
            if !cluster::stays_on_host(&cluster, &connection) {
                let expected = cluster::expected(&cluster, &connection);
                prop_assert_eq!(cluster::passes(&rulesets, &cluster, &connection), expected, "{:?}", connection);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn every_configuration_refuses_in_its_own_way(
        cluster in random::cluster(), config in plan_config(), start: Index,
    ) {
        let rulesets = cluster::rulesets(&config, &cluster);
        for connection in sample(&cluster, start) {
            if cluster::stays_on_host(&cluster, &connection) {
                continue;
            }
            let expected = !filtered(&config, &connection) || cluster::expected(&cluster, &connection);
            let way = cluster::forwarded(&rulesets, &cluster, &connection);
            prop_assert_eq!(way.iter().all(|(_, o)| o.fate == Fate::Accepted), expected, "{:?}", connection);
            for (node, outcome) in way {
                judge_connection(&rulesets[node], &config, &connection, &outcome)?;
                if outcome.fate != Fate::Accepted {
                    refused_by_the_right_end(&cluster, &config, &connection, &outcome)?;
                }
            }
        }
    }

    #[test]
    fn a_node_reaches_its_pods_and_they_reach_its_services_and_what_egress_policies_allow(
        cluster in random::cluster(), config in plan_config(), start: Index,
    ) {
        let rulesets = cluster::rulesets(&config, &cluster);
        let all = random::connections(&cluster);
        let local: Vec<_> = all.into_iter().filter(|c| cluster::stays_on_host(&cluster, c)).collect();
        let step = local.len() / CONNECTIONS + 1;
        for connection in local.into_iter().skip(start.index(step)).step_by(step) {
            let packet = cluster::on_host(&connection);
            let node = cluster::host_of(connection.source).or(cluster::host_of(connection.destination)).unwrap();
            let passes = run(&rulesets[node], &packet).fate == Fate::Accepted;
            let judged = packet.hook == Hook::Input && config.judge_egress_to_node && filtered(&config, &connection);
            let exempt = !judged || oracle::goes_to_service(&cluster, &connection);
            let expected = exempt || oracle::allowed_at(&cluster, &connection, Direction::Egress);
            prop_assert_eq!(passes, expected, "{:?}", connection);
        }
    }

    #[test]
    fn a_ping_needs_a_rule_without_ports(cluster in random::cluster(), start: Index) {
        let rulesets = cluster::rulesets(&PlanConfig::default(), &cluster);
        let mut portless = cluster.clone();
        for object in &mut portless {
            if let Object::NetworkPolicy(policy) = object {
                let policy = std::sync::Arc::make_mut(policy);
                for spec in policy.ingress.iter_mut().chain(&mut policy.egress) {
                    if matches!(spec, RuleSpec::Rule(rule) if !rule.ports.is_empty()) {
                        *spec = RuleSpec::Malformed("it has ports".into());
                    }
                }
            }
        }
        for connection in sample(&cluster, start) {
            if cluster::stays_on_host(&cluster, &connection) {
                continue;
            }
            let echo = if connection.source.is_ipv4() { 8 } else { 128 };
            let packet = Packet::icmp(connection.source, connection.destination, echo);
            let passes = cluster::way(&cluster, &connection)
                .into_iter()
                .all(|node| run(&rulesets[node], &packet).fate == Fate::Accepted);
            prop_assert_eq!(passes, cluster::expected(&portless, &connection), "ping {:?}", connection);
        }
    }

    #[test]
    fn errors_and_neighbour_discovery_always_pass(cluster in random::cluster(), start: Index) {
        let rulesets = cluster::rulesets(&PlanConfig::default(), &cluster);
        for connection in sample(&cluster, start) {
            let (source, destination) = (connection.source, connection.destination);
            let error = if source.is_ipv4() { 3 } else { 1 };
            let related = Packet { state: CtState::Related, ..Packet::icmp(source, destination, error) };
            for ruleset in &rulesets {
                prop_assert_eq!(run(ruleset, &related).fate, Fate::Accepted);
                // RFC 4861 §4, RFC 4443 §3.2: router and neighbour discovery, packet too big.
                for kind in [2, 133, 134, 135, 136] {
                    let packet = Packet::icmp(source, destination, kind);
                    for state in [CtState::New, CtState::Invalid, CtState::Untracked] {
                        let packet = Packet { state, ..packet.clone() };
                        let v6 = destination.is_ipv6();
                        prop_assert!(!v6 || run(ruleset, &packet).fate == Fate::Accepted, "{:?}", packet);
                    }
                }
            }
        }
    }
}

/// What must hold of every packet of a connection, given what became of the first.
fn judge_connection(
    ruleset: &Ruleset,
    config: &PlanConfig,
    connection: &Connection,
    outcome: &Outcome,
) -> Result<(), TestCaseError> {
    let first = cluster::first_packet(connection);
    let unmarked = run(ruleset, &first.later(0)).fate;
    match outcome.fate {
        Fate::Accepted => {
            prop_assert_eq!(outcome.ct_mark & !config.mark_mask, 0, "foreign bits of the mark");
            prop_assert_eq!(outcome.ct_mark != 0, config.marks(), "the mark of an allowed connection");
            for packet in [first.later(outcome.ct_mark), first.answer(outcome.ct_mark), first.answer(0)] {
                prop_assert_eq!(run(ruleset, &packet).fate, Fate::Accepted, "{:?}", packet);
            }
            let foreign = Packet { ct_mark: !config.mark_mask, ..first };
            let kept = run(ruleset, &foreign).ct_mark & !config.mark_mask;
            prop_assert_eq!(kept, !config.mark_mask, "somebody else's bits of the mark");
        }
        refusal => {
            prop_assert_eq!(outcome.ct_mark, 0, "the mark of a refused connection");
            let wanted = match (config.deny, connection.protocol) {
                (DenyAction::Drop, _) => Fate::Dropped,
                (DenyAction::Reject, Protocol::Tcp) => Fate::Rejected(Reject::TcpReset),
                (DenyAction::Reject, _) => Fate::Rejected(Reject::AdminProhibited),
            };
            prop_assert_eq!(refusal, wanted);
            let limited = run(ruleset, &Packet { over_limit: true, ..first });
            prop_assert_eq!((limited.fate, limited.logs.len()), (refusal, 0));
            prop_assert_eq!(limited.counters, outcome.counters.clone(), "counted whether logged or not");
        }
    }
    let keeps = config.established == Established::Keep;
    prop_assert_eq!(unmarked, if keeps { Fate::Accepted } else { outcome.fate }, "judged once more");
    Ok(())
}

/// The counter and the log say which direction it was.
fn refused_by_the_right_end(
    cluster: &[Object],
    config: &PlanConfig,
    connection: &Connection,
    outcome: &Outcome,
) -> Result<(), TestCaseError> {
    let by_source = cluster::node_of(cluster, connection.source).is_some()
        && !oracle::allowed_at(cluster, connection, Direction::Egress);
    let (counter, word) = if by_source { ("deny-eg", "egress") } else { ("deny-in", "ingress") };
    prop_assert_eq!(&outcome.counters, &vec![counter.into()], "{:?}", connection);
    let groups: Vec<_> = outcome.logs.iter().map(|(_, group)| *group).collect();
    prop_assert_eq!(groups, config.nflog_group.into_iter().collect::<Vec<_>>());
    prop_assert!(outcome.logs.iter().all(|(prefix, _)| prefix.contains(word)));
    Ok(())
}

/// A history with the objects that are there before it.
fn story() -> impl Strategy<Value = (Vec<Object>, Vec<Edit>)> {
    (prop_oneof![4 => random::cluster(), 1 => Just(vec![])], random::history())
}

fn by_key(cluster: Vec<Object>) -> Objects {
    cluster.into_iter().map(|object| (object.object_ref(), object)).collect()
}

/// The firewall as it would be after a restart, in the generation of the running one.
fn restarted(node: &str, config: &PlanConfig, objects: &Objects, generation: u32) -> Ruleset {
    let objects: Vec<_> = objects.values().cloned().collect();
    let mut firewall = Firewall::of(node, config, &objects);
    firewall.planner.set_generation(generation);
    firewall.ruleset().clone()
}

fn first_difference(one: &Ruleset, other: &Ruleset) -> String {
    let names = |a: &Ruleset| a.chains.keys().chain(a.sets.keys()).cloned().collect::<Vec<_>>();
    for name in names(one).into_iter().chain(names(other)) {
        if one.chains.get(&name) != other.chains.get(&name) {
            return format!("{name}: {:#?} != {:#?}", one.chains.get(&name), other.chains.get(&name));
        }
        if one.sets.get(&name) != other.sets.get(&name) {
            return format!("{name}: {:#?} != {:#?}", one.sets.get(&name), other.sets.get(&name));
        }
    }
    "the table or its counters".into()
}

/// A kernel that holds just this table.
fn kernel_with(table: &Ruleset) -> Fake {
    let mut fake = Fake::new();
    commit(&mut fake, table, &kernel_nft::create(table)).expect("a whole table can be loaded");
    fake
}

/// Carries out a transaction. What the kernel refuses is a failure.
fn commit(fake: &mut Fake, table: &Ruleset, ops: &[Op]) -> Result<(), TestCaseError> {
    let transaction =
        Transaction { family: table.table.family, table: &table.table.name, ops, generation: None };
    fake.commit(&transaction).map_err(|error| TestCaseError::fail(format!("refused: {error}")))
}

fn held(fake: &Fake, table: &Ruleset) -> Ruleset {
    fake.ruleset(table.table.family, &table.table.name).expect("the table is there")
}

macro_rules! prop_assert_same {
    ($one:expr, $other:expr, $when:expr) => {
        prop_assert!($one == $other, "{}: {}", $when, first_difference(&$one, &$other));
    };
}

proptest! {
    #![proptest_config(cases(250))]

    #[test]
    fn an_incremental_plan_is_a_full_plan((cluster, history) in story(), bump: bool) {
        let config = PlanConfig::default();
        let mut objects = by_key(cluster.clone());
        let mut firewalls = NODES.map(|node| {
            let firewall = Firewall::of(node, &config, &cluster);
            (node, kernel_with(firewall.ruleset()), firewall)
        });
        for edit in &history {
            let changes = edit.changes(&objects);
            changes.iter().for_each(|change| random::apply(&mut objects, change));
            for (node, kernel, firewall) in &mut firewalls {
                let update = firewall.update(&changes);
                let mut ops = update.ops;
                if bump && update.tightened {
                    ops.extend(firewall.planner.set_generation(firewall.planner.generation() % 255 + 1));
                }
                commit(kernel, firewall.ruleset(), &ops)?;
                let after = held(kernel, firewall.ruleset());
                prop_assert_same!(after, *firewall.ruleset(), "the steps lead to another table");
                let fresh = restarted(node, &config, &objects, firewall.planner.generation());
                prop_assert_same!(fresh, *firewall.ruleset(), "a restart leads to another table");
            }
        }
    }

    /// What the next process does with the table that the last one left: of another time, another
    /// generation, maybe of other flags.
    #[test]
    fn a_table_left_behind_is_adopted_by_its_difference(
        cluster in random::cluster(), earlier in random::cluster(), config in plan_config(), generation in 1..4u32,
    ) {
        for node in NODES {
            let have = restarted(node, &config, &by_key(earlier.clone()), generation);
            let want = restarted(node, &PlanConfig::default(), &by_key(cluster.clone()), 1);
            let mut kernel = kernel_with(&have);
            commit(&mut kernel, &want, &kernel_nft::diff(&want, &have))?;
            prop_assert_same!(held(&kernel, &want), want, "the difference leads to another table");
            prop_assert_eq!(kernel_nft::diff(&want, &want), vec![]);
        }
    }

    #[test]
    fn what_changed_nothing_changes_nothing(cluster in random::cluster(), which: Index) {
        for node in NODES {
            let mut firewall = Firewall::of(node, &PlanConfig::default(), &cluster);
            let again = which.get(&cluster).clone();
            let update = firewall.update(&[Change::Applied(again)]);
            prop_assert!(update.ops.is_empty() && !update.tightened, "{:?}", update);
        }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    /// Changes of one object come in order; those of different objects in any. Batches may be cut anywhere,
    /// and of several changes of one object in a batch only the last need be told.
    #[test]
    fn every_order_of_events_ends_in_the_same_table(
        (cluster, history) in story(), shuffle in prop::collection::vec(any::<Index>(), 60), cuts: Vec<bool>,
    ) {
        let config = PlanConfig::default();
        let mut objects = Objects::new();
        let mut queues: BTreeMap<ObjectRef, Vec<Change>> = BTreeMap::new();
        let applied = |object: &Object| vec![Change::Applied(object.clone())];
        let mut tell = |objects: &mut Objects, changes: Vec<Change>| {
            for change in changes {
                random::apply(objects, &change);
                queues.entry(change.object_ref()).or_default().push(change);
            }
        };
        cluster.iter().for_each(|object| tell(&mut objects, applied(object)));
        for edit in &history {
            let changes = edit.changes(&objects);
            tell(&mut objects, changes);
        }
        let mut firewalls = NODES.map(|node| (node, Firewall::new(node, config.clone())));
        let (mut batch, mut turn) = (BTreeMap::new(), 0);
        while !queues.is_empty() {
            let keys: Vec<_> = queues.keys().cloned().collect();
            let key = shuffle[turn % shuffle.len()].get(&keys);
            let queue = queues.get_mut(key).unwrap();
            batch.insert(key.clone(), queue.remove(0));
            if queue.is_empty() {
                queues.remove(key);
            }
            let cut = cuts.get(turn % cuts.len().max(1)).copied().unwrap_or(true);
            if cut || queues.is_empty() {
                let changes: Vec<_> = std::mem::take(&mut batch).into_values().collect();
                for (_, firewall) in &mut firewalls {
                    firewall.update(&changes);
                }
            }
            turn += 1;
        }
        for (node, firewall) in &firewalls {
            let fresh = restarted(node, &config, &objects, 1);
            prop_assert_same!(fresh, *firewall.ruleset(), "the order of events leads to another table");
        }
    }

    /// What was allowed before a change and is not after it must not pass on the mark that it got before;
    /// what is allowed before and after must never be refused.
    #[test]
    fn no_connection_outlives_the_rule_that_allowed_it(
        (cluster, history) in story(), start: Index,
    ) {
        let config = PlanConfig::default();
        let mut objects = by_key(cluster.clone());
        let mut firewalls = NODES.map(|node| Firewall::of(node, &config, &cluster));
        for edit in &history {
            let list: Vec<_> = objects.values().cloned().collect();
            let connections = sample(&list, start);
            let changes = edit.changes(&objects);
            changes.iter().for_each(|change| random::apply(&mut objects, change));
            for firewall in &mut firewalls {
                let first: Vec<_> = connections.iter().map(cluster::first_packet).collect();
                let before: Vec<_> = first.iter().map(|packet| run(firewall.ruleset(), packet)).collect();
                if firewall.update(&changes).tightened {
                    let generation = firewall.planner.generation() % 255 + 1;
                    firewall.planner.set_generation(generation);
                }
                for (packet, before) in first.iter().zip(&before) {
                    let fresh = run(firewall.ruleset(), packet).fate;
                    let later = run(firewall.ruleset(), &packet.later(before.ct_mark)).fate;
                    prop_assert_eq!(later, fresh, "{:?} after {:?}", packet, edit);
                }
            }
        }
    }
}
