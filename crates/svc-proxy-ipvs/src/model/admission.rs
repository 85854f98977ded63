//! Which addresses a Service may have served here: those of its families, in the operator's ranges.
//!
//! K8S: anybody who may write a Service can name any external address (CVE-2020-8554). kube-router's
//! `--strict-external-ip-validation` (on by default) takes only those in the ranges that the operator gave, and
//! none of the cluster IPs' ranges.

use std::net::IpAddr;

use common_informer::endpoints::{Frontend, Origin};
use common_informer::object::{Family, FullService};
use ipnet::IpNet;

/// The operator's ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// `--strict-external-ip-validation`
    pub strict: bool,
    /// `--service-cluster-ip-range`
    pub cluster: Vec<IpNet>,
    /// `--service-external-ip-range`
    pub external: Vec<IpNet>,
    /// `--loadbalancer-ip-range`
    pub balancer: Vec<IpNet>,
    /// `--excluded-cidrs`
    pub excluded: Vec<IpNet>,
}

fn within(ranges: &[IpNet], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&ip))
}

impl Admission {
    /// Why a frontend of the Service is not served; `None` if it is.
    pub fn objection(
        &self,
        service: &FullService,
        frontend: Frontend,
        origin: Origin,
    ) -> Option<&'static str> {
        let Frontend::Address(ip, ..) = frontend else { return None };
        // K8S: kube-proxy passes a Service over in a family that it has no cluster IP of.
        if !service.settings.families.contains(&Family::of(ip)) {
            return Some("the Service is not of the address's family, see spec.ipFamilies");
        }
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return Some("no virtual address can be unspecified, loopback or multicast");
        }
        if within(&self.excluded, ip) {
            return Some("the address is in --excluded-cidrs");
        }
        let (ranges, missing) = match origin {
            Origin::ClusterIp | Origin::NodePort => return None,
            Origin::ExternalIp => (
                &self.external,
                "the address is in no --service-external-ip-range (or allow all: --strict-external-ip-validation=false)",
            ),
            Origin::LoadBalancer => (
                &self.balancer,
                "the address is in no --loadbalancer-ip-range (or allow all: --strict-external-ip-validation=false)",
            ),
        };
        if self.strict && within(&self.cluster, ip) {
            Some("the address is in --service-cluster-ip-range")
        } else {
            (self.strict && !within(ranges, ip)).then_some(missing)
        }
    }

    /// Whether a virtual service on the address can only be ours: it is in a range that was given to us.
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        !within(&self.excluded, ip)
            && [&self.cluster, &self.external, &self.balancer].into_iter().any(|ranges| within(ranges, ip))
    }

    /// Whether the address is to be left alone.
    pub fn is_excluded(&self, ip: IpAddr) -> bool {
        within(&self.excluded, ip)
    }
}
