//! The steps from the virtual services that the kernel holds to those that are wanted.
//!
//! A destination that is no longer wanted is not taken from its connections: it gets no new ones (weight 0) until
//! the last has ended or its time is over. Only protocols with connections are drained: a UDP "connection" lives
//! as long as its client goes on sending, so its client is moved at once.

use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use kernel_netlink::ipvs::{Command, Destination, DestinationState, Protocol, Service, ServiceKey};

use super::{Drain, Keyed, Virtual};

/// A virtual service in the kernel, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What was wanted when it was written, or what was found.
    pub written: Arc<Virtual>,
    /// Destinations beside those written: no longer wanted, with connections left. Few virtual services have any.
    pub draining: Drains,
}

/// Destinations on their way out, in no memory if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::box_collection,
    reason = "nearly all have none, and nothing is a third as large as a list of nothing"
)]
pub struct Drains(Option<Box<Vec<Draining>>>);

impl From<Vec<Draining>> for Drains {
    fn from(all: Vec<Draining>) -> Self {
        Self((!all.is_empty()).then(|| Box::new(all)))
    }
}

impl Deref for Drains {
    type Target = [Draining];

    fn deref(&self) -> &[Draining] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl Keyed for Held {
    fn key(&self) -> &ServiceKey {
        &self.written.service.key
    }
}

/// A destination on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// As it is in the kernel, with weight 0.
    pub destination: Destination,
    /// When it is removed, whatever it has; `None` as long as its endpoint is there.
    pub until: Option<Instant>,
}

/// What to do about one virtual service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Go first: nothing that is served stops being served by them.
    pub commands: Vec<Command>,
    /// Go last.
    pub removals: Vec<Command>,
    /// What the kernel holds after both.
    pub held: Option<Held>,
}

impl Held {
    /// From what was found in the kernel. What is drained is not told apart: the next steps do that.
    pub fn found(service: Service, mut destinations: Vec<Destination>) -> Self {
        destinations.sort_by_key(|destination| destination.key);
        Self {
            written: Arc::new(Virtual {
                service,
                destinations: destinations.into(),
                lingering: Box::default(),
            }),
            draining: Drains::default(),
        }
    }

    /// Goes on with the drains that were known before it was read again.
    pub fn resume(&mut self, before: Self) {
        if before.draining.is_empty() {
            return;
        }
        let of =
            |to: &Destination| before.draining.iter().find(|draining| draining.destination.key == to.key);
        let drained = self.written.destinations.iter().filter_map(|destination| {
            let draining = of(&destination)?;
            Some(Draining { destination, ..*draining })
        });
        self.draining = drained.collect::<Vec<_>>().into();
        let written = Arc::make_mut(&mut self.written);
        written.destinations = written.destinations.iter().filter(|to| of(to).is_none()).collect();
    }

    /// Takes what is wanted for what was found if they are the same: twenty thousand times the memory of one.
    pub fn share(&mut self, wanted: Option<Arc<Virtual>>) {
        let is_same = |wanted: &Arc<Virtual>| {
            wanted.service == self.written.service && wanted.destinations == self.written.destinations
        };
        if let Some(wanted) = wanted.filter(is_same) {
            self.written = wanted;
        }
    }

    /// Every destination that the kernel holds, by key, with the end of its drain if it has one.
    fn destinations(&self) -> Vec<(Destination, Option<Draining>)> {
        let written = self.written.destinations.iter().map(|destination| (destination, None));
        let draining = self.draining.iter().map(|draining| (draining.destination, Some(*draining)));
        let mut all: Vec<_> = written.chain(draining).collect();
        if !self.draining.is_empty() {
            all.sort_by_key(|(destination, _)| destination.key);
        }
        all
    }
}

/// The steps to `want` from `have`. `now` is when drains begin that begin now.
pub fn steps(want: Option<&Arc<Virtual>>, have: Option<&Held>, drain: Drain, now: Instant) -> Steps {
    match (want, have) {
        (None, None) => Steps::default(),
        (None, Some(have)) => {
            let removal = Command::DeleteService(have.written.service.key);
            Steps { removals: vec![removal], ..Steps::default() }
        }
        (Some(want), None) => {
            let key = want.service.key;
            let mut commands = vec![Command::AddService(want.service)];
            commands.extend(want.destinations.iter().map(|to| Command::AddDestination(key, to)));
            Steps {
                commands,
                removals: Vec::new(),
                held: Some(Held { written: want.clone(), draining: Drains::default() }),
            }
        }
        (Some(want), Some(have)) => change(want, have, drain, now),
    }
}

fn change(want: &Arc<Virtual>, have: &Held, drain: Drain, now: Instant) -> Steps {
    let key = want.service.key;
    let mut steps = Steps::default();
    if want.service != have.written.service {
        steps.commands.push(Command::SetService(want.service));
    }
    let mut draining = Vec::new();
    let found = have.destinations();
    let (mut wanted, mut found) = (want.destinations.iter().peekable(), found.into_iter().peekable());
    loop {
        let order = match (wanted.peek(), found.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(wanted), Some((found, _))) => wanted.key.cmp(&found.key),
        };
        if order == Ordering::Less {
            steps.commands.extend(wanted.next().map(|to| Command::AddDestination(key, to)));
            continue;
        }
        let Some((found, state)) = found.next() else { break };
        if order == Ordering::Equal {
            let to = wanted.next().filter(|to| *to != found);
            steps.commands.extend(to.map(|to| Command::SetDestination(key, to)));
        } else if !drain.graceful || !drains(key) {
            steps.commands.push(Command::DeleteDestination(key, found.key));
        } else {
            let rest = Destination { weight: 0, ..found };
            if rest != found {
                steps.commands.push(Command::SetDestination(key, rest));
            }
            let is_there = want.lingering.binary_search(&found.key).is_ok();
            let until = state.and_then(|state| state.until).unwrap_or(now + drain.period);
            draining.push(Draining { destination: rest, until: (!is_there).then_some(until) });
        }
    }
    steps.held = Some(Held { written: want.clone(), draining: draining.into() });
    steps
}

/// Whether connections to a service have an end that can be waited for.
fn drains(service: ServiceKey) -> bool {
    match service {
        ServiceKey::Address { protocol, .. } => protocol == Protocol::TCP || protocol == Protocol::SCTP,
        ServiceKey::Mark { .. } => true,
    }
}

/// Removes what is drained, by what the kernel says of its connections.
pub fn end_drains(held: &mut Held, found: &[DestinationState], now: Instant) -> Vec<Command> {
    let key = held.written.service.key;
    let mut commands = Vec::new();
    let mut left = held.draining.to_vec();
    left.retain(|draining| {
        let state = found.iter().find(|state| state.destination.key == draining.destination.key);
        let Some(state) = state else { return false };
        let idle = state.active_connections == 0 && state.inactive_connections == 0;
        let over = draining.until.is_some_and(|until| until <= now);
        if idle || over {
            commands.push(Command::DeleteDestination(key, draining.destination.key));
        }
        !(idle || over)
    });
    held.draining = left.into();
    commands
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kernel_netlink::ipvs::{Fake, Ipvs, Scheduler};

    use super::*;

    const DRAIN: Drain = Drain { graceful: true, period: Duration::from_secs(30) };

    fn key(protocol: Protocol) -> ServiceKey {
        ServiceKey::Address { protocol, address: "10.96.0.1".parse().unwrap(), port: 80 }
    }

    fn to(last: u8) -> Destination {
        Destination::new([10, 244, 0, last].into(), 8080)
    }

    fn wanted(protocol: Protocol, serving: &[u8], lingering: &[u8]) -> Arc<Virtual> {
        Arc::new(Virtual {
            service: Service::new(key(protocol), Scheduler::new("rr").unwrap()),
            destinations: serving.iter().map(|last| to(*last)).collect(),
            lingering: lingering.iter().map(|last| to(*last).key).collect(),
        })
    }

    fn held(protocol: Protocol, serving: &[u8]) -> Held {
        Held { written: wanted(protocol, serving, &[]), draining: Drains::default() }
    }

    #[test]
    fn what_is_wanted_and_held_needs_nothing() {
        let steps = steps(
            Some(&wanted(Protocol::TCP, &[1, 2], &[])),
            Some(&held(Protocol::TCP, &[1, 2])),
            DRAIN,
            Instant::now(),
        );
        assert_eq!((steps.commands, steps.removals), (vec![], vec![]));
    }

    #[test]
    fn unwanted_tcp_is_drained_until_its_time_is_over() {
        let now = Instant::now();
        let steps =
            steps(Some(&wanted(Protocol::TCP, &[2], &[])), Some(&held(Protocol::TCP, &[1, 2])), DRAIN, now);
        let rest = Destination { weight: 0, ..to(1) };
        assert_eq!(steps.commands, [Command::SetDestination(key(Protocol::TCP), rest)]);
        let mut held = steps.held.unwrap();
        let busy = [DestinationState {
            destination: rest,
            active_connections: 1,
            inactive_connections: 0,
            persistent_connections: 0,
            stats: Default::default(),
        }];
        assert_eq!(end_drains(&mut held, &busy, now + Duration::from_secs(29)), []);
        let removal = Command::DeleteDestination(key(Protocol::TCP), rest.key);
        assert_eq!(end_drains(&mut held, &busy, now + Duration::from_secs(30)), [removal]);
        assert!(held.draining.is_empty());
    }

    #[test]
    fn an_endpoint_that_terminates_keeps_its_connections_as_long_as_it_is_there() {
        let now = Instant::now();
        let held = held(Protocol::TCP, &[1, 2]);
        let there = steps(Some(&wanted(Protocol::TCP, &[2], &[1])), Some(&held), DRAIN, now).held.unwrap();
        assert_eq!(there.draining[0].until, None);
        let later = now + Duration::from_secs(100);
        let gone = steps(Some(&wanted(Protocol::TCP, &[2], &[])), Some(&there), DRAIN, later);
        assert_eq!(gone.commands, []);
        assert_eq!(gone.held.unwrap().draining[0].until, Some(later + DRAIN.period));
    }

    #[test]
    fn w16_an_endpoint_that_returns_serves_again_and_is_never_removed_by_its_old_drain() {
        let now = Instant::now();
        let both = wanted(Protocol::TCP, &[1, 2], &[]);
        let drained =
            steps(Some(&wanted(Protocol::TCP, &[2], &[])), Some(&held(Protocol::TCP, &[1, 2])), DRAIN, now);
        let back = steps(Some(&both), drained.held.as_ref(), DRAIN, now);
        assert_eq!(back.commands, [Command::SetDestination(key(Protocol::TCP), to(1))]);
        let mut held = back.held.unwrap();
        assert_eq!(end_drains(&mut held, &[], now + DRAIN.period * 2), []);
    }

    #[test]
    fn udp_leaves_at_once() {
        let steps = steps(
            Some(&wanted(Protocol::UDP, &[2], &[1])),
            Some(&held(Protocol::UDP, &[1, 2])),
            DRAIN,
            Instant::now(),
        );
        assert_eq!(steps.commands, [Command::DeleteDestination(key(Protocol::UDP), to(1).key)]);
    }

    #[test]
    fn a_drain_that_another_process_began_is_gone_on_with() {
        let now = Instant::now();
        let rest = Destination { weight: 0, ..to(1) };
        let found = Held::found(wanted(Protocol::TCP, &[], &[]).service, vec![to(2), rest]);
        let steps = steps(Some(&wanted(Protocol::TCP, &[2], &[])), Some(&found), DRAIN, now);
        assert_eq!(steps.commands, []);
        assert_eq!(
            *steps.held.unwrap().draining,
            [Draining { destination: rest, until: Some(now + DRAIN.period) }]
        );
    }

    proptest::proptest! {
        /// Commands lead where they say: the kernel's model takes them all, and holds what `held` tells.
        #[test]
        fn commands_are_taken_and_lead_to_what_is_held(
            histories in proptest::collection::vec((proptest::bool::ANY, 0u8..16, 0u8..16), 1..12),
            graceful: bool,
        ) {
            let mut fake = Fake::new();
            let mut held: Option<Held> = None;
            let now = Instant::now();
            for (there, serving, lingering) in histories {
                let bits = |mask: u8| (0..4).filter(|bit| mask & (1 << bit) != 0).collect::<Vec<u8>>();
                let want = there.then(|| wanted(Protocol::TCP, &bits(serving), &bits(lingering & !serving)));
                let steps = steps(want.as_ref(), held.as_ref(), Drain { graceful, ..DRAIN }, now);
                fake.commit(&steps.commands).unwrap();
                fake.commit(&steps.removals).unwrap();
                held = steps.held;
                let mut found: Vec<_> = fake
                    .observe_destinations(&key(Protocol::TCP))
                    .unwrap()
                    .into_iter()
                    .map(|state| state.destination)
                    .collect();
                found.sort_by_key(|destination| destination.key);
                let told: Vec<_> = held.iter().flat_map(Held::destinations).map(|(to, _)| to).collect();
                assert_eq!(found, told);
                if let Some(want) = &want {
                    let serving = found.iter().filter(|to| to.weight > 0).copied().collect();
                    assert_eq!(want.destinations, serving);
                }
            }
        }
    }
}
