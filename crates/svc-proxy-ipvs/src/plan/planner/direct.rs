//! What Services with direct return need beside their parts: marks, and who else is on their addresses.
//!
//! An address on which something is served by direct return is not local by a route: the node would take replies
//! that its pods send from there for forged ones. All external fronts of such an address are brought to IPVS by
//! mark, also those of other Services: these IPVS knows by their address as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use common_informer::object::{Family, ObjectKey};
use kernel_netlink::ipvs::{Family as IpvsFamily, ServiceKey};

use crate::model::problem::{Problem, Reason};
use crate::owned;
use crate::plan::Front;
use crate::plan::dsr::Marks;
use crate::plan::part::Part;
use crate::plan::rules::DirectTable;
use crate::plan::shared::Shared;

/// Bytes of the largest packet until somebody says better.
const USUAL_MTU: u16 = 1500;

/// The key of the virtual service of a front with a mark.
fn marked(front: &Front, mark: NonZeroU32) -> ServiceKey {
    let family = match front.family() {
        Family::V4 => IpvsFamily::Ipv4,
        Family::V6 => IpvsFamily::Ipv6,
    };
    ServiceKey::Mark { family, mark }
}

/// What all Services together need for direct return.
#[derive(Debug)]
pub(super) struct DirectPlan {
    marks: Marks,
    by_mark: BTreeMap<NonZeroU32, Front>,
    replies: BTreeSet<Front>,
    /// Services that are served so.
    services: BTreeSet<ObjectKey>,
    /// Addresses that something is served on so.
    pub(super) vips: Shared<IpAddr>,
    /// Other external fronts, by address.
    others: BTreeMap<IpAddr, BTreeSet<Front>>,
    mtu: u16,
    touched: bool,
}

impl DirectPlan {
    pub(super) fn new() -> Self {
        Self {
            marks: Marks::default(),
            by_mark: BTreeMap::new(),
            replies: BTreeSet::new(),
            services: BTreeSet::new(),
            vips: Shared::default(),
            others: BTreeMap::new(),
            mtu: USUAL_MTU,
            touched: false,
        }
    }

    pub(super) fn adopt(&mut self, marks: impl IntoIterator<Item = (Front, u32)>) {
        marks.into_iter().for_each(|(front, mark)| self.marks.adopt(front, mark));
    }

    /// Gives the part's virtual services their marks.
    pub(super) fn install(&mut self, service: &ObjectKey, part: &mut Part) {
        for front in part.external() {
            self.others.entry(front.ip).or_default().insert(*front);
            self.touched |= self.vips.contains(&front.ip);
        }
        if part.extras.direct.is_none() {
            return;
        }
        let Some(mut direct) = part.extras.direct.take() else { return };
        self.touched = true;
        self.services.insert(service.clone());
        for (front, mut wanted) in std::mem::take(&mut direct.unmarked) {
            let Some(mark) = self.marks.take(front) else {
                let message = "there are no more packet marks for direct return";
                part.extras.problems.push(Problem::new(Reason::Unsupported, message));
                part.fronts.remove(&front);
                continue;
            };
            wanted.service.key = marked(&front, mark);
            if let Some(entrance) = part.fronts.get_mut(&front) {
                entrance.wanted = Some(Arc::new(wanted));
            }
            direct.marks.insert(front, mark);
            self.by_mark.insert(mark, front);
            self.vips.acquire(front.ip);
        }
        self.replies.extend(&direct.replies);
        part.extras.direct = Some(direct);
    }

    pub(super) fn withdraw(&mut self, service: &ObjectKey, part: &Part) {
        for front in part.external() {
            self.touched |= self.vips.contains(&front.ip);
            if let Some(fronts) = self.others.get_mut(&front.ip) {
                fronts.remove(front);
                if fronts.is_empty() {
                    self.others.remove(&front.ip);
                }
            }
        }
        if !self.services.remove(service) {
            return;
        }
        self.touched = true;
        for (front, mark) in part.extras.direct.iter().flat_map(|direct| &direct.marks) {
            self.marks.leave(*front);
            self.by_mark.remove(mark);
            self.replies.remove(front);
            self.vips.release(&front.ip);
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.touched |= mtu != self.mtu && !self.services.is_empty();
        self.mtu = mtu;
    }

    /// Frees the marks that are left, and gives what the table should have if that may be something else now.
    pub(super) fn settle(&mut self) -> Option<DirectTable> {
        self.marks.settle();
        std::mem::take(&mut self.touched).then(|| {
            let others = self.vips.iter().filter_map(|ip| self.others.get(ip)).flatten();
            let mut marks: BTreeMap<_, _> = others.map(|front| (*front, owned::MARK)).collect();
            marks.extend(self.by_mark.iter().map(|(mark, front)| (*front, mark.get())));
            let vips = self.vips.iter().copied().collect();
            DirectTable { marks, replies: self.replies.clone(), vips, mtu: self.mtu }
        })
    }

    pub(super) fn front(&self, mark: NonZeroU32) -> Option<Front> {
        self.by_mark.get(&mark).copied()
    }

    pub(super) fn fronts(&self) -> impl Iterator<Item = &Front> {
        self.by_mark.values()
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.iter()
    }
}

/// An endpoint on this node that is served by direct return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectPod {
    /// The virtual addresses that it must have.
    pub vips: BTreeSet<IpAddr>,
    /// Whose endpoint it is.
    pub services: BTreeSet<ObjectKey>,
}

/// What direct return needs of the node as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectNeeds {
    /// Anything is served so, of IPv4 and of IPv6.
    pub families: [bool; 2],
    /// UDP is, over IPv4: clients send what is too large for the tunnel.
    pub datagrams: bool,
    /// A Service that is served so is scheduled by a hash (`mh`): its packets may come by another node all at once,
    /// which then chooses the same endpoint.
    pub hashed: bool,
}
