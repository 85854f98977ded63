//! Who serves, against the rules written the long way; that nothing depends on order; that a store that takes
//! changes one by one is where one that sees everything at once would be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::decode::{self, ServiceDetail};
use common_informer::endpoints::{
    Condition, Fate, Frontend, Origin, PassedOver, Place, Policies, PortKey, Selection, Services, Slices,
    Traffic, passed_over, ready_addresses_here, select,
};
use common_informer::intern::Interner;
use common_informer::object::{
    AddressType, Change, Endpoint, EndpointPort, EndpointSlice, Family, FullService, Hints, Kind, Object,
    ObjectKey, ObjectRef, Protocol, TrafficPolicy,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const PORT: PortKey<'_> = PortKey { name: "http", protocol: Protocol::Tcp, family: Family::V4 };

fn place() -> Place {
    Place { node: "n1".into(), zone: Some("z1".into()) }
}

/// Who serves, as the API documentation says it, one sentence after the other.
mod oracle {
    use super::*;

    /// "Clients must iterate through all the existing EndpointSlices associated to a Service and build a
    /// complete list of unique network endpoints." (Services, EndpointSlices, Duplicate endpoints)
    pub(super) fn unique(
        port: PortKey<'_>,
        slices: &[Arc<EndpointSlice>],
    ) -> BTreeMap<(IpAddr, u16), Vec<Endpoint>> {
        let mut unique = BTreeMap::<_, Vec<_>>::new();
        for slice in slices {
            for other in slice.ports.iter() {
                for endpoint in slice.endpoints.iter() {
                    if let Some(number) = other.port
                        && slice.address_type == AddressType::Ip(port.family)
                        && *other.name == *port.name
                        && other.protocol == port.protocol
                    {
                        unique.entry((endpoint.address, number)).or_default().push(endpoint.clone());
                    }
                }
            }
        }
        unique
    }

    fn ready(copies: &[Endpoint]) -> bool {
        copies.iter().any(|copy| copy.ready)
    }

    /// KEP-1669: "fall back to serving and terminating endpoints".
    fn draining(copies: &[Endpoint]) -> bool {
        !ready(copies) && copies.iter().any(|copy| copy.serving && copy.terminating)
    }

    fn hints(copies: &[Endpoint]) -> Hints {
        copies.iter().find_map(|copy| copy.hints.as_deref().cloned()).unwrap_or_default()
    }

    pub(super) fn serving(
        port: PortKey<'_>,
        place: &Place,
        slices: &[Arc<EndpointSlice>],
        policy: TrafficPolicy,
    ) -> BTreeSet<(IpAddr, u16)> {
        let mut all = unique(port, slices);
        // "Local" … only to endpoints on the same node.
        if policy == TrafficPolicy::Local {
            all.retain(|_, copies| copies.iter().any(|copy| copy.node.as_ref() == Some(&place.node)));
        }
        let keys = |keep: &dyn Fn(&[Endpoint]) -> bool| -> BTreeSet<(IpAddr, u16)> {
            all.iter().filter(|(_, copies)| keep(copies)).map(|(key, _)| *key).collect()
        };
        let ready_ones = keys(&ready);
        if ready_ones.is_empty() {
            return keys(&draining);
        }
        if policy == TrafficPolicy::Local {
            return ready_ones;
        }
        // "If all endpoints have hints, and there is an endpoint with a hint for the node (zone), use those."
        let hinted: BTreeSet<_> = keys(&|copies| ready(copies) && !hints(copies).nodes.is_empty());
        let ours = keys(&|copies| ready(copies) && hints(copies).nodes.contains(&place.node));
        if hinted == ready_ones && !ours.is_empty() {
            return ours;
        }
        let hinted = keys(&|copies| ready(copies) && !hints(copies).zones.is_empty());
        let ours = keys(&|copies| {
            ready(copies) && place.zone.as_ref().is_some_and(|zone| hints(copies).zones.contains(zone))
        });
        if hinted == ready_ones && !ours.is_empty() {
            return ours;
        }
        ready_ones
    }

    /// Reject if there is nobody at all, drop if there is nobody here.
    pub(super) fn fate(
        port: PortKey<'_>,
        place: &Place,
        slices: &[Arc<EndpointSlice>],
        policy: TrafficPolicy,
    ) -> Fate {
        let anywhere = unique(port, slices).values().any(|copies| ready(copies) || draining(copies));
        match (serving(port, place, slices, policy).is_empty(), anywhere) {
            (false, _) => Fate::Served,
            (true, true) => Fate::Dropped,
            (true, false) => Fate::Refused,
        }
    }
}

/// Few addresses, so that they meet in several slices.
fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let state = (any::<bool>(), any::<bool>(), any::<bool>());
    (1u8..8, state, prop::option::of(1u8..4), hints()).prop_map(
        |(number, (ready, serving, terminating), node, hints)| Endpoint {
            address: IpAddr::from([10, 1, 0, number]),
            ready,
            serving,
            terminating,
            node: node.map(|node| format!("n{node}").into()),
            hints: (hints != Hints::default()).then(|| hints.into()),
        },
    )
}

fn hints() -> impl Strategy<Value = Hints> + Clone {
    let names = |prefix: &'static str| {
        let name = (1u8..4).prop_map(move |number| format!("{prefix}{number}").into());
        prop_oneof![1 => Just(vec![]), 4 => prop::collection::vec(name, 1..3)].prop_map(Vec::into_boxed_slice)
    };
    (names("z"), names("n")).prop_map(|(zones, nodes)| Hints { zones, nodes })
}

/// Hints by address: what two copies of one endpoint with different hints mean is not defined.
fn any_hints() -> impl Strategy<Value = Vec<Hints>> {
    prop_oneof![
        1 => Just(vec![Hints::default(); 8]),
        3 => prop::collection::vec(hints(), 8),
        2 => prop::collection::vec(hints().prop_map(|hints| Hints { nodes: [].into(), ..hints }), 8),
    ]
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let number = prop::sample::select(vec![Some(80), Some(80), Some(80), Some(81), None]);
    let port = (prop::sample::select(vec!["http", "http", "other"]), any::<bool>(), number);
    let ports = prop::collection::vec(port, 0..3);
    let address_type = prop::sample::select(vec![
        AddressType::Ip(Family::V4),
        AddressType::Ip(Family::V4),
        AddressType::Ip(Family::V4),
        AddressType::Ip(Family::V6),
        AddressType::Fqdn,
    ]);
    let service = prop::sample::select(vec![Some("a"), Some("a"), Some("b"), None]);
    (0u8..5, service, address_type, ports, prop::collection::vec(any_endpoint(), 0..5)).prop_map(
        |(name, service, address_type, ports, endpoints)| EndpointSlice {
            key: key(&format!("s-{name}")),
            service: service.map(Into::into),
            address_type,
            ports: ports
                .into_iter()
                .map(|(name, udp, port)| EndpointPort {
                    name: name.into(),
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                    port,
                })
                .collect(),
            endpoints: endpoints.into_iter().collect(),
        },
    )
}

fn any_slices() -> impl Strategy<Value = Vec<Arc<EndpointSlice>>> {
    (prop::collection::vec(any_slice(), 0..5), any_hints()).prop_map(|(mut slices, hints)| {
        let hinted = |endpoint: Endpoint| {
            let IpAddr::V4(address) = endpoint.address else { panic!() };
            let hints = hints[usize::from(address.octets()[3])].clone();
            Endpoint { hints: (hints != Hints::default()).then(|| hints.into()), ..endpoint }
        };
        for slice in &mut slices {
            slice.endpoints = slice.endpoints.iter().map(hinted).collect();
        }
        slices.into_iter().map(Arc::new).collect()
    })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { namespace: "x".into(), name: name.into() }
}

fn serving(selection: &Selection, policy: TrafficPolicy) -> BTreeSet<(IpAddr, u16)> {
    selection.serving(policy).map(|endpoint| (endpoint.address, endpoint.port)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn those_serve_that_the_api_says(slices in any_slices(), in_zone in any::<bool>()) {
        let place = Place { zone: place().zone.filter(|_| in_zone), ..place() };
        let selection = select(PORT, &place, &slices);
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            prop_assert_eq!(serving(&selection, policy), oracle::serving(PORT, &place, &slices, policy));
            prop_assert_eq!(selection.fate(policy), oracle::fate(PORT, &place, &slices, policy));
        }
        let all: Vec<_> = selection.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.port)).collect();
        let expected: Vec<_> = oracle::unique(PORT, &slices).into_keys().collect();
        prop_assert_eq!(all, expected, "every endpoint once, in order");
    }

    #[test]
    fn order_and_cut_of_the_slices_do_not_matter(
        (slices, shuffled) in prop::collection::vec(any_slice(), 0..5)
            .prop_flat_map(|slices| (Just(slices.clone()), Just(slices).prop_shuffle())),
    ) {
        let arcs = |slices: Vec<EndpointSlice>| slices.into_iter().map(Arc::new).collect::<Vec<_>>();
        // Each endpoint in a slice of its own, from last to first.
        let cut = shuffled.iter().flat_map(|slice| {
            let endpoints: Vec<_> = slice.endpoints.iter().collect();
            endpoints.into_iter().rev().map(|endpoint| EndpointSlice { endpoints: [endpoint].into(), ..slice.clone() })
        }).collect();
        let selection = select(PORT, &place(), &arcs(slices));
        prop_assert_eq!(&selection, &select(PORT, &place(), &arcs(shuffled)));
        prop_assert_eq!(&selection, &select(PORT, &place(), &arcs(cut)));
    }

    #[test]
    fn reachable_endpoints_are_those_of_any_packet(slices in any_slices(), policies in any_policies()) {
        let selection = select(PORT, &place(), &slices);
        let mut expected = BTreeSet::new();
        for traffic in [Traffic::Internal, Traffic::External, Traffic::Inside] {
            if let Some(policy) = policies.to(traffic) {
                expected.extend(serving(&selection, policy));
            }
        }
        let reachable: BTreeSet<_> =
            selection.reachable(policies).map(|endpoint| (endpoint.address, endpoint.port)).collect();
        prop_assert_eq!(reachable, expected);
    }

    #[test]
    fn slices_by_service_are_those_that_there_are(
        steps in prop::collection::vec((any_slice(), 0u8..5), 0..40),
    ) {
        let (mut slices, mut there) = (Slices::new(), BTreeMap::new());
        for (slice, action) in steps {
            let of = |there: &BTreeMap<ObjectKey, Arc<EndpointSlice>>, service: &str| -> Vec<_> {
                there.values().filter(|slice| slice.service.as_deref() == Some(service)).cloned().collect()
            };
            let before = ["a", "b"].map(|service| of(&there, service));
            let object = ObjectRef { kind: Kind::EndpointSlice, key: slice.key.clone() };
            let change = match action {
                0 => Change::Deleted(object),
                1 => Change::Excluded { object, reason: "bad".to_owned() },
                _ => Change::Applied(Object::EndpointSlice(slice.into())),
            };
            match &change {
                Change::Applied(Object::EndpointSlice(slice)) => there.insert(slice.key.clone(), slice.clone()),
                change => there.remove(&change.object_ref().key),
            };
            let mut touched = BTreeSet::new();
            slices.apply(&change, &mut touched);
            for (service, before) in ["a", "b"].into_iter().zip(before) {
                let after = of(&there, service);
                let mut found = slices.of(&key(service)).to_vec();
                found.sort_by(|one, other| one.key.cmp(&other.key));
                prop_assert_eq!(touched.contains(&key(service)), before != after);
                prop_assert_eq!(found, after);
            }
            prop_assert_eq!(slices.len(), there.len());
        }
    }

    #[test]
    fn frontends_belong_to_the_best_claim_whatever_came_first(
        steps in prop::collection::vec((0u8..5, prop::option::of(any_claimant())), 0..30),
    ) {
        let (mut services, mut there) = (Services::new(), BTreeMap::new());
        let mut earlier = BTreeMap::new();
        for (name, service) in steps {
            let name = key(&name.to_string());
            let service = service.map(|service| Arc::new(FullService { key: name.clone(), ..service }));
            let mut touched = BTreeSet::new();
            services.set(&name, service.clone(), |_, _| true, &mut touched);
            match service {
                Some(service) => there.insert(name.clone(), service),
                None => there.remove(&name),
            };
            let expected = |service: &ObjectKey| there.get(service);
            prop_assert_eq!(services.get(&name), expected(&name));
            prop_assert_eq!((services.len(), services.iter().count()), (there.len(), there.len()));
            prop_assert!(!touched.contains(&name), "who changes knows");
            let owners = owners(&there);
            for (frontend, owner) in &owners {
                prop_assert_eq!(services.owner(*frontend), there.get(owner));
            }
            for (service, object) in &there {
                let lost: Vec<_> = services.lost(service).map(|(frontend, owner)| (frontend, owner.key.clone())).collect();
                let wanted: BTreeSet<_> = frontends(object).into_iter().map(|(frontend, _)| frontend).collect();
                let expected: Vec<_> = wanted
                    .into_iter()
                    .map(|frontend| (frontend, owners[&frontend].clone()))
                    .filter(|(_, owner)| owner != service)
                    .collect();
                prop_assert_eq!(lost, expected);
            }
            let mut told = BTreeSet::new();
            for frontend in earlier.keys().chain(owners.keys()) {
                let (before, after) = (earlier.get(frontend), owners.get(frontend));
                for changed in [before, after].into_iter().flatten().filter(|_| before != after) {
                    prop_assert!(*changed == name || touched.remove(changed) || told.contains(changed), "{} is not told", changed);
                    told.insert(changed.clone());
                }
            }
            // Who still does without is told that another has it.
            for (service, object) in &there {
                let changed = frontends(object).into_iter().any(|(frontend, _)| {
                    earlier.get(&frontend) != owners.get(&frontend) && owners[&frontend] != *service
                });
                if changed && *service != name {
                    prop_assert!(touched.remove(service) || told.contains(service), "{} is not told", service);
                }
            }
            prop_assert!(touched.is_empty(), "{:?} have gained, lost and missed nothing", touched);
            earlier = owners;
        }
    }
}

fn any_policies() -> impl Strategy<Value = Policies> {
    let policy = || prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    (policy(), prop::option::of(policy())).prop_map(|(internal, external)| Policies { internal, external })
}

/// A Service of few addresses and ports.
fn any_claimant() -> impl Strategy<Value = FullService> {
    let ip = |net: u8| (1u8..4).prop_map(move |number| format!("192.0.{net}.{number}"));
    let external = prop::collection::vec(prop_oneof![3 => ip(2), 1 => ip(1)], 0..3);
    let ports = prop::collection::btree_set(80u16..82, 1..3);
    (ip(1), external, ip(2), ports, 0u8..3, prop::option::of(30_000u16..30_002)).prop_map(
        |(cluster, external, balancer, ports, created, node_port)| {
            let ports: Vec<_> =
                ports.iter().map(|port| json!({"name": port.to_string(), "port": port, "nodePort": node_port})).collect();
            service(&json!({"metadata": {"name": "s", "creationTimestamp": format!("2024-01-0{}T00:00:00Z", created + 1)},
                "spec": {"type": "LoadBalancer", "clusterIP": cluster, "externalIPs": external, "ports": ports},
                "status": {"loadBalancer": {"ingress": [{"ip": balancer}, {"ip": "192.0.2.9", "ipMode": "Proxy"}]}}}))
        },
    )
}

fn service(value: &Value) -> FullService {
    let decoded =
        decode::object_of_with(ServiceDetail::Full, Kind::Service, value, &mut Interner::new()).unwrap();
    let Object::FullService(service) = decoded.object else { panic!() };
    Arc::unwrap_or_clone(service)
}

/// What a Service wants, and whether the API server gave it that.
fn frontends(service: &FullService) -> BTreeSet<(Frontend, bool)> {
    let mut wanted = BTreeSet::new();
    for port in &service.ports {
        let address = |ip| Frontend::Address(ip, port.protocol, port.port);
        wanted.extend(service.cluster_ips.iter().map(|ip| (address(*ip), true)));
        wanted.extend(service.settings.external_ips.iter().map(|ip| (address(*ip), false)));
        let balancer = service.settings.load_balancer_ips.iter().filter(|ip| !ip.proxied);
        wanted.extend(balancer.map(|ip| (address(ip.ip), false)));
        wanted.extend(port.node_port.map(|number| (Frontend::NodePort(port.protocol, number), true)));
    }
    wanted
}

fn owners(services: &BTreeMap<ObjectKey, Arc<FullService>>) -> BTreeMap<Frontend, ObjectKey> {
    let mut claims = BTreeMap::<Frontend, Vec<_>>::new();
    for service in services.values() {
        for (frontend, given) in frontends(service) {
            claims.entry(frontend).or_default().push((!given, service.created, service.key.clone()));
        }
    }
    claims.into_iter().map(|(frontend, claims)| (frontend, claims.into_iter().min().unwrap().2)).collect()
}

#[test]
fn a_service_gets_only_the_frontends_that_it_may_have() {
    let with = |name: &str, created: &str| {
        let value = json!({"metadata": {"name": name, "namespace": "x", "creationTimestamp": created},
            "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}}});
        Arc::new(service(&value))
    };
    let (old, young) = (with("old", "2024-01-01T00:00:00Z"), with("young", "2024-01-02T00:00:00Z"));
    let contested = Frontend::Address("192.0.2.1".parse().unwrap(), Protocol::Tcp, 80);
    let (mut services, mut touched) = (Services::new(), BTreeSet::new());
    services.set(&young.key, Some(young.clone()), |_, _| true, &mut touched);
    services.set(&old.key, Some(old.clone()), |_, origin| origin != Origin::ExternalIp, &mut touched);
    assert_eq!(services.owner(contested), Some(&young), "the old one may not have it");
    assert_eq!(services.lost(&old.key).count(), 0, "what it may not have, it has not lost");
    assert_eq!(services.lost(&young.key).count(), 2, "the cluster IP and the load balancer's");
    services.set(&old.key, Some(old.clone()), |_, _| true, &mut touched);
    assert_eq!(services.owner(contested), Some(&old));
    services.set(&old.key, None, |_, _| true, &mut touched);
    assert_eq!((services.owner(contested), services.len()), (Some(&young), 1));
}

#[test]
fn the_last_ready_endpoint_hands_over_to_one_that_terminates() {
    let slice = |ready: bool| {
        let endpoint = |number: u8, ready, terminating| Endpoint {
            address: IpAddr::from([10, 1, 0, number]),
            ready,
            serving: true,
            terminating,
            node: Some("n1".into()),
            hints: None,
        };
        Arc::new(EndpointSlice {
            key: key("s-1"),
            service: Some("a".into()),
            address_type: AddressType::Ip(Family::V4),
            ports: [EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: Some(80) }].into(),
            endpoints: [endpoint(1, false, true), endpoint(2, ready, false)].into(),
        })
    };
    for (ready, served) in [(true, 2u8), (false, 1)] {
        let selection = select(PORT, &place(), &[slice(ready)]);
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            let serving: Vec<_> = selection.serving(policy).map(|endpoint| endpoint.address).collect();
            assert_eq!(serving, [IpAddr::from([10, 1, 0, served])]);
        }
        assert_eq!(selection.endpoints[0].condition, Condition::Terminating);
        // The load balancer must turn away although packets are still served.
        assert_eq!(ready_addresses_here(Family::V4, &place(), &[slice(ready)]), usize::from(ready));
    }
}

#[test]
fn policies_are_those_of_the_addresses_that_there_are() {
    let policies = |spec: Value| Policies::of(&service(&json!({"metadata": {"name": "s"}, "spec": spec})));
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    for (spec, internal, external) in [
        (json!({}), cluster, None),
        (json!({"externalTrafficPolicy": "Local"}), cluster, None),
        (json!({"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]}), cluster, Some(local)),
        (json!({"externalTrafficPolicy": "Local", "type": "NodePort"}), cluster, Some(local)),
        (json!({"internalTrafficPolicy": "Local", "type": "LoadBalancer"}), local, Some(cluster)),
        (
            json!({"externalTrafficPolicy": "Local", "type": "ExternalName", "externalIPs": ["192.0.2.1"]}),
            cluster,
            None,
        ),
    ] {
        assert_eq!(policies(spec.clone()), Policies { internal, external }, "{spec}");
    }
    let external = Policies { internal: cluster, external: Some(local) };
    assert_eq!(external.to(Traffic::Inside), Some(cluster));
    assert!(external.uses(local) && external.uses(cluster));
    assert!(!Policies { internal: local, external: None }.uses(cluster));
}

#[test]
fn services_are_passed_over_for_one_reason() {
    let reason = |labels: Value, spec: Value| {
        passed_over(&service(&json!({"metadata": {"name": "s", "labels": labels}, "spec": spec})), "us")
    };
    let spec = || json!({"clusterIP": "10.96.0.1"});
    let proxy = |name: &str| json!({"service.kubernetes.io/service-proxy-name": name});
    assert_eq!(reason(json!({}), spec()), None);
    assert_eq!(reason(proxy("us"), spec()), None);
    assert_eq!(reason(proxy("them"), spec()), Some(PassedOver::OtherProxy("them".into())));
    assert_eq!(reason(proxy(""), spec()), Some(PassedOver::OtherProxy("".into())));
    assert_eq!(
        reason(json!({"service.kubernetes.io/headless": ""}), spec()),
        Some(PassedOver::HeadlessLabel)
    );
    assert_eq!(reason(json!({}), json!({"clusterIP": "None"})), Some(PassedOver::Headless));
    assert_eq!(reason(json!({}), json!({"clusterIP": ""})), Some(PassedOver::NoClusterIp));
    assert_eq!(reason(json!({}), json!({"type": "ExternalName"})), Some(PassedOver::ExternalName));
}
