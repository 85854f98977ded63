//! Matches on several fields at once: lookups in sets, verdict maps and data maps.

use super::FIRST;
use crate::expr::{
    Direction, Expr, IpVersion, MetaKey, NatFlags, NatKind, PayloadBase, Register, Side, TupleKey,
};
use crate::ruleset::{Name, Rule};

/// One field of the key of a set or map, loaded from a packet or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr`, `ip6 daddr`: `ipv4_addr` or `ipv6_addr`.
    Address(Side),
    /// `meta l4proto`: `inet_proto`.
    L4Proto,
    /// `th sport`, `th dport`: `inet_service`. Of any protocol; where TCP, UDP, SCTP, DCCP and UDP-Lite have
    /// it.
    Port(Side),
    /// `meta mark`: `mark`.
    Mark,
    /// `ct original ip saddr`, `ct original ip6 daddr`: `ipv4_addr` or `ipv6_addr`. Does not match packets
    /// without connection, nor connections of the other version; so it needs no `meta nfproto` before it.
    OriginalAddress(Side),
    /// `ct original proto-src`, `ct original proto-dst`: `inet_service`.
    ///
    /// nft 1.0.6 lists rules with it as they are, but takes their text only after a `meta l4proto` of one
    /// protocol in the same rule: write [`Rule::l4proto`] first where text is to be loaded.
    OriginalPort(Side),
}

/// Address, protocol and port to which a packet goes: the key of tables of Services.
pub const DESTINATION: [Field; 3] =
    [Field::Address(Side::Destination), Field::L4Proto, Field::Port(Side::Destination)];

/// Address, protocol and port from which a packet comes.
pub const SOURCE: [Field; 3] = [Field::Address(Side::Source), Field::L4Proto, Field::Port(Side::Source)];

impl Field {
    /// 32-bit registers that it fills.
    const fn registers(self, version: IpVersion) -> u8 {
        match self {
            Self::Address(_) | Self::OriginalAddress(_) => version.registers(),
            Self::L4Proto | Self::Port(_) | Self::Mark | Self::OriginalPort(_) => 1,
        }
    }
}

impl Rule {
    /// `ip daddr . meta l4proto . th dport @set`. The key of the set has the types of `fields`, in order.
    ///
    /// At most 16 registers: of IPv6 addresses three fit beside other fields. More is refused on commit.
    #[must_use]
    pub fn fields_in(self, version: IpVersion, fields: &[Field], set: &Name) -> Self {
        self.load_fields(version, fields).lookup(set, false)
    }

    /// `ip daddr . meta l4proto . th dport != @set`
    #[must_use]
    pub fn fields_not_in(self, version: IpVersion, fields: &[Field], set: &Name) -> Self {
        let lookup = Expr::Lookup { set: set.clone(), sreg: FIRST, verdict_map: false, negate: true };
        self.load_fields(version, fields).expression(lookup)
    }

    /// `ip daddr . meta l4proto . th dport vmap @map`: carries out the verdict found; goes on with the next
    /// rule if there is none.
    #[must_use]
    pub fn fields_verdict(self, version: IpVersion, fields: &[Field], map: &Name) -> Self {
        self.load_fields(version, fields).lookup(map, true)
    }

    /// `meta mark set ip daddr . meta l4proto . th dport map @map`: the whole mark becomes what the map has
    /// for the key; nothing happens if it has nothing. The map leads to `mark`.
    #[must_use]
    pub fn set_mark_from(self, version: IpVersion, fields: &[Field], map: &Name) -> Self {
        self.load_fields(version, fields)
            .load_from(map)
            .expression(Expr::MetaSet { key: MetaKey::Mark, sreg: FIRST })
    }

    /// `dnat ip to ip daddr . meta l4proto . th dport map @map`: the destination becomes what the map has for
    /// the key. The map leads to an address of that version and, if `with_port`, `inet_service`.
    #[must_use]
    pub fn dnat_from(self, version: IpVersion, fields: &[Field], map: &Name, with_port: bool) -> Self {
        let port = with_port.then_some(Register(version.registers()));
        self.load_fields(version, fields).load_from(map).nat(
            NatKind::Destination,
            version,
            port,
            NatFlags::default(),
        )
    }

    /// `snat ip to ip saddr . ip daddr map @map`: the source becomes what the map has for the key. The map
    /// leads to an address of that version.
    #[must_use]
    pub fn snat_from(self, version: IpVersion, fields: &[Field], map: &Name, flags: NatFlags) -> Self {
        self.load_fields(version, fields).load_from(map).nat(NatKind::Source, version, None, flags)
    }

    fn load_from(self, map: &Name) -> Self {
        self.expression(Expr::Map { set: map.clone(), sreg: FIRST, dreg: FIRST })
    }

    /// Loads the fields one after another, from the first register on.
    fn load_fields(self, version: IpVersion, fields: &[Field]) -> Self {
        let of_header = fields.iter().any(|field| matches!(field, Field::Address(_)));
        let mut rule = if of_header { self.nfproto(version) } else { self };
        let mut next = 0u8;
        for field in fields {
            let dreg = Register(next);
            next = next.saturating_add(field.registers(version));
            rule = match field {
                Field::Address(side) => rule.load_address(*side, version, dreg),
                Field::L4Proto => rule.expression(Expr::Meta { key: MetaKey::L4Proto, dreg }),
                Field::Port(side) => rule.load_port(*side, dreg),
                Field::Mark => rule.expression(Expr::Meta { key: MetaKey::Mark, dreg }),
                Field::OriginalAddress(side) => rule.load_original(TupleKey::Address(*side, version), dreg),
                Field::OriginalPort(side) => rule.load_original(TupleKey::Port(*side), dreg),
            };
        }
        rule
    }

    pub(super) fn load_original(self, key: TupleKey, dreg: Register) -> Self {
        self.expression(Expr::CtTuple { key, direction: Direction::Original, dreg })
    }

    pub(super) fn load_port(self, side: Side, dreg: Register) -> Self {
        let offset = match side {
            Side::Source => 0,
            Side::Destination => 2,
        };
        self.expression(Expr::Payload { base: PayloadBase::Transport, offset, len: 2, dreg })
    }
}
