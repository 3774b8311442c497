//! Reads every request of a client connection: the first and all later ones, handshakes and plain
//! requests.
//!
//! Heads are decoded by actix-http's codec. Its types are those of awc's connector too, so a handshake goes
//! to its pod without a conversion, and it refuses what servers read in two ways: repeated
//! `Content-Length`, `Transfer-Encoding` beside `Content-Length` or other than `chunked`, repeated or
//! missing `Host`. Bodies are read by [`BodyDecoder`]. hyper, which serves plain requests, gets requests that
//! [`plain::server_io`](super::plain) writes from the decoded ones, never the client's own bytes.

pub mod body_decoder;

use std::{io, mem, time::Duration};

use actix_codec::Decoder as _;
use actix_http::{
    Method, Request, ServiceConfig,
    error::ParseError,
    h1::{Codec, Message},
};
use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::{Instant, timeout_at},
};

use self::body_decoder::{BodyDecoder, BodyPart};
use super::{
    headers::{
        malformed::explain,
        request::{HeadLimits, check_plain, is_handshake},
    },
    refusal::Refusal,
};

/// Bytes reserved for a read of a head; most heads are smaller.
const HEAD_READ: usize = 2048;

/// Bytes reserved for a read of a body.
const BODY_READ: usize = 16 * 1024;

/// The longest header name that the HTTP types can hold.
const MAX_NAME: usize = u16::MAX as usize;

/// A request head that was read.
pub enum Head {
    /// A plain request that passed all checks.
    Plain(Request),
    Last(LastHead),
}

/// A head after which the connection carries no further request.
pub enum LastHead {
    /// A WebSocket handshake, not checked yet as such.
    Handshake(Request),
    /// The connection ends with the refusal.
    Refused(RefusedHead),
}

/// Why a request head is refused.
pub struct RefusedHead {
    pub refusal: Refusal,
    /// The answer to a HEAD request has no body (RFC 9110 §9.3.2).
    pub is_head_method: bool,
}

impl From<Refusal> for Head {
    fn from(refusal: Refusal) -> Self {
        Self::Last(LastHead::Refused(RefusedHead { refusal, is_head_method: false }))
    }
}

/// Reads the requests of one connection, and keeps the bytes that are not decoded yet.
pub struct RequestReader {
    /// Has decoded one head at most: its state belongs to that request.
    codec: Codec,
    /// The body of the last request, until it has been read to its end.
    body: Option<BodyDecoder>,
    buffer: BytesMut,
    /// Bytes of `buffer` that are known not to complete a head.
    scanned: usize,
    limits: HeadLimits,
}

impl RequestReader {
    pub fn new(limits: HeadLimits) -> Self {
        let codec = Codec::new(ServiceConfig::default());
        Self { codec, body: None, buffer: BytesMut::new(), scanned: 0, limits }
    }

    /// Applies new limits to the heads that are still to come.
    pub fn set_limits(&mut self, limits: HeadLimits) {
        self.limits = limits;
    }

    /// Returns how long a client may take for a request head.
    pub fn head_timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Returns whether no byte of a further head has been read.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Returns whether the request that was read last has a body that is not read to its end.
    pub fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// Returns the codec, which knows the last request, and the bytes behind that request.
    pub fn into_parts(self) -> (Codec, BytesMut) {
        (self.codec, self.buffer)
    }

    /// Reads more bytes from `io`; returns 0 at the end.
    ///
    /// # Errors
    /// Those of `io`.
    pub async fn read_from(&mut self, io: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.buffer.reserve(if self.has_body() { BODY_READ } else { HEAD_READ });
        io.read_buf(&mut self.buffer).await
    }

    /// Waits for the first head of a connection. Returns `None` when the client sent nothing in time
    /// or closed the connection.
    ///
    /// # Errors
    /// Those of `io`.
    pub async fn read_first(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<Head>> {
        let deadline = Instant::now() + self.limits.timeout;
        loop {
            match timeout_at(deadline, self.read_from(io)).await {
                Ok(Ok(0)) => return Ok(None),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) if self.is_empty() => return Ok(None),
                Err(_) => return Ok(Some(Head::Last(self.slow_head()))),
            }
            if let Some(head) = self.decode_head() {
                return Ok(Some(head));
            }
        }
    }

    /// Returns the refusal of a head that did not arrive in time.
    pub fn slow_head(&self) -> LastHead {
        let refusal = Refusal::SlowHead(self.limits.timeout);
        LastHead::Refused(RefusedHead { refusal, is_head_method: false })
    }

    /// Decodes the next head; returns `None` when more bytes are needed.
    pub fn decode_head(&mut self) -> Option<Head> {
        self.skip_empty_lines();
        let before = mem::replace(&mut self.scanned, self.buffer.len());
        let end = head_end(&self.buffer, before);
        let length = end.unwrap_or(self.buffer.len());
        if length > self.limits.bytes {
            return Some(self.limits.too_many_bytes().into());
        }
        // The first bytes are decoded even without an end, so that other protocols are refused at
        // once. After that, a head that arrives in pieces is decoded when it is complete.
        if end.is_none() && (before > 0 || length == 0) {
            return None;
        }
        let head = &self.buffer[..length];
        if has_long_name(head) {
            let text = format!("a header name is longer than {MAX_NAME} bytes");
            return Some(Refusal::LargeHead(text).into());
        }
        let mut rest = BytesMut::from(head);
        match self.codec.decode(&mut rest) {
            Ok(Some(Message::Item(request))) => {
                self.buffer.advance(length - rest.len());
                self.scanned = 0;
                let head = self.check(request);
                if let Head::Plain(request) = &head {
                    self.body = BodyDecoder::new(request.head());
                    self.codec = Codec::new(self.codec.config().clone());
                }
                Some(head)
            }
            // A chunk cannot stand where a head is expected.
            Ok(None | Some(Message::Chunk(_))) => None,
            Err(ParseError::TooLarge) => Some(self.limits.too_many_headers("more than 96").into()),
            Err(error) => Some(explain(head, &error).into()),
        }
    }

    /// The checks that every request goes through. Those of a handshake are made where its pod is
    /// chosen ([`handshake::open`](super::handshake)).
    fn check(&self, request: Request) -> Head {
        let head = request.head();
        let is_handshake = is_handshake(head);
        let checked = self.limits.check(head).and_then(|()| match is_handshake {
            true => Ok(()),
            false => check_plain(head),
        });
        match checked {
            Ok(()) if is_handshake => Head::Last(LastHead::Handshake(request)),
            Ok(()) => Head::Plain(request),
            Err(refusal) => {
                let is_head_method = head.method == Method::HEAD;
                Head::Last(LastHead::Refused(RefusedHead { refusal, is_head_method }))
            }
        }
    }

    /// Decodes the next piece of the body of the request that was read last; returns `None` when
    /// more bytes are needed.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub fn decode_body(&mut self) -> io::Result<Option<BodyPart>> {
        let Some(body) = &mut self.body else { return Ok(Some(BodyPart::End)) };
        let part = body.decode(&mut self.buffer)?;
        if part == Some(BodyPart::End) {
            self.body = None;
        }
        Ok(part)
    }

    /// RFC 9112 §2.2: empty lines in front of a request line are ignored.
    fn skip_empty_lines(&mut self) {
        loop {
            let length = match &self.buffer[..] {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                _ => return,
            };
            self.buffer.advance(length);
            self.scanned = self.scanned.saturating_sub(length);
        }
    }
}

/// Where the first empty line ends that was completed since `before`.
fn head_end(read: &[u8], before: usize) -> Option<usize> {
    let from = before.saturating_sub(3);
    let new = &read[from..];
    let end_of = |empty: &[u8]| {
        new.windows(empty.len()).position(|end| end == empty).map(|at| from + at + empty.len())
    };
    let ends = [end_of(b"\n\n"), end_of(b"\n\r\n")];
    ends.into_iter().flatten().min()
}

/// Whether a header name in `head` is too long for actix-http, which would panic.
fn has_long_name(head: &[u8]) -> bool {
    let name = |line: &[u8]| line.iter().position(|byte| *byte == b':').unwrap_or(0);
    head.len() > MAX_NAME && head.split(|byte| *byte == b'\n').any(|line| name(line) > MAX_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(max_bytes: usize) -> RequestReader {
        let timeout = Duration::from_secs(1);
        RequestReader::new(HeadLimits { timeout, fields: 96, bytes: max_bytes })
    }

    /// Returns the request lines in `bytes`, read `step` bytes at a time, and the refusal at the end.
    fn read(bytes: &[u8], step: usize) -> Vec<String> {
        let mut reader = reader(131_072);
        let mut seen = Vec::new();
        for piece in bytes.chunks(step) {
            reader.buffer.extend_from_slice(piece);
            while let Some(head) = reader.decode_head() {
                match head {
                    Head::Plain(request) | Head::Last(LastHead::Handshake(request)) => {
                        seen.push(format!("{} {}", request.method(), request.uri()));
                    }
                    Head::Last(LastHead::Refused(refused)) => {
                        seen.push(refused.refusal.to_string());
                        return seen;
                    }
                }
                if reader.has_body() {
                    return seen;
                }
            }
        }
        seen
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_reads_cut_it() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(head_end(&head[..cut], 0), None, "{cut}");
            assert_eq!(head_end(head, cut), Some(head.len()), "{cut}");
        }
        assert_eq!(head_end(b"GET / HTTP/1.1\nHost: a\n\nmore", 0), Some(24));
    }

    #[actix_rt::test]
    async fn pieces_of_any_size_give_the_same_requests() {
        let bytes = b"\r\n\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n\nHEAD /2 HTTP/1.1\nHost: a\n\n\
                      GET /3 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
        let whole = read(bytes, bytes.len());
        assert_eq!(whole[..2], ["GET /1", "HEAD /2"]);
        assert!(whole[2].contains("Host"), "{whole:?}");
        for step in 1..bytes.len() {
            assert_eq!(read(bytes, step), whole, "{step}");
        }
    }

    #[actix_rt::test]
    async fn other_protocols_are_refused_at_once() {
        assert_eq!(read(b"\x16\x03\x01\x02\x00\x01\x00", 7).len(), 1);
        assert_eq!(read(b"GET / HTTP/1", 7).len(), 0);
    }

    #[actix_rt::test]
    async fn names_too_long_for_the_codec_are_refused() {
        let name = "x".repeat(MAX_NAME + 1);
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: 1\r\n\r\n");
        let refused = read(head.as_bytes(), head.len());
        assert!(refused[0].contains("longer than 65535 bytes"), "{refused:?}");
    }
}
