//! Virtual addresses: routes in the table `local`, by which packets to them are this node's though no device has
//! the address ("AnyIP"). So no packet of the node has one as its source by chance, none is announced by accident,
//! and no IPv6 address has to be probed for duplicates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common_informer::object::Family;
use ipnet::IpNet;
use kernel_netlink::route::{
    Command, CommitError, Link, LinkChange, LinkIndex, LinkName, NewLink, NewLinkKind, Refusal, Route,
    RouteFilter, RouteProtocol, Rtnetlink, Table,
};

use crate::error::Error;
use crate::model::addresses::{Addresses, LocalAddress};
use crate::owned;

/// The routes of virtual addresses in the kernel.
#[derive(Debug)]
pub struct VirtualAddresses<R> {
    netlink: R,
    device: Option<LinkIndex>,
    /// Routes as [`Way::route`] makes them. Twenty thousand of them differ in their address only.
    made: BTreeMap<Way, BTreeSet<IpAddr>>,
    /// Routes that are otherwise, by another version or somebody else.
    others: BTreeMap<IpAddr, Route>,
    refused: BTreeMap<IpAddr, String>,
}

/// What is behind the routes of virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    device: LinkIndex,
    source: Option<IpAddr>,
}

/// Routes whose commands are sent at once.
const BATCH: usize = 512;

pub(super) fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> Error {
    move |source| Error::Route { what, source: Box::new(source) }
}

impl<R: Rtnetlink> VirtualAddresses<R> {
    /// Nothing is known yet.
    pub fn new(netlink: R) -> Self {
        Self {
            netlink,
            device: None,
            made: BTreeMap::new(),
            others: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The conversation with the kernel, for what else there is to ask.
    pub fn netlink(&mut self) -> &mut R {
        &mut self.netlink
    }

    /// The node's own addresses.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn local(&mut self) -> Result<Vec<LocalAddress>, Error> {
        let links = self.netlink.observe_links().map_err(failed("reading the node's devices"))?;
        let names: BTreeMap<LinkIndex, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let addresses = self.netlink.observe_addresses().map_err(failed("reading the node's addresses"))?;
        let known = addresses.iter().filter_map(|address| {
            let device = names.get(&address.link)?.name.as_str();
            // kube-router and kube-proxy put virtual addresses there; they are no addresses of the node.
            (![owned::DEVICE, owned::KUBE_PROXY_DEVICE].contains(&device))
                .then(|| LocalAddress { ip: address.address.addr(), device: device.to_owned() })
        });
        Ok(known.collect())
    }

    /// Makes the device if it is missing and sets it up.
    fn ensure_device(&mut self) -> Result<LinkIndex, Error> {
        let what = "making the device kube-dummy-if (module dummy)";
        let Some(name) = LinkName::new(owned::DEVICE) else { return Ok(LinkIndex(0)) };
        for _ in 0..2 {
            match self.netlink.observe_link(&name).map_err(failed(what))? {
                Some(link) if link.up => return Ok(link.index),
                Some(link) => {
                    let change = LinkChange { up: Some(true), ..LinkChange::default() };
                    self.netlink.commit(&[Command::SetLink(link.index, change)]).map_err(failed(what))?;
                }
                None => {
                    let link = NewLink { up: true, ..NewLink::new(name.clone(), NewLinkKind::Dummy) };
                    self.netlink.commit(&[Command::AddLink(link)]).map_err(failed(what))?;
                }
            }
        }
        let link = self.netlink.observe_link(&name).map_err(failed(what))?;
        link.map(|link| link.index)
            .ok_or_else(|| Error::Route { what, source: "it is removed as soon as it is made".into() })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<(), Error> {
        let filter = RouteFilter {
            table: Some(Table::LOCAL),
            protocol: Some(RouteProtocol(owned::ROUTE_PROTOCOL)),
            ..RouteFilter::default()
        };
        let routes =
            self.netlink.observe_routes(&filter).map_err(failed("reading routes of virtual addresses"))?;
        self.made.clear();
        self.others.clear();
        routes.into_iter().for_each(|route| self.hold(route));
        self.device = None;
        Ok(())
    }

    /// The addresses that are this node's by our routes, as far as is known.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.made.values().flatten().chain(self.others.keys()).copied()
    }

    /// How many routes there are, as far as is known.
    pub fn count(&self) -> usize {
        self.made.values().map(BTreeSet::len).sum::<usize>() + self.others.len()
    }

    /// Makes routes as they should be. Those that the kernel refuses for good are in [`VirtualAddresses::refused`].
    ///
    /// # Errors
    /// When others are not there that may be if tried again.
    pub fn add(
        &mut self,
        ips: impl IntoIterator<Item = IpAddr>,
        addresses: &Addresses,
    ) -> Result<usize, Error> {
        let mut ips = ips.into_iter().peekable();
        if ips.peek().is_none() {
            return Ok(0);
        }
        let device = match self.device {
            Some(device) => device,
            None => self.ensure_device()?,
        };
        self.device = Some(device);
        let way = |ip| Way { device, source: addresses.source(Family::of(ip)) };
        let (mut count, mut outcome) = (0, Ok(()));
        while ips.peek().is_some() {
            let some = ips.by_ref().take(BATCH);
            let some: Vec<_> = some.filter(|ip| !self.has_made(*ip, &way(*ip))).collect();
            count += some.len();
            outcome = outcome.and(self.add_some(&some, way));
        }
        outcome.map(|()| count)
    }

    fn add_some(&mut self, ips: &[IpAddr], way: impl Fn(IpAddr) -> Way) -> Result<(), Error> {
        ips.iter().for_each(|ip| {
            self.refused.remove(ip);
        });
        let commands: Vec<_> = ips.iter().map(|ip| Command::ReplaceRoute(way(*ip).route(*ip))).collect();
        match self.commit(&commands) {
            Err(CommitError::Refused(refusals)) if !refusals.iter().any(Refusal::is_retryable) => {
                let refused = |refusal: Refusal| Some((*ips.get(refusal.command)?, refusal.to_string()));
                self.refused.extend(refusals.into_iter().filter_map(refused));
                Ok(())
            }
            result => result.map_err(failed("adding routes of virtual addresses")),
        }
    }

    /// Addresses whose routes the kernel refused for good, and why.
    pub fn refused(&self) -> &BTreeMap<IpAddr, String> {
        &self.refused
    }

    /// Removes routes.
    ///
    /// # Errors
    /// When not all are gone; the others are.
    pub fn remove(&mut self, ips: impl IntoIterator<Item = IpAddr>) -> Result<usize, Error> {
        let ips: Vec<_> = ips.into_iter().collect();
        ips.iter().for_each(|ip| {
            self.refused.remove(ip);
        });
        let removal = |ip: &IpAddr| Some(Command::DeleteRoute(self.route(*ip)?));
        let commands: Vec<_> = ips.iter().filter_map(removal).collect();
        self.commit(&commands).map_err(failed("removing routes of virtual addresses"))?;
        Ok(commands.len())
    }

    /// Carries out commands for routes and keeps what was done in mind.
    fn commit(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        if commands.is_empty() {
            return Ok(());
        }
        let result = self.netlink.commit(commands);
        let refused: Vec<_> = match &result {
            Ok(()) => Vec::new(),
            Err(CommitError::Refused(refusals)) => refusals.iter().map(|refusal| refusal.command).collect(),
            Err(_) => (0..commands.len()).collect(),
        };
        for (number, command) in commands.iter().enumerate() {
            match command {
                Command::DeleteRoute(route) => {
                    self.forget(route.destination.addr());
                }
                Command::ReplaceRoute(route) if !refused.contains(&number) => {
                    self.hold(route.clone().as_stored());
                }
                _ => {}
            }
        }
        result
    }

    fn has_made(&self, ip: IpAddr, way: &Way) -> bool {
        self.made.get(way).is_some_and(|ips| ips.contains(&ip))
    }

    /// The route of an address, as far as is known.
    fn route(&self, ip: IpAddr) -> Option<Route> {
        let made = self.made.iter().find(|(_, ips)| ips.contains(&ip));
        made.map(|(way, _)| way.route(ip).as_stored()).or_else(|| self.others.get(&ip).cloned())
    }

    fn forget(&mut self, ip: IpAddr) {
        self.made.retain(|_, ips| {
            ips.remove(&ip);
            !ips.is_empty()
        });
        self.others.remove(&ip);
    }

    /// Keeps a route in mind, in the place of an earlier one.
    fn hold(&mut self, route: Route) {
        let ip = route.destination.addr();
        self.forget(ip);
        let device = route.next_hops.first().and_then(|hop| hop.link);
        let way = device.map(|device| Way { device, source: route.preferred_source });
        match way.filter(|way| way.route(ip).as_stored() == route) {
            Some(way) => {
                self.made.entry(way).or_default().insert(ip);
            }
            None => {
                self.others.insert(ip, route);
            }
        }
    }

    /// Removes the device, with all its routes.
    ///
    /// # Errors
    /// When it is still there.
    pub fn remove_device(&mut self) -> Result<bool, Error> {
        let what = "removing the device kube-dummy-if";
        let Some(name) = LinkName::new(owned::DEVICE) else { return Ok(false) };
        let Some(link) = self.netlink.observe_link(&name).map_err(failed(what))? else { return Ok(false) };
        self.netlink.commit(&[Command::DeleteLink(link.index)]).map_err(failed(what))?;
        Ok(true)
    }
}

impl Way {
    fn route(self, ip: IpAddr) -> Route {
        Route {
            protocol: RouteProtocol(owned::ROUTE_PROTOCOL),
            // KERNEL: without, IPv4 packets of the node to a virtual address come from that address.
            preferred_source: self.source,
            ..Route::local(IpNet::from(ip), self.device)
        }
    }
}
