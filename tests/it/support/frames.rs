//! Hand-written frames (RFC 6455 §5.2) that a library would not send.

use wsbalancer::relay::frame::{FrameHeader, unmasked as unmasked_payload};

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const FIN: u8 = 0x80;
/// Reserved for permessage-deflate (RFC 7692 §6).
pub const RSV1: u8 = 0x40;

/// Returns a frame of a server; `first` holds FIN, reserved bits and opcode.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    push_len(&mut frame, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

/// Returns a masked frame of a client.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [0xa1, 0xb2, 0xc3, 0xd4];
    let mut frame = vec![first];
    push_len(&mut frame, payload.len(), 0x80);
    frame.extend_from_slice(&key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn push_len(frame: &mut Vec<u8>, len: usize, masked: u8) {
    match len {
        0..=125 => frame.push(masked | len as u8),
        126..=65_535 => {
            frame.push(masked | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        _ => {
            frame.push(masked | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
}

/// Returns the code and the reason of one whole Close frame.
pub fn close_of(bytes: &[u8]) -> (u16, String) {
    let header = FrameHeader::parse(bytes).expect("a whole header");
    let payload = &bytes[header.header_len..];
    assert_eq!((header.opcode, header.payload_len), (CLOSE, payload.len() as u64));
    let payload: Vec<u8> = unmasked_payload(payload, header.mask).collect();
    let (code, reason) = payload.split_first_chunk().expect("a code");
    (u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).unwrap())
}
