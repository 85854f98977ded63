//! Objects for tests.

use std::net::IpAddr;

use common_informer::decode::ServiceDetail;
use common_informer::intern::Interner;
use common_informer::manifests::document;
use common_informer::object::{Change, Kind, ObjectKey, ObjectRef};
use lb_ipam::model::pool::{Pool, Pools};
use lb_ipam::model::world::{Touched, World};
use lb_ipam::plan::writes::{Next, StatusChange, next_for};
use lb_ipam::plan::{PlanConfig, Planner, Update};

pub(crate) fn changes(yaml: &str) -> Vec<Change> {
    let documents = document::parse_with(ServiceDetail::Labelled, yaml, &mut Interner::new());
    assert_eq!(documents.malformed, [""; 0]);
    documents.objects.into_iter().map(|decoded| Change::Applied(decoded.unwrap().object)).collect()
}

/// A namespaced key, from `namespace/name`.
pub(crate) fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey { namespace: namespace.into(), name: name.into() }
}

pub(crate) fn deleted(text: &str) -> Change {
    Change::Deleted(ObjectRef { kind: Kind::Service, key: key(text) })
}

/// A plan of the flag's pool alone.
pub(crate) fn config(ranges: &[&str]) -> PlanConfig {
    let pools = Pools::new(vec![Pool::of_flag(ranges.iter().copied()).unwrap()]).unwrap();
    PlanConfig { pools: pools.into(), default_class: true }
}

/// A world and its plan.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) planner: Planner,
}

impl Rig {
    pub(crate) fn new(config: PlanConfig) -> Self {
        Self { world: World::default(), planner: Planner::new(config) }
    }

    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Update {
        let mut touched = Touched::new();
        changes.into_iter().for_each(|change| self.world.apply(change, &mut touched));
        self.planner.update(&self.world, &touched)
    }

    pub(crate) fn yaml(&mut self, yaml: &str) -> Update {
        self.apply(changes(yaml))
    }

    /// Has every status be as planned, as if all writes succeeded; in several rounds if need be.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10 {
            let keys: Vec<ObjectKey> = self.world.services().map(|service| service.key.clone()).collect();
            let mut touched = Touched::new();
            for key in keys {
                let Next::Write(write) = next_for(&self.world, &self.planner, &key) else { continue };
                let StatusChange::Show { ips, .. } = write.change else { continue };
                self.world.note_status(&key, write.uid, &ips, &mut touched);
            }
            if touched.is_empty() {
                return;
            }
            self.planner.update(&self.world, &touched);
        }
        panic!("the plan does not come to rest");
    }

    /// Addresses of a Service, separated by commas; `-` if it is not ours.
    pub(crate) fn has(&self, text: &str) -> String {
        match self.planner.addresses(&key(text)) {
            Some(ips) => ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","),
            None => "-".to_owned(),
        }
    }

    pub(crate) fn reasons(&self, text: &str) -> Vec<&'static str> {
        self.planner.problems(&key(text)).iter().map(|problem| problem.reason.as_str()).collect()
    }
    pub(crate) fn messages(&self, text: &str) -> Vec<String> {
        self.planner.problems(&key(text)).iter().map(|problem| problem.message.clone()).collect()
    }
}
