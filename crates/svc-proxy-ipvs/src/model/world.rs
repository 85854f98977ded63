//! The objects that matter to the proxy, and which Services a change touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common_informer::endpoints::{Origin, Place, Services, Slices, passed_over};
use common_informer::object::{
    Change, EndpointSlice, FullService, Kind, Node, NodeAddress, Object, ObjectKey, ObjectRef, Str,
};
use ipnet::IpNet;

use super::admission::Admission;
use super::problem::{Problem, Reason};

/// Annotations of a Node that name its pods' ranges, kube-router's; the first that is there wins over
/// `spec.podCIDRs`.
const POD_CIDRS: [&str; 2] = ["kube-router.io/pod-cidrs", "kube-router.io/pod-cidr"];

/// All that the proxy knows.
#[derive(Debug)]
pub struct World {
    proxy: String,
    admission: Admission,
    place: Place,
    node: Option<Arc<Node>>,
    /// `--pod-cidr`, which wins over the Node object.
    pod_cidrs: Vec<IpNet>,
    services: Services,
    slices: Slices,
    unreadable: BTreeMap<ObjectRef, String>,
}

/// What changes touched since the last plan.
#[derive(Debug, Default)]
pub struct Touched {
    /// Services whose part may be another.
    pub services: BTreeSet<ObjectKey>,
    /// The node changed: where its pods are, or in which zone it is.
    pub node: bool,
}

impl Touched {
    /// True when nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node
    }
}

impl World {
    /// An empty world, seen from a node by the proxy of a name (that of the label
    /// `service.kubernetes.io/service-proxy-name`).
    pub fn new(node: Str, proxy: String, admission: Admission, pod_cidrs: Vec<IpNet>) -> Self {
        Self {
            proxy,
            admission,
            place: Place { node, zone: None },
            node: None,
            pod_cidrs,
            services: Services::new(),
            slices: Slices::new(),
            unreadable: BTreeMap::new(),
        }
    }

    /// Takes a change.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        self.slices.apply(&change, &mut touched.services);
        self.unreadable.remove(&change.object_ref());
        match change {
            Change::Applied(Object::FullService(service)) => {
                self.set_service(&service.key.clone(), Some(service), touched);
            }
            Change::Applied(Object::Node(node)) => self.set_node(Some(node), touched),
            Change::Applied(_) => {}
            Change::Deleted(object) => self.forget(&object, touched),
            Change::Excluded { object, reason } => {
                self.forget(&object, touched);
                self.unreadable.insert(object, reason);
            }
        }
    }

    fn forget(&mut self, object: &ObjectRef, touched: &mut Touched) {
        match object.kind {
            Kind::Service => self.set_service(&object.key, None, touched),
            Kind::Node => self.set_node(None, touched),
            _ => {}
        }
    }

    fn set_service(&mut self, key: &ObjectKey, service: Option<Arc<FullService>>, touched: &mut Touched) {
        let service = service.filter(|service| passed_over(service, &self.proxy).is_none());
        let admission = &self.admission;
        let claimant = service.clone();
        let wanted = |frontend, origin| {
            claimant.as_ref().is_some_and(|service| {
                let is_skipped = origin == Origin::LoadBalancer
                    && service.settings.flag("service.skiplbips") == Ok(Some(true));
                !is_skipped && admission.objection(service, frontend, origin).is_none()
            })
        };
        self.services.set(key, service, wanted, &mut touched.services);
        touched.services.insert(key.clone());
    }

    fn set_node(&mut self, node: Option<Arc<Node>>, touched: &mut Touched) {
        let node = node.filter(|node| node.name == self.place.node);
        // A Node that is read again without being there for a moment is still the one that we are on.
        let Some(node) = node else { return };
        let zone = node.zone.clone();
        touched.node |= self.node.as_ref() != Some(&node);
        if zone != self.place.zone {
            self.place.zone = zone;
            touched.services.extend(self.services.iter().map(|service| service.key.clone()));
        }
        self.node = Some(node);
    }

    /// From where it is seen.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The operator's ranges.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The Services that are served, and whose each frontend is.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &ObjectKey) -> &[Arc<EndpointSlice>] {
        self.slices.of(service)
    }

    /// How many slices there are.
    pub fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// Whether the node is about to go: load balancers shall not send it anything new.
    pub fn node_is_leaving(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.leaving)
    }

    /// The addresses that the Node object names.
    pub fn node_addresses(&self) -> &[NodeAddress] {
        self.node.as_ref().map_or(&[], |node| &node.addresses)
    }

    /// Where the pods of this node are; empty if nothing says so.
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        if !self.pod_cidrs.is_empty() {
            return self.pod_cidrs.clone();
        }
        let Some(node) = &self.node else { return Vec::new() };
        let annotation = POD_CIDRS.iter().find_map(|name| node.annotations.get(*name));
        match annotation {
            Some(text) => text
                .split(',')
                .filter_map(|cidr| cidr.trim().parse::<IpNet>().ok())
                .map(|net| net.trunc())
                .collect(),
            None => node.pod_cidrs.to_vec(),
        }
    }

    /// Objects that could not be read.
    pub fn problems(&self) -> BTreeMap<ObjectRef, Vec<Problem>> {
        self.unreadable
            .iter()
            .map(|(object, why)| (object.clone(), vec![Problem::new(Reason::Unreadable, why.clone())]))
            .collect()
    }
}
