//! The Services and namespaces that matter, as the API server has them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use common_informer::object::{
    Change, FullService, Kind, Labels, LoadBalancerIp, Object, ObjectKey, ServiceType, Str, Uid,
};

/// Services whose claims or addresses may have changed.
pub type Touched = BTreeSet<ObjectKey>;

/// What there is. Services that have nothing to do with addresses from outside are only counted.
#[derive(Debug, Default)]
pub struct World {
    services: BTreeMap<ObjectKey, Arc<FullService>>,
    plain: HashSet<ObjectKey>,
    namespaces: BTreeMap<Str, Labels>,
}

impl World {
    /// Takes a change, and notes what it touches.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Applied(Object::FullService(service)) => self.put(service, touched),
            Change::Applied(Object::Namespace(namespace)) => {
                let labels = namespace.labels.clone();
                if self.namespaces.insert(namespace.name.clone(), labels.clone()) != Some(labels) {
                    self.touch_namespace(&namespace.name, touched);
                }
            }
            Change::Applied(_) => {}
            Change::Deleted(object) | Change::Excluded { object, .. } => match object.kind {
                Kind::Service => self.remove(&object.key, touched),
                Kind::Namespace if self.namespaces.remove(&object.key.name).is_some() => {
                    self.touch_namespace(&object.key.name, touched);
                }
                _ => {}
            },
        }
    }

    fn put(&mut self, service: Arc<FullService>, touched: &mut Touched) {
        let settings = &service.settings;
        let matters = settings.service_type == ServiceType::LoadBalancer
            || !settings.external_ips.is_empty()
            || !settings.load_balancer_ips.is_empty();
        if !matters {
            self.remove(&service.key, touched);
            self.plain.insert(service.key.clone());
            return;
        }
        self.plain.remove(&service.key);
        let key = service.key.clone();
        let before = self.services.insert(key.clone(), service.clone());
        if before.is_none_or(|before| before != service) {
            touched.insert(key);
        }
    }

    fn remove(&mut self, key: &ObjectKey, touched: &mut Touched) {
        self.plain.remove(key);
        if self.services.remove(key).is_some() {
            touched.insert(key.clone());
        }
    }

    fn touch_namespace(&self, name: &Str, touched: &mut Touched) {
        let first = ObjectKey { namespace: name.clone(), name: "".into() };
        let of_it = self.services.range(first..).take_while(|(key, _)| key.namespace == *name);
        touched.extend(of_it.map(|(key, _)| key.clone()));
    }

    /// Notes what the API server has just accepted as the status of a Service, so that it is not written
    /// again before the watch tells of it. Without effect if the Service is another one by now.
    pub fn note_status(&mut self, key: &ObjectKey, uid: Option<Uid>, ips: &[IpAddr], touched: &mut Touched) {
        let Some(service) = self.services.get_mut(key).filter(|service| service.uid == uid) else { return };
        let service = Arc::make_mut(service);
        let settings = Arc::make_mut(&mut service.settings);
        settings.load_balancer_ips =
            ips.iter().map(|ip| LoadBalancerIp { ip: *ip, proxied: false }).collect();
        touched.insert(key.clone());
    }

    /// A Service, if it matters.
    pub fn service(&self, key: &ObjectKey) -> Option<&FullService> {
        self.services.get(key).map(Arc::as_ref)
    }

    /// The Services that matter.
    pub fn services(&self) -> impl Iterator<Item = &FullService> {
        self.services.values().map(Arc::as_ref)
    }

    /// Labels of a namespace, if it is known.
    pub fn namespace(&self, name: &Str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len() + self.plain.len(),
            Kind::Namespace => self.namespaces.len(),
            _ => 0,
        }
    }
}

/// Addresses in the status of a Service, in its order.
pub fn shown(service: &FullService) -> impl Iterator<Item = IpAddr> {
    service.settings.load_balancer_ips.iter().map(|shown| shown.ip)
}
