//! The objects that matter to the firewall, and who owns which address.
//!
//! The data plane knows addresses, not pods. An address belongs to at most one pod: the newest that has it
//! and still runs, because an address is given away again while the object of its last pod may still be in
//! the cache. Everything downstream works on addresses and their owners.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{
    Change, Kind, Labels, Namespace, Object, ObjectKey, ObjectRef, Pod, Service, Str,
};
use serde::Deserialize;
use smallvec::{SmallVec, smallvec};

use super::policy::{Policy, Problem, Reason};

/// All that the firewall knows.
#[derive(Debug)]
pub struct World {
    node: Str,
    namespaces: BTreeMap<Str, NamespaceState>,
    /// The pods that have an address, the owner first. Nearly always one.
    addresses: HashMap<IpAddr, SmallVec<[Arc<Pod>; 1]>>,
    services: BTreeMap<ObjectKey, Arc<Service>>,
    unreadable: BTreeMap<ObjectRef, String>,
    /// What may have problems, so that they are found without a walk through everything.
    faulty_policies: BTreeSet<ObjectKey>,
    faulty_namespaces: BTreeSet<Str>,
    shared_addresses: BTreeSet<IpAddr>,
}

/// A namespace and what is in it. It may hold pods and policies before its object is known.
#[derive(Debug, Default)]
pub struct NamespaceState {
    object: Option<Arc<Namespace>>,
    isolation: Isolation,
    pods: BTreeMap<Str, Arc<Pod>>,
    policies: BTreeMap<Str, Arc<Policy>>,
}

/// What the annotation `net.beta.kubernetes.io/network-policy` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Isolation {
    #[default]
    None,
    DefaultDeny,
    /// It cannot be read: isolated, and reported.
    Unreadable(String),
}

/// What changes touched since the last plan. Nothing here says how: the world has the new state, the planner
/// the old one.
#[derive(Debug, Default)]
pub struct Touched {
    /// Addresses whose owner, or whose owner's namespace, is not what it was.
    pub addresses: BTreeSet<IpAddr>,
    /// Policies that came, went or changed.
    pub policies: BTreeSet<ObjectKey>,
    /// Services that came, went or changed, with what they were before.
    pub services: BTreeMap<ObjectKey, Option<Arc<Service>>>,
}

impl Touched {
    /// True when nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.policies.is_empty() && self.services.is_empty()
    }
}

impl World {
    /// An empty world, seen from a node.
    pub fn new(node: Str) -> Self {
        Self {
            node,
            namespaces: BTreeMap::new(),
            addresses: HashMap::new(),
            services: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            faulty_policies: BTreeSet::new(),
            faulty_namespaces: BTreeSet::new(),
            shared_addresses: BTreeSet::new(),
        }
    }

    /// Takes a change and notes what it touches. A change that changes nothing touches nothing.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        let object = change.object_ref();
        match change {
            Change::Applied(applied) => {
                self.unreadable.remove(&object);
                match applied {
                    Object::Pod(pod) => self.set_pod(&object.key, Some(pod), touched),
                    Object::Namespace(namespace) => {
                        self.set_namespace(&object.key.name, Some(namespace), touched);
                    }
                    Object::NetworkPolicy(policy) => {
                        self.set_policy(&object.key, Some(Policy::validate(&policy)), touched);
                    }
                    Object::Service(service) => self.set_service(&object.key, Some(service), touched),
                    // Not asked for, see run::KINDS.
                    Object::FullService(_) | Object::EndpointSlice(_) | Object::Node(_) => {}
                }
            }
            Change::Deleted(_) => {
                self.unreadable.remove(&object);
                self.remove(&object, touched);
            }
            Change::Excluded { reason, .. } => {
                self.remove(&object, touched);
                self.unreadable.insert(object, reason);
            }
        }
    }

    fn remove(&mut self, object: &ObjectRef, touched: &mut Touched) {
        match object.kind {
            Kind::Pod => self.set_pod(&object.key, None, touched),
            Kind::Namespace => self.set_namespace(&object.key.name, None, touched),
            Kind::NetworkPolicy => self.set_policy(&object.key, None, touched),
            Kind::Service => self.set_service(&object.key, None, touched),
            Kind::EndpointSlice | Kind::Node => {}
        }
    }

    fn set_pod(&mut self, key: &ObjectKey, pod: Option<Arc<Pod>>, touched: &mut Touched) {
        // A pod that finished gives its addresses back; one on the host's network has the node's; neither is
        // ever selected.
        let pod = pod.filter(|pod| !pod.finished && !pod.host_network && !pod.ips.is_empty());
        if pod.is_none()
            && !self.namespaces.get(&key.namespace).is_some_and(|ns| ns.pods.contains_key(&key.name))
        {
            return;
        }
        let pods = &mut self.namespaces.entry(key.namespace.clone()).or_default().pods;
        let before = match &pod {
            Some(pod) => pods.insert(key.name.clone(), pod.clone()),
            None => pods.remove(&key.name),
        };
        if before != pod {
            for address in before.iter().flat_map(|pod| &pod.ips) {
                if let Some(owners) = self.addresses.get_mut(address) {
                    owners.retain(|owner| owner.key != *key);
                    if owners.len() < 2 {
                        self.shared_addresses.remove(address);
                    }
                    if owners.is_empty() {
                        self.addresses.remove(address);
                    }
                }
                touched.addresses.insert(*address);
            }
            for address in pod.iter().flat_map(|pod| pod.ips.iter().map(move |address| (pod, *address))) {
                let (pod, address) = address;
                match self.addresses.get_mut(&address) {
                    None => drop(self.addresses.insert(address, smallvec![pod.clone()])),
                    Some(owners) => {
                        owners.push(pod.clone());
                        owners.sort_by(|a, b| (b.created, &b.key).cmp(&(a.created, &a.key)));
                        self.shared_addresses.insert(address);
                    }
                }
                touched.addresses.insert(address);
            }
        }
        self.drop_if_empty(&key.namespace);
    }

    fn set_namespace(&mut self, name: &Str, object: Option<Arc<Namespace>>, touched: &mut Touched) {
        let state = self.namespaces.entry(name.clone()).or_default();
        let isolation = object
            .as_ref()
            .and_then(|ns| ns.network_policy_annotation.as_deref())
            .map_or(Isolation::None, isolation);
        let labels_differ = match (&state.object, &object) {
            (Some(before), Some(after)) => before.labels != after.labels,
            (None, None) => false,
            _ => true,
        };
        if labels_differ || isolation != state.isolation {
            touched.addresses.extend(state.pods.values().flat_map(|pod| pod.ips.iter().copied()));
        }
        if matches!(isolation, Isolation::Unreadable(_)) {
            self.faulty_namespaces.insert(name.clone());
        } else {
            self.faulty_namespaces.remove(name);
        }
        state.object = object;
        state.isolation = isolation;
        self.drop_if_empty(name);
    }

    fn set_policy(&mut self, key: &ObjectKey, policy: Option<Arc<Policy>>, touched: &mut Touched) {
        let policies = &mut self.namespaces.entry(key.namespace.clone()).or_default().policies;
        let before = match &policy {
            Some(policy) => policies.insert(key.name.clone(), policy.clone()),
            None => policies.remove(&key.name),
        };
        if policy.as_ref().is_some_and(|policy| !policy.problems.is_empty()) {
            self.faulty_policies.insert(key.clone());
        } else {
            self.faulty_policies.remove(key);
        }
        if before != policy {
            touched.policies.insert(key.clone());
        }
        self.drop_if_empty(&key.namespace);
    }

    fn set_service(&mut self, key: &ObjectKey, service: Option<Arc<Service>>, touched: &mut Touched) {
        let before = match &service {
            Some(service) => self.services.insert(key.clone(), service.clone()),
            None => self.services.remove(key),
        };
        if before != service {
            touched.services.entry(key.clone()).or_insert(before);
        }
    }

    fn drop_if_empty(&mut self, name: &Str) {
        if self
            .namespaces
            .get(name)
            .is_some_and(|ns| ns.object.is_none() && ns.pods.is_empty() && ns.policies.is_empty())
        {
            self.namespaces.remove(name);
        }
    }

    /// The pod that an address belongs to.
    pub fn owner(&self, address: &IpAddr) -> Option<&Arc<Pod>> {
        self.addresses.get(address)?.first()
    }

    /// Whether a pod runs on this node.
    pub fn is_local(&self, pod: &Pod) -> bool {
        pod.node.as_ref() == Some(&self.node)
    }

    /// Number of addresses that have an owner.
    pub fn address_count(&self) -> usize {
        self.addresses.len()
    }

    /// Labels of a namespace. One that is not known yet has the label that every namespace has.
    pub fn namespace_labels(&self, name: &Str) -> Labels {
        match self.namespaces.get(name).and_then(|ns| ns.object.as_ref()) {
            Some(object) => object.labels.clone(),
            None => Arc::new(BTreeMap::from([("kubernetes.io/metadata.name".into(), name.clone())])),
        }
    }

    /// Whether the pods of a namespace are isolated for ingress without any policy.
    pub fn denies_ingress(&self, namespace: &Str) -> bool {
        self.namespaces.get(namespace).is_some_and(|ns| ns.isolation != Isolation::None)
    }

    /// Names of the namespaces that hold anything.
    pub fn namespaces(&self) -> impl Iterator<Item = &Str> {
        self.namespaces.keys()
    }

    /// Addresses in a namespace, each with its owner. Addresses that belong to a pod elsewhere are left out.
    pub fn addresses_in<'a>(&'a self, namespace: &Str) -> impl Iterator<Item = (IpAddr, &'a Arc<Pod>)> + 'a {
        self.namespaces.get(namespace).into_iter().flat_map(|ns| ns.pods.values()).flat_map(move |pod| {
            pod.ips.iter().filter_map(move |address| {
                self.owner(address).filter(|owner| owner.key == pod.key).map(|owner| (*address, owner))
            })
        })
    }

    /// A policy by its key.
    pub fn policy(&self, key: &ObjectKey) -> Option<&Arc<Policy>> {
        self.namespaces.get(&key.namespace)?.policies.get(&key.name)
    }

    /// A service by its key.
    pub fn service(&self, key: &ObjectKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Number of objects of a kind that are taken into account.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Pod => self.namespaces.values().map(|ns| ns.pods.len()).sum(),
            Kind::Namespace => self.namespaces.values().filter(|ns| ns.object.is_some()).count(),
            Kind::NetworkPolicy => self.namespaces.values().map(|ns| ns.policies.len()).sum(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice | Kind::Node => 0,
        }
    }

    /// What is wrong with the objects, whatever node they matter to.
    pub fn problems(&self) -> BTreeMap<ObjectRef, Vec<Problem>> {
        let mut problems: BTreeMap<ObjectRef, Vec<Problem>> = BTreeMap::new();
        for (object, message) in &self.unreadable {
            let problem = Problem { reason: Reason::Unreadable, message: message.clone() };
            problems.entry(object.clone()).or_default().push(problem);
        }
        for name in &self.faulty_namespaces {
            if let Some(Isolation::Unreadable(message)) = self.namespaces.get(name).map(|ns| &ns.isolation) {
                let key = ObjectKey { namespace: "".into(), name: name.clone() };
                let problem = Problem { reason: Reason::BadAnnotation, message: message.clone() };
                problems.entry(ObjectRef { kind: Kind::Namespace, key }).or_default().push(problem);
            }
        }
        for policy in self.faulty_policies.iter().filter_map(|key| self.policy(key)) {
            let object = ObjectRef { kind: Kind::NetworkPolicy, key: policy.key.clone() };
            problems.entry(object).or_default().extend(policy.problems.iter().cloned());
        }
        for address in &self.shared_addresses {
            let Some([owner, losers @ ..]) = self.addresses.get(address).map(SmallVec::as_slice) else {
                continue;
            };
            for loser in losers {
                let message = format!("status.podIPs: {address} belongs to the newer pod {}", owner.key);
                let object = ObjectRef { kind: Kind::Pod, key: loser.key.clone() };
                problems.entry(object).or_default().push(Problem { reason: Reason::AddressTaken, message });
            }
        }
        problems
    }
}

/// Reads `{"ingress":{"isolation":"DefaultDeny"}}`.
fn isolation(text: &str) -> Isolation {
    #[derive(Deserialize)]
    struct Annotation {
        #[serde(default)]
        ingress: Option<Ingress>,
    }
    #[derive(Deserialize)]
    struct Ingress {
        #[serde(default)]
        isolation: Option<String>,
    }
    let unreadable = |why: String| {
        Isolation::Unreadable(format!(
            "metadata.annotations[net.beta.kubernetes.io/network-policy]: {why}; the namespace is isolated for ingress"
        ))
    };
    match serde_json::from_str::<Annotation>(text) {
        Err(error) => unreadable(error.to_string()),
        Ok(annotation) => match annotation.ingress.and_then(|ingress| ingress.isolation).as_deref() {
            None => Isolation::None,
            Some("DefaultDeny") => Isolation::DefaultDeny,
            Some(other) => unreadable(format!("isolation {other:?} is not DefaultDeny")),
        },
    }
}
