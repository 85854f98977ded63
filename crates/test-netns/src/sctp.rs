//! The three SCTP packets of an association's first half, as bytes (RFC 9260 §3): INIT, INIT-ACK, ABORT.
//!
//! Enough for conntrack to see a good association begin, and for kernels without SCTP sockets to be tested.

/// What a received packet was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Opens an association; the tag is what every answer must carry.
    Init {
        /// The initiate tag.
        tag: u32,
    },
    /// The answer, with the text that our servers add.
    InitAck {
        /// What [`init_ack`] was given.
        text: String,
    },
    /// The refusal.
    Abort,
}

/// A packet of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source_port: u16,
    /// Where it goes.
    pub destination_port: u16,
    /// What it says.
    pub chunk: Chunk,
}

const HEADER: usize = 12;
/// RFC 9260 §3.2.1: the two high bits `10` mean "skip if unknown, do not report".
const TEXT_PARAMETER: u16 = 0x8f01;
const STATE_COOKIE: u16 = 7;

/// An INIT: verification tag 0 (§8.5.1), `tag` as the initiate tag, which must not be 0.
#[must_use]
pub fn init(source_port: u16, destination_port: u16, tag: u32) -> Vec<u8> {
    packet(source_port, destination_port, 0, 1, &init_body(tag, &[]))
}

/// The answer to an INIT that carried `peer_tag`; `text` travels in a parameter that stacks skip.
#[must_use]
pub fn init_ack(source_port: u16, destination_port: u16, peer_tag: u32, text: &str) -> Vec<u8> {
    let mut parameters = parameter(STATE_COOKIE, b"none");
    parameters.extend(parameter(TEXT_PARAMETER, text.as_bytes()));
    packet(source_port, destination_port, peer_tag, 2, &init_body(0x5eed_0001, &parameters))
}

/// The refusal of an INIT that carried `peer_tag`.
#[must_use]
pub fn abort(source_port: u16, destination_port: u16, peer_tag: u32) -> Vec<u8> {
    packet(source_port, destination_port, peer_tag, 6, &[])
}

/// Reads a packet (without its IP header). `None`: not SCTP, or a chunk that isn't one of the three.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Packet> {
    let word = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let chunk = match bytes.get(HEADER)? {
        1 => Chunk::Init { tag: u32::from(word(16)?) << 16 | u32::from(word(18)?) },
        2 => {
            let mut at = HEADER + 20;
            let mut text = String::new();
            while let (Some(kind), Some(length)) = (word(at), word(at + 2)) {
                let length = usize::from(length);
                if length < 4 {
                    break;
                }
                if kind == TEXT_PARAMETER {
                    text = String::from_utf8_lossy(bytes.get(at + 4..at + length)?).into_owned();
                }
                at += length.next_multiple_of(4);
            }
            Chunk::InitAck { text }
        }
        6 => Chunk::Abort,
        _ => return None,
    };
    Some(Packet { source_port: word(0)?, destination_port: word(2)?, chunk })
}

fn init_body(tag: u32, parameters: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + parameters.len());
    body.extend(tag.to_be_bytes());
    body.extend(65_536u32.to_be_bytes()); // receiver window
    body.extend(10u16.to_be_bytes()); // outbound streams
    body.extend(10u16.to_be_bytes()); // inbound streams
    body.extend(1u32.to_be_bytes()); // first TSN
    body.extend(parameters);
    body
}

fn parameter(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(kind.to_be_bytes());
    bytes.extend((length as u16).to_be_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn packet(source_port: u16, destination_port: u16, tag: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 4 + body.len());
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([kind, 0]);
    bytes.extend((4 + body.len() as u16).to_be_bytes());
    bytes.extend(body);
    let sum = crc32c(&bytes);
    // RFC 9260 appendix A: the checksum alone is transmitted least significant byte first.
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// CRC-32C (Castagnoli), bit by bit: packets here are shorter than 100 bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_the_published_check_value() {
        // The check value of CRC-32/ISCSI (RFC 3720 §B.4 uses the same polynomial).
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn packets_survive_encoding_and_parsing() {
        assert_eq!(parse(&init(1, 2, 77)).map(|p| p.chunk), Some(Chunk::Init { tag: 77 }));
        let ack = parse(&init_ack(2, 1, 77, "x/a 10.0.0.1")).expect("parses");
        assert_eq!((ack.source_port, ack.destination_port), (2, 1));
        assert_eq!(ack.chunk, Chunk::InitAck { text: "x/a 10.0.0.1".into() });
        assert_eq!(parse(&abort(2, 1, 77)).map(|p| p.chunk), Some(Chunk::Abort));
    }

    #[test]
    fn truncated_packets_are_not_read() {
        let whole = init_ack(2, 1, 77, "x/a 10.0.0.1");
        for length in 0..HEADER + 1 {
            assert_eq!(parse(&whole[..length]), None);
        }
    }
}
