//! The rules of who gets which address, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test ends in a panic")]

mod support;

use lb_ipam::model::pool::{Pool, Pools};
use lb_ipam::plan::PlanConfig;
use lb_ipam::plan::writes::{Next, next_for};
use support::objects::{Rig, config, deleted, key};

/// A Service in namespace `x`; `created` in seconds of one minute.
fn service(name: &str, created: u8, spec: &str, rest: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{namespace: x, name: {name}, creationTimestamp: \"2026-01-01T00:00:{created:02}Z\" {rest}}}, \
         spec: {{type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}] {spec}}}}}\n---\n"
    )
}

fn showing(name: &str, created: u8, ips: &str) -> String {
    let ingress: Vec<_> = ips.split(',').map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
    service(name, created, "", "")
        .replace("spec:", &format!("status: {{loadBalancer: {{ingress: [{}]}}}}, spec:", ingress.join(", ")))
}

fn annotated(name: &str, created: u8, port: u16, annotations: &str) -> String {
    service(name, created, "", &format!(", annotations: {{{annotations}}}"))
        .replace("port: 80", &format!("port: {port}"))
}

const DUAL: &str = ", ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]";
const BOTH: &str = ", ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]";

#[test]
fn the_oldest_are_served_first_and_each_gets_the_lowest_free_address() {
    let mut rig = Rig::new(config(&["192.0.2.0/30"]));
    rig.yaml(&(service("c", 3, "", "") + &service("b", 2, "", "") + &service("a", 1, "", "")));
    assert_eq!(
        (rig.has("x/a"), rig.has("x/b"), rig.has("x/c")),
        ("192.0.2.1".into(), "192.0.2.2".into(), String::new())
    );
    assert_eq!(rig.reasons("x/c"), ["NoAddressFree"]);
}

#[test]
fn an_address_given_back_goes_to_the_one_who_waits() {
    let mut rig = Rig::new(config(&["192.0.2.0/30"]));
    rig.yaml(&(service("a", 1, "", "") + &service("b", 2, "", "") + &service("c", 3, "", "")));
    rig.settle();
    let update = rig.apply(vec![deleted("x/a")]);
    assert_eq!(rig.has("x/c"), "192.0.2.1");
    assert!(update.changed.contains(&key("x/c")));
    assert!(rig.reasons("x/c").is_empty());
}

#[test]
fn an_address_is_not_given_away_while_the_status_of_its_last_holder_shows_it() {
    let mut rig = Rig::new(config(&["192.0.2.0/30"]));
    rig.yaml(&(showing("a", 1, "192.0.2.1") + &service("b", 2, "", "") + &service("c", 3, "", "")));
    // No longer ours, but nobody has cleared its status yet.
    rig.yaml(&showing("a", 1, "192.0.2.1").replace("type: LoadBalancer", "type: ClusterIP"));
    assert_eq!((rig.has("x/a"), rig.has("x/c")), ("-".into(), String::new()));
    rig.settle();
    assert_eq!(rig.has("x/c"), "192.0.2.1");
}

#[test]
fn what_a_status_shows_is_respected_by_a_new_process() {
    let mut rig = Rig::new(config(&["192.0.2.0/24", "2001:db8::/112"]));
    rig.yaml(&(service("a", 1, "", "") + &showing("b", 2, "192.0.2.77") + &showing("c", 3, "192.0.2.1")));
    assert_eq!(
        (rig.has("x/a"), rig.has("x/b"), rig.has("x/c")),
        ("192.0.2.2".into(), "192.0.2.77".into(), "192.0.2.1".into())
    );
}

#[test]
fn of_two_that_have_one_address_the_older_keeps_it() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    let update = rig.yaml(&(showing("young", 9, "192.0.2.5") + &showing("old", 2, "192.0.2.5")));
    assert_eq!((rig.has("x/old"), rig.has("x/young")), ("192.0.2.5".into(), "192.0.2.1".into()));
    let [eviction] = update.evictions.as_slice() else { panic!("{update:?}") };
    assert_eq!((&eviction.key, &eviction.keeper), (&key("x/young"), &key("x/old")));
}

#[test]
fn external_ips_and_addresses_of_other_classes_are_taken() {
    let mut rig = Rig::new(config(&["192.0.2.0/29"]));
    let external = service("ext", 1, ", externalIPs: [192.0.2.1]", "").replace("LoadBalancer", "ClusterIP");
    let other = showing("other", 1, "192.0.2.2").replace("spec: {", "spec: {loadBalancerClass: acme.io/lb, ");
    rig.yaml(&(external + &other + &service("a", 2, "", "")));
    assert_eq!((rig.has("x/a"), rig.has("x/other")), ("192.0.2.3".into(), "-".into()));
}

#[test]
fn classes_that_are_ours_are_kube_router_and_by_the_flag_none_and_default() {
    let classes = [("", true), ("default", true), ("kube-router", false), ("acme.io/lb", false)];
    for (default_class, expected) in [(true, [true, true, true, false]), (false, [false, false, true, false])]
    {
        let mut rig = Rig::new(PlanConfig { default_class, ..config(&["192.0.2.0/24"]) });
        for ((class, _), ours) in classes.iter().zip(expected) {
            let spec = if class.is_empty() { String::new() } else { format!(", loadBalancerClass: {class}") };
            rig.yaml(&service("a", 1, &spec, ""));
            assert_eq!(rig.has("x/a") != "-", ours, "class {class:?}, flag {default_class}");
        }
    }
}

#[test]
fn a_service_without_a_class_that_shows_a_foreign_address_is_left_to_whoever_gave_it() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&showing("a", 1, "203.0.113.1"));
    assert_eq!((rig.has("x/a"), rig.reasons("x/a")), ("-".into(), vec!["StatusOfOthers"]));
    assert_eq!(next_for(&rig.world, &rig.planner, &key("x/a")), Next::Nothing);
    rig.yaml(&showing("a", 1, "203.0.113.1").replace("spec: {", "spec: {loadBalancerClass: kube-router, "));
    assert_eq!(rig.has("x/a"), "192.0.2.1");
}

#[test]
fn an_address_asked_for_is_given_if_it_is_free_and_in_a_pool() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(
        &(service("auto", 1, "", "")
            + &service("field", 2, ", loadBalancerIP: 192.0.2.1", "")
            + &annotated("annotation", 3, 80, "kube-router.io/loadbalancer.ips: \"192.0.2.9\"")
            + &service("late", 4, ", loadBalancerIP: 192.0.2.9", "")
            + &service("outside", 5, ", loadBalancerIP: 198.51.100.1", "")
            + &service("network", 6, ", loadBalancerIP: 192.0.2.0", "")
            + &service("broadcast", 7, ", loadBalancerIP: 192.0.2.255", "")),
    );
    assert_eq!(
        (rig.has("x/field"), rig.has("x/annotation"), rig.has("x/auto")),
        ("192.0.2.1".into(), "192.0.2.9".into(), "192.0.2.2".into())
    );
    assert_eq!((rig.has("x/late"), rig.reasons("x/late")), (String::new(), vec!["AddressInUse"]));
    for name in ["x/outside", "x/network", "x/broadcast"] {
        assert_eq!((rig.has(name), rig.reasons(name)), (String::new(), vec!["AddressNotInRange"]), "{name}");
    }
}

#[test]
fn who_asks_for_another_address_keeps_the_one_it_has_until_the_other_is_free() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&(service("a", 1, "", "") + &service("b", 2, "", "")));
    rig.settle();
    rig.yaml(
        &service("b", 2, ", loadBalancerIP: 192.0.2.1", "")
            .replace("spec:", "status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}}, spec:"),
    );
    assert_eq!((rig.has("x/b"), rig.reasons("x/b")), ("192.0.2.2".into(), vec!["AddressInUse"]));
    rig.apply(vec![deleted("x/a")]);
    assert_eq!((rig.has("x/b"), rig.reasons("x/b").len()), ("192.0.2.1".into(), 0));
}

#[test]
fn wishes_that_cannot_be_read_are_told_and_cost_only_themselves() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&annotated(
        "a",
        1,
        80,
        "kube-router.io/loadbalancer.ips: \"192.0.2.300, 2001:db8::1, 192.0.2.7, 192.0.2.8\"",
    ));
    assert_eq!(rig.has("x/a"), "192.0.2.7");
    assert_eq!(rig.reasons("x/a"), ["WishUnclear"; 3]);
    rig.yaml(&annotated("b", 1, 80, "kube-router.io/loadbalancer.pool: nowhere"));
    assert_eq!((rig.has("x/b"), rig.reasons("x/b")), (String::new(), vec!["PoolUnknown", "NoPoolMatches"]));
}

#[test]
fn dual_stack_gets_what_there_is_unless_both_are_required() {
    let mut rig = Rig::new(config(&["192.0.2.0/30", "2001:db8::1-2001:db8::1"]));
    rig.yaml(&(service("a", 1, DUAL, "") + &service("b", 2, DUAL, "") + &service("c", 3, BOTH, "")));
    assert_eq!(
        (rig.has("x/a"), rig.has("x/b"), rig.has("x/c")),
        ("192.0.2.1,2001:db8::1".into(), "192.0.2.2".into(), String::new())
    );
    assert_eq!(rig.reasons("x/b"), ["NoAddressFree"]);
    assert_eq!(rig.reasons("x/c"), ["NoAddressFree"; 2]);
    rig.settle();
    rig.apply(vec![deleted("x/a")]);
    assert_eq!(
        (rig.has("x/b"), rig.has("x/c")),
        ("192.0.2.2,2001:db8::1".into(), String::new()),
        "b is older"
    );
    rig.settle();
    rig.apply(vec![deleted("x/b")]);
    assert_eq!(rig.has("x/c"), "2001:db8::1,192.0.2.1");
}

#[test]
fn an_address_that_may_not_be_had_alone_is_free_for_others() {
    let mut rig = Rig::new(config(&["192.0.2.0/31"]));
    rig.yaml(&(service("both", 1, BOTH, "") + &service("one", 2, "", "")));
    assert_eq!((rig.has("x/both"), rig.has("x/one")), (String::new(), "192.0.2.0".into()));
}

#[test]
fn a_family_that_is_no_longer_wanted_is_given_back() {
    let mut rig = Rig::new(config(&["192.0.2.0/24", "2001:db8::/112"]));
    rig.yaml(&service("a", 1, DUAL, ""));
    rig.settle();
    rig.yaml(&showing("a", 1, "192.0.2.1,2001:db8::1"));
    assert_eq!(rig.has("x/a"), "192.0.2.1");
}

#[test]
fn services_of_one_key_share_an_address_unless_their_ports_clash() {
    let share =
        |name, created, port| annotated(name, created, port, "kube-router.io/loadbalancer.share-key: k");
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(
        &(share("a", 1, 80) + &share("b", 2, 443) + &share("clash", 3, 80) + &service("none", 4, "", "")),
    );
    assert_eq!((rig.has("x/a"), rig.has("x/b")), ("192.0.2.1".into(), "192.0.2.1".into()));
    assert_eq!((rig.has("x/clash"), rig.has("x/none")), ("192.0.2.2".into(), "192.0.2.3".into()));
    // Another namespace with the same key is a stranger.
    rig.yaml(&share("d", 5, 8080).replace("namespace: x", "namespace: other"));
    assert_eq!(rig.has("other/d"), "192.0.2.4");
    // So is one that only some nodes serve.
    rig.yaml(&share("local", 6, 8081).replace("spec: {", "spec: {externalTrafficPolicy: Local, "));
    assert_eq!(rig.has("x/local"), "192.0.2.5");
}

#[test]
fn sharing_ends_for_the_younger_when_ports_begin_to_clash() {
    let share =
        |name, created, port| annotated(name, created, port, "kube-router.io/loadbalancer.share-key: k");
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&(share("a", 1, 80) + &share("b", 2, 443)));
    rig.settle();
    // The older one changes; the younger one moves all the same.
    let update = rig.yaml(
        &share("a", 1, 443).replace("spec:", "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}, spec:"),
    );
    assert_eq!((rig.has("x/a"), rig.has("x/b")), ("192.0.2.1".into(), "192.0.2.2".into()));
    assert_eq!(update.evictions.len(), 1);
}

#[test]
fn who_shows_an_address_keeps_it_from_an_older_one_that_was_given_it_and_does_not_show_it_yet() {
    let share =
        |name, created, port| annotated(name, created, port, "kube-router.io/loadbalancer.share-key: k");
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&(share("b", 2, 80) + &share("c", 3, 81)));
    rig.settle();
    rig.yaml(&share("a", 1, 82));
    assert_eq!(rig.has("x/a"), "192.0.2.1");
    // A new process, which knows nothing of what a was given, would say the same.
    rig.yaml(&showing("b", 2, "192.0.2.1"));
    assert_eq!(
        (rig.has("x/b"), rig.has("x/a"), rig.has("x/c")),
        ("192.0.2.1".into(), "192.0.2.2".into(), "192.0.2.2".into())
    );
}

#[test]
fn what_one_gives_up_goes_to_who_asked_for_it_and_not_to_a_later_one_of_the_same_update() {
    let mut rig = Rig::new(config(&["192.0.2.0/24", "2001:db8::/127"]));
    let v6 = ", ipFamilies: [IPv6]";
    rig.yaml(&(service("a", 1, v6, "") + &service("b", 2, v6, "")));
    rig.yaml(&service("a", 1, &format!("{v6}, loadBalancerIP: \"2001:db8::1\""), ""));
    let c = service("c", 3, v6, "");
    rig.yaml(&c);
    assert_eq!((rig.has("x/a"), rig.has("x/b")), ("2001:db8::".into(), "2001:db8::1".into()));
    // b may have both addresses or none now, and the one that it asks for is in no pool. c is judged anew, too.
    rig.yaml(
        &(c.replace("port: 80", "port: 81")
            + &service("b", 2, &format!("{BOTH}, loadBalancerIP: 203.0.113.1"), "")),
    );
    assert_eq!(
        (rig.has("x/a"), rig.has("x/b"), rig.has("x/c")),
        ("2001:db8::1".into(), String::new(), "2001:db8::".into())
    );
}

#[test]
fn an_address_that_appears_at_a_service_of_others_is_given_to_nobody_else() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    // Given, and not written yet.
    rig.yaml(&service("a", 1, "", ""));
    assert_eq!(rig.has("x/a"), "192.0.2.1");
    rig.yaml(&showing("b", 2, "203.0.113.1").replace(", spec: {", ", spec: {externalIPs: [192.0.2.1], "));
    assert_eq!(rig.reasons("x/b"), ["StatusOfOthers"]);
    assert_eq!(rig.has("x/a"), "192.0.2.2");
}

/// The only problem of `x/asks`: who has the address.
fn refused(rig: &Rig, ip: &str, by: &str) {
    assert_eq!(rig.messages("x/asks"), [format!("{ip} is asked for, but Service x/{by} has it")]);
}

#[test]
fn who_is_refused_an_address_is_told_that_its_holder_shares_it_no_more() {
    let share = "kube-router.io/loadbalancer.share-key: k";
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&(annotated("a", 1, 80, share) + &annotated("b", 2, 81, share)));
    rig.settle();
    let shown = |service: &str| {
        service.replace("spec:", "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}, spec:")
    };
    // b has to leave, but shows it still; with a it could be shared.
    rig.yaml(&shown(&service("b", 2, "", "")));
    rig.yaml(&annotated("asks", 3, 81, &format!("{share}, kube-router.io/loadbalancer.ips: 192.0.2.1")));
    assert_eq!((rig.has("x/a"), rig.has("x/b")), ("192.0.2.1".into(), "192.0.2.2".into()));
    refused(&rig, "192.0.2.1", "b");
    let update = rig.yaml(&shown(&service("a", 1, "", "")));
    assert_eq!((rig.has("x/a"), rig.has("x/asks")), ("192.0.2.1".into(), String::new()));
    refused(&rig, "192.0.2.1", "a");
    assert!(update.changed.contains(&key("x/asks")));
}

#[test]
fn who_is_refused_an_address_is_told_that_a_service_has_it_again_which_was_of_others() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&showing("b", 1, "192.0.2.1"));
    rig.yaml(&(service("asks", 2, ", loadBalancerIP: 192.0.2.1", "") + &service("a", 3, "", "")));
    refused(&rig, "192.0.2.1", "b");
    rig.yaml(&showing("b", 1, "192.0.2.1").replace("spec: {", "spec: {loadBalancerClass: acme.io/lb, "));
    refused(&rig, "192.0.2.1", "b");
    // Now a shows it as well, and is the first of the two by name.
    rig.yaml(&showing("a", 3, "192.0.2.1"));
    refused(&rig, "192.0.2.1", "a");
    let update = rig.yaml(&showing("b", 1, "192.0.2.1"));
    assert_eq!(rig.has("x/b"), "192.0.2.1");
    refused(&rig, "192.0.2.1", "b");
    assert!(update.changed.contains(&key("x/asks")));
}

#[test]
fn an_address_asked_for_by_two_of_one_key_is_shared() {
    let share = |name, created, port| {
        annotated(
            name,
            created,
            port,
            "kube-router.io/loadbalancer.share-key: k, kube-router.io/loadbalancer.ips: 192.0.2.9",
        )
    };
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&(share("a", 1, 80) + &share("b", 2, 443)));
    assert_eq!((rig.has("x/a"), rig.has("x/b")), ("192.0.2.9".into(), "192.0.2.9".into()));
}

const POOLS: &str = r"
pools:
- {name: team, ranges: [192.0.2.0/24], namespaceSelector: {matchLabels: {team: red}}}
- {name: public, ranges: [198.51.100.0/24], serviceSelector: {matchLabels: {exposed: yes}}}
- {name: reserve, ranges: [203.0.113.0/24], onlyOnRequest: true}
";

fn pooled() -> Rig {
    let pools = Pools::new(Pool::parse_file(&POOLS.replace("yes", "'yes'")).unwrap()).unwrap();
    Rig::new(PlanConfig { pools: pools.into(), default_class: true })
}

#[test]
fn pools_are_chosen_by_selectors_in_their_order() {
    let namespace = |team: &str| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: x, labels: {{team: {team}}}}}}}\n---\n")
    };
    let mut rig = pooled();
    let exposed = service("exposed", 2, "", ", labels: {exposed: 'yes'}");
    rig.yaml(&(namespace("blue") + &service("plain", 1, "", "") + &exposed));
    assert_eq!((rig.has("x/plain"), rig.reasons("x/plain")), (String::new(), vec!["NoPoolMatches"]));
    assert_eq!(rig.has("x/exposed"), "198.51.100.1");
    rig.settle();
    rig.yaml(&namespace("red"));
    assert_eq!(
        (rig.has("x/plain"), rig.has("x/exposed")),
        ("192.0.2.1".into(), "198.51.100.1".into()),
        "kept"
    );
    rig.settle();
    rig.yaml(&namespace("blue"));
    assert_eq!(rig.has("x/plain"), "", "no longer allowed");
}

#[test]
fn a_pool_on_request_serves_only_who_names_it_or_an_address_of_it() {
    let mut rig = pooled();
    rig.yaml(
        &(service("plain", 1, "", "")
            + &annotated("named", 2, 80, "kube-router.io/loadbalancer.pool: reserve")
            + &service("asked", 3, ", loadBalancerIP: 203.0.113.7", "")
            + &annotated(
                "wrong",
                4,
                80,
                "kube-router.io/loadbalancer.pool: reserve, kube-router.io/loadbalancer.ips: 198.51.100.1",
            )),
    );
    assert_eq!(
        (rig.has("x/plain"), rig.has("x/named"), rig.has("x/asked")),
        (String::new(), "203.0.113.1".into(), "203.0.113.7".into())
    );
    assert_eq!(rig.reasons("x/wrong"), ["AddressNotInRange"]);
}

#[test]
fn five_hundred_services_at_once_get_five_hundred_addresses() {
    let mut rig = Rig::new(config(&["10.0.0.0/23"]));
    let all: String = (0..511).map(|n| service(&format!("s{n}"), 1, "", "")).collect();
    rig.yaml(&all);
    let mut ips: Vec<String> = (0..511).map(|n| rig.has(&format!("x/s{n}"))).collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 511, "510 addresses, and one Service without");
    assert_eq!(ips[0], "");
    assert!(!ips.iter().any(|ip| ip == "10.0.0.0" || ip == "10.0.1.255"));
}

#[test]
fn an_address_that_was_not_yet_written_is_changed_if_somebody_else_shows_it_by_now() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    rig.yaml(&service("a", 2, "", ""));
    let acme = |ip| showing("acme", 1, ip).replace("spec: {", "spec: {loadBalancerClass: acme.io/lb, ");
    rig.yaml(&acme("192.0.2.1"));
    assert_eq!(rig.has("x/a"), "192.0.2.2");
    rig.settle();
    rig.yaml(&acme("192.0.2.2"));
    assert_eq!(rig.has("x/a"), "192.0.2.2", "it was there first");
    // To have it as an external IP is not to have it in the status.
    rig.yaml(&service("b", 3, ", loadBalancerIP: 192.0.2.9, externalIPs: [192.0.2.9]", ""));
    assert_eq!(rig.has("x/b"), "192.0.2.9");
    rig.yaml(&acme("192.0.2.9"));
    assert_eq!((rig.has("x/b"), rig.reasons("x/b")), (String::new(), vec!["AddressInUse"]));
}

#[test]
fn an_address_asked_for_is_not_given_while_anybody_shows_it() {
    let mut rig = Rig::new(config(&["192.0.2.0/24"]));
    let external = service("ext", 1, ", externalIPs: [192.0.2.1]", "").replace("LoadBalancer", "ClusterIP");
    let acme = showing("acme", 1, "192.0.2.2").replace("spec: {", "spec: {loadBalancerClass: acme.io/lb, ");
    let asking = service("a", 2, ", loadBalancerIP: 192.0.2.1", "")
        + &service("b", 2, ", loadBalancerIP: 192.0.2.2", "");
    rig.yaml(&(external + &acme + &asking));
    for name in ["x/a", "x/b"] {
        assert_eq!((rig.has(name), rig.reasons(name)), (String::new(), vec!["AddressInUse"]), "{name}");
    }
    rig.apply(vec![deleted("x/ext"), deleted("x/acme")]);
    assert_eq!((rig.has("x/a"), rig.has("x/b")), ("192.0.2.1".into(), "192.0.2.2".into()));
}
