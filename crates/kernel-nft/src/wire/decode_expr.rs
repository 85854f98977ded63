//! Expressions from the attributes that the kernel dumps.
//!
//! Whatever this crate would not write becomes [`Expr::Other`], so that a rule of somebody else never looks
//! like one of ours. Attributes with numbers that this crate does not know (of a newer kernel) are ignored.

use super::uapi::*;
use super::{Attribute, Attributes};
use crate::expr::{
    CmpOp, CtKey, Direction, Expr, IpVersion, MetaKey, NatFlags, NatKind, PayloadBase, Register, Reject,
    Side, TupleKey, Verdict,
};

/// Attributes by number; those from `N` on are dropped.
pub(crate) fn by_kind<'a, const N: usize>(attributes: Attributes<'a>) -> Kinds<'a, N> {
    let mut kinds = [None; N];
    for attribute in attributes {
        if let Some(slot) = kinds.get_mut(usize::from(attribute.kind)) {
            *slot = Some(attribute);
        }
    }
    Kinds(kinds)
}

/// See [`by_kind`].
pub(crate) struct Kinds<'a, const N: usize>([Option<Attribute<'a>>; N]);

impl<'a, const N: usize> Kinds<'a, N> {
    pub(crate) fn get(&self, kind: u16) -> Option<Attribute<'a>> {
        self.0.get(usize::from(kind)).copied().flatten()
    }

    pub(crate) fn u32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.u32()
    }

    fn register(&self, kind: u16) -> Option<Register> {
        register(self.u32(kind)?)
    }

    /// `NFTA_DATA_VALUE` in a nest.
    fn value(&self, kind: u16) -> Option<Vec<u8>> {
        Some(self.get(kind)?.nested().find(NFTA_DATA_VALUE)?.data.to_vec())
    }
}

/// Reads one element of `NFTA_RULE_EXPRESSIONS`.
pub(crate) fn expression(element: Attribute<'_>) -> Expr {
    let kinds: Kinds<'_, 3> = by_kind(element.nested());
    let name = kinds.get(NFTA_EXPR_NAME).map(|name| name.text()).unwrap_or_default();
    let data = kinds.get(NFTA_EXPR_DATA).map(|data| data.data).unwrap_or_default();
    let attributes = Attributes::new(data);
    known(&name, attributes).unwrap_or_else(|| Expr::Other { name: name.into_owned(), data: data.to_vec() })
}

fn known(name: &str, attributes: Attributes<'_>) -> Option<Expr> {
    match name {
        "meta" => meta(&by_kind(attributes)),
        "payload" => payload(&by_kind(attributes)),
        "ct" => ct(&by_kind(attributes)),
        "cmp" => cmp(&by_kind(attributes)),
        "range" => range(&by_kind(attributes)),
        "bitwise" => bitwise(&by_kind(attributes)),
        "lookup" => lookup(&by_kind(attributes)),
        "immediate" => immediate(&by_kind(attributes)),
        "objref" => objref(&by_kind(attributes)),
        "counter" => Some(Expr::Counter),
        "limit" => limit(&by_kind(attributes)),
        "log" => log(&by_kind(attributes)),
        "reject" => reject(&by_kind(attributes)),
        "fib" => fib(&by_kind(attributes)),
        "masq" => masquerade(&by_kind(attributes)),
        "nat" => nat(&by_kind(attributes)),
        "redir" => redirect(&by_kind(attributes)),
        "notrack" => Some(Expr::Notrack),
        "exthdr" => tcp_option_set(&by_kind(attributes)),
        _ => None,
    }
}

fn meta(kinds: &Kinds<'_, 4>) -> Option<Expr> {
    let key = match kinds.u32(META_KEY)? {
        META_KEY_MARK => MetaKey::Mark,
        META_KEY_IIF => MetaKey::Iif,
        META_KEY_IIFNAME => MetaKey::IifName,
        META_KEY_OIFNAME => MetaKey::OifName,
        META_KEY_IIFKIND => MetaKey::IifKind,
        META_KEY_NFPROTO => MetaKey::NfProto,
        META_KEY_L4PROTO => MetaKey::L4Proto,
        _ => return None,
    };
    match kinds.get(META_SREG) {
        Some(_) => Some(Expr::MetaSet { key, sreg: kinds.register(META_SREG)? }),
        None => Some(Expr::Meta { key, dreg: kinds.register(META_DREG)? }),
    }
}

fn payload(kinds: &Kinds<'_, 9>) -> Option<Expr> {
    if kinds.get(PAYLOAD_SREG).is_some() {
        return None;
    }
    let base = match kinds.u32(PAYLOAD_BASE)? {
        PAYLOAD_NETWORK_HEADER => PayloadBase::Network,
        PAYLOAD_TRANSPORT_HEADER => PayloadBase::Transport,
        _ => return None,
    };
    Some(Expr::Payload {
        base,
        offset: kinds.u32(PAYLOAD_OFFSET)?,
        len: kinds.u32(PAYLOAD_LEN)?,
        dreg: kinds.register(PAYLOAD_DREG)?,
    })
}

fn ct(kinds: &Kinds<'_, 5>) -> Option<Expr> {
    if kinds.get(CT_DIRECTION).is_some() {
        return ct_tuple(kinds);
    }
    let key = match kinds.u32(CT_KEY)? {
        CT_KEY_STATE => CtKey::State,
        CT_KEY_DIRECTION => CtKey::Direction,
        CT_KEY_STATUS => CtKey::Status,
        CT_KEY_MARK => CtKey::Mark,
        _ => return None,
    };
    match kinds.get(CT_SREG) {
        Some(_) => Some(Expr::CtSet { key, sreg: kinds.register(CT_SREG)? }),
        None => Some(Expr::Ct { key, dreg: kinds.register(CT_DREG)? }),
    }
}

fn ct_tuple(kinds: &Kinds<'_, 5>) -> Option<Expr> {
    let key = match kinds.u32(CT_KEY)? {
        CT_KEY_SRC_IP => TupleKey::Address(Side::Source, IpVersion::V4),
        CT_KEY_DST_IP => TupleKey::Address(Side::Destination, IpVersion::V4),
        CT_KEY_SRC_IP6 => TupleKey::Address(Side::Source, IpVersion::V6),
        CT_KEY_DST_IP6 => TupleKey::Address(Side::Destination, IpVersion::V6),
        CT_KEY_PROTO_SRC => TupleKey::Port(Side::Source),
        CT_KEY_PROTO_DST => TupleKey::Port(Side::Destination),
        _ => return None,
    };
    let direction = match kinds.get(CT_DIRECTION)?.u8()? {
        CT_DIR_ORIGINAL => Direction::Original,
        CT_DIR_REPLY => Direction::Reply,
        _ => return None,
    };
    Some(Expr::CtTuple { key, direction, dreg: kinds.register(CT_DREG)? })
}

fn cmp(kinds: &Kinds<'_, 4>) -> Option<Expr> {
    let op = match kinds.u32(CMP_OP)? {
        0 => CmpOp::Eq,
        1 => CmpOp::Neq,
        2 => CmpOp::Lt,
        3 => CmpOp::Lte,
        4 => CmpOp::Gt,
        5 => CmpOp::Gte,
        _ => return None,
    };
    Some(Expr::Cmp { op, sreg: kinds.register(CMP_SREG)?, data: kinds.value(CMP_DATA)? })
}

fn range(kinds: &Kinds<'_, 5>) -> Option<Expr> {
    let negate = match kinds.u32(RANGE_OP)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Expr::Range {
        negate,
        sreg: kinds.register(RANGE_SREG)?,
        from: kinds.value(RANGE_FROM_DATA)?,
        to: kinds.value(RANGE_TO_DATA)?,
    })
}

fn bitwise(kinds: &Kinds<'_, 9>) -> Option<Expr> {
    // NFT_BITWISE_BOOL (mask and xor) is 0; absent before Linux 5.6.
    if kinds.get(BITWISE_OP).is_some() && kinds.u32(BITWISE_OP)? != 0 {
        return None;
    }
    Some(Expr::Bitwise {
        sreg: kinds.register(BITWISE_SREG)?,
        dreg: kinds.register(BITWISE_DREG)?,
        mask: kinds.value(BITWISE_MASK)?,
        xor: kinds.value(BITWISE_XOR)?,
    })
}

fn lookup(kinds: &Kinds<'_, 6>) -> Option<Expr> {
    let flags = match kinds.get(LOOKUP_FLAGS) {
        Some(flags) => flags.u32()?,
        None => 0,
    };
    let verdict_map = match kinds.get(LOOKUP_DREG) {
        Some(dreg) if dreg.u32()? == NFT_REG_VERDICT => true,
        Some(_) if flags != 0 => return None,
        Some(_) => {
            return Some(Expr::Map {
                set: kinds.get(LOOKUP_SET)?.text().into(),
                sreg: kinds.register(LOOKUP_SREG)?,
                dreg: kinds.register(LOOKUP_DREG)?,
            });
        }
        None => false,
    };
    if flags & !LOOKUP_F_INV != 0 {
        return None;
    }
    Some(Expr::Lookup {
        set: kinds.get(LOOKUP_SET)?.text().into(),
        sreg: kinds.register(LOOKUP_SREG)?,
        verdict_map,
        negate: flags & LOOKUP_F_INV != 0,
    })
}

fn immediate(kinds: &Kinds<'_, 3>) -> Option<Expr> {
    if kinds.u32(IMMEDIATE_DREG)? == NFT_REG_VERDICT {
        return verdict(kinds.get(IMMEDIATE_DATA)?.nested()).map(Expr::Verdict);
    }
    Some(Expr::Immediate { dreg: kinds.register(IMMEDIATE_DREG)?, data: kinds.value(IMMEDIATE_DATA)? })
}

/// Reads the `NFTA_DATA_VERDICT` among the attributes.
pub(crate) fn verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let kinds: Kinds<'_, 4> = by_kind(attributes.find(NFTA_DATA_VERDICT)?.nested());
    let code = i32::from_be_bytes(*kinds.get(NFTA_VERDICT_CODE)?.data.first_chunk()?);
    let chain = || Some(kinds.get(NFTA_VERDICT_CHAIN)?.text().into());
    Some(match code {
        NFT_RETURN => Verdict::Return,
        NFT_JUMP => Verdict::Jump(chain()?),
        NFT_GOTO => Verdict::Goto(chain()?),
        _ if code == NF_ACCEPT as i32 => Verdict::Accept,
        _ if code == NF_DROP as i32 => Verdict::Drop,
        _ => return None,
    })
}

fn objref(kinds: &Kinds<'_, 6>) -> Option<Expr> {
    if kinds.u32(OBJREF_IMM_TYPE)? != NFT_OBJECT_COUNTER {
        return None;
    }
    Some(Expr::CounterRef(kinds.get(OBJREF_IMM_NAME)?.text().into()))
}

fn limit(kinds: &Kinds<'_, 6>) -> Option<Expr> {
    let number = |kind| kinds.get(kind).map_or(Some(0), |attribute| attribute.u32());
    if kinds.get(LIMIT_UNIT)?.u64()? != LIMIT_UNIT_MINUTE
        || number(LIMIT_TYPE)? != 0
        || number(LIMIT_FLAGS)? != 0
    {
        return None;
    }
    Some(Expr::LimitPerMinute { rate: kinds.get(LIMIT_RATE)?.u64()?, burst: number(LIMIT_BURST)? })
}

fn log(kinds: &Kinds<'_, 7>) -> Option<Expr> {
    if kinds.get(LOG_SNAPLEN).is_some_and(|snaplen| snaplen.u32() != Some(0))
        || kinds.get(LOG_QTHRESHOLD).is_some_and(|threshold| threshold.u16() != Some(0))
    {
        return None;
    }
    let prefix = kinds.get(LOG_PREFIX).map(|prefix| prefix.text().into_owned()).unwrap_or_default();
    Some(Expr::Log { prefix, group: kinds.get(LOG_GROUP)?.u16()? })
}

fn reject(kinds: &Kinds<'_, 3>) -> Option<Expr> {
    let code = || kinds.get(REJECT_ICMP_CODE)?.u8();
    Some(Expr::Reject(match kinds.u32(REJECT_TYPE)? {
        REJECT_TCP_RST => Reject::TcpReset,
        REJECT_ICMPX_UNREACH => match code()? {
            REJECT_ICMPX_ADMIN_PROHIBITED => Reject::AdminProhibited,
            REJECT_ICMPX_PORT_UNREACH => Reject::PortUnreachable,
            _ => return None,
        },
        _ => return None,
    }))
}

fn fib(kinds: &Kinds<'_, 4>) -> Option<Expr> {
    if kinds.u32(FIB_RESULT)? != FIB_RESULT_ADDRTYPE {
        return None;
    }
    let side = match kinds.u32(FIB_FLAGS)? {
        FIB_F_SADDR => Side::Source,
        FIB_F_DADDR => Side::Destination,
        _ => return None,
    };
    Some(Expr::FibType { side, dreg: kinds.register(FIB_DREG)? })
}

fn masquerade(kinds: &Kinds<'_, 4>) -> Option<Expr> {
    if kinds.get(MASQ_REG_PROTO_MIN).is_some() {
        return None;
    }
    Some(Expr::Masquerade(nat_flags(kinds, MASQ_FLAGS)?))
}

fn nat(kinds: &Kinds<'_, 8>) -> Option<Expr> {
    let kind = match kinds.u32(NAT_TYPE)? {
        NAT_SNAT => NatKind::Source,
        NAT_DNAT => NatKind::Destination,
        _ => return None,
    };
    let version = match kinds.u32(NAT_FAMILY)? {
        2 => IpVersion::V4,
        10 => IpVersion::V6,
        _ => return None,
    };
    let address = kinds.register(NAT_REG_ADDR_MIN)?;
    // KERNEL: dumps the first as the last where there is no last (nft_nat_dump).
    if kinds.get(NAT_REG_ADDR_MAX).is_some() && kinds.register(NAT_REG_ADDR_MAX)? != address {
        return None;
    }
    let port = single_port(kinds, NAT_REG_PROTO_MIN, NAT_REG_PROTO_MAX)?;
    Some(Expr::Nat { kind, version, address, port, flags: nat_flags(kinds, NAT_FLAGS)? })
}

fn redirect(kinds: &Kinds<'_, 4>) -> Option<Expr> {
    let port = single_port(kinds, REDIR_REG_PROTO_MIN, REDIR_REG_PROTO_MAX)?;
    Some(Expr::Redirect { port, flags: nat_flags(kinds, REDIR_FLAGS)? })
}

/// The register of a port that is no range, if there is a port; the outer `None` is a range.
fn single_port<const N: usize>(kinds: &Kinds<'_, N>, first: u16, last: u16) -> Option<Option<Register>> {
    let port = match kinds.get(first) {
        Some(_) => Some(kinds.register(first)?),
        None => None,
    };
    match kinds.get(last) {
        Some(_) if kinds.register(last) != port => None,
        _ => Some(port),
    }
}

/// `NF_NAT_RANGE_*`, without what the presence of an address and a port says already.
fn nat_flags<const N: usize>(kinds: &Kinds<'_, N>, attribute: u16) -> Option<NatFlags> {
    let bits = match kinds.get(attribute) {
        Some(flags) => flags.u32()?,
        None => 0,
    } & !(RANGE_MAP_IPS | RANGE_PROTO_SPECIFIED);
    (bits & !(RANGE_PROTO_RANDOM | RANGE_PERSISTENT | RANGE_PROTO_RANDOM_FULLY) == 0).then_some(NatFlags {
        random: bits & RANGE_PROTO_RANDOM != 0,
        fully_random: bits & RANGE_PROTO_RANDOM_FULLY != 0,
        persistent: bits & RANGE_PERSISTENT != 0,
    })
}

fn tcp_option_set(kinds: &Kinds<'_, 8>) -> Option<Expr> {
    let flags = kinds.get(EXTHDR_FLAGS).map_or(Some(0), |flags| flags.u32())?;
    if kinds.u32(EXTHDR_OP)? != EXTHDR_OP_TCPOPT || flags != 0 {
        return None;
    }
    Some(Expr::TcpOptionSet {
        option: kinds.get(EXTHDR_TYPE)?.u8()?,
        offset: kinds.u32(EXTHDR_OFFSET)?,
        len: kinds.u32(EXTHDR_LEN)?,
        sreg: kinds.register(EXTHDR_SREG)?,
    })
}

fn register(number: u32) -> Option<Register> {
    let n = match number {
        NFT_REG_1..=NFT_REG_4 => (number - NFT_REG_1) * 4,
        NFT_REG32_00..=NFT_REG32_15 => number - NFT_REG32_00,
        _ => return None,
    };
    u8::try_from(n).ok().map(Register)
}
