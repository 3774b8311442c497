//! WebSocket frame headers (RFC 6455 §5.2), and the control frames that a proxy writes itself.
//!
//! Payload is not inspected: a relay needs to know where frames end, not what they contain.

use crate::domain::session::{close_code::CloseCode, side::Side};

/// Bytes of the longest header: 2, 8 of extended length, 4 of masking key.
pub const MAX_HEADER_LEN: usize = 14;

/// Bytes of the longest payload of a control frame (RFC 6455 §5.5).
pub(super) const MAX_CONTROL_PAYLOAD: usize = 125;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// The opcodes that matter to a relay (RFC 6455 §5.2). All others count as data.
pub mod opcode {
    pub const CLOSE: u8 = 0x8;
    pub const PING: u8 = 0x9;
    pub const PONG: u8 = 0xa;
    /// Opcodes from here on are control frames, which may come between the fragments of a message.
    pub const FIRST_CONTROL: u8 = 0x8;
}

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whether this is the last or only frame of its message.
    pub fin: bool,
    /// The four opcode bits. Reserved opcodes are not refused.
    pub opcode: u8,
    /// The masking key. Frames from a client have one.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload after the header.
    pub payload_len: u64,
    /// Bytes of the header itself, 2 to [`MAX_HEADER_LEN`].
    pub header_len: usize,
}

impl FrameHeader {
    /// Returns whether this is a control frame, which is not part of a message.
    pub fn is_control(&self) -> bool {
        self.opcode >= opcode::FIRST_CONTROL
    }

    /// Parses the header at the start of `bytes`. Returns `None` if more bytes are needed.
    ///
    /// Nothing is refused: the endpoints decide about reserved bits, reserved opcodes and oversized
    /// lengths.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = bytes.split_first_chunk::<2>()?;
        let (payload_len, rest) = match second & !MASKED {
            126 => {
                let (len, rest) = rest.split_first_chunk::<2>()?;
                (u64::from(u16::from_be_bytes(*len)), rest)
            }
            127 => {
                let (len, rest) = rest.split_first_chunk::<8>()?;
                (u64::from_be_bytes(*len), rest)
            }
            len => (u64::from(len), rest),
        };
        let (mask, rest) = if second & MASKED != 0 {
            let (key, rest) = rest.split_first_chunk::<4>()?;
            (Some(*key), rest)
        } else {
            (None, rest)
        };
        Some(Self {
            fin: first & FIN != 0,
            opcode: first & 0x0f,
            mask,
            payload_len,
            header_len: bytes.len() - rest.len(),
        })
    }
}

/// Returns a masking key for frames to a pod, and none for frames to a client (RFC 6455 §5.1).
pub fn mask_to(side: Side) -> Option<[u8; 4]> {
    match side {
        Side::Client => None,
        Side::Pod => Some(fastrand::u32(..).to_be_bytes()),
    }
}

/// Returns a complete Close frame (RFC 6455 §5.5.1).
///
/// `reason` is cut at a character boundary to the 123 bytes that fit into a control frame.
pub fn close(code: CloseCode, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let room = MAX_CONTROL_PAYLOAD - 2;
    let reason = &reason[..reason.floor_char_boundary(room)];
    let mut payload = code.get().to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    control(opcode::CLOSE, &payload, mask)
}

/// Returns a complete Ping frame (RFC 6455 §5.5.2).
pub fn ping(payload: &PingPayload, mask: Option<[u8; 4]>) -> Vec<u8> {
    control(opcode::PING, payload, mask)
}

/// The payload of our Pings, and therefore of the Pongs that answer them.
pub type PingPayload = [u8; 8];

fn control(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { MASKED } else { 0 };
    let mut frame = vec![FIN | opcode, masked | payload.len() as u8];
    frame.extend(mask.iter().flatten());
    frame.extend(unmasked(payload, mask));
    frame
}

/// Removes or applies the mask of `payload`, which is the same operation (RFC 6455 §5.3).
pub fn unmasked(payload: &[u8], mask: Option<[u8; 4]>) -> impl Iterator<Item = u8> {
    let key = mask.unwrap_or_default();
    payload.iter().enumerate().map(move |(at, byte)| byte ^ key[at % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_lengths_follow_the_length_form_and_the_mask() {
        let cases: [(&[u8], u64, usize); 6] = [
            (&[0x82, 0x00], 0, 2),
            (&[0x82, 0x7d], 125, 2),
            (&[0x82, 0x7e, 0x01, 0x00], 256, 4),
            (&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], 65_536, 10),
            (&[0x82, 0x81, 1, 2, 3, 4], 1, 6),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4], 65_536, 14),
        ];
        for (bytes, payload_len, header_len) in cases {
            let header = FrameHeader::parse(bytes).expect("a whole header");
            assert_eq!((header.payload_len, header.header_len), (payload_len, header_len));
            assert_eq!(FrameHeader::parse(&bytes[..bytes.len() - 1]), None, "one byte short");
        }
    }

    #[test]
    fn a_masked_close_reads_back() {
        let code = CloseCode::new(1012).unwrap();
        let key = [0x11, 0x22, 0x33, 0x44];
        let frame = close(code, "restart", Some(key));
        let header = FrameHeader::parse(&frame).unwrap();
        assert_eq!((header.opcode, header.fin, header.mask), (opcode::CLOSE, true, Some(key)));
        let payload: Vec<u8> = frame[header.header_len..]
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect();
        assert_eq!(payload, [&1012u16.to_be_bytes()[..], b"restart"].concat());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = close(CloseCode::new(1000).unwrap(), &"é".repeat(100), None);
        assert_eq!(frame[1], 2 + 122, "123 would split a two-byte character");
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
