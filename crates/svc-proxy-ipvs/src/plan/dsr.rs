//! Direct server return (DSR): what is special about Services with `kube-router.io/service.dsr: tunnel`.
//!
//! ```text
//!   client ─► VIP ─► any node: mark of the front ─► IPVS, by mark ─► IP in IP ─► pod that has the VIP
//!      ▲                                                                          │
//!      └───────────────────────────────── from the VIP, by the pod's node ────────┘
//! ```
//!
//! The client's address is kept and replies go straight. The price: packets keep their destination, so an endpoint
//! must listen on the Service's own port and have the address itself; and the address must not be the node's, or
//! the node would take the pod's replies for forged ones. So packets are brought to IPVS by their mark and not by
//! a route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;

use common_informer::endpoints::{Candidate, Origin};
use common_informer::object::{Protocol, ServiceSettings};
use kernel_netlink::ipvs::{Destination, Forward, Tunnel};

use super::{Front, Virtual};
use crate::model::problem::{Problem, Reason};
use crate::owned;

/// The annotation, without its prefix.
const ANNOTATION: &str = "service.dsr";

/// What of a Service is served by direct return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// Virtual services that have no mark yet, known by their fronts.
    pub unmarked: BTreeMap<Front, Virtual>,
    /// The marks of those that have one.
    pub marks: BTreeMap<Front, NonZeroU32>,
    /// Fronts with endpoints on this node, from which replies come, whether or not the endpoints are ready.
    pub replies: BTreeSet<Front>,
    /// Endpoints on this node, with the virtual addresses that they must have.
    pub pods: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
}

impl Direct {
    /// Whether nothing is served so.
    pub fn is_empty(&self) -> bool {
        self.unmarked.is_empty() && self.marks.is_empty()
    }
}

/// Whether the Service asks for it. A value that means nothing is reported.
pub fn is_wanted(settings: &ServiceSettings, problems: &mut Vec<Problem>) -> bool {
    match settings.annotation(ANNOTATION).map(str::trim) {
        None | Some("") => false,
        Some("tunnel") => true,
        Some(other) => {
            problems.push(Problem::new(
                Reason::BadAnnotation,
                format!("kube-router.io/{ANNOTATION}: {other:?} is no way of direct return; there is tunnel"),
            ));
            false
        }
    }
}

/// Whether a front of a Service that asks for it can be served so; the reason is reported if only its nature
/// stands against it. Such a front is served as that of any other Service.
pub fn is_possible(
    front: &Front,
    origin: Origin,
    own: &BTreeSet<IpAddr>,
    problems: &mut Vec<Problem>,
) -> bool {
    if !matches!(origin, Origin::ExternalIp | Origin::LoadBalancer) {
        return false;
    }
    let why = if front.protocol == Protocol::Sctp {
        "an SCTP endpoint answers from its own address"
    } else if own.contains(&front.ip) {
        "the address is one of this node's own"
    } else {
        return true;
    };
    let Front { ip, protocol, port } = front;
    problems.push(Problem::new(
        Reason::Unsupported,
        format!(
            "kube-router.io/{ANNOTATION}: {ip} port {port}/{protocol} is served without direct return: {why}"
        ),
    ));
    false
}

/// The destination that an endpoint is for a front; `None`, with a report, if packets that keep their destination
/// cannot reach it.
///
/// LIMIT: that an endpoint of another node has that node's address (`hostNetwork`) is not to be seen from here;
/// that node reports it.
pub fn destination(
    endpoint: &Candidate,
    front: &Front,
    own: &BTreeSet<IpAddr>,
    problems: &mut Vec<Problem>,
) -> Option<Destination> {
    let why = if endpoint.port != front.port {
        format!("it listens on port {}, and tunnelled packets keep port {}", endpoint.port, front.port)
    } else if own.contains(&endpoint.address) {
        "it is on the node's own network (hostNetwork)".to_owned()
    } else {
        let to = Destination::new(endpoint.address, endpoint.port);
        return Some(Destination { forward: Forward::Tunnel(Tunnel::Ipip), ..to });
    };
    problems.push(Problem::new(
        Reason::Unsupported,
        format!("kube-router.io/{ANNOTATION}: endpoint {} is left out: {why}", endpoint.address),
    ));
    None
}

/// Which front has which mark.
///
/// A front keeps its mark as long as it is wanted, and over restarts: the table in the kernel is the record. So
/// connections that are served stay with their virtual service.
#[derive(Debug, Default)]
pub struct Marks {
    of: BTreeMap<Front, NonZeroU32>,
    taken: BTreeSet<u32>,
    /// Fronts that nobody wants at the moment.
    loose: BTreeSet<Front>,
    /// No lower number is free.
    first_free: u32,
}

impl Marks {
    /// Takes over a mark from the record; one that is not ours, or a second one, is ignored.
    pub fn adopt(&mut self, front: Front, mark: u32) {
        let number = mark & !owned::MARK_MASK;
        let Some(full) = NonZeroU32::new(mark) else { return };
        let ours = mark & owned::MARK_MASK == owned::MARK && number != 0;
        if !ours || self.of.contains_key(&front) || !self.taken.insert(number) {
            return;
        }
        self.of.insert(front, full);
        self.loose.insert(front);
    }

    /// The mark of a front, from now on until it is [left](Self::leave). `None` when all are taken.
    pub fn take(&mut self, front: Front) -> Option<NonZeroU32> {
        self.loose.remove(&front);
        if let Some(mark) = self.of.get(&front) {
            return Some(*mark);
        }
        let mut number = self.first_free.max(1);
        while self.taken.contains(&number) {
            number += 1;
        }
        if number & owned::MARK_MASK != 0 {
            return None;
        }
        let mark = NonZeroU32::new(owned::MARK | number)?;
        self.first_free = number + 1;
        self.taken.insert(number);
        self.of.insert(front, mark);
        Some(mark)
    }

    /// Nobody wants the front. It keeps its mark until [`settle`](Self::settle).
    pub fn leave(&mut self, front: Front) {
        if self.of.contains_key(&front) {
            self.loose.insert(front);
        }
    }

    /// Frees the marks of fronts that nobody wants.
    pub fn settle(&mut self) {
        for front in std::mem::take(&mut self.loose) {
            let Some(mark) = self.of.remove(&front) else { continue };
            let number = mark.get() & !owned::MARK_MASK;
            self.taken.remove(&number);
            self.first_free = self.first_free.min(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(port: u16) -> Front {
        Front { ip: [203, 0, 113, 20].into(), protocol: Protocol::Tcp, port }
    }

    fn mark(number: u32) -> NonZeroU32 {
        NonZeroU32::new(owned::MARK | number).unwrap()
    }

    #[test]
    fn a_front_that_is_planned_anew_keeps_its_mark() {
        let mut marks = Marks::default();
        assert_eq!((marks.take(front(1)), marks.take(front(2))), (Some(mark(1)), Some(mark(2))));
        marks.leave(front(1));
        marks.leave(front(2));
        assert_eq!((marks.take(front(2)), marks.take(front(3))), (Some(mark(2)), Some(mark(3))));
        marks.settle();
        assert_eq!((marks.take(front(4)), marks.take(front(1))), (Some(mark(1)), Some(mark(4))));
    }

    #[test]
    fn the_record_is_taken_over_as_far_as_it_can_be_ours() {
        let mut marks = Marks::default();
        for (port, found) in [(1, mark(7).get()), (2, mark(7).get()), (3, 0x1001), (4, owned::MARK), (5, 0)] {
            marks.adopt(front(port), found);
        }
        assert_eq!(marks.take(front(2)), Some(mark(1)));
        assert_eq!(marks.take(front(1)), Some(mark(7)));
        assert_eq!(marks.take(front(4)), Some(mark(2)));
    }

    #[test]
    fn when_all_marks_are_taken_there_is_none() {
        let mut marks = Marks { first_free: !owned::MARK_MASK, ..Marks::default() };
        assert_eq!(marks.take(front(1)), Some(mark(0x00ff_ffff)));
        assert_eq!(marks.take(front(2)), None);
    }

    proptest::proptest! {
        /// Marks are unique, never 0, in our range, and stay as long as their front is wanted, also by way of the
        /// record into another process.
        #[test]
        fn marks_are_unique_and_stay(
            histories in proptest::collection::vec((proptest::collection::btree_set(0u16..12, 0..12), proptest::bool::ANY), 1..20),
        ) {
            let mut marks = Marks::default();
            let mut before: BTreeMap<Front, NonZeroU32> = BTreeMap::new();
            for (wanted, restart) in histories {
                if restart {
                    marks = Marks::default();
                    before.iter().for_each(|(front, mark)| marks.adopt(*front, mark.get()));
                }
                before.keys().for_each(|front| marks.leave(*front));
                let now: BTreeMap<_, _> =
                    wanted.iter().map(|port| (front(*port), marks.take(front(*port)).unwrap())).collect();
                marks.settle();
                let unique: BTreeSet<_> = now.values().collect();
                assert_eq!(unique.len(), now.len());
                for (front, mark) in &now {
                    assert_eq!(mark.get() & owned::MARK_MASK, owned::MARK);
                    assert_ne!(mark.get(), owned::MARK);
                    assert!(before.get(front).is_none_or(|was| was == mark), "{front:?}");
                }
                before = now;
            }
        }
    }
}
