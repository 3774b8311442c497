//! The first request of a connection: a handshake goes straight on, anything else is plain HTTP.
//!
//! Most connections are handshakes, and a tunnel needs nothing of what an HTTP server keeps for
//! further requests: reading the first head here keeps their way short. Plain requests are given
//! back unread, and a handshake may still follow one on the same connection.

use std::{io, rc::Rc};

use actix_codec::{Decoder as _, Framed, FramedParts};
use actix_http::{
    Request, ServiceConfig,
    error::ParseError,
    h1::{Codec, Message},
    header,
};
use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout_at},
};

use super::{
    client::HandshakeClient,
    handshake,
    headers::{forwarded::PeerInfo, has_token, request::HeadLimits},
    lifecycle::UnansweredConnection,
    plain,
    refusal::Refusal,
    worker::{Worker, WorkerState},
};
use crate::net::{ClientStream, rewind::Rewind};

/// First bytes asked for; most heads are smaller.
const FIRST_READ: usize = 2048;

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

/// Serves one connection from its first byte of HTTP on.
///
/// # Errors
/// The client vanished before it had its answer.
pub async fn serve(
    worker: &Rc<Worker>,
    state: &WorkerState,
    mut io: ClientStream,
    peer: PeerInfo,
    unanswered: UnansweredConnection,
) -> io::Result<()> {
    let limits = state.traffic.settings.head;
    match read_first(&mut io, &limits).await? {
        First::Handshake(request, codec, rest) => {
            let io = Rewind::new(BytesMut::new(), io);
            let framed = Framed::from_parts(FramedParts::with_read_buf(io, codec, rest));
            let client = HandshakeClient::new(framed, peer).await?;
            handshake::serve(state, request.head(), client).await
        }
        First::Plain(read) => {
            plain::serve(worker.clone(), Rewind::new(read, io), peer, unanswered).await;
            Ok(())
        }
        First::Nothing => Ok(()),
        First::Refused(refusal) => {
            state.traffic.refused(&refusal, peer.address);
            let io = Rewind::new(BytesMut::new(), io);
            let framed = Framed::new(io, Codec::new(ServiceConfig::default()));
            HandshakeClient::new(framed, peer).await?.refuse(&refusal).await
        }
    }
}

async fn read_first(io: &mut ClientStream, limits: &HeadLimits) -> io::Result<First> {
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
        let end = head_end(&read, before);
        if end.unwrap_or(read.len()) > limits.bytes {
            let told = format!("at most {} bytes", limits.bytes);
            return Ok(First::Refused(Refusal::LargeHead(told)));
        }
        if end.is_some()
            && let Some(first) = parse(&read, limits)
        {
            return Ok(first);
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

/// `None` when the parser wants more.
fn parse(read: &BytesMut, limits: &HeadLimits) -> Option<First> {
    let mut rest = read.clone();
    let mut codec = Codec::new(ServiceConfig::default());
    match codec.decode(&mut rest) {
        Ok(Some(Message::Item(request))) => Some(match limits.check(request.head()) {
            Err(refusal) => First::Refused(refusal),
            Ok(()) if has_token(&request.head().headers, header::UPGRADE, "websocket") => {
                First::Handshake(Box::new(request), codec, rest)
            }
            Ok(()) => First::Plain(read.clone()),
        }),
        Ok(None) => None,
        Err(ParseError::TooLarge) => {
            Some(First::Refused(Refusal::LargeHead("more fields than it can read".to_owned())))
        }
        Err(error) => Some(First::Refused(Refusal::Malformed(error.to_string()))),
        // The first message of a connection is no chunk.
        Ok(Some(Message::Chunk(_))) => Some(First::Plain(read.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_wherever_reads_cut_it() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(head_end(&head[..cut], 0), None, "{cut}");
            assert_eq!(head_end(head, cut), Some(head.len()), "{cut}");
        }
        assert_eq!(head_end(b"GET / HTTP/1.1\nHost: a\n\nmore", 0), Some(24));
    }
}
