//! Writes rules in the words of `nft`.
//!
//! Each method appends what `nft` 1.0.6 would send for the same words, in the same order and registers, so
//! that the kernel dumps exactly what was sent and `nft list` prints exactly the words used here.
//!
//! ```text
//! Rule::new().dport(6, 80..=80).address_in(Side::Source, IpVersion::V4, &p4).accept()
//!             └ meta l4proto 6   └ meta nfproto ipv4
//!               payload, cmp       payload, lookup                           └ immediate
//! ```
//!
//! A match on a header needs to know that the header is there; that condition (a *dependency*: `meta nfproto`,
//! `meta l4proto`) is added before the first match that needs it and not again.

mod field;
mod translation;

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::expr::{
    CmpOp, CtKey, CtState, CtStatus, Expr, IpVersion, MetaKey, PayloadBase, Register, Reject, Side, Verdict,
};
use crate::ruleset::{DataType, Name, Rule, comment};

pub use field::{DESTINATION, Field, SOURCE};

const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_ICMPV6: u8 = 58;
/// `RTN_LOCAL` of include/uapi/linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;
/// `IP_CT_DIR_REPLY` of include/uapi/linux/netfilter/nf_conntrack_tuple_common.h.
const IP_CT_DIR_REPLY: u8 = 1;
/// `NF_LOG_PREFIXLEN` of include/uapi/linux/netfilter/nf_log.h, without its NUL.
const LOG_PREFIX_MAX: usize = 127;
/// `NFT_LIMIT_PKT_BURST_DEFAULT` of net/netfilter/nft_limit.c: what the kernel takes for a burst of 0.
const LIMIT_BURST_DEFAULT: u32 = 5;

/// All matches load into the first register: they are used at once.
const FIRST: Register = Register(0);
/// Where a second constant goes: `NFT_REG_2`, as nft has it.
const SECOND: Register = Register(4);
/// `IFNAMSIZ` of include/uapi/linux/if.h.
const IFNAMSIZ: usize = 16;

impl IpVersion {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub const fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Bytes of an address.
    pub const fn address_len(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Type of an address in sets and maps.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::V4 => DataType::Ipv4Addr,
            Self::V6 => DataType::Ipv6Addr,
        }
    }

    /// Registers that an address fills.
    pub(crate) const fn registers(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }
}

/// Where the address of that side is in the network header.
const fn address_offset(side: Side, version: IpVersion) -> u32 {
    match (version, side) {
        (IpVersion::V4, Side::Source) => 12,
        (IpVersion::V4, Side::Destination) => 16,
        (IpVersion::V6, Side::Source) => 8,
        (IpVersion::V6, Side::Destination) => 24,
    }
}

impl Rule {
    /// A rule that matches every packet and does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a comment, made fit by [`comment`].
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(comment(&text.into()));
        self
    }

    /// Appends an expression as it is.
    #[must_use]
    pub fn expression(mut self, expression: Expr) -> Self {
        self.expressions.push(expression);
        self
    }

    /// `meta nfproto ipv4|ipv6`; nothing if the rule already asks for it.
    #[must_use]
    pub fn nfproto(self, version: IpVersion) -> Self {
        self.dependency(MetaKey::NfProto, version.nfproto())
    }

    /// `meta l4proto N`; nothing if the rule already asks for it.
    #[must_use]
    pub fn l4proto(self, proto: u8) -> Self {
        self.dependency(MetaKey::L4Proto, proto)
    }

    /// `tcp dport N`, `udp dport N-M`, …: `meta l4proto` and, unless the range is all ports, the port.
    ///
    /// The port is where TCP, UDP, SCTP, DCCP and UDP-Lite have it; do not use it for other protocols.
    #[must_use]
    pub fn dport(self, proto: u8, ports: RangeInclusive<u16>) -> Self {
        let (first, last) = (*ports.start(), *ports.end());
        let rule = self.l4proto(proto);
        if (first, last) == (0, u16::MAX) {
            return rule;
        }
        let rule = rule.load_port(Side::Destination, FIRST);
        if first == last {
            return rule.cmp(CmpOp::Eq, &first.to_be_bytes());
        }
        // nft 1.0.6 writes two comparisons, not a `range` expression.
        rule.cmp(CmpOp::Gte, &first.to_be_bytes()).cmp(CmpOp::Lte, &last.to_be_bytes())
    }

    /// `ip saddr @set` and the like. Key of the set: `ipv4_addr` or `ipv6_addr`.
    #[must_use]
    pub fn address_in(self, side: Side, version: IpVersion, set: &Name) -> Self {
        self.nfproto(version).load_address(side, version, FIRST).lookup(set, false)
    }

    /// `ip saddr 10.0.0.0/8` and the like. Host bits of the prefix are ignored; a prefix of length 0 asks
    /// for the IP version only.
    #[must_use]
    pub fn address_in_prefix(self, side: Side, prefix: IpNet) -> Self {
        let version = match prefix {
            IpNet::V4(_) => IpVersion::V4,
            IpNet::V6(_) => IpVersion::V6,
        };
        let address = match prefix.network() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let rule = self.nfproto(version);
        let bits = u32::from(prefix.prefix_len());
        if bits == 0 {
            return rule;
        }
        if bits.is_multiple_of(8) {
            // Whole bytes: nft compares just those.
            let len = bits / 8;
            let offset = address_offset(side, version);
            return rule
                .expression(Expr::Payload { base: PayloadBase::Network, offset, len, dreg: FIRST })
                .cmp(CmpOp::Eq, &address[..len as usize]);
        }
        let mask = match prefix.netmask() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        rule.load_address(side, version, FIRST).bitwise(mask).cmp(CmpOp::Eq, &address)
    }

    /// `ip daddr . th dport @set`. Key of the set: address, `inet_service`. The port is always the
    /// destination port. After `.l4proto(6)` it is `ip daddr . tcp dport @set`; without, any protocol matches
    /// whose third and fourth byte equal the port.
    #[must_use]
    pub fn address_port_in(self, side: Side, version: IpVersion, set: &Name) -> Self {
        self.fields_in(version, &[Field::Address(side), Field::Port(Side::Destination)], set)
    }

    /// `ip saddr . ip daddr @set`. Key of the set: two addresses.
    #[must_use]
    pub fn address_pair_in(self, version: IpVersion, set: &Name) -> Self {
        self.fields_in(version, &[Field::Address(Side::Source), Field::Address(Side::Destination)], set)
    }

    /// `ip daddr . meta l4proto . th dport @set`. Key of the set: address, `inet_proto`, `inet_service`. The
    /// port is always the destination port; for others see [`Rule::fields_in`].
    #[must_use]
    pub fn address_proto_port_in(self, side: Side, version: IpVersion, set: &Name) -> Self {
        self.fields_in(version, &[Field::Address(side), Field::L4Proto, Field::Port(Side::Destination)], set)
    }

    /// `meta l4proto . th dport @set`. Key of the set: `inet_proto`, `inet_service`.
    #[must_use]
    pub fn proto_port_in(self, set: &Name) -> Self {
        // Neither field depends on the IP version.
        self.fields_in(IpVersion::V4, &[Field::L4Proto, Field::Port(Side::Destination)], set)
    }

    /// `ip saddr vmap @map`: carries out the verdict found; goes on with the next rule if there is none.
    #[must_use]
    pub fn address_verdict(self, side: Side, version: IpVersion, map: &Name) -> Self {
        self.nfproto(version).load_address(side, version, FIRST).lookup(map, true)
    }

    /// `icmp type @set`. Key of the set: `icmp_type`.
    #[must_use]
    pub fn icmp_type_in(self, set: &Name) -> Self {
        self.nfproto(IpVersion::V4)
            .l4proto(IPPROTO_ICMP)
            .expression(Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 1, dreg: FIRST })
            .lookup(set, false)
    }

    /// `icmpv6 type @set`. Key of the set: `icmpv6_type`.
    #[must_use]
    pub fn icmpv6_type_in(self, set: &Name) -> Self {
        self.nfproto(IpVersion::V6)
            .l4proto(IPPROTO_ICMPV6)
            .expression(Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 1, dreg: FIRST })
            .lookup(set, false)
    }

    /// `ct state a,b,…`: any of the states. With no state it never matches.
    #[must_use]
    pub fn ct_state(self, states: &[CtState]) -> Self {
        let bits = states.iter().fold(0, |bits, state| bits | state.bit());
        self.expression(Expr::Ct { key: CtKey::State, dreg: FIRST })
            .bitwise(bits.to_ne_bytes().to_vec())
            .cmp(CmpOp::Neq, &[0; 4])
    }

    /// `ct status a,b,…`: any of the bits is set. With none it never matches.
    #[must_use]
    pub fn ct_status(self, statuses: &[CtStatus]) -> Self {
        let bits = statuses.iter().fold(0, |bits, status| bits | status.bit());
        self.expression(Expr::Ct { key: CtKey::Status, dreg: FIRST })
            .bitwise(bits.to_ne_bytes().to_vec())
            .cmp(CmpOp::Neq, &[0; 4])
    }

    /// `iifname "…"`: the packet came in by that interface. A name that no interface can have (longer than 15
    /// bytes) matches nothing.
    #[must_use]
    pub fn input_interface(self, name: &str) -> Self {
        self.interface(MetaKey::IifName, name)
    }

    /// `oifname "…"`: the packet leaves by that interface. For names holds what
    /// [`Rule::input_interface`] says.
    #[must_use]
    pub fn output_interface(self, name: &str) -> Self {
        self.interface(MetaKey::OifName, name)
    }

    /// `iif 0`: the packet came in by no interface. At `output` that is every one, at `forward` and `input` none.
    #[must_use]
    pub fn no_input_interface(self) -> Self {
        self.expression(Expr::Meta { key: MetaKey::Iif, dreg: FIRST }).cmp(CmpOp::Eq, &[0; 4])
    }

    /// `meta iifkind "…"`: the packet came in by an interface of that kind (`bridge`, `veth`, …).
    #[must_use]
    pub fn input_kind(self, kind: &str) -> Self {
        self.interface(MetaKey::IifKind, kind)
    }

    fn interface(self, key: MetaKey, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(IFNAMSIZ, 0);
        self.expression(Expr::Meta { key, dreg: FIRST }).cmp(CmpOp::Eq, &bytes)
    }

    /// `meta mark & mask == value`; with a mask of all ones `meta mark value`.
    #[must_use]
    pub fn mark_equals(self, mask: u32, value: u32) -> Self {
        let rule = self.expression(Expr::Meta { key: MetaKey::Mark, dreg: FIRST });
        let rule = if mask == u32::MAX { rule } else { rule.bitwise(mask.to_ne_bytes().to_vec()) };
        rule.cmp(CmpOp::Eq, &value.to_ne_bytes())
    }

    /// `ct direction reply`: the packet goes against the direction of the connection's first packet.
    #[must_use]
    pub fn ct_direction_reply(self) -> Self {
        self.expression(Expr::Ct { key: CtKey::Direction, dreg: FIRST }).cmp(CmpOp::Eq, &[IP_CT_DIR_REPLY])
    }

    /// `ct mark & mask == value`; with a mask of all ones `ct mark value`.
    #[must_use]
    pub fn ct_mark_equals(self, mask: u32, value: u32) -> Self {
        let rule = self.expression(Expr::Ct { key: CtKey::Mark, dreg: FIRST });
        let rule = if mask == u32::MAX { rule } else { rule.bitwise(mask.to_ne_bytes().to_vec()) };
        rule.cmp(CmpOp::Eq, &value.to_ne_bytes())
    }

    /// `ct mark set ct mark & !mask | value`: writes the bits of `mask`, keeps the others. Bits of `value`
    /// outside `mask` are ignored.
    #[must_use]
    pub fn set_ct_mark(self, mask: u32, value: u32) -> Self {
        self.write_mark(Expr::Ct { key: CtKey::Mark, dreg: FIRST }, mask, value)
            .expression(Expr::CtSet { key: CtKey::Mark, sreg: FIRST })
    }

    /// `fib saddr|daddr type local`: the address is one of this host.
    #[must_use]
    pub fn address_is_local(self, side: Side) -> Self {
        self.expression(Expr::FibType { side, dreg: FIRST }).cmp(CmpOp::Eq, &RTN_LOCAL.to_ne_bytes())
    }

    /// `limit rate N/minute burst B packets`. A rate of 0 is taken as 1, a burst of 0 as 5 (the kernel
    /// refuses the first and does the second by itself).
    #[must_use]
    pub fn limit_per_minute(self, rate: u64, burst: u32) -> Self {
        let burst = if burst == 0 { LIMIT_BURST_DEFAULT } else { burst };
        self.expression(Expr::LimitPerMinute { rate: rate.max(1), burst })
    }

    /// `log prefix "…" group N`: to NFLOG. The prefix is cut to 127 bytes and made fit as [`comment`] does.
    #[must_use]
    pub fn log(self, prefix: impl Into<String>, group: u16) -> Self {
        let mut prefix = comment(&prefix.into());
        while prefix.len() > LOG_PREFIX_MAX {
            prefix.pop();
        }
        self.expression(Expr::Log { prefix, group })
    }

    /// `counter name "…"`
    #[must_use]
    pub fn counter_ref(self, counter: Name) -> Self {
        self.expression(Expr::CounterRef(counter))
    }

    /// `counter`
    #[must_use]
    pub fn counter(self) -> Self {
        self.expression(Expr::Counter)
    }

    /// `reject with …`; for a TCP reset with `meta l4proto tcp` before it, as the kernel sends nothing for
    /// other protocols.
    #[must_use]
    pub fn reject(self, answer: Reject) -> Self {
        let rule = if answer == Reject::TcpReset { self.l4proto(IPPROTO_TCP) } else { self };
        rule.expression(Expr::Reject(answer))
    }

    /// A verdict.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.expression(Expr::Verdict(verdict))
    }

    /// `accept`
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// `drop`
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "the word of nft; a rule has no destructor of its own")]
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// `jump chain`
    #[must_use]
    pub fn jump(self, chain: &Name) -> Self {
        self.verdict(Verdict::Jump(chain.clone()))
    }

    /// `goto chain`
    #[must_use]
    pub fn goto(self, chain: &Name) -> Self {
        self.verdict(Verdict::Goto(chain.clone()))
    }

    /// `return`
    #[must_use]
    pub fn ret(self) -> Self {
        self.verdict(Verdict::Return)
    }

    /// `meta key == value` of one byte, unless the rule has just that already.
    fn dependency(self, key: MetaKey, value: u8) -> Self {
        let present = self.expressions.windows(2).any(|pair| {
            matches!(pair, [Expr::Meta { key: found, dreg: FIRST }, Expr::Cmp { op: CmpOp::Eq, sreg: FIRST, data }]
                if *found == key && data.as_slice() == [value])
        });
        if present {
            return self;
        }
        self.expression(Expr::Meta { key, dreg: FIRST }).cmp(CmpOp::Eq, &[value])
    }

    fn load_address(self, side: Side, version: IpVersion, dreg: Register) -> Self {
        self.expression(Expr::Payload {
            base: PayloadBase::Network,
            offset: address_offset(side, version),
            len: version.address_len(),
            dreg,
        })
    }

    fn bitwise(self, mask: Vec<u8>) -> Self {
        let xor = vec![0; mask.len()];
        self.expression(Expr::Bitwise { sreg: FIRST, dreg: FIRST, mask, xor })
    }

    fn cmp(self, op: CmpOp, data: &[u8]) -> Self {
        self.expression(Expr::Cmp { op, sreg: FIRST, data: data.to_vec() })
    }

    fn lookup(self, set: &Name, verdict_map: bool) -> Self {
        self.expression(Expr::Lookup { set: set.clone(), sreg: FIRST, verdict_map, negate: false })
    }
}
