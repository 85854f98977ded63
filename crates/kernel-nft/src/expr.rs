//! Expressions of rules, as the kernel runs them (net/netfilter/nft_*.c), and a builder that writes them in
//! the words of `nft`.
//!
//! A rule is a tiny program over 32-bit registers: load something (`meta`, `payload`, `ct`, `fib`), compare
//! it or look it up, act. The builder always emits the form that the kernel dumps again, so that a rule read
//! back equals the rule sent.

use crate::ruleset::Name;

/// What happens to the packet (`NF_*`, `NFT_*` verdicts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done at this hook in this table.
    Accept,
    /// Gone.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To a chain, and back at its end.
    Jump(Name),
    /// To a chain, without coming back.
    Goto(Name),
}

/// Key of `meta` (`NFT_META_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// `meta l4proto`
    L4Proto,
    /// `meta nfproto`
    NfProto,
    /// `meta mark`
    Mark,
    /// `iifname`
    IifName,
    /// `oifname`
    OifName,
}

/// Where `payload` reads from (`NFT_PAYLOAD_*_HEADER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadBase {
    /// Network header.
    Network,
    /// Transport header.
    Transport,
}

/// Key of `ct` (`NFT_CT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// `ct state`
    State,
    /// `ct direction`
    Direction,
    /// `ct status`
    Status,
    /// `ct mark`
    Mark,
}

/// Comparison (`NFT_CMP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    /// `==`
    Eq,
    /// `!=`
    Neq,
}

/// Answer to a refused packet (`NFT_REJECT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// `reject with tcp reset`
    TcpReset,
    /// `reject with icmpx admin-prohibited`
    AdminProhibited,
    /// `reject with icmpx port-unreachable`
    PortUnreachable,
}

/// 32-bit register number as in `NFT_REG32_00` + n; 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u8);

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads a property of the packet.
    Meta { key: MetaKey, dreg: Register },
    /// Writes a property of the packet.
    MetaSet { key: MetaKey, sreg: Register },
    /// Loads bytes of the packet.
    Payload { base: PayloadBase, offset: u32, len: u32, dreg: Register },
    /// Loads a property of the connection.
    Ct { key: CtKey, dreg: Register },
    /// Writes a property of the connection.
    CtSet { key: CtKey, sreg: Register },
    /// Goes on only if the register compares so.
    Cmp { op: CmpOp, sreg: Register, data: Vec<u8> },
    /// Goes on only if the register is in (or not in) the range, inclusive.
    Range { negate: bool, sreg: Register, from: Vec<u8>, to: Vec<u8> },
    /// `dreg = (sreg & mask) ^ xor`
    Bitwise { sreg: Register, dreg: Register, mask: Vec<u8>, xor: Vec<u8> },
    /// Goes on only if the register is (or is not) in a set; with a verdict map, acts on the verdict found.
    Lookup { set: Name, sreg: Register, verdict_map: bool, negate: bool },
    /// Loads a constant.
    Immediate { dreg: Register, data: Vec<u8> },
    /// Ends or leaves the rule.
    Verdict(Verdict),
    /// Counts in a named counter.
    CounterRef(Name),
    /// Counts in the rule itself; the values are observations and never make two rules differ.
    Counter,
    /// `limit rate N/minute burst B packets`
    LimitPerMinute { rate: u64, burst: u32 },
    /// `log prefix "…" group N`
    Log { prefix: String, group: u16 },
    /// Refuses with an answer.
    Reject(Reject),
    /// `fib saddr|daddr type`: loads the type of the address as the routing table sees it (`RTN_*`).
    FibType { side: Side, dreg: Register },
    /// Something that this crate does not write; kept so that a foreign rule differs from every rule of ours.
    Other { name: String, data: Vec<u8> },
}

/// IP version, where a match needs to know the size of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Which of the two addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// `saddr`
    Source,
    /// `daddr`
    Destination,
}
