//! What is tried: who answers, and as whom the client is seen.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use test_netns::{Family, Outcome, Probe, Protocol};

use crate::lab::{Lab, PROTOCOLS, SECOND};

/// How long a try may take that should find somebody: long, since the machine may be busy.
const ANSWER: Duration = Duration::from_secs(3);
/// How long silence lasts. Five times as long where the machine is emulated, as the above.
const SILENCE: Duration = Duration::from_millis(500);

/// As whom an endpoint sees the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// By its own address.
    Itself,
    /// By an address of this node.
    As(&'static str),
    /// By the virtual address.
    Virtual,
}

/// What comes of some tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Each of these answers at least once, and nobody else does.
    Served(Vec<(&'static str, Seen)>),
    /// RST, ABORT or port unreachable.
    Refused,
    /// Silence.
    Dropped,
}

/// Tries from somewhere to somewhere, by each of some protocols.
#[derive(Clone, Debug)]
pub(crate) struct Tries {
    from: &'static str,
    to: IpAddr,
    port: u16,
    protocols: Vec<Protocol>,
    expect: Expect,
}

/// Tries by TCP, UDP and SCTP.
pub(crate) fn from(from: &'static str, to: IpAddr, port: u16, expect: Expect) -> Tries {
    Tries { from, to, port, protocols: PROTOCOLS.into(), expect }
}

impl Tries {
    /// The same by one protocol.
    pub(crate) fn by(self, protocol: Protocol) -> Self {
        Self { protocols: vec![protocol], ..self }
    }
}

/// Each of these answers, and sees the client so.
pub(crate) fn served(by: &[(&'static str, Seen)]) -> Expect {
    Expect::Served(by.to_vec())
}

/// Each of these answers, and sees the client by its own address.
pub(crate) fn served_itself(by: &[&'static str]) -> Expect {
    Expect::Served(by.iter().map(|name| (*name, Seen::Itself)).collect())
}

impl Lab {
    /// Tries all at once; fails with what is not as expected.
    pub(crate) fn check(&self, case: &str, tries: &[Tries]) {
        let wrong = self.wrong(tries);
        assert!(wrong.is_empty(), "{case}:\n{}", wrong.join("\n"));
    }

    /// Who answers, one try after another.
    pub(crate) fn servers(&self, from: &str, to: IpAddr, protocol: Protocol, count: usize) -> Vec<String> {
        let probe = Probe { from: from.into(), to, protocol, port: 80 };
        let one = || match &self.cluster.probe_all(std::slice::from_ref(&probe), ANSWER).expect("probed")[..]
        {
            [Outcome::Connected(answer)] => answer.server.clone(),
            other => panic!("{from} -> {to} {protocol}: {other:?}"),
        };
        std::iter::repeat_with(one).take(count).collect()
    }

    /// What is not as expected.
    pub(crate) fn wrong(&self, tries: &[Tries]) -> Vec<String> {
        let (silent, loud): (Vec<_>, Vec<_>) =
            tries.iter().cloned().partition(|one| one.expect == Expect::Dropped);
        [self.wrong_within(&loud, ANSWER), self.wrong_within(&silent, SILENCE)].concat()
    }

    fn wrong_within(&self, tries: &[Tries], patience: Duration) -> Vec<String> {
        let mut probes = Vec::new();
        for one in tries {
            for protocol in &one.protocols {
                // Round robin: each is met, also if a try is made twice because the machine is slow.
                let count = match &one.expect {
                    Expect::Served(by) => 3 * by.len().max(1),
                    Expect::Refused | Expect::Dropped => 1,
                };
                let probe = Probe { from: one.from.into(), to: one.to, protocol: *protocol, port: one.port };
                probes.extend(std::iter::repeat_n(probe, count));
            }
        }
        let outcomes = self.cluster.probe_all(&probes, patience).expect("probed");
        let found: Vec<_> = probes.iter().zip(&outcomes).collect();
        let mut wrong = Vec::new();
        for one in tries {
            for protocol in &one.protocols {
                let is_its = |probe: &Probe| {
                    (&*probe.from, probe.to, probe.port, probe.protocol)
                        == (one.from, one.to, one.port, *protocol)
                };
                let outcomes = found.iter().filter(|(probe, _)| is_its(probe)).map(|(_, outcome)| *outcome);
                if let Err(why) = self.judge(one, *protocol, outcomes) {
                    wrong.push(format!("  {} -> {} {protocol} {}: {why}", one.from, one.to, one.port));
                }
            }
        }
        wrong
    }

    fn judge<'a>(
        &self,
        one: &Tries,
        protocol: Protocol,
        outcomes: impl Iterator<Item = &'a Outcome>,
    ) -> Result<(), String> {
        let is_icmp =
            |outcome: &Outcome| matches!(outcome, Outcome::Unreachable(icmp) if icmp.is_port_unreachable());
        let mut met = BTreeSet::new();
        for outcome in outcomes {
            match (&one.expect, outcome) {
                (Expect::Served(_), Outcome::Connected(answer)) => {
                    met.insert((answer.server.clone(), answer.seen_source));
                }
                (Expect::Refused, Outcome::Refused) => {}
                (Expect::Refused, other) if protocol != Protocol::Tcp && is_icmp(other) => {}
                (Expect::Dropped, Outcome::TimedOut) => {}
                (expect, other) => return Err(format!("{other}, expected {expect:?}")),
            }
        }
        let Expect::Served(by) = &one.expect else { return Ok(()) };
        let is = |(name, source): &(String, Option<IpAddr>), (server, seen): &(&str, Seen)| {
            let own = |host: &str| self.cluster.address(host, Family::of(one.to)).ok();
            let as_expected = match seen {
                Seen::Itself => *source == own(one.from),
                // The kernel chooses among a node's addresses.
                Seen::As(node) => {
                    *source == own(node)
                        || SECOND.iter().any(|ip| source.is_some_and(|source| source.to_string() == **ip))
                }
                Seen::Virtual => *source == Some(one.to),
            };
            name == server && as_expected
        };
        let all_met = by.iter().all(|wanted| met.iter().any(|found| is(found, wanted)));
        let no_others = met.iter().all(|found| by.iter().any(|wanted| is(found, wanted)));
        if all_met && no_others { Ok(()) } else { Err(format!("met {met:?}, expected {by:?}")) }
    }
}
