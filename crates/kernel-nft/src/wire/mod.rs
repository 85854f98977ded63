//! Netlink messages and attributes as bytes: written forwards into one buffer, read without copying.
//!
//! ```text
//!  nlmsghdr 16 bytes │ nfgenmsg 4 bytes │ nlattr len,type,data,pad │ nlattr …
//! ```
//!
//! Headers and lengths are in host order, numbers inside nf_tables attributes in network order
//! (include/uapi/linux/netlink.h, nfnetlink.h). Nothing here can fail on any input but by saying so.

pub(crate) mod decode;
pub(crate) mod decode_expr;
pub(crate) mod encode;
pub(crate) mod encode_expr;
#[cfg(test)]
mod fuzz;
pub(crate) mod uapi;

use crate::ruleset::Family;

/// Bytes of a `nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Bytes of a `nfgenmsg`.
const NFGEN: usize = 4;
/// Bytes of a `nlattr`.
const ATTRIBUTE: usize = 4;
/// Bits of an attribute's type that are its type (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

impl Family {
    /// `NFPROTO_*`.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }
}

/// Messages being written one after another.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    overflow: bool,
}

/// Where a message or a nest of attributes began; its length is filled in at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start(usize);

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), overflow: false }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if something written since the last call is longer than its length field can say.
    pub(crate) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflow)
    }

    /// Begins a message: `nlmsghdr` and `nfgenmsg` (whose `res_id` is in network order).
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, res_id: u16) -> Start {
        let start = Start(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&res_id.to_be_bytes());
        start
    }

    /// Ends a message.
    pub(crate) fn end_message(&mut self, start: Start) {
        match u32::try_from(self.bytes.len() - start.0) {
            Ok(len) => self.bytes[start.0..start.0 + 4].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    /// Sets flags of the message that began at `start`.
    pub(crate) fn add_flags(&mut self, start: Start, flags: u16) {
        let at = start.0 + 6;
        let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// Begins an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16) -> Start {
        let start = Start(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | uapi::NLA_F_NESTED).to_ne_bytes());
        start
    }

    /// Ends an attribute that holds attributes.
    pub(crate) fn end_nest(&mut self, start: Start) {
        match u16::try_from(self.bytes.len() - start.0) {
            Ok(len) => self.bytes[start.0..start.0 + 2].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    /// Bytes written since `start`.
    pub(crate) fn since(&self, start: Start) -> usize {
        self.bytes.len() - start.0
    }

    /// An attribute.
    pub(crate) fn attribute(&mut self, kind: u16, data: &[u8]) {
        let Ok(len) = u16::try_from(ATTRIBUTE + data.len()) else {
            self.overflow = true;
            return;
        };
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    /// An attribute of one number, in network order.
    pub(crate) fn number<const N: usize>(&mut self, kind: u16, number: impl ToBeBytes<N>) {
        self.attribute(kind, &number.to_be());
    }

    /// An attribute of text with the NUL that the kernel wants at its end.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let Ok(len) = u16::try_from(ATTRIBUTE + text.len() + 1) else {
            self.overflow = true;
            return;
        };
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Numbers that attributes hold.
pub(crate) trait ToBeBytes<const N: usize> {
    fn to_be(self) -> [u8; N];
}

macro_rules! to_be_bytes {
    ($($number:ty: $bytes:literal),*) => {
        $(impl ToBeBytes<$bytes> for $number {
            fn to_be(self) -> [u8; $bytes] {
                self.to_be_bytes()
            }
        })*
    };
}
to_be_bytes!(u8: 1, u16: 2, u32: 4, i32: 4, u64: 8);

/// One message received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Port of the socket that asked for it or caused it.
    pub(crate) portid: u32,
    /// Everything after the `nlmsghdr`.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after the `nfgenmsg`; none if there is no `nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.body.get(NFGEN..).unwrap_or_default() }
    }

    /// `nfgen_family`.
    pub(crate) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }
}

/// Splits a datagram into messages. Ends early, with an error, at the first that is cut or too short.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((header, _)) = self.rest.split_first_chunk::<HEADER>() else {
            self.rest = &[];
            return Some(Err("a message without a whole header"));
        };
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = self.rest.get(HEADER..len) else {
            self.rest = &[];
            return Some(Err("a message longer than its datagram"));
        };
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            portid: u32::from_ne_bytes([p0, p1, p2, p3]),
            body,
        }))
    }
}

/// One attribute received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) data: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside.
    pub(crate) fn nested(&self) -> Attributes<'a> {
        Attributes { rest: self.data }
    }

    pub(crate) fn u8(&self) -> Option<u8> {
        self.data.first().copied()
    }

    pub(crate) fn u16(&self) -> Option<u16> {
        self.data.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(crate) fn u32(&self) -> Option<u32> {
        self.data.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(crate) fn u64(&self) -> Option<u64> {
        self.data.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// Text up to its NUL. Names of other programs may be no UTF-8: those bytes become U+FFFD.
    pub(crate) fn text(&self) -> std::borrow::Cow<'a, str> {
        let end = self.data.iter().position(|byte| *byte == 0).unwrap_or(self.data.len());
        String::from_utf8_lossy(&self.data[..end])
    }
}

/// Reads attributes one after another; ends at the first that is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of a kind.
    pub(crate) fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.rest.first_chunk::<ATTRIBUTE>()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let data = self.rest.get(ATTRIBUTE..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK, data })
    }
}
