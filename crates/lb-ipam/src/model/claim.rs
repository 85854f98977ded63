//! What one Service asks for.

use std::fmt;
use std::net::IpAddr;

use common_informer::object::{
    Family, FullService, Labels, ObjectKey, Protocol, ServiceType, Str, TrafficPolicy,
};
use smallvec::SmallVec;

use super::pool::Pools;
use crate::owned::{ASKED_ANNOTATION, CLASS, DEFAULT_CLASS, POOL_ANNOTATION, SHARE_ANNOTATION};

/// The order in which Services are served, and in which the first keeps what two have: by age, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// `metadata.creationTimestamp`
    pub created: i64,
    /// Namespace and name.
    pub key: ObjectKey,
}

/// What a Service of ours asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its place in the order.
    pub rank: Rank,
    /// Families that it wants an address of, in its order; at least one.
    pub families: SmallVec<[Family; 2]>,
    /// Without an address of each family it gets none (`RequireDualStack`).
    pub all_or_nothing: bool,
    /// Addresses asked for, at most one of each wanted family.
    pub asked: SmallVec<[IpAddr; 2]>,
    /// The pool asked for.
    pub pool: Option<Str>,
    /// With whom it would share addresses.
    pub share: Option<Share>,
    /// `metadata.labels`, for the selectors of pools.
    pub labels: Labels,
    /// What of its wishes cannot be read, or contradicts itself.
    pub faults: Vec<Problem>,
}

/// A Service that may share its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Namespace and key: Services of two namespaces never share, since one could take packets of the other.
    pub group: (Str, Str),
    /// Where packets are told apart.
    ports: Box<[(Protocol, u16)]>,
    /// `externalTrafficPolicy: Local`: only nodes with endpoints of this Service take its packets, and would
    /// drop those for the others.
    local: bool,
}

/// Something that keeps a Service from having what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Reason of the Event and label of the metric.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Kinds of [`Problem`]; as Events' reasons are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The pools that it may use have no free address of the family.
    NoAddressFree,
    /// No pool is for it.
    NoPoolMatches,
    /// It names a pool that there is not.
    PoolUnknown,
    /// The asked address is in no pool that it may use.
    AddressNotInRange,
    /// The asked address belongs to another.
    AddressInUse,
    /// Two Services had one address; this one lost it.
    AddressConflict,
    /// An annotation cannot be read, or asks for what the spec excludes.
    WishUnclear,
    /// Its status shows addresses that are none of ours: another controller serves it.
    StatusOfOthers,
    /// The API server refuses the status.
    StatusRefused,
    /// Somebody writes another status each time that it was put right.
    StatusContested,
}

/// Which Services are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// By the class that is ours alone.
    Certain,
    /// By no class or by "default": another controller may think the same.
    Assumed,
}

impl Reason {
    /// The word in Events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoAddressFree => "NoAddressFree",
            Self::NoPoolMatches => "NoPoolMatches",
            Self::PoolUnknown => "PoolUnknown",
            Self::AddressNotInRange => "AddressNotInRange",
            Self::AddressInUse => "AddressInUse",
            Self::AddressConflict => "AddressConflict",
            Self::WishUnclear => "WishUnclear",
            Self::StatusOfOthers => "StatusOfOthers",
            Self::StatusRefused => "StatusRefused",
            Self::StatusContested => "StatusContested",
        }
    }
}

impl Problem {
    /// A problem.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl common_informer::problem::Problem for Problem {
    fn reason(&self) -> &'static str {
        self.reason.as_str()
    }

    fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

/// Whether a Service is ours: of type LoadBalancer, and by its class. `default_class` is
/// `--loadbalancer-default-class`.
pub fn ownership(service: &FullService, default_class: bool) -> Option<Ownership> {
    if service.settings.service_type != ServiceType::LoadBalancer {
        return None;
    }
    match service.settings.class.as_deref() {
        Some(CLASS) => Some(Ownership::Certain),
        None | Some(DEFAULT_CLASS) if default_class => Some(Ownership::Assumed),
        _ => None,
    }
}

impl Claim {
    /// What a Service that is ours asks for.
    pub fn of(service: &FullService, pools: &Pools) -> Self {
        let settings = &service.settings;
        let mut families = settings.families.clone();
        if families.is_empty() {
            // Only in files: the API server fills it in.
            families.push(if pools.has_family(Family::V4) { Family::V4 } else { Family::V6 });
        }
        let mut faults = Vec::new();
        let asked = asked(service, &families, &mut faults);
        let word = |name| settings.annotation(name).map(str::trim).filter(|word| !word.is_empty());
        let pool: Option<Str> = word(POOL_ANNOTATION).map(Into::into);
        if let Some(name) = pool.as_ref().filter(|name| !pools.has(name)) {
            faults.push(Problem::new(Reason::PoolUnknown, format!("there is no pool {name:?}")));
        }
        let share = word(SHARE_ANNOTATION).map(|key| Share {
            group: (service.key.namespace.clone(), key.into()),
            ports: service.ports.iter().map(|port| (port.protocol, port.port)).collect(),
            local: settings.external_policy == TrafficPolicy::Local,
        });
        Self {
            rank: Rank { created: service.created, key: service.key.clone() },
            all_or_nothing: settings.requires_dual_stack && families.len() > 1,
            families,
            asked,
            pool,
            share,
            labels: service.labels.clone(),
            faults,
        }
    }

    /// The address of this family that it asks for.
    pub fn asked(&self, family: Family) -> Option<IpAddr> {
        self.asked.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// Whether the two may have one address.
    pub fn shares_with(&self, other: &Self) -> bool {
        match (&self.share, &other.share) {
            (Some(one), Some(other)) => one.allows(other),
            _ => false,
        }
    }
}

impl Share {
    fn allows(&self, other: &Self) -> bool {
        self.group == other.group
            && !self.local
            && !other.local
            && !self.ports.iter().any(|port| other.ports.contains(port))
    }
}

/// The annotation, and `spec.loadBalancerIP` for a family that it does not name.
fn asked(service: &FullService, wanted: &[Family], faults: &mut Vec<Problem>) -> SmallVec<[IpAddr; 2]> {
    let mut asked = SmallVec::<[IpAddr; 2]>::new();
    let text = service.settings.annotation(ASKED_ANNOTATION).unwrap_or_default();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let Ok(ip) = word.parse::<IpAddr>() else {
            let message = format!("the annotation {ASKED_ANNOTATION} has {word:?}, which is no address");
            faults.push(Problem::new(Reason::WishUnclear, message));
            continue;
        };
        if asked.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            let message =
                format!("{ip} is the second {} address asked for; only the first counts", Family::of(ip));
            faults.push(Problem::new(Reason::WishUnclear, message));
        } else {
            asked.push(ip);
        }
    }
    if let Some(ip) = service.settings.wanted_ip
        && asked.iter().all(|other| Family::of(*other) != Family::of(ip))
    {
        asked.push(ip);
    }
    asked.retain(|ip| {
        let family = Family::of(*ip);
        if !wanted.contains(&family) {
            let message = format!("{ip} is asked for, but the Service has no {family} (spec.ipFamilies)");
            faults.push(Problem::new(Reason::WishUnclear, message));
        }
        wanted.contains(&family)
    });
    asked
}
