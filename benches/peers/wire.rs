//! The subset of RFC 6455 that clients and pod need. It is written by hand because it must use far
//! less processor time than the measured balancer: the codec of a library would use about as much.

use std::io::{Error, ErrorKind, Result};

use actix_http::ws::hash_key;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BINARY: u8 = 0x82;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;
const MASK_LEN: usize = 4;

/// Longest accepted HTTP head.
const MAX_HEAD: usize = 16 * 1024;

/// One message as the client sends it, and its echo.
///
/// Every session sends the same bytes: the frame is built and masked only once, which leaves the
/// processor to the measured balancer. Balancers inspect only the frame header anyway.
pub struct Message {
    pub frame: Vec<u8>,
    pub echo: Vec<u8>,
}

impl Message {
    /// Makes a binary message of `size` random bytes with a random mask.
    pub fn new(size: usize) -> Self {
        let mut payload: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
        let header = unmasked_header(size);
        let echo = [header.as_slice(), &payload].concat();

        let mask = fastrand::u32(..).to_ne_bytes();
        apply_mask(&mut payload, mask);
        let mut frame = header;
        frame[1] |= MASKED;
        frame.extend(mask);
        frame.extend(payload);
        Self { frame, echo }
    }
}

/// Returns the frame header of an unmasked binary message (RFC 6455 §5.2).
fn unmasked_header(size: usize) -> Vec<u8> {
    let mut header = vec![BINARY];
    match size {
        0..=125 => header.push(size as u8),
        126..=0xFFFF => {
            header.push(126);
            header.extend((size as u16).to_be_bytes());
        }
        _ => {
            header.push(127);
            header.extend((size as u64).to_be_bytes());
        }
    }
    header
}

/// XORs the payload with the mask, eight bytes at a time.
fn apply_mask(payload: &mut [u8], mask: [u8; MASK_LEN]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// The positions of payload and end of a masked frame that starts at the beginning of a buffer.
pub struct Frame {
    payload: usize,
    end: usize,
}

/// The pod's reply to a frame.
pub enum Reply<'a> {
    Send(&'a [u8]),
    SendAndClose(&'a [u8]),
    None,
}

impl Frame {
    /// Parses a frame header. Returns `None` if `bytes` does not contain all of it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (length_len, length) = match bytes.get(1)? & !MASKED {
            126 => (2, u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?).into()),
            127 => (8, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
            short => (0, short.into()),
        };
        let payload = 2 + length_len + MASK_LEN;
        let end = payload + usize::try_from(length).ok()?;
        (bytes.len() >= payload).then_some(Self { payload, end })
    }

    /// Returns the number of bytes from the start of the header to the end of the payload.
    pub fn len(&self) -> usize {
        self.end
    }

    /// Turns the frame into its echo in place. Without the mask the header is four bytes shorter, so
    /// it moves four bytes towards the unmasked payload.
    pub fn make_reply<'a>(&self, buffer: &'a mut [u8]) -> Reply<'a> {
        let header = self.payload - MASK_LEN;
        let mask = [header, header + 1, header + 2, header + 3].map(|at| buffer[at]);
        apply_mask(&mut buffer[self.payload..self.end], mask);
        buffer.copy_within(..header, MASK_LEN);
        buffer[MASK_LEN + 1] &= !MASKED;

        let first = buffer[MASK_LEN];
        if first == PING {
            buffer[MASK_LEN] = PONG;
        }
        let echo = &buffer[MASK_LEN..self.end];
        match first {
            PONG => Reply::None,
            CLOSE => Reply::SendAndClose(echo),
            _ => Reply::Send(echo),
        }
    }
}

/// Opens a WebSocket on `stream`.
///
/// # Errors
/// Fails if the response is not a 101 with the right `Sec-WebSocket-Accept`, or if more bytes follow.
pub async fn upgrade(stream: &mut TcpStream) -> Result<()> {
    let key = "d3NiYWxhbmNlciBwZWVycw=="; // 16 bytes in base64, as RFC 6455 §4.1 demands
    let request = format!(
        "GET / HTTP/1.1\r\nHost: peers.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;

    let mut received = Vec::new();
    let end = read_head(stream, &mut received).await?;
    let head = String::from_utf8_lossy(&received[..end]);
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101") {
        return Err(invalid(format!("expected 101, got {status:?}")));
    }
    if header(&head, "sec-websocket-accept").map(str::as_bytes) != Some(&hash_key(key.as_bytes())) {
        return Err(invalid("the 101 has a wrong Sec-WebSocket-Accept"));
    }
    if received.len() > end {
        return Err(invalid("received bytes after the 101, before any message was sent"));
    }
    Ok(())
}

/// Reads until `received` contains a whole HTTP head. Returns the position of its end.
pub async fn read_head(stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<usize> {
    loop {
        if let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(at + 4);
        }
        if received.len() > MAX_HEAD {
            return Err(invalid("HTTP head too long"));
        }
        if stream.read_buf(received).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Returns the value of a header field.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Returns an error about invalid data from the other side.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, message.into())
}
