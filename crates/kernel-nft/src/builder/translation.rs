//! Statements that change a packet or its connection: NAT, marks, the maximum segment size, no tracking.

use std::net::IpAddr;

use super::{FIRST, SECOND};
use crate::expr::{
    Expr, IpVersion, MetaKey, NatFlags, NatKind, PayloadBase, Register, Side, TcpFlag, TupleKey,
};
use crate::ruleset::Rule;

/// Kind of the option "maximum segment size", and where in it the size is (RFC 9293 §3.2).
const TCP_OPTION_MSS: u8 = 2;
const TCP_OPTION_MSS_OFFSET: u32 = 2;
/// Where the flags are in a TCP header.
const TCP_FLAGS_OFFSET: u32 = 13;

impl Rule {
    /// `masquerade fully-random`: the source becomes the first address of the interface that the packet
    /// leaves by.
    #[must_use]
    pub fn masquerade(self, flags: NatFlags) -> Self {
        self.expression(Expr::Masquerade(flags))
    }

    /// `snat ip to A`: the source becomes that address; the port only where it would clash.
    #[must_use]
    pub fn snat_to(self, address: IpAddr, flags: NatFlags) -> Self {
        let (rule, version) = self.load_constant_address(address);
        rule.nat(NatKind::Source, version, None, flags)
    }

    /// `snat ip to ct original ip daddr`: the source becomes the address that the connection was opened to,
    /// before it was translated.
    #[must_use]
    pub fn snat_to_original_destination(self, version: IpVersion, flags: NatFlags) -> Self {
        self.load_original(TupleKey::Address(Side::Destination, version), FIRST).nat(
            NatKind::Source,
            version,
            None,
            flags,
        )
    }

    /// `dnat ip to A`, `dnat ip to A:port`. With a port the rule must ask for one protocol before
    /// ([`Rule::l4proto`], [`Rule::dport`]): the kernel would write the port into anything, and nft does not
    /// take the text.
    #[must_use]
    pub fn dnat_to(self, address: IpAddr, port: Option<u16>) -> Self {
        let (rule, version) = self.load_constant_address(address);
        let register = port.map(|_| SECOND);
        rule.load_constant_port(port, SECOND).nat(
            NatKind::Destination,
            version,
            register,
            NatFlags::default(),
        )
    }

    /// `redirect`, `redirect to :port`: the destination becomes this host. For a port holds what
    /// [`Rule::dnat_to`] says.
    #[must_use]
    pub fn redirect(self, port: Option<u16>) -> Self {
        let register = port.map(|_| FIRST);
        self.load_constant_port(port, FIRST)
            .expression(Expr::Redirect { port: register, flags: NatFlags::default() })
    }

    /// `notrack`: no connection for this packet.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.expression(Expr::Notrack)
    }

    /// `tcp flags A / A,B`: of the flags `among` just those of `set` are set. Asks for TCP first.
    #[must_use]
    pub fn tcp_flags(self, among: &[TcpFlag], set: &[TcpFlag]) -> Self {
        let bits = |flags: &[TcpFlag]| flags.iter().fold(0, |bits, flag| bits | flag.bit());
        let flags =
            Expr::Payload { base: PayloadBase::Transport, offset: TCP_FLAGS_OFFSET, len: 1, dreg: FIRST };
        self.l4proto(super::IPPROTO_TCP)
            .expression(flags)
            .bitwise(vec![bits(among)])
            .cmp(crate::expr::CmpOp::Eq, &[bits(set)])
    }

    /// `tcp option maxseg size set N`: the maximum segment size is made that small where it is larger. Does
    /// nothing to a packet that has no such option.
    #[must_use]
    pub fn clamp_mss(self, size: u16) -> Self {
        self.expression(Expr::Immediate { dreg: FIRST, data: size.to_be_bytes().to_vec() }).expression(
            Expr::TcpOptionSet { option: TCP_OPTION_MSS, offset: TCP_OPTION_MSS_OFFSET, len: 2, sreg: FIRST },
        )
    }

    /// `meta mark set meta mark & !mask | value`: writes the bits of `mask`, keeps the others; with a mask of
    /// all ones `meta mark set value`. Bits of `value` outside `mask` are ignored.
    #[must_use]
    pub fn set_mark(self, mask: u32, value: u32) -> Self {
        self.write_mark(Expr::Meta { key: MetaKey::Mark, dreg: FIRST }, mask, value)
            .expression(Expr::MetaSet { key: MetaKey::Mark, sreg: FIRST })
    }

    /// Loads the mark with the bits of `mask` replaced; `load` loads the present one.
    pub(super) fn write_mark(self, load: Expr, mask: u32, value: u32) -> Self {
        let value = value & mask;
        if mask == u32::MAX {
            return self.expression(Expr::Immediate { dreg: FIRST, data: value.to_ne_bytes().to_vec() });
        }
        self.expression(load).expression(Expr::Bitwise {
            sreg: FIRST,
            dreg: FIRST,
            mask: (!mask).to_ne_bytes().to_vec(),
            xor: value.to_ne_bytes().to_vec(),
        })
    }

    fn load_constant_address(self, address: IpAddr) -> (Self, IpVersion) {
        let (version, data) = match address {
            IpAddr::V4(v4) => (IpVersion::V4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (IpVersion::V6, v6.octets().to_vec()),
        };
        (self.expression(Expr::Immediate { dreg: FIRST, data }), version)
    }

    fn load_constant_port(self, port: Option<u16>, dreg: Register) -> Self {
        match port {
            Some(port) => self.expression(Expr::Immediate { dreg, data: port.to_be_bytes().to_vec() }),
            None => self,
        }
    }

    /// Translates to the address in the first register.
    pub(super) fn nat(
        self,
        kind: NatKind,
        version: IpVersion,
        port: Option<Register>,
        flags: NatFlags,
    ) -> Self {
        self.expression(Expr::Nat { kind, version, address: FIRST, port, flags })
    }
}
