//! Separates a request body from its framing (RFC 9112 §6.2 and §7.1).
//!
//! Everything that a pod or a proxy could read in another way is refused: lines that end without CR,
//! control characters in chunk extensions, and malformed trailer lines, although extensions and
//! trailers are dropped.

use std::io;

use actix_http::{RequestHead, header};
use bytes::{Buf as _, Bytes, BytesMut};

use crate::traffic::headers::{malformed::is_field, request::content_length};

/// Maximum size of all chunk extensions and trailers of one body.
const MAX_DROPPED: usize = 16 * 1024;

/// A piece of a request body.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyPart {
    Data(Bytes),
    End,
}

/// The position in one request body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    /// Bytes of chunk extensions and trailers.
    dropped: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Bytes that remain of a body with `Content-Length`.
    Length(u64),
    ChunkSize,
    /// Bytes that remain of a chunk.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    End,
}

impl BodyDecoder {
    /// Creates the decoder for the body of `request`; `None` if it has no body. The codec has refused
    /// other values of `Transfer-Encoding` than `chunked`.
    pub fn new(request: &RequestHead) -> Option<Self> {
        let state = match content_length(request) {
            _ if request.headers.contains_key(header::TRANSFER_ENCODING) => State::ChunkSize,
            None | Some(0) => return None,
            Some(length) => State::Length(length),
        };
        Some(Self { state, dropped: 0 })
    }

    /// Decodes the next part in `buffer`; returns `None` when more bytes are needed.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<BodyPart>> {
        loop {
            match self.state {
                State::Length(0) | State::End => return Ok(Some(BodyPart::End)),
                State::Length(_) | State::Chunk(_) if buffer.is_empty() => return Ok(None),
                State::Length(remaining) => {
                    let data = take(buffer, remaining);
                    self.state = State::Length(remaining - data.len() as u64);
                    return Ok(Some(BodyPart::Data(data)));
                }
                State::Chunk(remaining) => {
                    let data = take(buffer, remaining);
                    self.state = match remaining - data.len() as u64 {
                        0 => State::ChunkEnd,
                        remaining => State::Chunk(remaining),
                    };
                    return Ok(Some(BodyPart::Data(data)));
                }
                State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    let Some(line) = take_line(buffer)? else { return Ok(None) };
                    self.state = self.after_line(&line)?;
                }
            }
        }
    }

    fn after_line(&mut self, line: &[u8]) -> io::Result<State> {
        match self.state {
            State::ChunkEnd if line.is_empty() => Ok(State::ChunkSize),
            State::ChunkEnd => Err(malformed("a chunk is longer than its size")),
            State::ChunkSize => {
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let (digits, extension) = line.split_at(digits);
                self.drop(extension.len())?;
                match chunk_size(digits).filter(|_| is_extension(extension)) {
                    None => Err(malformed("a chunk has no valid size")),
                    Some(0) => Ok(State::Trailers),
                    Some(size) => Ok(State::Chunk(size)),
                }
            }
            _ if line.is_empty() => Ok(State::End),
            _ => {
                self.drop(line.len())?;
                if is_field(line) {
                    Ok(State::Trailers)
                } else {
                    Err(malformed("a trailer is no field"))
                }
            }
        }
    }

    fn drop(&mut self, bytes: usize) -> io::Result<()> {
        self.dropped += bytes;
        if self.dropped > MAX_DROPPED {
            return Err(malformed("chunk extensions and trailers are too large"));
        }
        Ok(())
    }
}

fn malformed(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn take(buffer: &mut BytesMut, at_most: u64) -> Bytes {
    let length = usize::try_from(at_most).unwrap_or(usize::MAX).min(buffer.len());
    buffer.split_to(length).freeze()
}

/// Takes a line off `buffer`, without its CRLF. A CR or LF alone is refused as soon as it arrives.
fn take_line(buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(end) = buffer.iter().position(|byte| b"\r\n".contains(byte)) else {
        let is_too_long = buffer.len() > MAX_DROPPED;
        return if is_too_long { Err(malformed("a line is too long")) } else { Ok(None) };
    };
    match buffer[end..] {
        [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => {
            let line = buffer.split_to(end);
            buffer.advance(2);
            Ok(Some(line))
        }
        _ => Err(malformed("a line does not end with CRLF")),
    }
}

fn chunk_size(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Whether `text` can stand behind a chunk size: nothing, or an extension (RFC 9112 §7.1.1).
fn is_extension(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    text.is_empty() || text.starts_with(b";") && text.iter().all(is_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(name: &'static str, value: &'static str) -> Option<BodyDecoder> {
        let mut head = RequestHead::default();
        let name = header::HeaderName::from_static(name);
        head.headers.insert(name, header::HeaderValue::from_static(value));
        BodyDecoder::new(&head)
    }

    /// Decodes `bytes`, received `step` bytes at a time: the data, and the bytes behind the body.
    /// `Ok(None)`: the body is incomplete.
    fn decode(
        mut decoder: BodyDecoder,
        bytes: &[u8],
        step: usize,
    ) -> io::Result<Option<(Vec<u8>, usize)>> {
        let (mut buffer, mut data, mut received) = (BytesMut::new(), Vec::new(), 0);
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            received += piece.len();
            while let Some(part) = decoder.decode(&mut buffer)? {
                match part {
                    BodyPart::Data(piece) => data.extend_from_slice(&piece),
                    BodyPart::End => {
                        return Ok(Some((data, bytes.len() - received + buffer.len())));
                    }
                }
            }
        }
        Ok(None)
    }

    fn chunked(bytes: &[u8], step: usize) -> io::Result<Option<(Vec<u8>, usize)>> {
        decode(decoder("transfer-encoding", "chunked").unwrap(), bytes, step)
    }

    #[test]
    fn a_body_with_a_length_ends_after_its_bytes() {
        for step in 1..8 {
            let body = decoder("content-length", "5").unwrap();
            assert_eq!(decode(body, b"helloGET", step).unwrap(), Some((b"hello".to_vec(), 3)));
        }
        assert!(decode(decoder("content-length", "5").unwrap(), b"hell", 9).unwrap().is_none());
        assert!(decoder("content-length", "0").is_none() && decoder("host", "a").is_none());
    }

    #[test]
    fn chunks_are_decoded_wherever_reads_cut_them() {
        for bytes in [
            &b"5\r\nhello\r\n0\r\n\r\nGET"[..],
            b"0005 ; a=\"b\"\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Empty:\r\n\r\nGET",
            b"2\r\nhe\r\n3;\t\r\nllo\r\n000\r\n\r\nGET",
        ] {
            for step in 1..bytes.len() {
                assert_eq!(chunked(bytes, step).unwrap(), Some((b"hello".to_vec(), 3)), "{step}");
            }
            for cut in 0..bytes.len() - 3 {
                assert!(chunked(&bytes[..cut], 9).unwrap().is_none(), "{cut}");
            }
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for bytes in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello\n0\r\n\r\n",
            b"5\rhello",
            b"5\r\nhello\r\n0\n\r\n",
            b"5\r\nhello\r\n0\r\n\n",
            b"5\r\nhelloo\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5;a\0b\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"5\r\nhello\r\n0\r\nX : 1\r\n\r\n",
            b"5\r\nhello\r\n0\r\nX: 1\r\n folded\r\n\r\n",
        ] {
            assert!(chunked(bytes, bytes.len()).is_err(), "{}", bytes.escape_ascii());
        }
        let long = |start: &str| [start.as_bytes(), &vec![b'a'; MAX_DROPPED + 1]].concat();
        for bytes in [long("5;"), long("0\r\nX:"), long("")] {
            assert!(chunked(&bytes, 1024).is_err());
        }
    }
}
