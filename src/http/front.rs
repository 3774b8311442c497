//! The first request of a connection: a handshake goes straight on, anything else to actix-http.
//!
//! actix-http hands over only requests whose `Upgrade` is exactly `websocket`, after it has set up
//! buffers that a tunnel does not need. Reading the first head here lets lists of protocols through
//! and keeps the way of a handshake short. Plain requests are given back unread, and a handshake
//! that follows one on the same connection still comes through actix-http.

use std::{io, net::IpAddr, rc::Rc, time::Duration};

use actix_codec::{Decoder as _, Framed, FramedParts};
use actix_http::{
    Request, ServiceConfig,
    h1::{Codec, Message},
    header,
};
use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    client::Client,
    handshake::{self, Worker},
    headers::has_token,
    refusal::Refusal,
    rewind::Rewind,
};

/// First bytes asked for; most heads are smaller.
const FIRST_READ: usize = 2048;

/// How large a request's head may be, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// From the first byte that could come to the last.
    pub timeout: Duration,
    /// Header fields.
    pub fields: usize,
    /// Bytes.
    pub bytes: usize,
}

impl HeadLimits {
    /// Whether `request` is within the limits, as far as its fields tell.
    ///
    /// # Errors
    /// [`Refusal::LargeHead`]
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let headers = &request.head().headers;
        let fields = headers.len();
        if fields > self.fields {
            let told = format!("{fields} fields, at most {}", self.fields);
            return Err(Refusal::LargeHead(told));
        }
        let of_field = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
            name.as_str().len() + value.len() + ": \r\n".len()
        };
        let bytes: usize = headers.iter().map(of_field).sum();
        if bytes > self.bytes {
            return Err(Refusal::LargeHead(format!("at most {} bytes", self.bytes)));
        }
        Ok(())
    }
}

/// What becomes of a connection after its first head.
enum First {
    /// A handshake, with the bytes behind it.
    Handshake(Box<Request>, Codec, BytesMut),
    /// Anything else, unread.
    Plain(BytesMut),
    /// Nothing at all came.
    Nothing,
    /// Too slow or too large.
    Refused(Refusal),
}

/// Serves one connection; `plain` is what actix-http makes of it when it is no handshake.
///
/// # Errors
/// The client vanished before it had its answer.
pub async fn serve(
    worker: Rc<Worker>,
    mut io: TcpStream,
    plain: impl AsyncFnOnce(Rewind, IpAddr),
) -> io::Result<()> {
    let peer = io.peer_addr()?.ip();
    let limits = worker.traffic.settings.head;
    match read_first(&mut io, &limits).await? {
        First::Handshake(request, codec, rest) => {
            let io = Rewind::new(BytesMut::new(), io);
            let framed = Framed::from_parts(FramedParts::with_read_buf(io, codec, rest));
            let client = Client::new(framed, peer).await?;
            handshake::serve(&worker, &request, client).await
        }
        First::Plain(read) => {
            plain(Rewind::new(read, io), peer).await;
            Ok(())
        }
        First::Nothing => Ok(()),
        First::Refused(refusal) => {
            worker.traffic.refused(&refusal, peer);
            let io = Rewind::new(BytesMut::new(), io);
            let framed = Framed::new(io, Codec::new(ServiceConfig::default()));
            Client::new(framed, peer).await?.refuse(&refusal).await
        }
    }
}

async fn read_first(io: &mut TcpStream, limits: &HeadLimits) -> io::Result<First> {
    let deadline = Instant::now() + limits.timeout;
    let mut read = BytesMut::with_capacity(FIRST_READ);
    loop {
        let before = read.len();
        match timeout_at(deadline, io.read_buf(&mut read)).await {
            Ok(Ok(0)) => return Ok(First::Nothing),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) if read.is_empty() => return Ok(First::Nothing),
            Err(_) => return Ok(First::Refused(Refusal::SlowHead(limits.timeout))),
        }
        let head_ends = has_head_end(&read, before);
        if !head_ends && read.len() > limits.bytes {
            let told = format!("at most {} bytes", limits.bytes);
            return Ok(First::Refused(Refusal::LargeHead(told)));
        }
        if head_ends && let Some(first) = parse(&read, limits) {
            return Ok(first);
        }
    }
}

/// Whether an empty line ends in what came since `before`.
fn has_head_end(read: &[u8], before: usize) -> bool {
    let new = &read[before.saturating_sub(3)..];
    new.windows(2).any(|end| end == b"\n\n") || new.windows(3).any(|end| end == b"\n\r\n")
}

/// `None` when the parser wants more.
fn parse(read: &BytesMut, limits: &HeadLimits) -> Option<First> {
    let mut rest = read.clone();
    let mut codec = Codec::new(ServiceConfig::default());
    match codec.decode(&mut rest) {
        Ok(Some(Message::Item(request))) => Some(match limits.check(&request) {
            Err(refusal) => First::Refused(refusal),
            Ok(()) if has_token(&request.head().headers, header::UPGRADE, "websocket") => {
                First::Handshake(Box::new(request), codec, rest)
            }
            Ok(()) => First::Plain(read.clone()),
        }),
        Ok(None) => None,
        // actix-http finds the same mistake and answers it.
        Ok(Some(Message::Chunk(_))) | Err(_) => Some(First::Plain(read.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_wherever_reads_cut_it() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..head.len() {
            assert!(!has_head_end(&head[..cut], 0), "{cut}");
            assert!(has_head_end(head, cut), "{cut}");
        }
        assert!(has_head_end(b"GET / HTTP/1.1\nHost: a\n\n", 0));
    }
}
