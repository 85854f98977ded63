//! Pods that are served by direct return: in their network namespaces, a tunnel that takes what IPVS sends, with
//! the virtual addresses on it.
//!
//! ```text
//!   /run/netns/* ──► which has the endpoint's address? ──► kube-tunnel-if (ipip, local: the endpoint)
//!    one per pod                                            kube-tunnel-v6 (ip6tnl)
//! ```
//!
//! The container runtime is not asked (docs/adr/0012): a pod is known by the address that it has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel_netlink::namespace::Namespace;
use kernel_netlink::route::{
    Address, AddressFlags, Command, Ip6Tunnel, IpipTunnel, Link, LinkChange, LinkKind, LinkName, NewLink,
    NewLinkKind, Rtnetlink, Socket,
};
use kernel_netlink::sysctl::{Name, State, Sysctls};

use crate::owned;

/// Until something that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Virtual addresses by the endpoint that must have them.
pub type Wanted = BTreeMap<IpAddr, BTreeSet<IpAddr>>;

/// A namespace by its path and number: one that is made anew at the same path has another number.
type Place = (PathBuf, u64);

/// The pods of this node, as far as direct return is concerned.
#[derive(Debug)]
pub struct Pods {
    folders: Vec<PathBuf>,
    sysctls: Sysctls,
    /// Addresses in each namespace when it was last looked into.
    seen: HashMap<Place, BTreeSet<IpAddr>>,
    /// What was done in each namespace.
    done: HashMap<Place, Wanted>,
    /// Until when endpoints keep addresses that are no longer wanted: connections end first.
    leaving: BTreeMap<(IpAddr, IpAddr), Instant>,
    /// Endpoints that are in no namespace, and when all are searched for them again.
    missing: BTreeMap<IpAddr, Instant>,
    /// There may be tunnels that another process left.
    leftovers: bool,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Changes made.
    pub changes: usize,
    /// What failed, by endpoint; that of a namespace without wanted endpoints has none.
    pub failures: BTreeMap<IpAddr, String>,
    /// When there is more to do.
    pub wake_at: Option<Instant>,
}

impl Pods {
    /// Pods whose namespaces are below folders. Sysctls are found below `sysctls` in each namespace.
    pub fn new(folders: Vec<PathBuf>, sysctls: Sysctls) -> Self {
        Self {
            folders,
            sysctls,
            seen: HashMap::new(),
            done: HashMap::new(),
            leaving: BTreeMap::new(),
            missing: BTreeMap::new(),
            leftovers: false,
        }
    }

    /// Tunnels that nobody wants are looked for everywhere, until none are left.
    pub fn expect_leftovers(&mut self) {
        self.leftovers = true;
    }

    /// Gives endpoints the addresses that they should have, and takes away others after `linger`. In an audit
    /// everything is looked at again; else only what is other than before.
    pub fn ensure(&mut self, wanted: &Wanted, audit: bool, now: Instant, linger: Duration) -> Outcome {
        let mut outcome = Outcome::default();
        let wanted = self.with_leaving(wanted, now, linger);
        if wanted.is_empty() && self.done.is_empty() && !self.leftovers {
            return outcome;
        }
        let (places, problem) = self.places();
        self.seen.retain(|place, _| places.contains_key(place));
        self.done.retain(|place, _| places.contains_key(place));
        self.look(&places, &wanted, audit, now);
        let mut clean = true;
        for (place, namespace) in &places {
            let addresses = self.seen.get(place);
            let here: Wanted = wanted
                .iter()
                .filter(|(pod, _)| addresses.is_some_and(|addresses| addresses.contains(pod)))
                .map(|(pod, vips)| (*pod, vips.clone()))
                .collect();
            let is_done =
                self.done.get(place).map_or(here.is_empty() && !self.leftovers, |done| *done == here);
            if is_done && (!audit || here.is_empty()) {
                continue;
            }
            match configure(namespace, &self.sysctls, &here) {
                Ok(changes) => {
                    outcome.changes += changes;
                    if here.is_empty() {
                        self.done.remove(place);
                    } else {
                        self.done.insert(place.clone(), here);
                    }
                }
                Err(why) => {
                    clean = false;
                    tracing::warn!(namespace = %place.0.display(), error = why, "a pod is not set up for direct return");
                    outcome.failures.extend(here.into_keys().map(|pod| (pod, why.clone())));
                }
            }
        }
        self.leftovers &= !clean;
        self.report_missing(problem, &mut outcome);
        let retry = (!clean).then(|| now + RETRY);
        outcome.wake_at = self.leaving.values().chain(self.missing.values()).copied().chain(retry).min();
        outcome
    }

    /// What is wanted, and what is kept for a while.
    fn with_leaving(&mut self, wanted: &Wanted, now: Instant, linger: Duration) -> Wanted {
        let mut all = wanted.clone();
        let wants = |pod: &IpAddr, vip: &IpAddr| wanted.get(pod).is_some_and(|vips| vips.contains(vip));
        for (pod, vips) in self.done.values().flatten() {
            for vip in vips.iter().filter(|vip| !wants(pod, vip)) {
                self.leaving.entry((*pod, *vip)).or_insert(now + linger);
            }
        }
        self.leaving.retain(|(pod, vip), until| *until > now && !wants(pod, vip));
        for (pod, vip) in self.leaving.keys() {
            all.entry(*pod).or_default().insert(*vip);
        }
        all
    }

    /// The namespaces of pods, and why there are none.
    fn places(&self) -> (HashMap<Place, Namespace>, Option<String>) {
        let own = Namespace::current().ok();
        let mut places = HashMap::new();
        let mut problem = None;
        for folder in &self.folders {
            let entries = match folder.read_dir() {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    problem = Some(format!("{}: {error}", folder.display()));
                    continue;
                }
            };
            for path in entries.flatten().map(|entry| entry.path()) {
                // One that goes away meanwhile, or what is left of its mount.
                let Ok(namespace) = Namespace::open(&path) else { continue };
                if own.as_ref() != Some(&namespace) {
                    places.insert((path, namespace.inode()), namespace);
                }
            }
        }
        (places, problem)
    }

    /// Looks into namespaces that are new; into all in an audit, and now and then while an endpoint is in none: a
    /// namespace may be there before its address is.
    fn look(&mut self, places: &HashMap<Place, Namespace>, wanted: &Wanted, audit: bool, now: Instant) {
        self.look_into(places, audit);
        let missing = self.missing_of(wanted);
        let is_due = |pod: &IpAddr| self.missing.get(pod).is_none_or(|at| *at <= now);
        if !audit && missing.iter().any(is_due) {
            self.look_into(places, true);
        }
        let due: BTreeMap<_, _> = self.missing_of(wanted).into_iter().map(|pod| (pod, now + RETRY)).collect();
        let before = std::mem::replace(&mut self.missing, due);
        for (pod, at) in before.into_iter().filter(|(_, at)| *at > now) {
            self.missing.entry(pod).and_modify(|next| *next = at);
        }
    }

    fn look_into(&mut self, places: &HashMap<Place, Namespace>, all: bool) {
        for (place, namespace) in places {
            if !all && self.seen.contains_key(place) {
                continue;
            }
            match addresses(namespace) {
                Ok(addresses) => self.seen.insert(place.clone(), addresses),
                Err(error) => {
                    tracing::warn!(namespace = %place.0.display(), error, "a network namespace is passed over");
                    self.seen.remove(place)
                }
            };
        }
    }

    fn missing_of(&self, wanted: &Wanted) -> Vec<IpAddr> {
        let is_found = |pod: &&IpAddr| self.seen.values().any(|addresses| addresses.contains(*pod));
        wanted.keys().filter(|pod| !is_found(pod)).copied().collect()
    }

    fn report_missing(&self, problem: Option<String>, outcome: &mut Outcome) {
        let folders: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        let why = problem.unwrap_or_else(|| {
            format!("no network namespace in {} has its address (--netns-dir)", folders.join(", "))
        });
        outcome.failures.extend(self.missing.keys().map(|pod| (*pod, why.clone())));
    }
}

/// Addresses in a namespace.
fn addresses(namespace: &Namespace) -> Result<BTreeSet<IpAddr>, String> {
    let look = || -> Result<BTreeSet<IpAddr>, String> {
        let mut socket = Socket::open().map_err(|error| error.to_string())?;
        let found = socket.observe_addresses().map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|address| address.address.addr()).collect())
    };
    namespace.run(look).map_err(|error| error.to_string())?
}

/// Gives the endpoints in a namespace their addresses, and nobody others. Says how many changes that took.
fn configure(namespace: &Namespace, sysctls: &Sysctls, here: &Wanted) -> Result<usize, String> {
    let work = || -> Result<usize, String> {
        let mut socket = Socket::open().map_err(|error| error.to_string())?;
        let mut changes = 0;
        for tunnel in [Tunnel::of(here, false), Tunnel::of(here, true)] {
            changes += tunnel.ensure(&mut socket, sysctls)?;
        }
        Ok(changes)
    };
    namespace.run(work).map_err(|error| error.to_string())?
}

/// The tunnel of a family in a pod.
#[derive(Debug, PartialEq, Eq)]
struct Tunnel {
    name: &'static str,
    is_v6: bool,
    pods: BTreeSet<IpAddr>,
    vips: BTreeSet<IpAddr>,
}

impl Tunnel {
    fn of(here: &Wanted, is_v6: bool) -> Self {
        let mut tunnel = Self {
            name: owned::TUNNELS[usize::from(is_v6)],
            is_v6,
            pods: BTreeSet::new(),
            vips: BTreeSet::new(),
        };
        for (pod, vips) in here.iter().filter(|(pod, _)| pod.is_ipv6() == is_v6) {
            tunnel.pods.insert(*pod);
            tunnel.vips.extend(vips);
        }
        tunnel
    }

    /// Makes it what it should be; removes it if nothing is wanted.
    fn ensure(&self, netlink: &mut impl Rtnetlink, sysctls: &Sysctls) -> Result<usize, String> {
        let told = |error: &dyn std::error::Error| format!("{}: {error}", self.name);
        let name = LinkName::new(self.name).ok_or("no device can have that name")?;
        let mut changes = 0;
        let mut found = netlink.observe_link(&name).map_err(|error| told(&error))?;
        if let Some(link) = found.take_if(|link| self.vips.is_empty() || link.kind != self.kind_of(link)) {
            netlink.commit(&[Command::DeleteLink(link.index)]).map_err(|error| told(&error))?;
            changes += 1;
        }
        if self.vips.is_empty() {
            return Ok(changes);
        }
        let link = match found {
            Some(link) => link,
            None => {
                let command = Command::AddLink(NewLink::new(name.clone(), self.new_kind()));
                netlink
                    .commit(&[command])
                    .map_err(|error| format!("{} (module ipip or ip6_tunnel)", told(&error)))?;
                changes += 1;
                let made = netlink.observe_link(&name).map_err(|error| told(&error))?;
                made.ok_or("the tunnel is removed as soon as it is made")?
            }
        };
        let addresses = netlink.observe_addresses().map_err(|error| told(&error))?;
        let commands = self.commands(&link, &addresses);
        netlink.commit(&commands).map_err(|error| told(&error))?;
        changes += commands.len();
        if !self.is_v6 {
            self.let_requests_in(netlink, sysctls, &addresses)?;
        }
        Ok(changes)
    }

    /// The end of the tunnel: an address if there is only one, else all of them.
    fn end(&self) -> Option<IpAddr> {
        if self.pods.len() == 1 { self.pods.first().copied() } else { None }
    }

    fn new_kind(&self) -> NewLinkKind {
        if self.is_v6 {
            let local: Option<Ipv6Addr> = match self.end() {
                Some(IpAddr::V6(ip)) => Some(ip),
                _ => None,
            };
            NewLinkKind::Ip6tnl(Ip6Tunnel::new(local, None))
        } else {
            let local: Option<Ipv4Addr> = match self.end() {
                Some(IpAddr::V4(ip)) => Some(ip),
                _ => None,
            };
            NewLinkKind::Ipip(IpipTunnel::new(local, None))
        }
    }

    /// What the kind of the link would be if its ends were right: other properties are nobody's business.
    fn kind_of(&self, link: &Link) -> LinkKind {
        match (self.new_kind(), &link.kind) {
            (NewLinkKind::Ipip(wanted), LinkKind::Ipip(found)) => {
                LinkKind::Ipip(IpipTunnel { local: wanted.local, remote: wanted.remote, ..*found })
            }
            (NewLinkKind::Ip6tnl(wanted), LinkKind::Ip6tnl(found)) => LinkKind::Ip6tnl(Ip6Tunnel {
                local: wanted.local,
                remote: wanted.remote,
                mode: wanted.mode,
                ..*found
            }),
            (NewLinkKind::Ip6tnl(wanted), _) => LinkKind::Ip6tnl(wanted),
            (_, _) => LinkKind::Ipip(IpipTunnel::new(None, None)),
        }
    }

    /// From what the link is to what it should be.
    fn commands(&self, link: &Link, addresses: &[Address]) -> Vec<Command> {
        let held: Vec<_> = addresses.iter().filter(|address| address.link == link.index).collect();
        let mut commands = Vec::new();
        for vip in &self.vips {
            if !held.iter().any(|address| address.address.addr() == *vip) {
                let address = Address::new(link.index, IpNet::from(*vip));
                // Nobody else on a tunnel can have it; and others on other nodes do have it.
                let flags =
                    if self.is_v6 { address.flags.union(AddressFlags::NO_DAD) } else { address.flags };
                commands.push(Command::AddAddress(Address { flags, ..address }));
            }
        }
        if !link.up {
            let change = LinkChange { up: Some(true), ..LinkChange::default() };
            commands.push(Command::SetLink(link.index, change));
        }
        let unwanted = held.into_iter().filter(|address| {
            let ip = address.address.addr();
            let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            !is_link_local && !self.vips.contains(&ip)
        });
        commands.extend(unwanted.map(|address| Command::DeleteAddress(*address)));
        commands
    }

    /// What comes out of the tunnel is from clients, to whom the way is by another device.
    fn let_requests_in(
        &self,
        netlink: &mut impl Rtnetlink,
        sysctls: &Sysctls,
        addresses: &[Address],
    ) -> Result<(), String> {
        let links = netlink.observe_links().map_err(|error| error.to_string())?;
        let of_pods = addresses.iter().filter(|address| self.pods.contains(&address.address.addr()));
        let devices = of_pods.filter_map(|address| links.iter().find(|link| link.index == address.link));
        let devices: BTreeSet<&str> =
            devices.map(|link| link.name.as_str()).chain(["all", self.name]).collect();
        for device in devices {
            let Some(name) = Name::of(["net", "ipv4", "conf", device, "rp_filter"]) else { continue };
            if let State::Stuck { value, reason } = sysctls.ensure(&name, "0") {
                // 2 lets everything pass that there is a way to.
                if value.as_deref() != Some("2") {
                    return Err(format!("{name}: {reason}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kernel_netlink::route::{Fake, LinkIndex};

    use super::*;

    /// A pod with an address of each family on a device of that name, and its sysctls.
    fn pod(device: &str) -> (Fake, tempfile::TempDir, Sysctls) {
        let mut fake = Fake::new();
        let name = LinkName::new(device).unwrap();
        let index = fake.plug_in(&name);
        let on = |text: &str| Command::AddAddress(Address::new(index, text.parse().unwrap()));
        fake.commit(&[on("10.244.1.11/24"), on("fd00::11/64")]).unwrap();
        let root = tempfile::tempdir().unwrap();
        for device in ["all", device, "kube-tunnel-if"] {
            let folder = root.path().join("net/ipv4/conf").join(device);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("rp_filter"), "1").unwrap();
        }
        let sysctls = Sysctls::new(root.path());
        (fake, root, sysctls)
    }

    fn wanted(entries: &[(&str, &[&str])]) -> Wanted {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        entries.iter().map(|(pod, vips)| (ip(pod), vips.iter().map(|vip| ip(vip)).collect())).collect()
    }

    fn ensure(fake: &mut Fake, sysctls: &Sysctls, here: &Wanted) -> usize {
        let tunnels = [Tunnel::of(here, false), Tunnel::of(here, true)];
        tunnels.iter().map(|tunnel| tunnel.ensure(fake, sysctls).unwrap()).sum()
    }

    fn tunnel(fake: &mut Fake, name: &str) -> Option<(Link, Vec<String>)> {
        let link = fake.observe_link(&LinkName::new(name).unwrap()).unwrap()?;
        Some((link.clone(), addresses_on(fake, link.index)))
    }

    fn addresses_on(fake: &mut Fake, index: LinkIndex) -> Vec<String> {
        let all = fake.observe_addresses().unwrap();
        let mut found: Vec<_> =
            all.iter().filter(|one| one.link == index).map(|one| one.address.to_string()).collect();
        found.sort();
        found
    }

    #[test]
    fn a_pod_gets_a_tunnel_of_each_family_with_its_virtual_addresses() {
        let (mut fake, root, sysctls) = pod("net1");
        let here =
            wanted(&[("10.244.1.11", &["203.0.113.10"]), ("fd00::11", &["2001:db8::10", "2001:db8::11"])]);
        assert!(ensure(&mut fake, &sysctls, &here) > 0);
        let (link, addresses) = tunnel(&mut fake, "kube-tunnel-if").unwrap();
        let local = Some([10, 244, 1, 11].into());
        assert_eq!((link.kind, link.up), (LinkKind::Ipip(IpipTunnel::new(local, None)), true));
        assert_eq!(addresses, ["203.0.113.10/32"]);
        let (link, addresses) = tunnel(&mut fake, "kube-tunnel-v6").unwrap();
        assert!(link.up && matches!(link.kind, LinkKind::Ip6tnl(Ip6Tunnel { remote: None, .. })));
        assert_eq!(addresses, ["2001:db8::10/128", "2001:db8::11/128"]);
        for device in ["all", "net1", "kube-tunnel-if"] {
            let path = root.path().join("net/ipv4/conf").join(device).join("rp_filter");
            assert_eq!(fs::read_to_string(path).unwrap().trim(), "0", "{device}");
        }
        assert_eq!(ensure(&mut fake, &sysctls, &here), 0, "nothing is left to be done");
    }

    #[test]
    fn what_is_no_longer_wanted_is_undone() {
        let (mut fake, _root, sysctls) = pod("eth0");
        ensure(&mut fake, &sysctls, &wanted(&[("10.244.1.11", &["203.0.113.10", "203.0.113.11"])]));
        assert_eq!(ensure(&mut fake, &sysctls, &wanted(&[("10.244.1.11", &["203.0.113.11"])])), 1);
        assert_eq!(tunnel(&mut fake, "kube-tunnel-if").unwrap().1, ["203.0.113.11/32"]);
        assert_eq!(ensure(&mut fake, &sysctls, &Wanted::new()), 1);
        assert_eq!(tunnel(&mut fake, "kube-tunnel-if"), None);
        assert_eq!(ensure(&mut fake, &sysctls, &Wanted::new()), 0);
    }

    #[test]
    fn a_tunnel_of_another_end_or_kind_is_made_anew() {
        let here = wanted(&[("10.244.1.11", &["203.0.113.10"])]);
        let name = || LinkName::new("kube-tunnel-if").unwrap();
        for wrong in
            [NewLinkKind::Ipip(IpipTunnel::new(Some([10, 9, 9, 9].into()), None)), NewLinkKind::Dummy]
        {
            let (mut fake, _root, sysctls) = pod("eth0");
            fake.commit(&[Command::AddLink(NewLink::new(name(), wrong))]).unwrap();
            ensure(&mut fake, &sysctls, &here);
            let local = Some([10, 244, 1, 11].into());
            let (link, _) = tunnel(&mut fake, "kube-tunnel-if").unwrap();
            assert_eq!(link.kind, LinkKind::Ipip(IpipTunnel::new(local, None)));
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let (mut fake, _root, sysctls) = pod("eth0");
        fake.refuse(|command| matches!(command, Command::AddLink(_)), 95, None);
        let here = wanted(&[("10.244.1.11", &["203.0.113.10"])]);
        let why = Tunnel::of(&here, false).ensure(&mut fake, &sysctls).unwrap_err();
        assert!(why.contains("add link kube-tunnel-if type ipip") && why.contains("module"), "{why}");
    }

    #[test]
    fn an_endpoint_that_is_nowhere_is_reported_and_searched_for_now_and_then() {
        let folder = tempfile::tempdir().unwrap();
        // Neither is a namespace.
        fs::write(folder.path().join("left-over"), "").unwrap();
        let folders = vec![folder.path().to_owned(), folder.path().join("missing")];
        let mut pods = Pods::new(folders, Sysctls::default());
        let here = wanted(&[("10.244.1.11", &["203.0.113.10"])]);
        let now = Instant::now();
        let outcome = pods.ensure(&here, false, now, Duration::ZERO);
        let why = &outcome.failures[&IpAddr::from([10, 244, 1, 11])];
        assert!(why.contains("no network namespace in") && why.contains("--netns-dir"), "{why}");
        assert_eq!(outcome.wake_at, Some(now + RETRY));
        let soon = pods.ensure(&here, false, now + RETRY / 2, Duration::ZERO);
        assert_eq!(soon.wake_at, Some(now + RETRY));
        assert_eq!(pods.ensure(&Wanted::new(), false, now, Duration::ZERO), Outcome::default());
    }
}
