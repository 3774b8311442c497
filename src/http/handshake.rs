//! From a client's request to its tunnel: check, pick, dial, answer, join.

use std::{rc::Rc, sync::Arc};

use actix_codec::Framed;
use actix_http::{
    ConnectionType, Method, Request, RequestHead, Response, ResponseHead, Version,
    body::{BodySize, BoxBody},
    h1::{Codec, Message},
    header::{self, HeaderMap},
    ws::hash_key,
};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream::LocalBoxStream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    dial::{Answer, Dialer},
    headers::{end_to_end, has_token, tokens},
    refusal::Refusal,
    traffic::Traffic,
};
use crate::{
    actors::{metrics::PickBackend, registry::SessionInfo, session::SessionActor},
    domain::lease::{Backend, Lease},
    relay::Peer,
};

/// How long a refused client may take to read its answer and hang up.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);

/// What the handshakes of one worker thread share.
pub struct Worker {
    /// What all workers share.
    pub traffic: Traffic,
    /// This thread's way to the pods.
    pub dialer: Dialer,
}

/// Takes a connection over after its request head and either starts its session or refuses it.
///
/// When this returns, everything of the HTTP side is gone: a session holds its sockets alone.
///
/// # Errors
/// The client vanished before it had its answer.
pub async fn serve(
    worker: Rc<Worker>,
    request: Request,
    client: Framed<TcpStream, Codec>,
) -> std::io::Result<()> {
    let opened = match check(request.head()) {
        Ok(()) => open(&worker, request.head()).await,
        Err(refusal) => Err(refusal),
    };
    match opened {
        Ok(Opened::Tunnel { head, pod, lease }) => join(&worker, client, &head, pod, lease).await,
        Ok(Opened::Rejection { head, body }) => pass_on(client, &head, body).await,
        Err(refusal) => {
            log_refusal(&refusal, &request);
            refuse(client, &refusal).await
        }
    }
}

/// The answer to a request that never was an upgrade.
pub fn not_a_handshake(request: &Request) -> Response<BoxBody> {
    let refusal = check(request.head()).err();
    let refusal = refusal
        .unwrap_or_else(|| Refusal::Upgrade(shown(&request.head().headers, header::UPGRADE)));
    log_refusal(&refusal, request);
    refusal.response()
}

fn log_refusal(refusal: &Refusal, request: &Request) {
    let client = request.peer_addr().map_or_else(String::new, |address| address.to_string());
    log::log!(refusal.level(), "{client} {}: {refusal}", refusal.status().as_u16());
}

/// RFC 6455 §4.2.1, and what no handshake may carry.
fn check(request: &RequestHead) -> Result<(), Refusal> {
    let headers = &request.headers;
    if request.method != Method::GET {
        return Err(Refusal::Method(request.method.to_string()));
    }
    if request.version != Version::HTTP_11 {
        return Err(Refusal::HttpVersion(format!("{:?}", request.version)));
    }
    if !has_token(headers, header::UPGRADE, "websocket") {
        return Err(Refusal::Upgrade(shown(headers, header::UPGRADE)));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::Connection(shown(headers, header::CONNECTION)));
    }
    // A body behind an upgrade is read as frames by one side and as a request by the other.
    for (name, text) in [
        (header::CONTENT_LENGTH, "Content-Length"),
        (header::TRANSFER_ENCODING, "Transfer-Encoding"),
    ] {
        if headers.contains_key(name) {
            return Err(Refusal::Body(text));
        }
    }
    let version = shown(headers, header::SEC_WEBSOCKET_VERSION);
    if version != "13" {
        return Err(Refusal::WebSocketVersion(version));
    }
    let key = shown(headers, header::SEC_WEBSOCKET_KEY);
    if !is_nonce(&key) {
        return Err(Refusal::Key(key));
    }
    Ok(())
}

/// 16 bytes in base64: 22 characters and two of padding. Two fields show as a list and fail too.
fn is_nonce(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|digits| {
        digits.len() == 22
            && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
    })
}

fn shown(headers: &HeaderMap, name: header::HeaderName) -> String {
    tokens(headers, name).collect::<Vec<_>>().join(", ")
}

/// What the pods made of a handshake.
enum Opened {
    /// One said 101.
    Tunnel { head: ResponseHead, pod: Peer, lease: Lease },
    /// One said something else, which is the client's to hear.
    Rejection {
        head: ResponseHead,
        body: LocalBoxStream<'static, Result<Bytes, awc::error::PayloadError>>,
    },
}

/// Offers the handshake to the least-loaded pod, and to the next when one cannot be reached.
async fn open(worker: &Worker, request: &RequestHead) -> Result<Opened, Refusal> {
    let Traffic { health, settings, .. } = &worker.traffic;
    if health.is_draining() {
        return Err(Refusal::ShuttingDown);
    }
    timeout(settings.handshake_timeout, try_pods(worker, request))
        .await
        .map_err(|_| Refusal::Deadline(settings.handshake_timeout))?
}

async fn try_pods(worker: &Worker, request: &RequestHead) -> Result<Opened, Refusal> {
    let Traffic { metrics, settings, .. } = &worker.traffic;
    let mut tried: Vec<Arc<Backend>> = Vec::new();
    let mut last = None;
    while tried.len() <= settings.retries {
        let pick = PickBackend { tried: tried.clone() };
        let lease = match metrics.send(pick).await.map_err(|_| Refusal::Internal)? {
            Ok(lease) => lease,
            Err(none) => return Err(last.unwrap_or(Refusal::NoBackend(none))),
        };
        let failure = match worker.dialer.dial(lease.backend(), forwarded(request)).await {
            Ok(Answer::Switched(head, pod)) if accepts(request, &head) => {
                return Ok(Opened::Tunnel { head, pod, lease });
            }
            Ok(Answer::Switched(..)) => ("sent a wrong Sec-WebSocket-Accept".to_owned(), false),
            Ok(Answer::Other(head, body)) => return Ok(Opened::Rejection { head, body }),
            Err(error) => (error.to_string(), error.timed_out()),
        };
        let (reason, timed_out) = failure;
        let address = lease.backend().address.clone();
        log::warn!("{address} {reason}");
        tried.push(lease.backend().clone());
        last = Some(Refusal::Pod { address, reason, timed_out });
    }
    Err(last.unwrap_or(Refusal::Internal))
}

/// The request as the pod gets it.
fn forwarded(request: &RequestHead) -> RequestHead {
    let mut head = RequestHead::default();
    head.uri = request.uri.clone();
    head.headers = end_to_end(&request.headers);
    head.set_connection_type(ConnectionType::Upgrade);
    head
}

/// Whether a 101 answers the key that was sent (RFC 6455 §4.1).
fn accepts(request: &RequestHead, answer: &ResponseHead) -> bool {
    let key = request.headers.get(header::SEC_WEBSOCKET_KEY).map_or(&[][..], |key| key.as_bytes());
    let accept = answer.headers.get(header::SEC_WEBSOCKET_ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == hash_key(key))
}

/// Tells the client 101 and hands both sockets to the session.
async fn join(
    worker: &Worker,
    mut client: Framed<TcpStream, Codec>,
    head: &ResponseHead,
    pod: Peer,
    lease: Lease,
) -> std::io::Result<()> {
    let mut response = answer(head);
    response.head_mut().set_connection_type(ConnectionType::Upgrade);
    // Flushes whatever an earlier response left behind, too.
    client.send(Message::Item((response, BodySize::None))).await?;
    let parts = client.into_parts();
    let info = SessionInfo::new(parts.io.peer_addr().ok(), lease.backend().clone());
    let client = Peer::new(parts.io, parts.read_buf);
    SessionActor::start(client, pod, info, lease, worker.traffic.registry.clone());
    Ok(())
}

/// A pod's answer as the client gets it, without its body.
fn answer(head: &ResponseHead) -> Response<()> {
    let mut response = Response::with_body(head.status, ());
    response.head_mut().headers = end_to_end(&head.headers);
    response
}

/// Relays an answer that is not a 101, whole, then closes.
async fn pass_on(
    mut client: Framed<TcpStream, Codec>,
    head: &ResponseHead,
    mut body: LocalBoxStream<'static, Result<Bytes, awc::error::PayloadError>>,
) -> std::io::Result<()> {
    let length = head
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let mut response = answer(head);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.head_mut().set_connection_type(ConnectionType::Close);
    // Without a length the end of the connection ends the body (RFC 9112 §6.3).
    response.head_mut().no_chunking(true);
    let size = length.map_or(BodySize::Stream, BodySize::Sized);
    client.send(Message::Item((response, size))).await?;
    while let Some(chunk) = body.next().await {
        // Cutting the client off is the only way left to say that the body is not whole.
        let chunk = chunk.map_err(std::io::Error::other)?;
        client.send(Message::Chunk(Some(chunk))).await?;
    }
    hang_up(client).await
}

async fn refuse(mut client: Framed<TcpStream, Codec>, refusal: &Refusal) -> std::io::Result<()> {
    let (mut response, body) = (refusal.head(), refusal.body());
    response.head_mut().set_connection_type(ConnectionType::Close);
    let size = BodySize::Sized(body.len() as u64);
    client.send(Message::Item((response, size))).await?;
    client.send(Message::Chunk(Some(body.into()))).await?;
    hang_up(client).await
}

/// Closes so that the answer arrives: a reset for unread bytes would overtake it (RFC 9112 §9.6).
async fn hang_up(client: Framed<TcpStream, Codec>) -> std::io::Result<()> {
    let mut io = client.into_parts().io;
    io.shutdown().await?;
    let mut unread = [0; 1024];
    let drain = async { while io.read(&mut unread).await.is_ok_and(|n| n > 0) {} };
    let _ = timeout(LINGER, drain).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in fields {
            head.headers.append(
                header::HeaderName::from_static(name),
                header::HeaderValue::from_static(value),
            );
        }
        head
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn a_handshake_as_browsers_send_it_passes() {
        assert!(check(&request(&GOOD)).is_ok());
    }

    #[test]
    fn each_missing_or_wrong_field_is_named() {
        let wrong = [
            (0, "close", "Connection"),
            (1, "h2c", "Upgrade"),
            (2, "8", "Sec-WebSocket-Version"),
            (3, "c2hvcnQ=", "Sec-WebSocket-Key"),
        ];
        for (index, value, named) in wrong {
            let mut fields = GOOD;
            fields[index].1 = value;
            let sentence = check(&request(&fields)).unwrap_err().to_string();
            assert!(sentence.contains(named) && sentence.contains(value), "{sentence}");
            let without: Vec<_> =
                GOOD.iter().copied().filter(|field| *field != GOOD[index]).collect();
            let sentence = check(&request(&without)).unwrap_err().to_string();
            assert!(sentence.contains(named), "{sentence}");
        }
    }

    #[test]
    fn a_body_a_second_key_and_another_method_are_refused() {
        let with = |field| request(&[&GOOD[..], &[field]].concat());
        assert!(matches!(check(&with(("content-length", "5"))), Err(Refusal::Body(_))));
        assert!(matches!(check(&with(("transfer-encoding", "chunked"))), Err(Refusal::Body(_))));
        assert!(matches!(check(&with(GOOD[3])), Err(Refusal::Key(_))));
        let mut post = request(&GOOD);
        post.method = Method::POST;
        assert!(matches!(check(&post), Err(Refusal::Method(_))));
    }

    #[test]
    fn the_pods_answer_must_fit_the_key() {
        let mut answer = ResponseHead::new(actix_http::StatusCode::SWITCHING_PROTOCOLS);
        assert!(!accepts(&request(&GOOD), &answer));
        // The example of RFC 6455 §1.3.
        let value = header::HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        answer.headers.insert(header::SEC_WEBSOCKET_ACCEPT, value);
        assert!(accepts(&request(&GOOD), &answer));
    }
}
