//! Attributes of netlink messages: numbers, texts, bytes, or attributes again.
//!
//! Headers, lengths and alignment are the rust-netlink crates'. What is read is read here, because their decoders
//! give up a whole message at one attribute that is not as they know it, and kernels learn new ones.

use netlink_packet_core::{
    Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NLA_TYPE_MASK, NetlinkSerializable, Nla, NlasIterator,
};

/// The value of an attribute being written. Numbers are in host order unless they say otherwise.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U8(u8),
    U16(u16),
    U32(u32),
    Bytes(Vec<u8>),
    /// A NUL is put at its end.
    Text(String),
    Nested(Vec<Attribute>),
}

/// An attribute being written.
#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    pub(crate) kind: u16,
    pub(crate) value: Value,
}

impl Attribute {
    pub(crate) fn new(kind: u16, value: Value) -> Self {
        Self { kind, value }
    }
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        match &self.value {
            Value::U8(_) => 1,
            Value::U16(_) => 2,
            Value::U32(_) => 4,
            Value::Bytes(bytes) => bytes.len(),
            Value::Text(text) => text.len() + 1,
            Value::Nested(inner) => inner.as_slice().buffer_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self.value {
            Value::Nested(_) => self.kind | NLA_F_NESTED,
            _ => self.kind,
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match &self.value {
            Value::U8(number) => buffer.copy_from_slice(&number.to_ne_bytes()),
            Value::U16(number) => buffer.copy_from_slice(&number.to_ne_bytes()),
            Value::U32(number) => buffer.copy_from_slice(&number.to_ne_bytes()),
            Value::Bytes(bytes) => buffer.copy_from_slice(bytes),
            Value::Text(text) => {
                let (start, end) = buffer.split_at_mut(text.len());
                start.copy_from_slice(text.as_bytes());
                end.fill(0);
            }
            Value::Nested(inner) => inner.as_slice().emit(buffer),
        }
    }
}

/// A message being written, of a family with a header of its own in front of the attributes.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Type in the `nlmsghdr`.
    pub(crate) kind: u16,
    /// The family's header, of a length that is a multiple of 4.
    pub(crate) header: Vec<u8>,
    pub(crate) attributes: Vec<Attribute>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.header.len() + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(self.header.len());
        header.copy_from_slice(&self.header);
        self.attributes.as_slice().emit(attributes);
    }
}

/// Attributes one after another, as (type, value); ends at the first that is cut.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, len) = (attribute.kind() & NLA_TYPE_MASK, usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..len)?))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1)
}

pub(crate) fn u8_of(value: &[u8]) -> Option<u8> {
    value.first().copied()
}

pub(crate) fn u16_of(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_ne_bytes)
}

pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

pub(crate) fn u64_of(value: &[u8]) -> Option<u64> {
    value.first_chunk().copied().map(u64::from_ne_bytes)
}

pub(crate) fn be16_of(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_be_bytes)
}
