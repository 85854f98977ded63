//! Runs a packet through a ruleset as the kernel would, so that compiled rules can be judged without one.
//!
//! Headers are real bytes, so a rule that reads a port of a packet that has none, or a v4 address of a v6
//! packet, goes wrong here as it does in the kernel (net/netfilter/nf_tables_core.c, nft_*.c).
//!
//! Chains of type `nat` are run as the kernel runs them: once for each connection and kind of translation. What
//! a packet looks like afterwards is [`Outcome::packet`], to be sent on to the next hook.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a ruleset that is wrong for every packet ends a test")]

mod packet;

use std::net::IpAddr;

use kernel_nft::expr::{
    CmpOp, CtKey, Direction, Expr, IpVersion, MetaKey, NatKind, PayloadBase, Register, Reject, Side,
    TupleKey, Verdict,
};
use kernel_nft::ruleset::{Chain, ChainType, DataType, Hook, Key, Name, Ruleset, Set, Value};

pub use packet::{CtState, ICMP, ICMPV6, Packet, SCTP, TCP, Tuple, UDP};

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it goes on.
    pub fate: Fate,
    /// The packet as it leaves the hook.
    pub packet: Packet,
    /// `ct mark` of its connection.
    pub ct_mark: u32,
    /// `meta mark`
    pub mark: u32,
    /// Named counters that counted it.
    pub counters: Vec<Name>,
    /// Prefix and group of each log.
    pub logs: Vec<(String, u16)>,
}

/// Whether a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Accepted,
    /// It is gone.
    Dropped,
    /// It is gone, and its sender is told.
    Rejected(Reject),
}

/// Runs the packet through the base chains of its hook in order of priority.
///
/// # Panics
/// On references to sets, chains or counters that are not there, jumps deeper than the kernel allows, and
/// expressions that it doesn't know: such a ruleset is wrong whatever the packet.
pub fn run(ruleset: &Ruleset, packet: &Packet) -> Outcome {
    let outcome = Outcome {
        fate: Fate::Accepted,
        packet: packet.clone(),
        ct_mark: packet.ct_mark,
        mark: packet.mark,
        counters: vec![],
        logs: vec![],
    };
    let mut machine = Machine {
        ruleset,
        packet: packet.clone(),
        network: packet.network_header(),
        registers: [0; 64],
        outcome,
    };
    let mut bases: Vec<_> = ruleset
        .chains
        .values()
        .filter_map(|chain| chain.base.map(|base| (base, chain)))
        .filter(|(base, _)| base.hook == packet.hook)
        .collect();
    bases.sort_by_key(|(base, _)| base.priority);
    for (base, chain) in bases {
        match base.kind {
            ChainType::Filter => {}
            ChainType::Nat if machine.decides_now() => {}
            ChainType::Nat => continue,
            other => panic!("chains of type {other:?} are not interpreted"),
        }
        machine.outcome.fate = machine.base_chain(chain);
        if machine.outcome.fate != Fate::Accepted {
            break;
        }
    }
    Outcome { packet: machine.packet, ..machine.outcome }
}

struct Machine<'a> {
    ruleset: &'a Ruleset,
    packet: Packet,
    network: Vec<u8>,
    registers: [u8; 64],
    outcome: Outcome,
}

/// What one expression leads to.
enum Step {
    Next,
    /// The rule does not match (`NFT_BREAK`).
    NoMatch,
    Verdict(Verdict),
    Rejected(Reject),
}

impl<'a> Machine<'a> {
    /// KERNEL: nf_nat_inet_fn() asks the chains about the first packet of a connection, once for each kind of
    /// translation.
    fn decides_now(&mut self) -> bool {
        let decided = match self.packet.hook {
            Hook::Prerouting | Hook::Output => &mut self.packet.destination_decided,
            Hook::Postrouting | Hook::Input => &mut self.packet.source_decided,
            other => panic!("nothing is translated at {other:?}"),
        };
        let was = std::mem::replace(decided, true);
        self.packet.state == CtState::New && !was
    }

    fn translate(&mut self, kind: NatKind, version: IpVersion, address: Register, port: Option<Register>) {
        let of_kind = match kind {
            NatKind::Destination => [Hook::Prerouting, Hook::Output],
            NatKind::Source => [Hook::Postrouting, Hook::Input],
        };
        assert!(of_kind.contains(&self.packet.hook), "{kind:?} at {:?}", self.packet.hook);
        let address = match version {
            IpVersion::V4 => IpAddr::from(<[u8; 4]>::try_from(self.load(address.0, 4)).unwrap()),
            IpVersion::V6 => IpAddr::from(<[u8; 16]>::try_from(self.load(address.0, 16)).unwrap()),
        };
        assert_eq!(address.is_ipv4(), self.packet.source.is_ipv4(), "translation into another family");
        let port = port.map(|port| u16::from_be_bytes(self.load(port.0, 2).try_into().unwrap()));
        match kind {
            NatKind::Destination => self.packet.redirect(address, port),
            NatKind::Source => self.packet.disguise(address),
        }
        self.network = self.packet.network_header();
    }

    /// `nft_do_chain`: a stack of places to come back to; the policy of base chains is accept.
    fn base_chain(&mut self, chain: &'a Chain) -> Fate {
        const JUMP_STACK_SIZE: usize = 16; // KERNEL: NFT_JUMP_STACK_SIZE
        let mut stack: Vec<(&'a Chain, usize)> = vec![];
        let (mut chain, mut position) = (chain, 0);
        loop {
            let Some(rule) = chain.rules.get(position) else {
                match stack.pop() {
                    Some(caller) => (chain, position) = caller,
                    None => return Fate::Accepted,
                }
                continue;
            };
            position += 1;
            match self.rule(&rule.expressions) {
                Step::Next | Step::NoMatch => {}
                Step::Rejected(kind) => return Fate::Rejected(kind),
                Step::Verdict(Verdict::Accept) => return Fate::Accepted,
                Step::Verdict(Verdict::Drop) => return Fate::Dropped,
                Step::Verdict(Verdict::Return) => position = chain.rules.len(),
                Step::Verdict(Verdict::Goto(name)) => (chain, position) = (self.chain(&name), 0),
                Step::Verdict(Verdict::Jump(name)) => {
                    assert!(stack.len() < JUMP_STACK_SIZE, "the jump stack overflows at {name}");
                    stack.push((chain, position));
                    (chain, position) = (self.chain(&name), 0);
                }
            }
        }
    }

    fn chain(&self, name: &Name) -> &'a Chain {
        let chain = self.ruleset.chains.get(name).unwrap_or_else(|| panic!("no chain {name}"));
        assert!(chain.base.is_none(), "{name} is a base chain and can't be jumped to");
        chain
    }

    fn rule(&mut self, expressions: &[Expr]) -> Step {
        for expression in expressions {
            match self.expression(expression) {
                Step::Next => {}
                other => return other,
            }
        }
        Step::Next
    }

    fn expression(&mut self, expression: &Expr) -> Step {
        match expression {
            Expr::Meta { dreg, .. }
            | Expr::Payload { dreg, .. }
            | Expr::Ct { dreg, .. }
            | Expr::CtTuple { dreg, .. }
            | Expr::Bitwise { dreg, .. }
            | Expr::Map { dreg, .. }
            | Expr::Immediate { dreg, .. }
            | Expr::FibType { dreg, .. } => {
                let Some(value) = self.value(expression) else { return Step::NoMatch };
                self.store(dreg.0, &value);
            }
            Expr::MetaSet { key, sreg } => match key {
                MetaKey::Mark => self.outcome.mark = self.load_u32(sreg.0),
                other => panic!("meta {other:?} can't be set"),
            },
            Expr::CtSet { key, sreg } => match key {
                // KERNEL: nft_ct_set_eval does nothing on a packet without a connection.
                CtKey::Mark if self.has_connection() => self.outcome.ct_mark = self.load_u32(sreg.0),
                CtKey::Mark => {}
                other => panic!("ct {other:?} can't be set"),
            },
            Expr::Cmp { op, sreg, data } => return matches_if(self.compares(*op, sreg.0, data)),
            Expr::Range { negate, sreg, from, to } => {
                let value = self.load(sreg.0, from.len());
                return matches_if((from.as_slice() <= value && value <= to.as_slice()) != *negate);
            }
            Expr::Lookup { set, sreg, verdict_map, negate } => {
                return self.lookup(set, sreg.0, *verdict_map, *negate);
            }
            Expr::Nat { kind, version, address, port, .. } => {
                self.translate(*kind, *version, *address, *port);
                return Step::Verdict(Verdict::Accept);
            }
            Expr::Masquerade(_) => {
                assert!(self.packet.hook == Hook::Postrouting, "masquerade at {:?}", self.packet.hook);
                let source = self.packet.oif_address;
                self.packet.disguise(source.unwrap_or_else(|| panic!("no address of {}", self.packet.oif)));
                self.network = self.packet.network_header();
                return Step::Verdict(Verdict::Accept);
            }
            Expr::Verdict(verdict) => return Step::Verdict(verdict.clone()),
            Expr::CounterRef(name) => {
                assert!(self.ruleset.counters.contains_key(name), "no counter {name}");
                self.outcome.counters.push(name.clone());
            }
            Expr::Counter => {}
            Expr::LimitPerMinute { .. } => return matches_if(!self.packet.over_limit),
            Expr::Log { prefix, group } => self.outcome.logs.push((prefix.clone(), *group)),
            Expr::Reject(kind) => return Step::Rejected(*kind),
            other => panic!("an expression that we never write: {other:?}"),
        }
        Step::Next
    }

    /// What an expression puts into its register; `None` if the packet has nothing of the kind.
    fn value(&self, expression: &Expr) -> Option<Vec<u8>> {
        match expression {
            Expr::Meta { key, .. } => Some(self.meta(*key)),
            Expr::Payload { base, offset, len, .. } => {
                let header = match base {
                    PayloadBase::Network => &self.network,
                    PayloadBase::Transport => &self.packet.transport,
                };
                header.get(*offset as usize..(*offset + *len) as usize).map(<[u8]>::to_vec)
            }
            Expr::Ct { key, .. } => self.ct(*key),
            Expr::CtTuple { key, direction, .. } => self.original(*key, *direction),
            Expr::Bitwise { sreg, mask, xor, .. } => {
                assert_eq!(mask.len(), xor.len(), "mask and xor of one length");
                let value = self.load(sreg.0, mask.len()).iter();
                Some(value.zip(mask).zip(xor).map(|((v, mask), xor)| (v & mask) ^ xor).collect())
            }
            Expr::Map { set, sreg, .. } => self.data(set, sreg.0).map(|data| data.as_bytes().to_vec()),
            Expr::Immediate { data, .. } => Some(data.to_vec()),
            Expr::FibType { side, .. } => {
                let local = match side {
                    Side::Source => self.packet.source_is_local,
                    Side::Destination => self.packet.destination_is_local,
                };
                // KERNEL: RTN_LOCAL is 2, RTN_UNICAST 1 (include/uapi/linux/rtnetlink.h).
                Some((if local { 2u32 } else { 1u32 }).to_ne_bytes().to_vec())
            }
            other => panic!("{other:?} puts nothing into a register"),
        }
    }

    /// KERNEL: nft_cmp_eval compares as memcmp does, the register with the constant.
    fn compares(&self, op: CmpOp, register: u8, data: &[u8]) -> bool {
        let order = self.load(register, data.len()).cmp(data);
        match op {
            CmpOp::Eq => order.is_eq(),
            CmpOp::Neq => order.is_ne(),
            CmpOp::Lt => order.is_lt(),
            CmpOp::Lte => order.is_le(),
            CmpOp::Gt => order.is_gt(),
            CmpOp::Gte => order.is_ge(),
        }
    }

    fn meta(&self, key: MetaKey) -> Vec<u8> {
        let ifname = |name: &str| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        };
        match key {
            MetaKey::L4Proto => vec![self.packet.protocol],
            MetaKey::NfProto => vec![if self.packet.source.is_ipv4() { 2 } else { 10 }],
            MetaKey::Mark => self.outcome.mark.to_ne_bytes().to_vec(),
            // Numbers of devices are not known, but for none.
            MetaKey::Iif => u32::from(!self.packet.iif.is_empty()).to_ne_bytes().to_vec(),
            MetaKey::IifName => ifname(self.packet.iif),
            MetaKey::OifName => ifname(self.packet.oif),
            // Its devices are of no kind.
            MetaKey::IifKind => ifname(""),
        }
    }

    fn has_connection(&self) -> bool {
        !matches!(self.packet.state, CtState::Invalid | CtState::Untracked)
    }

    fn ct(&self, key: CtKey) -> Option<Vec<u8>> {
        let state: u32 = match self.packet.state {
            CtState::Invalid => 1,
            CtState::Established => 2,
            CtState::Related => 4,
            CtState::New => 8,
            CtState::Untracked => 64,
        };
        match key {
            CtKey::State => Some(state.to_ne_bytes().to_vec()),
            _ if !self.has_connection() => None,
            CtKey::Direction => Some(vec![u8::from(self.packet.reply)]),
            CtKey::Status => Some(self.packet.ct_status.to_ne_bytes().to_vec()),
            CtKey::Mark => Some(self.outcome.ct_mark.to_ne_bytes().to_vec()),
        }
    }

    /// A part of the tuple of the original direction.
    fn original(&self, key: TupleKey, direction: Direction) -> Option<Vec<u8>> {
        assert_eq!(direction, Direction::Original, "what the answer looks like is not known");
        if !self.has_connection() {
            return None;
        }
        let tuple = self.packet.original.unwrap_or_else(|| self.packet.tuple());
        let of = |side| usize::from(side == Side::Destination);
        match key {
            TupleKey::Address(side, version) => {
                let address = [tuple.source, tuple.destination][of(side)];
                let is_v4 = version == IpVersion::V4;
                (address.is_ipv4() == is_v4).then(|| Key::from(address).as_bytes().to_vec())
            }
            TupleKey::Port(side) => Some(tuple.ports[of(side)].to_be_bytes().to_vec()),
        }
    }

    /// What a data map has for a key.
    fn data(&self, name: &Name, sreg: u8) -> Option<Key> {
        let set = self.set(name);
        match find(set, self.load(sreg, key_len(set)))? {
            Value::Data(data) => Some(data),
            other => panic!("{name} is no data map but has {other:?}"),
        }
    }

    fn set(&self, name: &Name) -> &'a Set {
        self.ruleset.sets.get(name).unwrap_or_else(|| panic!("no set {name}"))
    }

    fn lookup(&self, name: &Name, sreg: u8, verdict_map: bool, negate: bool) -> Step {
        let set = self.set(name);
        assert_eq!(set.spec.is_verdict_map(), verdict_map, "{name} is not that kind of set");
        let found = find(set, self.load(sreg, key_len(set)));
        match found {
            Some(Value::Verdict(verdict)) => {
                assert!(!negate, "the verdict of an absent key of {name}");
                Step::Verdict(verdict)
            }
            Some(Value::Member | Value::Until(_) | Value::Data(_)) => matches_if(!negate),
            None => matches_if(negate),
        }
    }

    fn load(&self, register: u8, len: usize) -> &[u8] {
        let start = usize::from(register) * 4;
        &self.registers[start..start + len]
    }

    fn load_u32(&self, register: u8) -> u32 {
        u32::from_ne_bytes(self.load(register, 4).try_into().unwrap())
    }

    /// KERNEL: a store clears the rest of its last 32-bit register.
    fn store(&mut self, register: u8, bytes: &[u8]) {
        let start = usize::from(register) * 4;
        self.registers[start..start + bytes.len().next_multiple_of(4)].fill(0);
        self.registers[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

fn matches_if(condition: bool) -> Step {
    if condition { Step::Next } else { Step::NoMatch }
}

fn width(field: DataType) -> usize {
    match field {
        DataType::Ipv4Addr | DataType::Mark => 4,
        DataType::Ipv6Addr | DataType::Ifname => 16,
        DataType::InetProto | DataType::Icmpv6Type | DataType::IcmpType => 1,
        DataType::InetService => 2,
        DataType::Foreign => panic!("a key of a type that we never write"),
    }
}

/// Widths of the fields as they lie in registers: padded to four bytes if concatenated.
fn field_widths(set: &Set) -> Vec<usize> {
    match set.spec.key.as_slice() {
        [field] => vec![width(*field)],
        fields => fields.iter().map(|field| width(*field).next_multiple_of(4)).collect(),
    }
}

fn key_len(set: &Set) -> usize {
    field_widths(set).iter().sum()
}

fn find(set: &Set, key: &[u8]) -> Option<Value> {
    let key = Key::from_bytes(key);
    if let Some(value) = set.elements.get(&key) {
        return Some(value);
    }
    let widths = field_widths(set);
    set.elements
        .iter()
        .filter(|_| set.spec.interval)
        .find(|(first, value)| {
            let Value::Until(last) = value else { return false };
            let mut at = 0;
            widths.iter().all(|width| {
                let field = at..at + width;
                at += width;
                first.as_bytes()[field.clone()] <= key.as_bytes()[field.clone()]
                    && key.as_bytes()[field.clone()] <= last.as_bytes()[field]
            })
        })
        .map(|(_, value)| value)
}
