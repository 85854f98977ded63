//! discovery.k8s.io/v1 EndpointSlice.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Family, ObjectKey, Protocol, Str};

/// `addressType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressType {
    /// `IPv4` or `IPv6`
    Ip(Family),
    /// `FQDN`: names, which no proxy can serve. The slice has no endpoints here.
    Fqdn,
}

/// discovery.k8s.io/v1 EndpointSlice: some of the endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The label `kubernetes.io/service-name`: its Service, in the same namespace. A slice without it
    /// belongs to nothing that is known here.
    pub service: Option<Str>,
    /// `addressType`
    pub address_type: AddressType,
    /// `ports`, interned: they hold for every endpoint of the slice.
    pub ports: Arc<[EndpointPort]>,
    /// `endpoints` with an address of the slice's family.
    pub endpoints: Box<[Endpoint]>,
}

/// discovery.k8s.io/v1 EndpointPort.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointPort {
    /// `name`, empty if it has none.
    pub name: Str,
    /// `protocol`, TCP by default.
    pub protocol: Protocol,
    /// `port`; slices that are not made for a Service may have none.
    pub port: Option<u16>,
}

/// discovery.k8s.io/v1 Endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The first of `addresses`. The API says nothing about the meaning of the others.
    pub address: IpAddr,
    /// `conditions.ready`; absent is true.
    pub ready: bool,
    /// `conditions.serving`; absent is true.
    pub serving: bool,
    /// `conditions.terminating`; absent is false.
    pub terminating: bool,
    /// `nodeName`, interned.
    pub node: Option<Str>,
    /// `hints`, interned; `None` if there are none.
    pub hints: Option<Arc<Hints>>,
}

/// discovery.k8s.io/v1 EndpointHints: who should use the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hints {
    /// `forZones[].name`
    pub zones: Box<[Str]>,
    /// `forNodes[].name`
    pub nodes: Box<[Str]>,
}
