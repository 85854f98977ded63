//! Many calls at once.

use std::collections::BTreeSet;
use std::thread;

use serde_json::json;
use test_netns::Namespace;

use crate::lab::Lab;

const PODS: usize = 100;

#[test]
fn a_hundred_pods_at_once_get_an_address_each_and_leave_nothing() {
    let lab = Lab::new();
    let conf = lab.conf(json!({"ipMasq": true}));
    let pods: Vec<Namespace> =
        (0..PODS).map(|number| Namespace::new(format!("p{number}")).unwrap()).collect();
    let (lab, conf) = (&lab, &conf);
    let addresses: Vec<String> = thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                scope.spawn(move || lab.add(&format!("c{number}"), pod, conf).success().json())
            })
            .collect();
        let results = adds.into_iter().map(|add| add.join().unwrap());
        results
            .flat_map(|result| result["ips"].as_array().unwrap().clone())
            .map(|ip| ip["address"].to_string())
            .collect()
    });
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 2 * PODS);
    assert_eq!((lab.links().len(), lab.reserved().len()), (PODS + 1, 2 * PODS));
    // Every second one goes, while it is asked for again elsewhere.
    let more: Vec<Namespace> =
        (0..PODS / 2).map(|number| Namespace::new(format!("q{number}")).unwrap()).collect();
    thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
            scope.spawn(move || lab.del(&format!("c{number}"), pod, conf).success());
        }
        for (number, pod) in more.iter().enumerate() {
            scope.spawn(move || lab.add(&format!("d{number}"), pod, conf).success());
        }
    });
    assert_eq!((lab.links().len(), lab.reserved().len()), (PODS + 1, 2 * PODS));
    thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            scope.spawn(move || lab.del(&format!("c{number}"), pod, conf).success());
        }
        for (number, pod) in more.iter().enumerate() {
            scope.spawn(move || lab.del(&format!("d{number}"), pod, conf).success());
        }
    });
    lab.assert_nothing_left("after all");
}

#[test]
fn of_ten_adds_of_a_container_at_once_one_succeeds_and_ten_dels_do() {
    const CONTAINERS: usize = 10;
    const TIMES: usize = 10;
    let lab = Lab::new();
    let conf = lab.conf(json!({
        "ipMasq": true, "capabilities": {"portMappings": true}}));
    let pods: Vec<Namespace> =
        (0..CONTAINERS).map(|number| Namespace::new(format!("p{number}")).unwrap()).collect();
    let conf_of = |number: usize| {
        let mut conf = conf.clone();
        conf["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8000 + number, "containerPort": 80}]});
        conf
    };
    let at_once = |verb: &'static str| -> Vec<usize> {
        let (lab, pods, conf_of) = (&lab, &pods, &conf_of);
        thread::scope(|scope| {
            let calls: Vec<Vec<_>> = (0..CONTAINERS)
                .map(|number| {
                    let call = move || {
                        let netns = pods[number].path();
                        lab.call(verb, &format!("c{number}"), netns.to_str().unwrap(), &conf_of(number))
                    };
                    (0..TIMES).map(|_| scope.spawn(call)).collect()
                })
                .collect();
            let succeeded = |answers: Vec<thread::ScopedJoinHandle<'_, crate::support::Answer>>| {
                answers
                    .into_iter()
                    .filter_map(|answer| answer.join().ok())
                    .filter(|answer| answer.code == 0)
                    .count()
            };
            calls.into_iter().map(succeeded).collect()
        })
    };
    for _ in 0..2 {
        assert_eq!(at_once("ADD"), [1; CONTAINERS]);
        assert_eq!((lab.links().len(), lab.reserved().len()), (CONTAINERS + 1, 2 * CONTAINERS));
        assert_eq!(at_once("DEL"), [TIMES; CONTAINERS]);
        lab.assert_nothing_left("after all");
    }
}
