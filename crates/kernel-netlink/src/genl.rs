//! Generic netlink: families are found by name.

use netlink_packet_core::Emitable;
use netlink_packet_generic::constants::{CTRL_ATTR_FAMILY_ID, CTRL_CMD_NEWFAMILY, GENL_HDRLEN};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

use crate::attribute::{Attribute, find, u16_of};
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
