//! Which Service has which address.
//!
//! ```text
//!  touched ──► forget what they held ──► keep ──► wait ──► serve ──► Update
//!              and whoever holds the     shown    those    asked-for addresses first,
//!              same addresses            first    short    then by age; again if one got free;
//!                                                          tell who asks for what moved
//! ```
//!
//! 1. **Keep.** What a Service has stays its own as long as the rules allow it. At first sight of a Service
//!    that is what its status shows, so that a new process goes on where the last one stopped. Of two that have
//!    one address and may not share it, the one in whose status it is keeps it; of two of these, the older. What was
//!    given and not written is not known to a new process, so it gives way.
//! 2. **Serve.** Those that have less than they ask for get what is free: first who asks for an address by name,
//!    then the others, oldest first, from the first pool that is for them, lowest address first. A Service that
//!    asks for another address than it has keeps the one it has until the other is free.
//!
//! The outcome depends on the objects and on what was held before, not on how the changes were cut into updates;
//! tests/props.rs says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use common_informer::object::{Family, FullService, ObjectKey, Str, Uid};

use super::book::Book;
use super::queue::{Queue, place};
use super::{Addresses, Keys};
use crate::model::claim::{Claim, Ownership, Problem, Rank, Reason, ownership};
use crate::model::pool::{Pool, Pools};
use crate::model::world::{Touched, World, shown};
use crate::owned::CLASS;

/// What the plan depends on beside the objects.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// The addresses.
    pub pools: Arc<Pools>,
    /// Services without a class, or of class "default", are ours as well.
    pub default_class: bool,
}

/// A Service that lost an address because another one that may not share it keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Who lost it.
    pub key: ObjectKey,
    /// What it lost.
    pub ip: IpAddr,
    /// Who keeps it.
    pub keeper: ObjectKey,
}

/// What an update changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Services whose addresses, problems or place among ours may be others than before.
    pub changed: BTreeSet<ObjectKey>,
    /// Conflicts that were found.
    pub evictions: Vec<Eviction>,
}

/// A Service of ours.
#[derive(Clone, Debug)]
struct Entry {
    uid: Option<Uid>,
    claim: Arc<Claim>,
    held: Addresses,
    problems: Vec<Problem>,
}

/// The plan; see the module.
#[derive(Clone, Debug)]
pub struct Planner {
    config: PlanConfig,
    book: Book,
    entries: BTreeMap<ObjectKey, Entry>,
    /// Those that have less than they ask for.
    waiting: Queue,
    /// Addresses of pools that Services show, as the book has it.
    shown: HashMap<ObjectKey, Addresses>,
    /// Services that would be ours, but show addresses of somebody else.
    others: BTreeMap<ObjectKey, Vec<Problem>>,
}

/// What is to be done in one update.
#[derive(Default)]
struct Work {
    update: Update,
    /// To be judged anew, oldest first, with what each held.
    judged: BTreeMap<Rank, Addresses>,
    /// Something may be had now that could not be had before.
    opened: bool,
    /// Addresses that Services show which are not ours.
    squatted: BTreeSet<IpAddr>,
}

impl Planner {
    /// Nobody has anything.
    pub fn new(config: PlanConfig) -> Self {
        Self {
            book: Book::new(config.pools.clone()),
            config,
            entries: BTreeMap::new(),
            waiting: Queue::default(),
            shown: HashMap::new(),
            others: BTreeMap::new(),
        }
    }

    /// The plan for a world of which nothing is known but what it shows.
    pub fn desired(world: &World, config: PlanConfig) -> Self {
        let mut planner = Self::new(config);
        planner.update(world, &world.services().map(|service| service.key.clone()).collect());
        planner
    }

    /// Brings the plan up to date with `world`, of which only `touched` may be otherwise than last time.
    pub fn update(&mut self, world: &World, touched: &Touched) -> Update {
        let mut work = Work::default();
        for key in touched {
            self.take(world, key, &mut work);
        }
        self.join_holders(&mut work);
        let judged = std::mem::take(&mut work.judged);
        for shown_ones in [true, false] {
            for (rank, was) in &judged {
                self.keep(world, rank, was, shown_ones, &mut work);
            }
        }
        for (rank, was) in &judged {
            self.rest(rank, was, &mut work);
        }
        self.serve(world, judged.into_keys(), &mut work);
        work.update
    }

    /// Reads a touched Service anew. It holds nothing afterwards.
    fn take(&mut self, world: &World, key: &ObjectKey, work: &mut Work) {
        work.update.changed.insert(key.clone());
        self.others.remove(key);
        let mut before = self.entries.remove(key);
        if let Some(entry) = &before {
            self.waiting.remove(&entry.claim);
            for ip in &entry.held {
                self.book.release(*ip, key, group(&entry.claim));
            }
        }
        let service = world.service(key);
        self.look(key, service, work);
        // Another Service of the same name has no right to what the first one had.
        if let Some(gone) = before.take_if(|entry| service.is_some_and(|service| service.uid != entry.uid)) {
            work.opened |= !gone.held.is_empty();
        }
        let Some((service, ownership)) =
            service.and_then(|service| Some((service, ownership(service, self.config.default_class)?)))
        else {
            work.opened |= before.is_some_and(|entry| !entry.held.is_empty());
            work.squatted.extend(self.shown.get(key).into_iter().flatten());
            return;
        };
        let was = match &before {
            Some(entry) => entry.held.clone(),
            None => self.adopted(service),
        };
        if before.is_none()
            && was.is_empty()
            && ownership == Ownership::Assumed
            && let Some(ip) = shown(service).next()
        {
            self.others.insert(key.clone(), vec![of_others(ip)]);
            work.squatted.extend(self.shown.get(key).into_iter().flatten());
            return;
        }
        let claim = Arc::new(Claim::of(service, &self.config.pools));
        // Others that wait may now share with it.
        let share_before = before.as_ref().and_then(|entry| entry.claim.share.as_ref());
        work.opened |= claim.share.is_some() && share_before != claim.share.as_ref();
        work.judged.insert(claim.rank.clone(), was);
        self.entries.insert(
            key.clone(),
            Entry { uid: service.uid, claim, held: Addresses::new(), problems: Vec::new() },
        );
    }

    /// Notes which addresses of pools a Service shows.
    fn look(&mut self, key: &ObjectKey, service: Option<&FullService>, work: &mut Work) {
        let mut now = Addresses::new();
        if let Some(service) = service {
            for ip in shown(service).chain(service.settings.external_ips.iter().copied()) {
                if self.config.pools.of(ip).is_some() && !now.contains(&ip) {
                    now.push(ip);
                }
            }
        }
        let earlier = self.shown.remove(key).unwrap_or_default();
        for ip in earlier.iter().filter(|ip| !now.contains(ip)) {
            self.book.hide(*ip, key);
            work.opened = true;
        }
        for ip in now.iter().filter(|ip| !earlier.contains(ip)) {
            self.book.show(*ip, key);
        }
        if !now.is_empty() {
            self.shown.insert(key.clone(), now);
        }
    }

    /// What a Service that is seen for the first time has: the first address of each family in its status that
    /// is one of ours.
    fn adopted(&self, service: &FullService) -> Addresses {
        let mut adopted = Addresses::new();
        for ip in shown(service).filter(|ip| self.config.pools.of(*ip).is_some()) {
            if of_family(&adopted, Family::of(ip)).is_none() {
                adopted.push(ip);
            }
        }
        adopted
    }

    /// Has those judged too that hold the same addresses, or addresses that Services show which are not ours.
    fn join_holders(&mut self, work: &mut Work) {
        let of_judged = work.judged.values().flatten().copied();
        let ips: BTreeSet<IpAddr> = of_judged.chain(work.squatted.iter().copied()).collect();
        for ip in ips {
            for key in Keys::from(self.book.holders(ip)) {
                let Some(entry) = self.entries.get_mut(&key) else { continue };
                let was = std::mem::take(&mut entry.held);
                for ip in &was {
                    self.book.release(*ip, &key, group(&entry.claim));
                }
                self.waiting.remove(&entry.claim);
                work.update.changed.insert(key);
                work.judged.insert(entry.claim.rank.clone(), was);
            }
        }
    }

    /// Leaves a Service what the rules allow of what it had: of that which its status shows, or of the rest.
    fn keep(&mut self, world: &World, rank: &Rank, was: &Addresses, shown_ones: bool, work: &mut Work) {
        let Some(entry) = self.entries.get(&rank.key) else { return };
        let (claim, mut held) = (entry.claim.clone(), entry.held.clone());
        for ip in was.iter().filter(|ip| shows(world, &rank.key, **ip) == shown_ones) {
            let family = Family::of(*ip);
            let wanted = claim.families.contains(&family) && of_family(&held, family).is_none();
            if !wanted
                || self.pool_for(world, &claim, *ip).is_none()
                || self.is_lost_to_another(world, rank, *ip)
            {
                continue;
            }
            match self.other_holder(&claim, *ip) {
                None => {
                    self.book.hold(*ip, &rank.key, group(&claim));
                    held.push(*ip);
                }
                Some(keeper) => {
                    let keeper = keeper.clone();
                    work.update.evictions.push(Eviction { key: rank.key.clone(), ip: *ip, keeper });
                }
            }
        }
        if let Some(entry) = self.entries.get_mut(&rank.key) {
            entry.held = held;
        }
    }

    /// Puts in order what a Service has kept, and notes whether it lacks something.
    fn rest(&mut self, rank: &Rank, was: &Addresses, work: &mut Work) {
        let Some(entry) = self.entries.get_mut(&rank.key) else { return };
        let claim = &entry.claim;
        entry.held.sort_by_key(|ip| claim.families.iter().position(|family| *family == Family::of(*ip)));
        entry.problems = claim.faults.clone();
        work.opened |= entry.held.len() < was.len();
        if !is_satisfied(claim, &entry.held) {
            self.waiting.insert(claim);
        }
    }

    /// Whether an address that was given, but is not in the status yet, has appeared at a Service that is not
    /// ours.
    fn is_lost_to_another(&self, world: &World, rank: &Rank, ip: IpAddr) -> bool {
        let is_foreign = |other: &ObjectKey| *other != rank.key && !self.entries.contains_key(other);
        self.book.shown_by(ip).iter().any(is_foreign) && !shows(world, &rank.key, ip)
    }

    /// Gives what is free to those that wait: to those that were judged, and to everybody, from the first on, as soon
    /// as something can be had that could not be had before. Otherwise a later one would get it before an earlier one
    /// that has just been refused.
    fn serve(&mut self, world: &World, judged: impl Iterator<Item = Rank>, work: &mut Work) {
        let judged = judged
            .filter_map(|rank| self.entries.get(&rank.key).map(|entry| place(&entry.claim)))
            .filter(|place| self.waiting.contains(place));
        let mut judged: BTreeSet<_> = judged.collect();
        // Each new beginning follows a Service that got the address that it asks for, that began to share, or that
        // gave up the one address that it may not have alone. None of them can do so twice.
        let mut everybody_from = work.opened.then_some(Bound::Unbounded);
        loop {
            let next = match &everybody_from {
                Some(from) => self.waiting.next(from.clone()),
                None => judged.pop_first(),
            };
            let Some(next) = next else { break };
            work.opened = false;
            self.serve_one(world, &next.1.key, work);
            if work.opened {
                everybody_from = Some(Bound::Unbounded);
            } else if everybody_from.is_some() {
                everybody_from = Some(Bound::Excluded(next));
            }
        }
        self.tell(world, work);
    }

    /// Has those judged again whose problems depend on what happened to addresses, whoever had them and whatever it was.
    /// Nobody gets anything by it: what became free has been given out.
    fn tell(&mut self, world: &World, work: &mut Work) {
        let moved = self.book.take_moved();
        for key in self.waiting.concerned(&moved) {
            self.serve_one(world, &key, work);
        }
    }

    fn serve_one(&mut self, world: &World, key: &ObjectKey, work: &mut Work) {
        let Some(entry) = self.entries.get(key) else { return };
        let (claim, held) = (entry.claim.clone(), entry.held.clone());
        let mut problems = claim.faults.clone();
        let mut next = Addresses::new();
        for family in &claim.families {
            let current = of_family(&held, *family);
            let found = match claim.asked(*family) {
                Some(asked) if current == Some(asked) => Ok(asked),
                Some(asked) => self.asked(world, &claim, asked),
                None => current.map_or_else(|| self.find(world, &claim, *family), Ok),
            };
            match found {
                Ok(ip) => next.push(ip),
                Err(problem) => {
                    problems.push(problem);
                    next.extend(current);
                }
            }
        }
        if claim.all_or_nothing && next.len() < claim.families.len() {
            next.clear();
        }
        for ip in held.iter().filter(|ip| !next.contains(ip)) {
            self.book.release(*ip, key, group(&claim));
            work.opened = true;
        }
        for ip in next.iter().filter(|ip| !held.contains(ip)) {
            self.book.hold(*ip, key, group(&claim));
            work.opened |= claim.share.is_some();
        }
        if is_satisfied(&claim, &next) {
            self.waiting.remove(&claim);
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.held != next || entry.problems != problems {
            work.update.changed.insert(key.clone());
        }
        entry.held = next;
        entry.problems = problems;
    }

    /// An address that is asked for, if it can be had.
    fn asked(&self, world: &World, claim: &Claim, ip: IpAddr) -> Result<IpAddr, Problem> {
        if self.pool_for(world, claim, ip).is_none() {
            let why = match self.config.pools.of(ip) {
                None => "is in no pool".to_owned(),
                Some((_, pool)) => format!("is in pool {}, which is not for this Service", pool.name),
            };
            return Err(Problem::new(Reason::AddressNotInRange, format!("{ip} is asked for, but {why}")));
        }
        match self.other_taker(claim, ip) {
            None => Ok(ip),
            Some(other) => {
                let message = format!("{ip} is asked for, but Service {other} has it");
                Err(Problem::new(Reason::AddressInUse, message))
            }
        }
    }

    /// An address that nobody has, or that can be shared.
    fn find(&mut self, world: &World, claim: &Claim, family: Family) -> Result<IpAddr, Problem> {
        if let Some(group) = group(claim) {
            let shared = self.book.shared(group).find(|ip| {
                Family::of(*ip) == family
                    && self.pool_for(world, claim, *ip).is_some_and(|pool| is_open(pool, claim))
                    && self.other_taker(claim, *ip).is_none()
            });
            if let Some(ip) = shared {
                return Ok(ip);
            }
        }
        let pools = self.config.pools.clone();
        let mut full = Vec::new();
        for (_, pool) in pools.iter().filter(|(_, pool)| is_open(pool, claim) && is_for(world, pool, claim)) {
            let mut ranges = pool.ranges.iter().filter(|range| range.family() == family).peekable();
            if ranges.peek().is_some() {
                full.push(&*pool.name);
            }
            if let Some(ip) = ranges.find_map(|range| self.book.first_free(range)) {
                return Ok(ip);
            }
        }
        Err(match full.as_slice() {
            [] => Problem::new(
                Reason::NoPoolMatches,
                format!("no pool with {family} addresses is for this Service"),
            ),
            full => Problem::new(
                Reason::NoAddressFree,
                format!("no {family} address is free in pool {}", full.join(", ")),
            ),
        })
    }

    /// The pool that `ip` is in, if the claim may have an address of it.
    fn pool_for(&self, world: &World, claim: &Claim, ip: IpAddr) -> Option<&Pool> {
        let (_, pool) = self.config.pools.of(ip)?;
        is_for(world, pool, claim).then_some(pool)
    }

    /// Who holds `ip` and does not share it with the claim; of several the first by name.
    fn other_holder(&self, claim: &Claim, ip: IpAddr) -> Option<&ObjectKey> {
        let shares =
            |key: &ObjectKey| self.entries.get(key).is_some_and(|other| claim.shares_with(&other.claim));
        self.book.holders(ip).iter().filter(|key| **key != claim.rank.key && !shares(key)).min()
    }

    /// Who keeps the claim from getting `ip`: who holds it, or shows it without holding it.
    fn other_taker(&self, claim: &Claim, ip: IpAddr) -> Option<&ObjectKey> {
        self.other_holder(claim, ip).or_else(|| {
            let holders = self.book.holders(ip);
            let showing = self.book.shown_by(ip).iter();
            showing.filter(|key| **key != claim.rank.key && !holders.contains(key)).min()
        })
    }

    /// What a Service of ours has; `None` if it is not ours.
    pub fn addresses(&self, key: &ObjectKey) -> Option<&[IpAddr]> {
        self.entries.get(key).map(|entry| entry.held.as_slice())
    }

    /// What keeps a Service from having what it asks for.
    pub fn problems(&self, key: &ObjectKey) -> &[Problem] {
        let problems = self.entries.get(key).map(|entry| &entry.problems).or_else(|| self.others.get(key));
        problems.map_or(&[], Vec::as_slice)
    }

    /// Every Service that is ours or would be, with its addresses and problems.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &[IpAddr], &[Problem])> {
        let ours = self.entries.iter().map(|(key, e)| (key, e.held.as_slice(), e.problems.as_slice()));
        ours.chain(self.others.iter().map(|(key, problems)| (key, &[][..], problems.as_slice())))
    }

    /// How many Services of ours have all that they ask for, and how many have less.
    pub fn counts(&self) -> (usize, usize) {
        (self.entries.len() - self.waiting.len(), self.waiting.len())
    }

    /// Who has what.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// What it goes by.
    pub fn config(&self) -> &PlanConfig {
        &self.config
    }
}

fn group(claim: &Claim) -> Option<&(Str, Str)> {
    claim.share.as_ref().map(|share| &share.group)
}

fn shows(world: &World, key: &ObjectKey, ip: IpAddr) -> bool {
    world.service(key).is_some_and(|service| shown(service).any(|shown| shown == ip))
}

fn of_family(ips: &[IpAddr], family: Family) -> Option<IpAddr> {
    ips.iter().copied().find(|ip| Family::of(*ip) == family)
}

fn is_satisfied(claim: &Claim, held: &[IpAddr]) -> bool {
    claim.families.iter().all(|family| match of_family(held, *family) {
        Some(ip) => claim.asked(*family).is_none_or(|asked| asked == ip),
        None => false,
    })
}

/// Whether a Service may have addresses of a pool.
fn is_for(world: &World, pool: &Pool, claim: &Claim) -> bool {
    claim.pool.as_ref().is_none_or(|name| *name == pool.name)
        && pool.is_for(&claim.labels, world.namespace(&claim.rank.key.namespace))
}

/// Whether a Service may get addresses of a pool without asking for one of them.
fn is_open(pool: &Pool, claim: &Claim) -> bool {
    !pool.on_request || claim.pool.is_some()
}

fn of_others(ip: IpAddr) -> Problem {
    Problem::new(
        Reason::StatusOfOthers,
        format!(
            "status shows {ip}, which is in no pool, so that another controller seems to serve it; to have it served \
             here, clear its status or give it the class {CLASS}"
        ),
    )
}
