//! Affinity and schedulers.

use std::collections::BTreeSet;

use serde_json::json;
use test_netns::Protocol;

use crate::lab::{Lab, WEB, ip};
use crate::objects::Service;

#[test]
fn a_client_with_affinity_keeps_its_endpoint_until_that_is_gone() {
    let mut lab = Lab::routed();
    let affinity = json!({
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
    });
    lab.web(affinity, &["p1", "p2"]);
    let n1 = lab.start("n1", &[]);
    let ipvs = n1.ipvs();
    assert!(ipvs.contains("-A -t 10.96.0.10:80 -s rr -p 600\n"), "{ipvs}");
    for web in WEB.map(ip) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let met = BTreeSet::from_iter(lab.servers("p3", web, protocol, 6));
            assert_eq!(met.len(), 1, "{web} {protocol}: {met:?}");
        }
    }
    let web = ip(WEB[0]);
    let first = lab.servers("p3", web, Protocol::Tcp, 1).remove(0);
    let other = if first == "p1" { "p2" } else { "p1" };
    lab.set_endpoints(lab.endpoints(&[other]));
    lab.apply(&[&n1]);
    assert_eq!(lab.servers("p3", web, Protocol::Tcp, 3), [other; 3], "the endpoint of before is drained");
    // It stays with its new one when the old one is back.
    lab.set_endpoints(lab.endpoints(&["p1", "p2"]));
    lab.apply(&[&n1]);
    assert_eq!(lab.servers("p3", web, Protocol::Tcp, 4), [other; 4], "the old endpoint is back");
    let service = lab.objects.services.get_mut("web").unwrap();
    service.spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = json!(60);
    lab.apply(&[&n1]);
    let ipvs = n1.ipvs();
    assert!(ipvs.contains("-A -t 10.96.0.10:80 -s rr -p 60\n"), "a change of the time alone: {ipvs}");
}

#[test]
fn annotations_choose_schedulers_and_their_flags_and_what_means_nothing_is_reported() {
    let mut lab = Lab::routed();
    let of = |last: u16| {
        let v4 = format!("10.96.1.{last}");
        let ports = json!([{"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080}]);
        Service::new(json!({
            "clusterIP": v4, "clusterIPs": [v4], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": ports,
        }))
    };
    let cases = [
        ("rr", "", "rr"),
        ("wrr", "", "wrr"),
        ("lc", "", "lc"),
        ("wlc", "", "wlc"),
        ("dh", "", "dh"),
        ("sh", "flag-1", "sh -b sh-fallback"),
        ("mh", "flag-1,flag-2", "mh -b mh-fallback,mh-port"),
        ("sed", "", "sed"),
        ("nq", "flag-1", "nq"),
        ("no-such", "", "rr"),
    ];
    for (number, (scheduler, flags, _)) in (1..).zip(cases) {
        let mut service = of(number).annotated("service.scheduler", scheduler);
        if !flags.is_empty() {
            service = service.annotated("service.schedflags", flags);
        }
        lab.service(&format!("s{number}"), service, &["p1", "p2"]);
    }
    let n1 = lab.start("n1", &[]);
    let ipvs = n1.ipvs();
    for (number, (scheduler, _, shown)) in (1..).zip(cases) {
        let line = format!("-A -t 10.96.1.{number}:80 -s {shown}\n");
        assert!(ipvs.contains(&line), "{scheduler}: {line}{ipvs}");
        let to = ip(&format!("10.96.1.{number}"));
        let met = BTreeSet::from_iter(lab.servers("p3", to, Protocol::Tcp, 4));
        // By the client's address alone.
        let is_fixed = ["dh", "sh"].contains(&scheduler);
        assert!(!is_fixed || met.len() == 1, "{scheduler}: {met:?}");
        if ["rr", "wrr", "no-such"].contains(&scheduler) {
            assert_eq!(met.len(), 2, "{scheduler}: {met:?}");
        }
    }
    let state = n1.state().to_string();
    assert!(state.contains("no-such") && state.contains("the scheduler nq has no flags"), "{state}");
}
