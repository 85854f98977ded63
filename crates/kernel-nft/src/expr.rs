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
    /// `iif`
    Iif,
    /// `iifname`
    IifName,
    /// `oifname`
    OifName,
    /// `meta iifkind` (Linux 5.1)
    IifKind,
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

/// Which of the two tuples of a connection (`IP_CT_DIR_*`): what its first packet looked like, or what the
/// answer to it looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// `ct original …`: as the first packet came in, before any translation.
    Original,
    /// `ct reply …`
    Reply,
}

/// Part of a tuple of a connection (`NFT_CT_SRC_IP` and the like).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TupleKey {
    /// `ip saddr`, `ip6 daddr`, …; does not match a connection of the other IP version.
    Address(Side, IpVersion),
    /// `proto-src`, `proto-dst`; 2 bytes.
    Port(Side),
}

/// State of a connection's translation and life (`ct status`; bits of `enum ip_conntrack_status`).
///
/// KERNEL: IPVS sets neither `Snat` nor `Dnat`: it alters the reply tuple itself. Recognise its packets by
/// [`TupleKey`] of the original direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtStatus {
    /// Another connection announced it.
    Expected,
    /// Packets were seen in both directions.
    SeenReply,
    /// Not dropped early when the table is full.
    Assured,
    /// Its first packet left the host.
    Confirmed,
    /// Its source is translated.
    Snat,
    /// Its destination is translated.
    Dnat,
    /// Being removed.
    Dying,
}

impl CtStatus {
    /// The bit that `ct status` loads (include/uapi/linux/netfilter/nf_conntrack_common.h).
    pub const fn bit(self) -> u32 {
        match self {
            Self::Expected => 1,
            Self::SeenReply => 1 << 1,
            Self::Assured => 1 << 2,
            Self::Confirmed => 1 << 3,
            Self::Snat => 1 << 4,
            Self::Dnat => 1 << 5,
            Self::Dying => 1 << 9,
        }
    }
}

/// Flag of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpFlag {
    /// No more data from the sender.
    Fin,
    /// Synchronise sequence numbers.
    Syn,
    /// Reset.
    Rst,
    /// Push.
    Psh,
    /// The acknowledgment field counts.
    Ack,
    /// The urgent field counts.
    Urg,
}

impl TcpFlag {
    /// All of them, in the order of their bits.
    pub const ALL: [Self; 6] = [Self::Fin, Self::Syn, Self::Rst, Self::Psh, Self::Ack, Self::Urg];

    /// Bit in the flags byte.
    pub const fn bit(self) -> u8 {
        match self {
            Self::Fin => 1,
            Self::Syn => 1 << 1,
            Self::Rst => 1 << 2,
            Self::Psh => 1 << 3,
            Self::Ack => 1 << 4,
            Self::Urg => 1 << 5,
        }
    }
}

/// How a port or address is chosen where there is a choice (`NF_NAT_RANGE_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatFlags {
    /// `random`: the source port is a hash of the connection and a secret.
    pub random: bool,
    /// `fully-random`: the source port is drawn, which avoids races between CPUs for one port.
    pub fully_random: bool,
    /// `persistent`: a client gets the same address for each of its connections.
    pub persistent: bool,
}

impl NatFlags {
    /// `fully-random` and nothing else.
    pub const FULLY_RANDOM: Self = Self { random: false, fully_random: true, persistent: false };
}

/// What is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatKind {
    /// `snat`: in chains of type `nat` at `postrouting` and `input`.
    Source,
    /// `dnat`: in chains of type `nat` at `prerouting` and `output`.
    Destination,
}

/// Comparison of bytes, first byte first (`NFT_CMP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    /// `==`
    Eq,
    /// `!=`
    Neq,
    /// `<`
    Lt,
    /// `<=`
    Lte,
    /// `>`
    Gt,
    /// `>=`
    Gte,
}

/// State of a connection as conntrack sees it (`ct state`; bits of `NF_CT_STATE_BIT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtState {
    /// Belongs to no connection that conntrack understands.
    Invalid,
    /// Packets have been seen in both directions.
    Established,
    /// Started by another connection (an ICMP error, an FTP data connection).
    Related,
    /// First packet.
    New,
    /// Exempt from connection tracking.
    Untracked,
}

impl CtState {
    /// The bit that `ct state` loads for this state (include/uapi/linux/netfilter/nf_conntrack_common.h).
    pub const fn bit(self) -> u32 {
        match self {
            Self::Invalid => 1,
            Self::Established => 1 << 1,
            Self::Related => 1 << 2,
            Self::New => 1 << 3,
            Self::Untracked => 1 << 6,
        }
    }
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
    Meta {
        /// What to load.
        key: MetaKey,
        /// Where to.
        dreg: Register,
    },
    /// Writes a property of the packet.
    MetaSet {
        /// What to write.
        key: MetaKey,
        /// Where from.
        sreg: Register,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Header to read from.
        base: PayloadBase,
        /// Bytes from the start of the header.
        offset: u32,
        /// Bytes to load.
        len: u32,
        /// Where to.
        dreg: Register,
    },
    /// Loads a property of the connection.
    Ct {
        /// What to load.
        key: CtKey,
        /// Where to.
        dreg: Register,
    },
    /// Loads an address or port of the connection; goes on only if the packet belongs to one that has it.
    CtTuple {
        /// What to load.
        key: TupleKey,
        /// Of which tuple.
        direction: Direction,
        /// Where to.
        dreg: Register,
    },
    /// Writes a property of the connection.
    CtSet {
        /// What to write.
        key: CtKey,
        /// Where from.
        sreg: Register,
    },
    /// Goes on only if the register compares so.
    Cmp {
        /// How to compare.
        op: CmpOp,
        /// Left side.
        sreg: Register,
        /// Right side; its length is the number of bytes compared.
        data: Vec<u8>,
    },
    /// Goes on only if the register is in (or not in) the range, inclusive.
    Range {
        /// True for "not in".
        negate: bool,
        /// What is judged.
        sreg: Register,
        /// First value of the range.
        from: Vec<u8>,
        /// Last value of the range.
        to: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`
    Bitwise {
        /// Source.
        sreg: Register,
        /// Destination.
        dreg: Register,
        /// Bits kept; as long as `xor`.
        mask: Vec<u8>,
        /// Bits turned round afterwards.
        xor: Vec<u8>,
    },
    /// Goes on only if the register is (or is not) in a set; with a verdict map, acts on the verdict found.
    Lookup {
        /// Set or map of the same table.
        set: Name,
        /// First register of the key.
        sreg: Register,
        /// True if the set is a verdict map and its verdict is to be carried out.
        verdict_map: bool,
        /// True for "not in".
        negate: bool,
    },
    /// Loads what a data map has for a key; goes on only if it has it.
    Map {
        /// Map of the same table, with data that are no verdicts.
        set: Name,
        /// First register of the key.
        sreg: Register,
        /// First register of the data.
        dreg: Register,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        dreg: Register,
        /// The constant.
        data: Vec<u8>,
    },
    /// Ends or leaves the rule.
    Verdict(Verdict),
    /// Counts in a named counter.
    CounterRef(Name),
    /// Counts in the rule itself; the values are observations and never make two rules differ.
    Counter,
    /// `limit rate N/minute burst B packets`
    LimitPerMinute {
        /// Packets a minute that pass in the long run; at least 1.
        rate: u64,
        /// Packets that may pass at once before the rate counts.
        burst: u32,
    },
    /// `log prefix "…" group N`
    Log {
        /// Put before each message; at most 127 bytes.
        prefix: String,
        /// NFLOG group.
        group: u16,
    },
    /// Refuses with an answer.
    Reject(Reject),
    /// `fib saddr|daddr type`: loads the type of the address as the routing table sees it (`RTN_*`).
    FibType {
        /// Address that is looked up.
        side: Side,
        /// Where to.
        dreg: Register,
    },
    /// `masquerade`: the source becomes the first address of the interface that the packet leaves by. In
    /// chains of type `nat` at `postrouting`.
    Masquerade(NatFlags),
    /// `snat ip to …`, `dnat ip6 to …`: decides the translation of the connection, from its first packet.
    Nat {
        /// What is translated.
        kind: NatKind,
        /// IP version of the address.
        version: IpVersion,
        /// First register of the new address.
        address: Register,
        /// Register of the new port, in network order; without, the port stays.
        port: Option<Register>,
        /// How a port is chosen.
        flags: NatFlags,
    },
    /// `redirect`: the destination becomes an address of the interface that the packet came in by. In chains
    /// of type `nat` at `prerouting` and `output`.
    Redirect {
        /// Register of the new port, in network order; without, the port stays.
        port: Option<Register>,
        /// How a port is chosen.
        flags: NatFlags,
    },
    /// `notrack`: no connection for this packet. Only useful before conntrack: priority below -200.
    Notrack,
    /// `tcp option … set`: writes into an option that the packet has; goes on whether it has it or not.
    ///
    /// KERNEL: a maximum segment size (`option` 2) is only ever made smaller (nft_exthdr.c).
    TcpOptionSet {
        /// Kind of the option.
        option: u8,
        /// Bytes from the start of the option.
        offset: u32,
        /// Bytes written: 2 or 4.
        len: u32,
        /// Where from, in network order.
        sreg: Register,
    },
    /// Something that this crate does not write; kept so that a foreign rule differs from every rule of ours.
    Other {
        /// Name of the expression, as the kernel has it.
        name: String,
        /// Its attributes, as the kernel dumps them.
        data: Vec<u8>,
    },
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
