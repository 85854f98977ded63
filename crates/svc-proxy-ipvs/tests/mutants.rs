//! Shows that the random clusters notice mistakes: each judge here has one known mistake, and must be caught
//! differing from the oracle. Some are mistakes of kube-router (`W…`), the others what a planner gets wrong first.
//!
//! A mistake is planted by changing what the oracle is shown, so the oracle itself stays readable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::sync::Arc;

use common_informer::object::{
    Endpoint, EndpointSlice, Endpoints, FullService, Hints, Labels, Node, Object, ServiceSettings,
    TrafficPolicy,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use support::oracle::{Objects, Oracle};
use support::{Pure, config, random};
use svc_proxy_ipvs::args::Config;

/// Every mutant must be noticed within so many clusters.
const CLUSTERS: usize = 300;
/// Connections tried on each cluster.
const CONNECTIONS: usize = 600;

type Mutant = (&'static str, Box<dyn Fn(&mut Objects, &mut Config)>);

fn mutant(name: &'static str, change: impl Fn(&mut Objects, &mut Config) + 'static) -> Mutant {
    (name, Box::new(change))
}

fn each(objects: &mut Objects, change: impl Fn(&mut Object)) {
    objects.values_mut().for_each(change);
}

fn services(name: &'static str, change: impl Fn(&mut FullService) + 'static) -> Mutant {
    mutant(name, move |objects, _| {
        each(objects, |object| {
            if let Object::FullService(service) = object {
                change(Arc::make_mut(service));
            }
        });
    })
}

fn settings(name: &'static str, change: impl Fn(&mut ServiceSettings) + 'static) -> Mutant {
    services(name, move |service| change(Arc::make_mut(&mut service.settings)))
}

fn slices(name: &'static str, change: impl Fn(&mut EndpointSlice) + 'static) -> Mutant {
    mutant(name, move |objects, _| {
        each(objects, |object| {
            if let Object::EndpointSlice(slice) = object {
                change(Arc::make_mut(slice));
            }
        });
    })
}

fn endpoints(name: &'static str, change: impl Fn(&mut Endpoint) + 'static) -> Mutant {
    slices(name, move |slice| {
        let mut endpoints: Vec<_> = slice.endpoints.iter().collect();
        endpoints.iter_mut().for_each(&change);
        slice.endpoints = endpoints.into_iter().collect();
    })
}

fn nodes(name: &'static str, change: impl Fn(&mut Node) + 'static) -> Mutant {
    mutant(name, move |objects, _| {
        each(objects, |object| {
            if let Object::Node(node) = object {
                change(Arc::make_mut(node));
            }
        });
    })
}

fn hints(endpoint: &mut Endpoint, change: impl Fn(&mut Hints)) {
    if let Some(hints) = &mut endpoint.hints {
        change(Arc::make_mut(hints));
    }
}

fn without_annotation(settings: &mut ServiceSettings, name: &str) {
    let left = settings.annotations.iter().filter(|(key, _)| !key.ends_with(name));
    settings.annotations = Labels::new(left.map(|(key, value)| (key.clone(), value.clone())).collect());
}

fn mutants() -> Vec<Mutant> {
    vec![
        settings("externalTrafficPolicy is passed over", |s| s.external_policy = TrafficPolicy::Cluster),
        settings("externalTrafficPolicy is always Local", |s| s.external_policy = TrafficPolicy::Local),
        settings("internalTrafficPolicy is passed over", |s| s.internal_policy = TrafficPolicy::Cluster),
        settings("internalTrafficPolicy follows the external one", |s| s.internal_policy = s.external_policy),
        settings("source ranges are passed over", |s| s.source_ranges = None),
        settings("only the first source range counts", |s| {
            s.source_ranges =
                s.source_ranges.as_deref().map(|ranges| ranges.iter().take(1).copied().collect());
        }),
        settings("a range that cannot be read is no range", |s| {
            s.source_ranges = s.source_ranges.take().filter(|ranges| !ranges.is_empty());
        }),
        settings("addresses of proxying load balancers are served", |s| {
            s.load_balancer_ips.iter_mut().for_each(|address| address.proxied = false);
        }),
        settings("external addresses are passed over", |s| s.external_ips = Box::default()),
        settings("addresses of load balancers are passed over", |s| s.load_balancer_ips = Box::default()),
        settings("service.local is passed over", |s| without_annotation(s, "service.local")),
        settings("any service.local is true", |s| {
            if s.annotation("service.local").is_some() {
                s.external_policy = TrafficPolicy::Local;
            }
        }),
        settings("service.skiplbips is passed over", |s| without_annotation(s, "service.skiplbips")),
        settings("the label headless is passed over", |s| s.headless_label = false),
        settings("Services of other proxies are served", |s| s.proxy_name = None),
        settings("node ports are of the first family only", |s| s.families.truncate(1)),
        services("cluster IPs are of the first family only", |s| s.cluster_ips.truncate(1)),
        services("the youngest has an address", |s| s.created = -s.created),
        services("the age does not matter", |s| s.created = 0),
        services("ports are matched by name, whatever their protocol is", |s| {
            let ports = s.ports.iter().map(|port| common_informer::object::FullServicePort {
                protocol: common_informer::object::Protocol::Tcp,
                ..port.clone()
            });
            s.ports = ports.collect();
        }),
        services("there are no node ports", |s| s.ports.iter_mut().for_each(|port| port.node_port = None)),
        endpoints("what is not ready serves", |e| e.ready = true),
        endpoints("what terminates never serves (W15)", |e| e.serving = false),
        endpoints("what terminates serves as if it did not (W15)", |e| e.ready |= e.serving && e.terminating),
        endpoints("what has ended its service still serves", |e| e.serving = true),
        endpoints("readiness of what terminates is passed over", |e| e.ready &= !e.terminating),
        endpoints("hints are passed over", |e| e.hints = None),
        endpoints("hints for nodes are passed over", |e| hints(e, |hints| hints.nodes = Box::default())),
        endpoints("hints for zones are passed over", |e| hints(e, |hints| hints.zones = Box::default())),
        endpoints("every endpoint is elsewhere", |e| e.node = None),
        endpoints("every endpoint is here", |e| e.node = Some("n1".into())),
        slices("only one slice of a Service counts", |slice| {
            if slice.key.name.ends_with("-1") {
                slice.endpoints = Endpoints::default();
            }
        }),
        slices("a port without a number is 8080 (W13)", |slice| {
            let ports = slice.ports.iter().cloned().map(|mut port| {
                port.port = port.port.or(Some(8080));
                port
            });
            slice.ports = ports.collect();
        }),
        mutant("names joined with dashes are one name (W3)", |objects, _| {
            each(objects, |object| {
                if let Object::EndpointSlice(slice) = object
                    && *slice.key.namespace == *"a-b"
                {
                    let slice = Arc::make_mut(slice);
                    slice.key.namespace = "a".into();
                    slice.service = Some("b-c".into());
                }
            });
        }),
        nodes("there are no zones", |node| node.zone = None),
        mutant("--masquerade-all is passed over", |_, config| config.plan.masquerade_all = false),
        mutant("every source is changed", |_, config| config.plan.masquerade_all = true),
        mutant("other ports of virtual addresses are open", |_, config| config.plan.guard_addresses = false),
        mutant("cluster IPs that nobody has are passed on", |_, config| config.plan.cluster_ranges.clear()),
        mutant("excluded ranges are passed over", |_, config| config.admission.excluded.clear()),
        mutant("external addresses need no range", |_, config| config.admission.strict = false),
        mutant("an external address can hide a node port", |_, config| config.node_ports = 1..=1),
        mutant("IPv6 is served though it is off", |_, config| {
            config.plan.families =
                vec![common_informer::object::Family::V4, common_informer::object::Family::V6];
        }),
    ]
}

#[test]
fn every_planted_mistake_is_noticed() {
    let mut runner = TestRunner::deterministic();
    let mut unnoticed = mutants();
    for case in 1..=CLUSTERS {
        let cluster = random::cluster().new_tree(&mut runner).unwrap().current();
        let flags = random::flags().new_tree(&mut runner).unwrap().current();
        let objects: Objects = cluster.into_iter().map(|object| (object.object_ref(), object)).collect();
        let mut node = Pure::new("n1", config(&flags));
        node.update(objects.values().cloned().map(common_informer::object::Change::Applied).collect());
        let addresses = node.addresses();
        let all = random::connections(&objects);
        let step = all.len() / CONNECTIONS + 1;
        let sample: Vec<_> = all.iter().skip(case % step).step_by(step).collect();
        let oracle = Oracle { objects: &objects, config: &node.config, addresses: &addresses, node: "n1" };
        let right: Vec<_> = sample.iter().map(|connection| oracle.fate(connection)).collect();
        unnoticed.retain(|(name, change)| {
            let (mut shown, mut config) = (objects.clone(), node.config.clone());
            change(&mut shown, &mut config);
            let judge = Oracle { objects: &shown, config: &config, ..oracle };
            let noticed =
                sample.iter().zip(&right).any(|(connection, right)| judge.fate(connection) != *right);
            if noticed {
                println!("cluster {case:3}: {name}");
            }
            !noticed
        });
        if unnoticed.is_empty() {
            return;
        }
    }
    panic!("not noticed: {:#?}", unnoticed.iter().map(|(name, _)| name).collect::<Vec<_>>());
}
