//! Direct return, planned: what stays over a restart, and that a change costs as much as a plan from nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use common_informer::object::{Change, Kind, ObjectKey, ObjectRef};
use kernel_netlink::ipvs::ServiceKey;
use svc_proxy_ipvs::plan::rules;

use support::{NODE, Pure, changes, config};

/// A Service on an external address, with endpoints on both nodes.
fn service(number: usize, ip: &str, direct: bool) -> Vec<Change> {
    let annotations = if direct { "kube-router.io/service.dsr: tunnel" } else { "" };
    changes(&format!(
        "
{{apiVersion: v1, kind: Service, metadata: {{namespace: x, name: s{number}, annotations: {{{annotations}}}}},
  spec: {{clusterIP: 10.96.0.{number}, ports: [{{port: {port}}}], externalIPs: [{ip}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
  metadata: {{namespace: x, name: s{number}-a, labels: {{kubernetes.io/service-name: s{number}}}}},
  addressType: IPv4, ports: [{{name: \"\", port: {port}}}],
  endpoints: [{{addresses: [10.244.1.{number}], nodeName: n1}}, {{addresses: [10.244.2.{number}], nodeName: n2}}]}}
",
        port = 8000 + number
    ))
}

fn gone(number: usize) -> Vec<Change> {
    let key = |name: String| ObjectKey { namespace: "x".into(), name: name.as_str().into() };
    vec![
        Change::Deleted(ObjectRef { kind: Kind::Service, key: key(format!("s{number}")) }),
        Change::Deleted(ObjectRef { kind: Kind::EndpointSlice, key: key(format!("s{number}-a")) }),
    ]
}

fn node() -> Pure {
    let mut pure = Pure::new("n1", config(&[""; 0]));
    pure.update(changes(NODE));
    pure
}

fn marked(pure: &Pure) -> BTreeSet<ServiceKey> {
    let keys = pure.planner.virtual_keys().copied();
    keys.filter(|key| matches!(key, ServiceKey::Mark { .. })).collect()
}

#[test]
fn a_process_that_takes_over_the_record_plans_the_same() {
    let mut first = node();
    for number in [1, 2, 3, 4] {
        first.update(service(number, "203.0.113.7", true));
    }
    first.update(gone(2));
    let mut second = Pure::new("n1", config(&[""; 0]));
    second.planner.adopt_marks(rules::marks(first.ruleset()).collect::<Vec<_>>());
    let objects = [4, 3, 1].map(|number| service(number, "203.0.113.7", true));
    second.update(changes(NODE).into_iter().chain(objects.into_iter().flatten()).collect());
    assert_eq!(second.ruleset(), first.ruleset());
    assert_eq!(second.planner.virtuals(), first.planner.virtuals());
    let numbers: Vec<_> = rules::marks(second.ruleset()).map(|(_, mark)| mark & 0xff).collect();
    assert_eq!(numbers, [1, 3, 4]);
}

#[test]
fn with_the_last_service_goes_all_that_the_table_had_for_it() {
    let mut pure = node();
    let before = pure.ruleset().clone();
    pure.update(service(1, "203.0.113.7", true));
    assert!(pure.ruleset().chains.len() > before.chains.len());
    let update = pure.update(gone(1));
    assert_eq!(*pure.ruleset(), before);
    assert_eq!(update.vips.gone.len(), 1, "that of the cluster IP: {:?}", update.vips);
    assert_eq!(pure.planner.direct_pods(), BTreeMap::new());
}

#[test]
fn the_mtu_of_the_way_to_endpoints_bounds_segments() {
    let mut pure = node();
    pure.update(service(1, "203.0.113.7", true));
    let clamp = |pure: &Pure| {
        let text = kernel_nft::text::render(pure.ruleset());
        let sizes = text.lines().filter_map(|line| line.split("maxseg size set ").nth(1));
        sizes.map(|size| size.trim().parse::<u16>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(clamp(&pure), [1440, 1380]);
    assert!(!pure.planner.set_mtu(1450).is_empty());
    assert_eq!(clamp(&pure), [1390, 1330]);
    assert_eq!(pure.planner.set_mtu(1450), []);
    pure.planner.set_mtu(68);
    assert_eq!(clamp(&pure), [536, 536]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    /// Services come, go and change on few addresses: what is planned step by step is what a new process plans that
    /// takes over the marks, and the steps of the table lead there.
    #[test]
    fn step_by_step_is_as_from_nothing(
        histories in proptest::collection::vec((1usize..5, 0usize..3, proptest::option::of(proptest::bool::ANY)), 1..14),
    ) {
        let mut pure = node();
        let mut objects = BTreeMap::new();
        let mut table = pure.ruleset().clone();
        for (number, ip, direct) in histories {
            let ip = format!("203.0.113.{ip}");
            let before: BTreeMap<_, _> = rules::marks(pure.ruleset()).collect();
            let update = match direct {
                Some(direct) => {
                    objects.insert(number, service(number, &ip, direct));
                    pure.update(service(number, &ip, direct))
                }
                None => {
                    objects.remove(&number);
                    pure.update(gone(number))
                }
            };
            let after: BTreeMap<_, _> = rules::marks(pure.ruleset()).collect();
            for (front, mark) in before.iter().filter(|(_, mark)| **mark & 0xff != 0) {
                let stays = after.get(front).is_none_or(|now| now == mark || now & 0xff == 0);
                proptest::prop_assert!(stays, "{front:?} {mark:#x} {after:?}");
            }
            let mut other = Pure::new("n1", config(&[""; 0]));
            other.planner.adopt_marks(after);
            other.update(changes(NODE).into_iter().chain(objects.values().flatten().cloned()).collect());
            proptest::prop_assert_eq!(other.ruleset(), pure.ruleset());
            proptest::prop_assert_eq!(other.planner.virtuals(), pure.planner.virtuals());
            let routes = |pure: &Pure| pure.planner.vips().collect::<Vec<_>>();
            proptest::prop_assert_eq!(routes(&other), routes(&pure));
            proptest::prop_assert_eq!(marked(&other), marked(&pure));
            let fake = kernel_nft::diff(pure.ruleset(), &table);
            proptest::prop_assert_eq!(update.table.is_empty(), fake.is_empty());
            table = pure.ruleset().clone();
        }
    }
}
