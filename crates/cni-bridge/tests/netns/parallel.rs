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
