//! A rule in words: runs its expressions on registers that hold words instead of bytes.
//!
//! As `nft` does, a condition that a later match implies is not printed: `meta l4proto tcp` before
//! `tcp dport 80`, `meta nfproto ipv4` before `ip saddr …`.

use super::translation;
use super::value;
use crate::expr::{
    CmpOp, CtKey, CtState, CtStatus, Direction, Expr, MetaKey, PayloadBase, Register, Reject, Side, TcpFlag,
    TupleKey,
};
use crate::ruleset::{DataType, Family, Rule};

/// The rule as `nft list` prints it, with its comment.
pub fn rule(family: Family, rule: &Rule) -> String {
    let mut reader = Reader::new(family);
    let mut rest = rule.expressions.as_slice();
    while let [expression, tail @ ..] = rest {
        rest = reader.read(expression, tail);
    }
    let mut words: Vec<String> =
        reader.parts.into_iter().filter(|part| !part.implied).map(|part| part.words).collect();
    words.extend(rule.comment.iter().map(|comment| format!("comment \"{comment}\"")));
    words.join(" ")
}

/// What a value is, to write the other side of a comparison.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Data(DataType),
    NfProto,
    CtState,
    CtDirection,
    CtStatus,
    FibType,
    TcpFlags,
    /// Number of an interface; 0 is none.
    Index,
    Unknown,
}

/// Registers of what came out of a map, whose type is not known here: all that follow.
const MAPPED: u8 = 16;

/// What a register holds.
#[derive(Clone)]
struct Slot {
    words: String,
    kind: Kind,
    /// Registers that it fills.
    registers: u8,
    /// Bits of the field, where only the first of them were loaded.
    prefix: Option<usize>,
    mask: Option<Vec<u8>>,
    /// The words without the mask.
    bare: Option<String>,
    /// What a constant is, before it is known as what.
    constant: Option<Vec<u8>>,
}

/// A condition that a later match can imply.
#[derive(Clone, Copy, PartialEq)]
enum Condition {
    NfProto(u8),
    L4Proto(u8),
}

struct Part {
    words: String,
    condition: Option<Condition>,
    implied: bool,
}

struct Reader {
    slots: [Option<Slot>; 16],
    parts: Vec<Part>,
    nfproto: Option<u8>,
    l4proto: Option<u8>,
}

impl Reader {
    fn new(family: Family) -> Self {
        let nfproto = match family {
            Family::Ip => Some(2),
            Family::Ip6 => Some(10),
            Family::Inet | Family::Bridge => None,
        };
        Self { slots: Default::default(), parts: Vec::new(), nfproto, l4proto: None }
    }

    /// Reads one expression, and those after it that belong to it; returns what is left.
    fn read<'e>(&mut self, expression: &Expr, tail: &'e [Expr]) -> &'e [Expr] {
        match expression {
            Expr::Meta { key, dreg } => self.load(*dreg, meta(*key)),
            Expr::Payload { base, offset, len, dreg } => {
                let slot = self.payload(*base, *offset, *len);
                self.load(*dreg, slot);
            }
            Expr::Ct { key, dreg } => self.load(*dreg, ct(*key)),
            Expr::FibType { side, dreg } => {
                let words = format!("fib {} type", address_word(*side));
                self.load(*dreg, Slot::new(words, Kind::FibType, 1));
            }
            Expr::Immediate { dreg, data } => {
                let registers = data.len().div_ceil(4) as u8;
                let mut slot = Slot::new(value::datum(DataType::Mark, data), Kind::Unknown, registers);
                slot.constant = Some(data.clone());
                self.load(*dreg, slot);
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => self.bitwise(*sreg, *dreg, mask, xor),
            Expr::Cmp { op: CmpOp::Gte, sreg, data } => {
                if let [Expr::Cmp { op: CmpOp::Lte, sreg: second, data: last }, rest @ ..] = tail
                    && second == sreg
                {
                    self.compare(*sreg, "", data, Some(last));
                    return rest;
                }
                self.compare(*sreg, ">= ", data, None);
            }
            Expr::Cmp { op, sreg, data } => self.compare(*sreg, operator(*op), data, None),
            Expr::Range { negate, sreg, from, to } => {
                self.compare(*sreg, if *negate { "!= " } else { "" }, from, Some(to));
            }
            Expr::Lookup { set, sreg, verdict_map, negate } => {
                let words = self.take(*sreg);
                let relation = match (verdict_map, negate) {
                    (true, _) => "vmap ",
                    (false, true) => "!= ",
                    (false, false) => "",
                };
                self.say(format!("{words} {relation}@{set}"));
            }
            Expr::Map { set, sreg, dreg } => {
                let words = format!("{} map @{set}", self.take(*sreg));
                self.load(*dreg, Slot::new(words, Kind::Unknown, MAPPED));
            }
            Expr::CtTuple { key, direction, dreg } => self.load(*dreg, tuple(*key, *direction)),
            Expr::MetaSet { key, sreg } => self.assign(meta(*key), *sreg),
            Expr::CtSet { key, sreg } => self.assign(ct(*key), *sreg),
            _ => {
                let words = self.statement(expression);
                self.act(words);
            }
        }
        tail
    }

    /// The words of what acts, with its operands.
    fn statement(&self, expression: &Expr) -> String {
        match expression {
            Expr::Nat { kind, version, address, port, flags } => {
                let address = self.operand(*address, version.data_type());
                let port = port.and_then(|port| self.operand(port, DataType::InetService));
                translation::nat(*kind, *version, address, port, *flags)
            }
            Expr::Redirect { port, flags } => {
                let port = port.and_then(|port| self.operand(port, DataType::InetService));
                translation::redirect(port, *flags)
            }
            Expr::TcpOptionSet { option, offset, len, sreg } => {
                let size = self.operand(*sreg, DataType::InetService);
                translation::tcp_option_set(*option, *offset, *len, size)
            }
            _ => statement(expression),
        }
    }

    /// A statement. nft does not look back over anything that acts, for what is implied.
    fn act(&mut self, words: String) {
        self.slots = Default::default();
        self.say(words);
        self.parts.iter_mut().for_each(|part| part.condition = None);
    }

    /// What one register holds, a constant as a value of that type; `None` if nothing was loaded there.
    fn operand(&self, register: Register, field: DataType) -> Option<String> {
        let slot = self.slots.get(usize::from(register.0))?.as_ref()?;
        Some(match &slot.constant {
            Some(data) => value::datum(field, data),
            None => slot.words.clone(),
        })
    }

    fn say(&mut self, words: String) {
        self.parts.push(Part { words, condition: None, implied: false });
    }

    fn load(&mut self, register: Register, slot: Slot) {
        if let Some(place) = self.slots.get_mut(usize::from(register.0)) {
            *place = Some(slot);
        }
    }

    /// Everything from a register on: one value, or a concatenation. The registers are free afterwards.
    fn take(&mut self, register: Register) -> String {
        let mut at = usize::from(register.0);
        let mut words = Vec::new();
        while let Some(slot) = self.slots.get_mut(at).and_then(Option::take) {
            at += usize::from(slot.registers.max(1));
            words.push(slot.words);
        }
        self.slots = Default::default();
        words.join(" . ")
    }

    fn assign(&mut self, target: Slot, register: Register) {
        let words = self.take(register);
        self.act(format!("{} set {words}", target.words));
    }

    fn payload(&mut self, base: PayloadBase, offset: u32, len: u32) -> Slot {
        let registers = len.div_ceil(4).min(16) as u8;
        let address = |version: u8, side: Side, bits: u32| {
            let (header, kind) = match version {
                2 => ("ip", DataType::Ipv4Addr),
                _ => ("ip6", DataType::Ipv6Addr),
            };
            let mut slot = Slot::new(format!("{header} {}", address_word(side)), Kind::Data(kind), registers);
            slot.prefix = (len * 8 != bits).then_some(len as usize * 8);
            slot
        };
        let known = match (base, self.nfproto, self.l4proto, offset, len) {
            (PayloadBase::Network, Some(2), _, 12, 1..=4) => address(2, Side::Source, 32),
            (PayloadBase::Network, Some(2), _, 16, 1..=4) => address(2, Side::Destination, 32),
            (PayloadBase::Network, Some(10), _, 8, 1..=16) => address(10, Side::Source, 128),
            (PayloadBase::Network, Some(10), _, 24, 1..=16) => address(10, Side::Destination, 128),
            (PayloadBase::Transport, _, protocol, 0 | 2, 2) => {
                let header = protocol.filter(|number| has_ports(*number));
                let header = header.map_or("th".to_owned(), value::protocol);
                let port = if offset == 0 { "sport" } else { "dport" };
                Slot::new(format!("{header} {port}"), Kind::Data(DataType::InetService), 1)
            }
            (PayloadBase::Transport, _, Some(6), 13, 1) => {
                Slot::new("tcp flags".to_owned(), Kind::TcpFlags, 1)
            }
            (PayloadBase::Transport, _, Some(58), 0, 1) => {
                Slot::new("icmpv6 type".to_owned(), Kind::Data(DataType::Icmpv6Type), 1)
            }
            (PayloadBase::Transport, _, Some(1), 0, 1) => {
                Slot::new("icmp type".to_owned(), Kind::Data(DataType::IcmpType), 1)
            }
            _ => {
                let base = if base == PayloadBase::Network { "nh" } else { "th" };
                let words = format!("@{base},{},{}", offset.saturating_mul(8), len.saturating_mul(8));
                return Slot::new(words, Kind::Unknown, registers);
            }
        };
        self.imply(base, &known);
        known
    }

    /// What was asked before is implied by the words of this field.
    fn imply(&mut self, base: PayloadBase, field: &Slot) {
        let icmp = matches!(field.kind, Kind::Data(DataType::Icmpv6Type | DataType::IcmpType));
        for part in &mut self.parts {
            let implied = match part.condition {
                Some(Condition::NfProto(_)) => base == PayloadBase::Network || icmp,
                Some(Condition::L4Proto(_)) => {
                    base == PayloadBase::Transport && !field.words.starts_with("th ")
                }
                None => false,
            };
            part.implied |= implied;
        }
    }

    fn bitwise(&mut self, sreg: Register, dreg: Register, mask: &[u8], xor: &[u8]) {
        let Some(mut slot) = self.slots.get_mut(usize::from(sreg.0)).and_then(Option::take) else {
            return;
        };
        if xor.iter().all(|byte| *byte == 0) {
            slot.mask = Some(mask.to_vec());
        }
        if let (Ok(mask), Ok(xor)) = (<[u8; 4]>::try_from(mask), <[u8; 4]>::try_from(xor))
            && slot.kind == Kind::Data(DataType::Mark)
        {
            let bare = std::mem::take(&mut slot.words);
            slot.words = sum(&bare, u32::from_ne_bytes(mask), u32::from_ne_bytes(xor));
            slot.bare = Some(bare);
            slot.mask = Some(mask.to_vec());
        }
        self.load(dreg, slot);
    }

    fn compare(&mut self, register: Register, relation: &str, data: &[u8], last: Option<&[u8]>) {
        let slot = self.slots.get(usize::from(register.0)).cloned().flatten();
        let words = self.take(register);
        let Some(slot) = slot else { return self.say(format!("{words} {relation}{}", value::hex(data))) };
        let condition = condition(&slot, relation, data);
        match condition {
            Some(Condition::NfProto(number)) => self.nfproto = Some(number),
            Some(Condition::L4Proto(number)) => self.l4proto = Some(number),
            None => {}
        }
        let words = match (&slot.bare, &slot.mask) {
            (Some(bare), Some(mask)) if leading_ones(mask).is_some() => bare.clone(),
            _ => words,
        };
        let (relation, right) = right_side(&slot, relation, data, last);
        self.parts.push(Part { words: format!("{words} {relation}{right}"), condition, implied: false });
    }
}

impl Slot {
    fn new(words: String, kind: Kind, registers: u8) -> Self {
        Self { words, kind, registers, prefix: None, mask: None, bare: None, constant: None }
    }
}

fn condition(slot: &Slot, relation: &str, data: &[u8]) -> Option<Condition> {
    match (slot.kind, relation, data) {
        (Kind::NfProto, "", &[number]) => Some(Condition::NfProto(number)),
        (Kind::Data(DataType::InetProto), "", &[number]) => Some(Condition::L4Proto(number)),
        _ => None,
    }
}

/// What follows the words of the left side.
fn right_side<'r>(slot: &Slot, relation: &'r str, data: &[u8], last: Option<&[u8]>) -> (&'r str, String) {
    match (slot.kind, &slot.mask) {
        (Kind::CtState | Kind::CtStatus, Some(mask)) if relation == "!= " && data.iter().all(|b| *b == 0) => {
            ("", flags(slot.kind, mask))
        }
        (Kind::TcpFlags, Some(mask)) => tcp_flags(relation, mask, data),
        (Kind::Data(field @ (DataType::Ipv4Addr | DataType::Ipv6Addr)), Some(mask)) => {
            let bits: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
            (relation, format!("{}/{bits}", value::datum(field, data)))
        }
        // nft writes the `==` only after a sum, and takes leading ones for a prefix.
        (Kind::Data(DataType::Mark), Some(mask)) if leading_ones(mask).is_some() => {
            let bits = leading_ones(mask).unwrap_or_default();
            (relation, format!("{}/{bits}", datum(slot, data)))
        }
        (Kind::Data(DataType::Mark), Some(_)) => {
            (if relation.is_empty() { "== " } else { relation }, datum(slot, data))
        }
        _ => match (last, slot.prefix) {
            (Some(last), _) => (relation, format!("{}-{}", datum(slot, data), datum(slot, last))),
            (None, Some(bits)) => (relation, prefix(slot, data, bits)),
            (None, None) => (relation, datum(slot, data)),
        },
    }
}

fn prefix(slot: &Slot, data: &[u8], bits: usize) -> String {
    let Kind::Data(field) = slot.kind else { return value::hex(data) };
    let mut whole = data.to_vec();
    whole.resize(field.width(), 0);
    format!("{}/{bits}", value::datum(field, &whole))
}

fn datum(slot: &Slot, data: &[u8]) -> String {
    match (slot.kind, data) {
        (Kind::Data(field), _) => value::datum(field, data),
        (Kind::NfProto, [2]) => "ipv4".to_owned(),
        (Kind::NfProto, [10]) => "ipv6".to_owned(),
        (Kind::CtDirection, [0]) => "original".to_owned(),
        (Kind::CtDirection, [1]) => "reply".to_owned(),
        (Kind::Index, &[a, b, c, d]) => u32::from_ne_bytes([a, b, c, d]).to_string(),
        (Kind::FibType, &[a, b, c, d]) => route_type(u32::from_ne_bytes([a, b, c, d])),
        _ => value::hex(data),
    }
}

/// Names of the bits that are set, lowest first.
fn flags(kind: Kind, mask: &[u8]) -> String {
    let bits = mask.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    const STATES: [(u32, &str); 5] = [
        (CtState::Invalid.bit(), "invalid"),
        (CtState::Established.bit(), "established"),
        (CtState::Related.bit(), "related"),
        (CtState::New.bit(), "new"),
        (CtState::Untracked.bit(), "untracked"),
    ];
    const STATUSES: [(u32, &str); 7] = [
        (CtStatus::Expected.bit(), "expected"),
        (CtStatus::SeenReply.bit(), "seen-reply"),
        (CtStatus::Assured.bit(), "assured"),
        (CtStatus::Confirmed.bit(), "confirmed"),
        (CtStatus::Snat.bit(), "snat"),
        (CtStatus::Dnat.bit(), "dnat"),
        (CtStatus::Dying.bit(), "dying"),
    ];
    let names: &[(u32, &str)] = if kind == Kind::CtState { &STATES } else { &STATUSES };
    let set: Vec<&str> = names.iter().filter_map(|(bit, name)| (bits & bit != 0).then_some(*name)).collect();
    set.join(",")
}

/// nft 1.0.6 writes `flags & mask == value` as `flags value / mask`, with forms of its own for some.
fn tcp_flags<'r>(relation: &'r str, mask: &[u8], data: &[u8]) -> (&'r str, String) {
    let (&[mask], &[bits]) = (mask, data) else { return (relation, value::hex(data)) };
    let names = |bits: u8| {
        let set = TcpFlag::ALL.into_iter().filter(|flag| bits & flag.bit() != 0);
        set.map(translation::tcp_flag).collect::<Vec<_>>().join(",")
    };
    match (relation, bits) {
        ("!= ", 0) => ("", names(mask)),
        ("", 0) => ("! ", names(mask)),
        ("", _) if bits == mask && mask.is_power_of_two() => ("& ", format!("{0} == {0}", names(mask))),
        _ => (relation, format!("{} / {}", names(bits), names(mask))),
    }
}

/// `(x & mask) ^ xor` as nft writes it: what is cleared and set again is an "or".
fn sum(words: &str, mask: u32, xor: u32) -> String {
    let or = xor & !mask;
    let (mask, xor) = (mask | or, xor & mask);
    let mut text = words.to_owned();
    if mask != u32::MAX {
        text.push_str(&format!(" & {}", value::mark(mask)));
    }
    if xor != 0 {
        text.push_str(&format!(" ^ {}", value::mark(xor)));
    }
    if or != 0 {
        text.push_str(&format!(" | {}", value::mark(or)));
    }
    text
}

/// Length of a mask of four bytes that is ones and then zeros, some of both.
fn leading_ones(mask: &[u8]) -> Option<u32> {
    let mask = u32::from_ne_bytes(mask.try_into().ok()?);
    let ones = mask.leading_ones();
    (mask != 0 && ones + mask.trailing_zeros() == 32).then_some(ones)
}

fn meta(key: MetaKey) -> Slot {
    match key {
        MetaKey::L4Proto => Slot::new("meta l4proto".to_owned(), Kind::Data(DataType::InetProto), 1),
        MetaKey::NfProto => Slot::new("meta nfproto".to_owned(), Kind::NfProto, 1),
        MetaKey::Mark => Slot::new("meta mark".to_owned(), Kind::Data(DataType::Mark), 1),
        MetaKey::Iif => Slot::new("iif".to_owned(), Kind::Index, 1),
        MetaKey::IifName => Slot::new("iifname".to_owned(), Kind::Data(DataType::Ifname), 4),
        MetaKey::OifName => Slot::new("oifname".to_owned(), Kind::Data(DataType::Ifname), 4),
        MetaKey::IifKind => Slot::new("meta iifkind".to_owned(), Kind::Data(DataType::Ifname), 4),
    }
}

fn ct(key: CtKey) -> Slot {
    match key {
        CtKey::State => Slot::new("ct state".to_owned(), Kind::CtState, 1),
        CtKey::Direction => Slot::new("ct direction".to_owned(), Kind::CtDirection, 1),
        CtKey::Status => Slot::new("ct status".to_owned(), Kind::CtStatus, 1),
        CtKey::Mark => Slot::new("ct mark".to_owned(), Kind::Data(DataType::Mark), 1),
    }
}

fn tuple(key: TupleKey, direction: Direction) -> Slot {
    let direction = match direction {
        Direction::Original => "original",
        Direction::Reply => "reply",
    };
    match key {
        TupleKey::Address(side, version) => {
            let words = format!("ct {direction} {} {}", translation::version(version), address_word(side));
            Slot::new(words, Kind::Data(version.data_type()), version.registers())
        }
        TupleKey::Port(side) => {
            let end = match side {
                Side::Source => "src",
                Side::Destination => "dst",
            };
            Slot::new(format!("ct {direction} proto-{end}"), Kind::Data(DataType::InetService), 1)
        }
    }
}

fn statement(expression: &Expr) -> String {
    match expression {
        Expr::Masquerade(flags) => translation::masquerade(*flags),
        Expr::Notrack => "notrack".to_owned(),
        Expr::Verdict(verdict) => value::verdict(verdict),
        Expr::CounterRef(name) => format!("counter name \"{name}\""),
        Expr::Counter => "counter packets 0 bytes 0".to_owned(),
        // 5 is what the kernel takes if no burst is given.
        Expr::LimitPerMinute { rate, burst: 5 } => format!("limit rate {rate}/minute"),
        Expr::LimitPerMinute { rate, burst } => format!("limit rate {rate}/minute burst {burst} packets"),
        Expr::Log { prefix, group } if prefix.is_empty() => format!("log group {group}"),
        Expr::Log { prefix, group } => format!("log prefix \"{prefix}\" group {group}"),
        Expr::Reject(Reject::TcpReset) => "reject with tcp reset".to_owned(),
        Expr::Reject(Reject::AdminProhibited) => "reject with icmpx admin-prohibited".to_owned(),
        // nft's default in the inet family.
        Expr::Reject(Reject::PortUnreachable) => "reject".to_owned(),
        Expr::Other { name, .. } => format!("[{name}]"),
        _ => "[?]".to_owned(),
    }
}

fn operator(op: CmpOp) -> &'static str {
    match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    }
}

fn address_word(side: Side) -> &'static str {
    match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    }
}

/// Protocols that nft has a word `dport` for.
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

/// `RTN_*` of include/uapi/linux/rtnetlink.h.
fn route_type(number: u32) -> String {
    const NAMES: [&str; 9] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
    ];
    NAMES.get(number as usize).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}
