//! What planning costs at 20,000 Services: all of them at once, and one change.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::sync::Arc;

use common_informer::decode::{self, ServiceDetail};
use common_informer::intern::Interner;
use common_informer::object::{Change, Kind};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use lb_ipam::model::pool::{Pool, Pools};
use lb_ipam::model::world::{Touched, World};
use lb_ipam::plan::{PlanConfig, Planner};
use serde_json::json;

fn service(number: usize, port: u16, interner: &mut Interner) -> Change {
    let value = json!({
        "metadata": {"namespace": "x", "name": format!("s{number}")},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": port}]},
    });
    let decoded = decode::object_of_with(ServiceDetail::Labelled, Kind::Service, &value, interner);
    Change::Applied(decoded.unwrap().object)
}

fn plan(c: &mut Criterion) {
    // 8,190 of the 20,000 get none in the second pool.
    for (name, range) in [("all_served", "10.0.0.0/16"), ("many_wait", "10.0.0.0/19")] {
        let pools = Pools::new(vec![Pool::of_flag([range]).unwrap()]).unwrap();
        let config = PlanConfig { pools: Arc::new(pools), default_class: true };
        let (mut world, mut touched, mut interner) = (World::default(), Touched::new(), Interner::new());
        for number in 0..20_000 {
            world.apply(service(number, 80, &mut interner), &mut touched);
        }
        c.bench_function(&format!("plan/cold/20000/{name}"), |b| {
            b.iter_batched(
                || Planner::new(config.clone()),
                |mut planner| planner.update(&world, &touched),
                BatchSize::LargeInput,
            );
        });
        let mut planner = Planner::new(config);
        planner.update(&world, &touched);
        let mut port = 80;
        c.bench_function(&format!("plan/one_change/20000/{name}"), |b| {
            b.iter(|| {
                port = if port == 80 { 81 } else { 80 };
                let mut touched = Touched::new();
                world.apply(service(7, port, &mut interner), &mut touched);
                planner.update(&world, &touched)
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = plan
}
criterion_main!(benches);
