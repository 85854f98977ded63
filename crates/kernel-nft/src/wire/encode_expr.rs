//! Expressions as the attributes that net/netfilter/nft_*.c read.

use super::Writer;
use super::uapi::*;
use crate::expr::{
    CmpOp, CtKey, Direction, Expr, IpVersion, MetaKey, NatFlags, NatKind, PayloadBase, Register, Reject,
    Side, TupleKey, Verdict,
};

/// Writes one element of `NFTA_RULE_EXPRESSIONS`.
pub(crate) fn expression(writer: &mut Writer, expression: &Expr) -> Result<(), &'static str> {
    let element = writer.nest(NFTA_LIST_ELEM);
    writer.text(NFTA_EXPR_NAME, name(expression));
    let data = writer.nest(NFTA_EXPR_DATA);
    attributes(writer, expression)?;
    writer.end_nest(data);
    writer.end_nest(element);
    Ok(())
}

/// Name of the kernel's module for the expression.
fn name(expression: &Expr) -> &str {
    match expression {
        Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
        Expr::Payload { .. } => "payload",
        Expr::Ct { .. } | Expr::CtSet { .. } | Expr::CtTuple { .. } => "ct",
        Expr::Cmp { .. } => "cmp",
        Expr::Range { .. } => "range",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } | Expr::Map { .. } => "lookup",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::CounterRef(_) => "objref",
        Expr::Counter => "counter",
        Expr::LimitPerMinute { .. } => "limit",
        Expr::Log { .. } => "log",
        Expr::Reject(_) => "reject",
        Expr::FibType { .. } => "fib",
        Expr::Masquerade(_) => "masq",
        Expr::Nat { .. } => "nat",
        Expr::Redirect { .. } => "redir",
        Expr::Notrack => "notrack",
        Expr::TcpOptionSet { .. } => "exthdr",
        Expr::Other { name, .. } => name,
    }
}

fn attributes(writer: &mut Writer, expression: &Expr) -> Result<(), &'static str> {
    match expression {
        Expr::Meta { key, dreg } => {
            writer.number(META_DREG, register(*dreg)?);
            writer.number(META_KEY, meta_key(*key));
        }
        Expr::MetaSet { key, sreg } => {
            writer.number(META_KEY, meta_key(*key));
            writer.number(META_SREG, register(*sreg)?);
        }
        Expr::Payload { base, offset, len, dreg } => {
            writer.number(PAYLOAD_DREG, register(*dreg)?);
            writer.number(PAYLOAD_BASE, payload_base(*base));
            writer.number(PAYLOAD_OFFSET, *offset);
            writer.number(PAYLOAD_LEN, *len);
        }
        Expr::Ct { key, dreg } => {
            writer.number(CT_DREG, register(*dreg)?);
            writer.number(CT_KEY, ct_key(*key));
        }
        Expr::CtTuple { key, direction, dreg } => {
            writer.number(CT_DREG, register(*dreg)?);
            writer.number(CT_KEY, tuple_key(*key));
            writer.number(CT_DIRECTION, tuple_direction(*direction));
        }
        Expr::CtSet { key, sreg } => {
            writer.number(CT_KEY, ct_key(*key));
            writer.number(CT_SREG, register(*sreg)?);
        }
        Expr::Cmp { op, sreg, data } => {
            writer.number(CMP_SREG, register(*sreg)?);
            writer.number(CMP_OP, cmp_op(*op));
            value(writer, CMP_DATA, data);
        }
        Expr::Range { negate, sreg, from, to } => {
            writer.number(RANGE_SREG, register(*sreg)?);
            writer.number(RANGE_OP, u32::from(*negate));
            value(writer, RANGE_FROM_DATA, from);
            value(writer, RANGE_TO_DATA, to);
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => bitwise(writer, *sreg, *dreg, mask, xor)?,
        Expr::Lookup { .. } | Expr::Map { .. } => lookup(writer, expression)?,
        Expr::Immediate { dreg, data } => {
            writer.number(IMMEDIATE_DREG, register(*dreg)?);
            value(writer, IMMEDIATE_DATA, data);
        }
        _ => statement(writer, expression)?,
    }
    Ok(())
}

fn lookup(writer: &mut Writer, expression: &Expr) -> Result<(), &'static str> {
    let (set, sreg, dreg, negate) = match expression {
        Expr::Lookup { set, sreg, verdict_map, negate } => {
            (set, sreg, verdict_map.then_some(NFT_REG_VERDICT), *negate)
        }
        Expr::Map { set, sreg, dreg } => (set, sreg, Some(register(*dreg)?), false),
        _ => return Err("an expression that is no lookup"),
    };
    writer.text(LOOKUP_SET, set);
    writer.number(LOOKUP_SREG, register(*sreg)?);
    if let Some(dreg) = dreg {
        writer.number(LOOKUP_DREG, dreg);
    }
    if negate {
        writer.number(LOOKUP_FLAGS, LOOKUP_F_INV);
    }
    Ok(())
}

fn statement(writer: &mut Writer, expression: &Expr) -> Result<(), &'static str> {
    match expression {
        Expr::Verdict(verdict_value) => {
            writer.number(IMMEDIATE_DREG, NFT_REG_VERDICT);
            let data = writer.nest(IMMEDIATE_DATA);
            verdict(writer, verdict_value);
            writer.end_nest(data);
        }
        Expr::CounterRef(name) => {
            writer.number(OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER);
            writer.text(OBJREF_IMM_NAME, name);
        }
        Expr::Counter => {
            writer.number(NFTA_COUNTER_BYTES, 0u64);
            writer.number(NFTA_COUNTER_PACKETS, 0u64);
        }
        Expr::LimitPerMinute { rate, burst } => {
            writer.number(LIMIT_RATE, *rate);
            writer.number(LIMIT_UNIT, LIMIT_UNIT_MINUTE);
            writer.number(LIMIT_BURST, *burst);
            writer.number(LIMIT_TYPE, 0u32);
            writer.number(LIMIT_FLAGS, 0u32);
        }
        Expr::Log { prefix, group } => {
            writer.number(LOG_GROUP, *group);
            if !prefix.is_empty() {
                writer.text(LOG_PREFIX, prefix);
            }
        }
        Expr::Reject(answer) => {
            let (kind, code) = match answer {
                Reject::TcpReset => (REJECT_TCP_RST, 0u8),
                Reject::AdminProhibited => (REJECT_ICMPX_UNREACH, REJECT_ICMPX_ADMIN_PROHIBITED),
                Reject::PortUnreachable => (REJECT_ICMPX_UNREACH, REJECT_ICMPX_PORT_UNREACH),
            };
            writer.number(REJECT_TYPE, kind);
            writer.number(REJECT_ICMP_CODE, code);
        }
        Expr::FibType { side, dreg } => {
            let flags = match side {
                Side::Source => FIB_F_SADDR,
                Side::Destination => FIB_F_DADDR,
            };
            writer.number(FIB_FLAGS, flags);
            writer.number(FIB_RESULT, FIB_RESULT_ADDRTYPE);
            writer.number(FIB_DREG, register(*dreg)?);
        }
        _ => translation(writer, expression)?,
    }
    Ok(())
}

/// What changes the packet or its connection.
fn translation(writer: &mut Writer, expression: &Expr) -> Result<(), &'static str> {
    match expression {
        Expr::Masquerade(flags) => optional_flags(writer, MASQ_FLAGS, nat_flags(*flags)),
        Expr::Nat { kind, version, address, port, flags } => {
            let kind = match kind {
                NatKind::Source => NAT_SNAT,
                NatKind::Destination => NAT_DNAT,
            };
            writer.number(NAT_TYPE, kind);
            writer.number(NAT_FAMILY, u32::from(version.nfproto()));
            writer.number(NAT_REG_ADDR_MIN, register(*address)?);
            let mut flags = nat_flags(*flags) | RANGE_MAP_IPS;
            if let Some(port) = port {
                writer.number(NAT_REG_PROTO_MIN, register(*port)?);
                flags |= RANGE_PROTO_SPECIFIED;
            }
            optional_flags(writer, NAT_FLAGS, flags);
        }
        Expr::Redirect { port, flags } => {
            let mut flags = nat_flags(*flags);
            if let Some(port) = port {
                writer.number(REDIR_REG_PROTO_MIN, register(*port)?);
                flags |= RANGE_PROTO_SPECIFIED;
            }
            optional_flags(writer, REDIR_FLAGS, flags);
        }
        Expr::Notrack => {}
        Expr::TcpOptionSet { option, offset, len, sreg } => {
            writer.number(EXTHDR_TYPE, *option);
            writer.number(EXTHDR_OFFSET, *offset);
            writer.number(EXTHDR_LEN, *len);
            writer.number(EXTHDR_OP, EXTHDR_OP_TCPOPT);
            writer.number(EXTHDR_SREG, register(*sreg)?);
        }
        _ => return Err("an expression that can only be observed"),
    }
    Ok(())
}

/// The kernel dumps flags only where there are some.
fn optional_flags(writer: &mut Writer, attribute: u16, flags: u32) {
    if flags != 0 {
        writer.number(attribute, flags);
    }
}

fn nat_flags(flags: NatFlags) -> u32 {
    [
        (flags.random, RANGE_PROTO_RANDOM),
        (flags.persistent, RANGE_PERSISTENT),
        (flags.fully_random, RANGE_PROTO_RANDOM_FULLY),
    ]
    .into_iter()
    .fold(0, |bits, (set, bit)| if set { bits | bit } else { bits })
}

fn bitwise(
    writer: &mut Writer,
    sreg: Register,
    dreg: Register,
    mask: &[u8],
    xor: &[u8],
) -> Result<(), &'static str> {
    if mask.len() != xor.len() || mask.len() > 64 {
        return Err("a mask and an xor of different lengths");
    }
    writer.number(BITWISE_SREG, register(sreg)?);
    writer.number(BITWISE_DREG, register(dreg)?);
    writer.number(BITWISE_LEN, mask.len() as u32);
    value(writer, BITWISE_MASK, mask);
    value(writer, BITWISE_XOR, xor);
    Ok(())
}

/// `NFTA_DATA_VALUE` in a nest.
fn value(writer: &mut Writer, attribute: u16, data: &[u8]) {
    let nest = writer.nest(attribute);
    writer.attribute(NFTA_DATA_VALUE, data);
    writer.end_nest(nest);
}

/// `NFTA_DATA_VERDICT`.
pub(crate) fn verdict(writer: &mut Writer, verdict: &Verdict) {
    let nest = writer.nest(NFTA_DATA_VERDICT);
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT as i32, None),
        Verdict::Drop => (NF_DROP as i32, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    writer.number(NFTA_VERDICT_CODE, code);
    if let Some(chain) = chain {
        writer.text(NFTA_VERDICT_CHAIN, chain);
    }
    writer.end_nest(nest);
}

/// Registers of 16 bytes where the number allows, as the kernel dumps them (`nft_dump_register`).
fn register(register: Register) -> Result<u32, &'static str> {
    match u32::from(register.0) {
        n @ (0 | 4 | 8 | 12) => Ok(NFT_REG_1 + n / 4),
        n @ 0..=15 => Ok(NFT_REG32_00 + n),
        _ => Err("a register that does not exist"),
    }
}

fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::Mark => META_KEY_MARK,
        MetaKey::Iif => META_KEY_IIF,
        MetaKey::IifName => META_KEY_IIFNAME,
        MetaKey::OifName => META_KEY_OIFNAME,
        MetaKey::IifKind => META_KEY_IIFKIND,
        MetaKey::NfProto => META_KEY_NFPROTO,
        MetaKey::L4Proto => META_KEY_L4PROTO,
    }
}

fn payload_base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::Network => PAYLOAD_NETWORK_HEADER,
        PayloadBase::Transport => PAYLOAD_TRANSPORT_HEADER,
    }
}

fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => CT_KEY_STATE,
        CtKey::Direction => CT_KEY_DIRECTION,
        CtKey::Status => CT_KEY_STATUS,
        CtKey::Mark => CT_KEY_MARK,
    }
}

fn tuple_key(key: TupleKey) -> u32 {
    match key {
        TupleKey::Address(Side::Source, IpVersion::V4) => CT_KEY_SRC_IP,
        TupleKey::Address(Side::Destination, IpVersion::V4) => CT_KEY_DST_IP,
        TupleKey::Address(Side::Source, IpVersion::V6) => CT_KEY_SRC_IP6,
        TupleKey::Address(Side::Destination, IpVersion::V6) => CT_KEY_DST_IP6,
        TupleKey::Port(Side::Source) => CT_KEY_PROTO_SRC,
        TupleKey::Port(Side::Destination) => CT_KEY_PROTO_DST,
    }
}

fn tuple_direction(direction: Direction) -> u8 {
    match direction {
        Direction::Original => CT_DIR_ORIGINAL,
        Direction::Reply => CT_DIR_REPLY,
    }
}

fn cmp_op(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Neq => 1,
        CmpOp::Lt => 2,
        CmpOp::Lte => 3,
        CmpOp::Gt => 4,
        CmpOp::Gte => 5,
    }
}
