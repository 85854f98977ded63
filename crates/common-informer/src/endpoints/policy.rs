//! Which of its two sets of endpoints a Service uses for which packets, and whether it is served at all.

use std::fmt;

use crate::object::{FullService, ServiceType, Str, TrafficPolicy};

/// Where a packet to a Service comes from, and to which kind of its addresses it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// To a cluster IP, from anywhere.
    Internal,
    /// To a node port, an external address or one of the load balancer, from outside the cluster.
    External,
    /// To one of these from a pod or from this node itself. It may take any endpoint, as if it had gone to the
    /// cluster IP: `externalTrafficPolicy` is only for packets from outside (core/v1 ServiceSpec).
    Inside,
}

/// The traffic policies of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// For [`Traffic::Internal`].
    pub internal: TrafficPolicy,
    /// For [`Traffic::External`]; `None` if there can be no such packets.
    pub external: Option<TrafficPolicy>,
}

/// The annotation that was there before `externalTrafficPolicy`.
const LOCAL: &str = "service.local";

impl Policies {
    /// The policies that `service` asks for.
    ///
    /// `kube-router.io/service.local: "true"` is `externalTrafficPolicy: Local`. kube-router also takes it as
    /// `internalTrafficPolicy: Cluster`, against the object's own word and its own documentation; here the
    /// field says what holds. A value that is neither true nor false is no annotation.
    pub fn of(service: &FullService) -> Self {
        let settings = &service.settings;
        let local =
            settings.external_policy == TrafficPolicy::Local || settings.flag(LOCAL) == Ok(Some(true));
        let external = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        Self {
            internal: settings.internal_policy,
            external: settings.is_externally_accessible().then_some(external),
        }
    }

    /// The policy by which endpoints are chosen; `None` if the Service has no address for such packets.
    pub fn to(self, traffic: Traffic) -> Option<TrafficPolicy> {
        match traffic {
            Traffic::Internal => Some(self.internal),
            Traffic::External => self.external,
            Traffic::Inside => self.external.map(|_| TrafficPolicy::Cluster),
        }
    }

    /// Whether endpoints are chosen by `policy` for any packet.
    pub fn uses(self, policy: TrafficPolicy) -> bool {
        [Traffic::Internal, Traffic::External, Traffic::Inside]
            .into_iter()
            .any(|traffic| self.to(traffic) == Some(policy))
    }
}

/// Why no proxy of the given name serves a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassedOver {
    /// `type: ExternalName`
    ExternalName,
    /// `clusterIP: None`
    Headless,
    /// There is no cluster IP (yet).
    NoClusterIp,
    /// The label `service.kubernetes.io/headless`.
    HeadlessLabel,
    /// The label `service.kubernetes.io/service-proxy-name` names another proxy.
    OtherProxy(Str),
}

/// Why `service` is not to be served by the proxy called `proxy`; `None` if it is.
///
/// K8S: `ShouldSkipService` in `pkg/proxy/util`; the labels are the selector of kube-proxy's informers.
pub fn passed_over(service: &FullService, proxy: &str) -> Option<PassedOver> {
    let settings = &service.settings;
    if settings.service_type == ServiceType::ExternalName {
        Some(PassedOver::ExternalName)
    } else if settings.headless {
        Some(PassedOver::Headless)
    } else if settings.headless_label {
        Some(PassedOver::HeadlessLabel)
    } else if let Some(other) = settings.proxy_name.as_ref().filter(|name| &***name != proxy) {
        Some(PassedOver::OtherProxy(other.clone()))
    } else {
        service.cluster_ips.is_empty().then_some(PassedOver::NoClusterIp)
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExternalName => f.write_str("it is a name in the DNS (type ExternalName)"),
            Self::Headless => f.write_str("it is headless (clusterIP None)"),
            Self::NoClusterIp => f.write_str("it has no cluster IP"),
            Self::HeadlessLabel => f.write_str("it has the label service.kubernetes.io/headless"),
            Self::OtherProxy(name) => {
                write!(f, "the label service.kubernetes.io/service-proxy-name names the proxy {name:?}")
            }
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => "to the cluster IP",
            Self::External => "from outside",
            Self::Inside => "from pods and this node to an external address",
        })
    }
}

impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        })
    }
}
