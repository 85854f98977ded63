//! What holds after any history: of objects, of writes that succeed, fail or come late, of new processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::decode::{self, ServiceDetail};
use common_informer::intern::Interner;
use common_informer::object::{Change, Kind, ObjectKey};
use lb_ipam::model::pool::{Pool, Pools};
use lb_ipam::model::world::{Touched, World};
use lb_ipam::plan::writes::{Next, StatusChange, next_for};
use lb_ipam::plan::{PlanConfig, Planner};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::objects::{deleted, key};

/// Five IPv4 and two IPv6 addresses for everybody, two for the red team, one on request.
fn config() -> PlanConfig {
    let file = r#"
pools:
- {name: red, ranges: [192.0.2.16/30], namespaceSelector: {matchLabels: {team: red}}}
- {name: reserve, ranges: [192.0.2.32/32], onlyOnRequest: true}
"#;
    let mut pools = Pool::parse_file(file).unwrap();
    pools.push(Pool::of_flag(["192.0.2.0/30", "192.0.2.8-192.0.2.10", "2001:db8::/127"]).unwrap());
    PlanConfig { pools: Arc::new(Pools::new(pools).unwrap()), default_class: true }
}

const ADDRESSES: [&str; 14] = [
    "192.0.2.0",
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.8",
    "192.0.2.9",
    "192.0.2.10",
    "192.0.2.16",
    "192.0.2.17",
    "192.0.2.18",
    "192.0.2.32",
    "2001:db8::",
    "2001:db8::1",
    "203.0.113.1",
];

/// A Service as its owner writes it.
#[derive(Clone, Debug)]
struct Spec {
    created: u8,
    load_balancer: bool,
    class: Option<&'static str>,
    families: &'static [&'static str],
    require: bool,
    asked: Option<&'static str>,
    external: Option<&'static str>,
    pool: Option<&'static str>,
    share: Option<&'static str>,
    ports: Vec<u16>,
    local: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Spec),
    Delete(u8),
    /// Labels of the namespace; `None` deletes it.
    Team(Option<&'static str>),
    /// Somebody else writes a status.
    Meddle(u8, Vec<&'static str>),
    /// The write for one Service succeeds, and the watch tells of it at once.
    Write(u8),
    /// All writes succeed.
    Settle,
    /// A new process.
    Restart,
}

fn spec() -> impl Strategy<Value = Spec> {
    let address = || prop::option::weighted(0.3, prop::sample::select(ADDRESSES.to_vec()));
    let families: Vec<&'static [&'static str]> =
        vec![&["IPv4"], &["IPv4"], &["IPv6"], &["IPv4", "IPv6"], &["IPv6", "IPv4"]];
    (
        (
            0u8..4,
            prop::bool::weighted(0.9),
            prop::sample::select(vec![None, None, Some("kube-router"), Some("acme.io/x")]),
        ),
        (
            prop::sample::select(families),
            any::<bool>(),
            address(),
            prop::option::weighted(0.1, prop::sample::select(ADDRESSES.to_vec())),
        ),
        (
            prop::option::weighted(0.2, prop::sample::select(vec!["red", "reserve", "default", "none"])),
            prop::option::weighted(0.4, prop::sample::select(vec!["k", "l"])),
            prop::collection::vec(80u16..84, 1..3),
            prop::bool::weighted(0.1),
        ),
    )
        .prop_map(
            |(
                (created, load_balancer, class),
                (families, require, asked, external),
                (pool, share, ports, local),
            )| {
                Spec {
                    created,
                    load_balancer,
                    class,
                    families,
                    require,
                    asked,
                    external,
                    pool,
                    share,
                    ports,
                    local,
                }
            },
        )
}

fn step(meddle: bool) -> impl Strategy<Value = Step> {
    let ips = prop::collection::vec(prop::sample::select(ADDRESSES.to_vec()), 0..3);
    prop_oneof![
        8 => (0u8..8, spec()).prop_map(|(name, spec)| Step::Put(name, spec)),
        3 => (0u8..8).prop_map(Step::Delete),
        1 => prop::sample::select(vec![None, Some("red"), Some("blue")]).prop_map(Step::Team),
        u32::from(meddle) * 2 => (0u8..8, ips).prop_map(|(name, ips)| Step::Meddle(name, ips)),
        4 => (0u8..8).prop_map(Step::Write),
        2 => Just(Step::Settle),
        1 => Just(Step::Restart),
    ]
}

/// The API server, the process, and what a person knows of both.
struct Lab {
    world: World,
    planner: Planner,
    /// Spec and addresses in the status.
    server: BTreeMap<u8, (Spec, Vec<IpAddr>)>,
    /// Addresses that somebody else has put in the status of a Service.
    meddled: BTreeSet<(u8, IpAddr)>,
}

fn name(name: u8) -> ObjectKey {
    key(&format!("x/s{name}"))
}

fn object(id: u8, spec: &Spec, shown: &[IpAddr]) -> Value {
    let mut annotations = BTreeMap::new();
    for (name, value) in [("pool", spec.pool), ("share-key", spec.share)] {
        if let Some(value) = value {
            annotations.insert(format!("kube-router.io/loadbalancer.{name}"), value);
        }
    }
    json!({
        "metadata": {"namespace": "x", "name": format!("s{id}"), "creationTimestamp": format!("2026-01-01T00:00:0{}Z", spec.created), "annotations": annotations},
        "spec": {
            "type": if spec.load_balancer { "LoadBalancer" } else { "ClusterIP" },
            "loadBalancerClass": spec.class, "ipFamilies": spec.families,
            "ipFamilyPolicy": if spec.require { "RequireDualStack" } else { "PreferDualStack" },
            "loadBalancerIP": spec.asked, "externalIPs": spec.external.map(|ip| vec![ip]),
            "externalTrafficPolicy": if spec.local { "Local" } else { "Cluster" },
            "ports": spec.ports.iter().map(|port| json!({"port": port})).collect::<Vec<_>>(),
        },
        "status": {"loadBalancer": {"ingress": shown.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}},
    })
}

fn may_share(one: &Spec, other: &Spec) -> bool {
    one.share.is_some()
        && one.share == other.share
        && !one.local
        && !other.local
        && one.ports.iter().all(|port| !other.ports.contains(port))
}

fn ours(spec: &Spec) -> bool {
    spec.load_balancer && spec.class != Some("acme.io/x")
}

type Plan = BTreeMap<ObjectKey, (Vec<IpAddr>, Vec<String>)>;

fn plan(planner: &Planner) -> Plan {
    let line =
        |problems: &[lb_ipam::model::claim::Problem]| problems.iter().map(ToString::to_string).collect();
    planner.iter().map(|(key, ips, problems)| (key.clone(), (ips.to_vec(), line(problems)))).collect()
}

impl Lab {
    fn new() -> Self {
        Self {
            world: World::default(),
            planner: Planner::new(config()),
            server: BTreeMap::new(),
            meddled: BTreeSet::new(),
        }
    }

    fn put(&mut self, id: u8, touched: &mut Touched) {
        let (spec, shown) = &self.server[&id];
        let value = object(id, spec, shown);
        let decoded =
            decode::object_of_with(ServiceDetail::Labelled, Kind::Service, &value, &mut Interner::new());
        self.world.apply(Change::Applied(decoded.unwrap().object), touched);
    }

    fn step(&mut self, step: Step) {
        let mut touched = Touched::new();
        match step {
            Step::Put(id, spec) => {
                // The age of an object does not change, and the server clears the status with the type.
                let before = self.server.remove(&id);
                let created = before.as_ref().map_or(spec.created, |(before, _)| before.created);
                let shown = before.map(|(_, shown)| shown).filter(|_| spec.load_balancer).unwrap_or_default();
                self.server.insert(id, (Spec { created, ..spec }, shown));
                self.put(id, &mut touched);
            }
            Step::Delete(id) => {
                self.server.remove(&id);
                self.world.apply(deleted(&format!("x/s{id}")), &mut touched);
            }
            Step::Team(team) => {
                let value = json!({"metadata": {"name": "x", "labels": {"team": team}}});
                let decoded = decode::object_of(Kind::Namespace, &value, &mut Interner::new()).unwrap();
                let change = match team {
                    Some(_) => Change::Applied(decoded.object),
                    None => Change::Deleted(decoded.object.object_ref()),
                };
                self.world.apply(change, &mut touched);
            }
            Step::Meddle(id, ips) => {
                if let Some((spec, shown)) = self.server.get_mut(&id)
                    && spec.load_balancer
                {
                    *shown = ips.iter().map(|ip| ip.parse().unwrap()).collect();
                    self.meddled.extend(shown.iter().map(|ip| (id, *ip)));
                    self.put(id, &mut touched);
                }
            }
            Step::Write(id) => self.write(id, &mut touched),
            Step::Settle => return self.settle(),
            Step::Restart => self.planner = Planner::desired(&self.world, config()),
        }
        self.update(&touched);
    }

    /// Carries out what is to be written for one Service.
    fn write(&mut self, id: u8, touched: &mut Touched) {
        let Next::Write(write) = next_for(&self.world, &self.planner, &name(id)) else { return };
        let StatusChange::Show { ips, .. } = write.change else { return };
        let (spec, before) = self.server[&id].clone();
        for ip in ips.iter().filter(|ip| !before.contains(ip)) {
            for (other, (theirs, shown)) in self.server.iter().filter(|(other, _)| **other != id) {
                assert!(
                    !shown.contains(ip) || self.meddled.contains(&(*other, *ip)) || may_share(&spec, theirs),
                    "{ip} would be in the status of s{id} and of s{other}"
                );
            }
        }
        self.server.get_mut(&id).unwrap().1 = ips.to_vec();
        self.put(id, touched);
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            let mut touched = Touched::new();
            for id in 0..8 {
                self.write(id, &mut touched);
            }
            if touched.is_empty() {
                return;
            }
            self.update(&touched);
        }
        panic!("the plan does not come to rest");
    }

    /// Updates, and sees that a full recomputation comes to the same.
    fn update(&mut self, touched: &Touched) {
        let everything: Touched =
            self.world.services().map(|service| service.key.clone()).chain(touched.iter().cloned()).collect();
        let mut full = self.planner.clone();
        full.update(&self.world, &everything);
        let before = plan(&self.planner);
        let update = self.planner.update(&self.world, touched);
        assert_eq!(plan(&self.planner), plan(&full), "incremental and full");
        let mut again = self.planner.clone();
        again.update(&self.world, &everything);
        assert_eq!(plan(&self.planner), plan(&again), "at rest");
        for touched in touched {
            assert!(update.changed.contains(touched));
        }
        for (key, now) in plan(&self.planner) {
            assert!(
                before.get(&key) == Some(&now) || update.changed.contains(&key),
                "{key:?} became {now:?} unsaid"
            );
        }
        self.check();
    }

    fn check(&self) {
        let pools = config().pools;
        let mut holders: BTreeMap<IpAddr, Vec<&Spec>> = BTreeMap::new();
        for (id, (spec, _)) in &self.server {
            let Some(held) = self.planner.addresses(&name(*id)) else { continue };
            assert!(ours(spec), "s{id} is not ours");
            assert!(
                !spec.require || spec.families.len() < 2 || [0, 2].contains(&held.len()),
                "s{id}: both or none"
            );
            for ip in held {
                let (_, pool) = pools.of(*ip).expect("an address of a pool");
                assert!(
                    spec.pool.is_none_or(|name| *pool.name == *name),
                    "s{id}: {ip} of pool {}",
                    pool.name
                );
                assert!(spec.families.contains(&if ip.is_ipv4() { "IPv4" } else { "IPv6" }));
                let others = holders.entry(*ip).or_default();
                assert!(others.iter().all(|other| may_share(spec, other)), "{ip} is held twice");
                others.push(spec);
            }
        }
        self.check_that_nobody_waits_in_vain();
    }

    /// Who has nothing of a family, and did not ask for one address, could have none.
    fn check_that_nobody_waits_in_vain(&self) {
        for (id, (spec, _)) in &self.server {
            let Some(held) = self.planner.addresses(&name(*id)) else { continue };
            if (spec.require && spec.families.len() == 2) || spec.pool.is_some() || spec.asked.is_some() {
                continue;
            }
            for (family, free) in
                [("IPv4", &ADDRESSES[1..3]), ("IPv4", &ADDRESSES[4..7]), ("IPv6", &ADDRESSES[11..13])]
            {
                let has = held.iter().any(|ip| ip.is_ipv4() == (family == "IPv4"));
                if has || !spec.families.contains(&family) {
                    continue;
                }
                for ip in free {
                    let ip: IpAddr = ip.parse().unwrap();
                    let taken = self.server.iter().any(|(other, (theirs, shown))| {
                        let external = theirs.external.is_some_and(|external| external.parse() == Ok(ip));
                        let held =
                            self.planner.addresses(&name(*other)).is_some_and(|held| held.contains(&ip));
                        external || held || shown.contains(&ip)
                    });
                    assert!(taken, "s{id} waits although {ip} is free");
                }
            }
        }
    }
}

/// A third of the usual number of histories, each of which is long; `PROPTEST_CASES` counts all the same.
fn config_of_tests() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases / 3, failure_persistence: None, ..usual }
}

proptest! {
    #![proptest_config(config_of_tests())]

    #[test]
    fn no_history_gives_an_address_twice_or_makes_the_plan_depend_on_its_cuts(steps in prop::collection::vec(step(true), 1..40)) {
        let mut lab = Lab::new();
        for step in steps {
            lab.step(step);
        }
    }

    #[test]
    fn a_new_process_goes_on_where_the_last_one_stopped(steps in prop::collection::vec(step(true), 1..40)) {
        let mut lab = Lab::new();
        for step in steps {
            lab.step(step);
        }
        lab.settle();
        let next = Planner::desired(&lab.world, config());
        let (then, now) = (plan(&next), plan(&lab.planner));
        prop_assert_eq!(then.len(), now.len());
        for (key, (ips, problems)) in &then {
            prop_assert_eq!(ips, &now[key].0);
            // Who has nothing, and shows an address of another controller, is left to that.
            if !problems.iter().any(|problem| problem.starts_with("StatusOfOthers")) {
                prop_assert_eq!(problems, &now[key].1);
            }
        }
    }

    #[test]
    fn without_meddling_a_restart_at_any_time_changes_no_address_in_a_status(steps in prop::collection::vec(step(false), 1..40)) {
        let mut lab = Lab::new();
        for step in steps {
            lab.step(step);
            let next = Planner::desired(&lab.world, config());
            // What was given and not written may go to others: who asks for an address may get it now, and who
            // needs two may have one of them only.
            let plain = |spec: &Spec| spec.asked.is_none() && !spec.require;
            for (id, (spec, shown)) in lab.server.iter().filter(|(_, (spec, _))| plain(spec)) {
                let (Some(now), Some(then)) = (lab.planner.addresses(&name(*id)), next.addresses(&name(*id))) else { continue };
                // Of two that share an address and may not any more, one has to lose it. Which one depends on what
                // else they were given.
                let contested = |ip: &IpAddr| {
                    lab.server.iter().any(|(other, (theirs, shown))| {
                        other != id && shown.contains(ip) && !may_share(spec, theirs)
                    })
                };
                for ip in shown.iter().filter(|ip| now.contains(ip) && !contested(ip)) {
                    prop_assert!(then.contains(ip), "s{} has {} and would lose it", id, ip);
                }
            }
        }
    }
}
