//! core/v1 Service with all that a service proxy, an announcer of its addresses and an allocator of them read.
//!
//! The firewall needs only [`Service`](super::Service); which of the two an informer gives is its
//! [`ServiceDetail`](crate::decode::ServiceDetail).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{Family, Labels, ObjectKey, Protocol, Str};

/// `spec.type`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// `ClusterIP`, the default.
    #[default]
    ClusterIp,
    /// `NodePort`
    NodePort,
    /// `LoadBalancer`
    LoadBalancer,
    /// `ExternalName`: a name in the DNS, nothing here.
    ExternalName,
}

/// `spec.internalTrafficPolicy` and `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Every endpoint may serve. The default.
    #[default]
    Cluster,
    /// Only endpoints on the node that the packet has come to.
    Local,
}

/// core/v1 Service, all that is not only for people or for the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FullService {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; files have none.
    pub uid: Option<Uid>,
    /// `metadata.creationTimestamp`, seconds since 1970; 0 when absent.
    pub created: i64,
    /// `metadata.labels`, where [`ServiceDetail::Labelled`](crate::decode::ServiceDetail) was asked for.
    pub labels: Labels,
    /// `spec.clusterIPs` (or `clusterIP`) without `None`.
    pub cluster_ips: SmallVec<[IpAddr; 2]>,
    /// `spec.ports`
    pub ports: Box<[FullServicePort]>,
    /// `spec.healthCheckNodePort`
    pub health_check_node_port: Option<u16>,
    /// Everything else.
    pub settings: Arc<ServiceSettings>,
}

/// What most Services have in common; interned as a whole, so that twenty thousand plain ones share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceSettings {
    /// `spec.type`
    pub service_type: ServiceType,
    /// `spec.clusterIPs` (or `clusterIP`) is `None`.
    pub headless: bool,
    /// `spec.ipFamilies`, or the families of the cluster IPs where it is absent.
    pub families: SmallVec<[Family; 2]>,
    /// `spec.ipFamilyPolicy` is `RequireDualStack`: one family alone does not serve.
    pub requires_dual_stack: bool,
    /// `spec.externalIPs`, each once.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[]` that have an `ip`, each once.
    pub load_balancer_ips: Box<[LoadBalancerIp]>,
    /// `spec.sessionAffinity` is `ClientIP`: for how many seconds, 1 to 86,400.
    pub affinity_seconds: Option<u32>,
    /// `spec.internalTrafficPolicy`. See [`Policies`](crate::endpoints::Policies) for what it means.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`. See [`Policies`](crate::endpoints::Policies) for what it means.
    pub external_policy: TrafficPolicy,
    /// `spec.trafficDistribution` as it stands. Only for people: who may serve is told by the hints of the
    /// slices.
    pub distribution: Option<Str>,
    /// `spec.publishNotReadyAddresses`. Only for people: the controller that writes the slices heeds it.
    pub publish_not_ready: bool,
    /// `spec.loadBalancerSourceRanges`: who may use the load balancer's addresses. `None` is everybody. A range
    /// that cannot be read allows nobody, so the list may be empty.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// `spec.loadBalancerClass`
    pub class: Option<Str>,
    /// `spec.loadBalancerIP`: the address that the load balancer is asked for.
    pub wanted_ip: Option<IpAddr>,
    /// `spec.allocateLoadBalancerNodePorts`, true by default.
    pub allocate_node_ports: bool,
    /// `metadata.annotations` whose name begins with `kube-router.io/`, interned as a whole.
    pub annotations: Labels,
    /// The label `service.kubernetes.io/service-proxy-name`.
    pub proxy_name: Option<Str>,
    /// It has the label `service.kubernetes.io/headless`: no proxy is to serve it.
    pub headless_label: bool,
}

/// `metadata.uid`: a UUID, in the letters that the API server writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid([u8; 16]);

/// A port of a Service, with its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FullServicePort {
    /// `name`, empty if it has none. Ports of slices are matched by it.
    pub name: Str,
    /// `protocol`, TCP by default.
    pub protocol: Protocol,
    /// `port`
    pub port: u16,
    /// `nodePort`, if it has one.
    pub node_port: Option<u16>,
}

/// An address of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadBalancerIp {
    /// `ip`
    pub ip: IpAddr,
    /// `ipMode` is `Proxy`: packets to it must reach the load balancer, also from nodes (KEP-1860).
    pub proxied: bool,
}

impl ServiceSettings {
    /// The annotation `kube-router.io/<name>`, if there is one.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations
            .iter()
            .find(|(key, _)| key.strip_prefix(super::ANNOTATIONS) == Some(name))
            .map(|(_, value)| &**value)
    }

    /// The annotation `kube-router.io/<name>` as true or false, in the words of Go's `strconv.ParseBool`.
    ///
    /// # Errors
    /// It is none of these words; the value as it stands.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, &str> {
        match self.annotation(name).map(|text| (text, text.trim())) {
            None => Ok(None),
            Some((_, "1" | "t" | "T" | "true" | "TRUE" | "True")) => Ok(Some(true)),
            Some((_, "0" | "f" | "F" | "false" | "FALSE" | "False")) => Ok(Some(false)),
            Some((text, _)) => Err(text),
        }
    }

    /// Packets from outside the cluster can be for it: it has node ports, a load balancer or external
    /// addresses (`ExternallyAccessible` in kubernetes' `pkg/api/v1/service`).
    pub fn is_externally_accessible(&self) -> bool {
        match self.service_type {
            ServiceType::NodePort | ServiceType::LoadBalancer => true,
            ServiceType::ClusterIp => !self.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        }
    }
}

impl Uid {
    /// Parses a UUID as the API server writes it, such as `9f0c3a52-6a3e-4f5d-8a43-2f6a5a0d1c11`.
    pub fn parse(text: &str) -> Option<Self> {
        let hex: String = text.split('-').collect();
        let uid = Self(u128::from_str_radix(&hex, 16).ok()?.to_be_bytes());
        (uid.to_string() == text).then_some(uid)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", u128::from_be_bytes(self.0));
        let mut parts = [8, 4, 4, 4, 12].into_iter().scan(hex.as_str(), |rest, length| {
            let (part, after) = rest.split_at_checked(length)?;
            *rest = after;
            Some(part)
        });
        parts.try_for_each(|part| {
            let dash = if part.len() == 8 { "" } else { "-" };
            write!(f, "{dash}{part}")
        })
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
