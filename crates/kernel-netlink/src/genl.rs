//! Generic netlink: families are found by name, attributes are numbers, texts, bytes or attributes again.
//!
//! Built on the rust-netlink crates' messages (headers, lengths, alignment); what is read is read here, because
//! their decoders give up at an attribute that they don't know, and kernels learn new ones.

use netlink_packet_core::{Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NLA_TYPE_MASK, Nla, NlasIterator};
use netlink_packet_generic::constants::{CTRL_ATTR_FAMILY_ID, CTRL_CMD_NEWFAMILY, GENL_HDRLEN};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

use crate::netlink::{Netlink, ReadError};

/// The number of a family. Asking loads the module of the family, if the kernel finds one.
///
/// # Errors
/// `Refused(ENOENT)` when there is no such family.
pub(crate) fn family_id(netlink: &mut Netlink, name: &str) -> Result<u16, ReadError> {
    let ask =
        GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())] };
    let mut found = None;
    netlink.request(GenlMessage::from_payload(ask), 0, |body| {
        if let Some((CTRL_CMD_NEWFAMILY, attributes)) = command(body) {
            found = find(attributes, CTRL_ATTR_FAMILY_ID).and_then(u16_of);
        }
        Ok(())
    })?;
    found.ok_or(ReadError::Malformed("a family without a number"))
}

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

/// A command of a family with its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) command: u8,
    pub(crate) version: u8,
    pub(crate) attributes: Vec<Attribute>,
}

impl Command {
    /// The message for the family with this number.
    pub(crate) fn message(self, family: u16) -> GenlMessage<Self> {
        GenlMessage::new(GenlHeader { cmd: self.command, version: self.version }, self, family)
    }
}

impl GenlFamily for Command {
    /// Families are found by [`family_id`], which is told the name.
    fn family_name() -> &'static str {
        ""
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        self.version
    }
}

impl Emitable for Command {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

/// Command and attributes of a message received; `None` if it is too short.
pub(crate) fn command(body: &[u8]) -> Option<(u8, &[u8])> {
    let header = GenlHeader::parse(body).ok()?;
    Some((header.cmd, body.get(GENL_HDRLEN..)?))
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
