//! A WebSocket handshake: check the request, choose a pod, shake hands with it, answer the client,
//! start the session.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use actix_http::{
    ConnectionType, Method, RequestHead, Response, ResponseHead, Uri, Version,
    body::BodySize,
    header::{self, HeaderName, HeaderValue},
    ws::hash_key,
};
use tokio::time::timeout;

use super::{
    attempts::Attempts,
    client::HandshakeClient,
    headers::{forwarded::PeerInfo, has_token, request, shown, tokens},
    refusal::Refusal,
    routing::RoutedRequest,
    state::TrafficState,
    upstream::{PodAnswer, PodBody, UpstreamError},
    worker::WorkerState,
};
use crate::{
    actors::{
        session::{SessionActor, SessionPermit},
        session_info::{SessionInfo, SessionRules},
    },
    domain::{balance::backend::Backend, session::admission::Ticket},
    relay::TunnelPeer,
};

/// Serves the handshake of `client`: starts a session, or sends the pod's answer or a refusal.
///
/// Nothing of HTTP is left when this returns: a session holds its two sockets alone.
///
/// # Errors
/// The client disconnected before it had its answer.
pub async fn serve(
    state: &WorkerState,
    request: &RequestHead,
    mut client: HandshakeClient,
) -> io::Result<()> {
    let traffic = &state.traffic;
    let peer = client.peer;
    let address = traffic.settings.forwarding.client(&request.headers, peer.address);
    let outcome = tokio::select! {
        outcome = open(state, request, peer) => outcome,
        () = client.wait_until_closed() => {
            log::debug!("client {address} disconnected during its handshake");
            return Ok(());
        }
    };
    match outcome {
        Ok(HandshakeOutcome::Accepted { answer, pod, permit, rules }) => {
            let client = client.switch_protocols(answer).await?;
            let backend = permit.lease.backend().clone();
            let info = SessionInfo::new(address, backend, rules.tunnel.close_codes);
            traffic.counters.sessions_opened.fetch_add(1, Relaxed);
            let observers = (traffic.registry.clone(), traffic.counters.clone());
            SessionActor::start(client, pod, info, permit, observers, &rules);
            Ok(())
        }
        Ok(HandshakeOutcome::Rejected { mut answer, body }) => {
            let length = answer.headers_mut().remove(header::CONTENT_LENGTH).next();
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            let size = length.map_or(BodySize::Stream, BodySize::Sized);
            client.send_response(answer, size, body).await
        }
        Err(refusal) => {
            traffic.record_refusal(&refusal, address);
            client.refuse(&refusal, request.method == Method::HEAD).await
        }
    }
}

/// Checks what RFC 6455 §4.2.1 asks of a handshake, and that it has no body.
fn check(request: &RequestHead) -> Result<(), Refusal> {
    let headers = &request.headers;
    if request.method != Method::GET {
        return Err(Refusal::Method(request.method.to_string()));
    }
    if request.version != Version::HTTP_11 {
        return Err(Refusal::HttpVersion(format!("{:?}", request.version)));
    }
    request::check(request)?;
    if !request::is_handshake(request) {
        return Err(Refusal::Upgrade(shown(headers, header::UPGRADE)));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::Connection(shown(headers, header::CONNECTION)));
    }
    // One side would read a body as frames, the other as a request.
    for (name, text) in [
        (header::CONTENT_LENGTH, "Content-Length"),
        (header::TRANSFER_ENCODING, "Transfer-Encoding"),
    ] {
        if headers.contains_key(&name) {
            return Err(Refusal::Body(text, shown(headers, name)));
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

/// Whether `key` is 16 bytes in base64: 22 characters and two of padding. Two header fields arrive
/// here as a list, which is refused too.
fn is_nonce(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|digits| {
        digits.len() == 22
            && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
    })
}

/// The answer to a handshake that at least one pod has answered.
enum HandshakeOutcome {
    /// A pod sent a 101.
    Accepted {
        /// The pod's answer, as the client gets it.
        answer: Response<()>,
        pod: TunnelPeer,
        permit: SessionPermit,
        rules: Arc<SessionRules>,
    },
    /// A pod sent another status, which the client gets.
    Rejected {
        /// The pod's answer, as the client gets it.
        answer: Response<()>,
        body: PodBody,
    },
}

/// Checks the handshake, finds its service, admits the client, and offers it to the pods.
///
/// # Errors
/// The handshake is refused, or no pod has answered it.
async fn open(
    state: &WorkerState,
    request: &RequestHead,
    peer: PeerInfo,
) -> Result<HandshakeOutcome, Refusal> {
    check(request)?;
    let TrafficState { lifecycle, admission, .. } = &*state.traffic;
    if lifecycle.is_draining() {
        return Err(Refusal::ShuttingDown);
    }
    let routed = RoutedRequest::new(state, request, peer)?;
    let service = routed.service;
    service.check_origin(&request.headers)?;
    let ticket = admission.admit(routed.forwarded.client)?;
    // The queue has its own timeout.
    let deadline = service.settings.handshake_timeout + service.queue.timeout();
    timeout(deadline, try_pods(&routed, request, Some(ticket)))
        .await
        .map_err(|_| Refusal::Deadline(service.settings.handshake_timeout))?
}

/// Offers the handshake to the best pod, and to the next one when a pod fails.
async fn try_pods(
    routed: &RoutedRequest<'_>,
    request: &RequestHead,
    ticket: Option<Ticket>,
) -> Result<HandshakeOutcome, Refusal> {
    let target: Uri =
        routed.target.parse().map_err(|_| Refusal::Target(request.uri.to_string()))?;
    let mut attempts = Attempts::for_session(routed, ticket);
    let rejection = |head: ResponseHead, body, backend: &Arc<Backend>| HandshakeOutcome::Rejected {
        answer: routed.answer(&head, backend),
        body,
    };
    let mut unavailable = None;
    loop {
        let permit = match attempts.next_pod().await {
            Ok(permit) => permit,
            // The answer of a pod says more than a refusal.
            Err(refusal) => match unavailable {
                Some((head, body, backend)) => return Ok(rejection(head, body, &backend)),
                None => return Err(refusal),
            },
        };
        let backend = permit.lease.backend();
        let mut head = RequestHead::default();
        head.uri = target.clone();
        head.headers = routed.headers(backend);
        head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        head.set_connection_type(ConnectionType::Upgrade);
        let error = match routed.upstream.connector.send_handshake(backend, head).await {
            Ok(PodAnswer::Switched(head, pod)) => match check_answer(request, &head) {
                Ok(()) => {
                    let answer = routed.switching(&head, backend);
                    let rules = routed.service.rules.clone();
                    return Ok(HandshakeOutcome::Accepted { answer, pod, permit, rules });
                }
                Err(broken) => UpstreamError::Failed(broken),
            },
            Ok(PodAnswer::Other(head, body)) => {
                let status = head.status.as_u16();
                if !routed.service.settings.retry_on.contains(&status) {
                    return Ok(rejection(head, body, backend));
                }
                unavailable = Some((head, body, backend.clone()));
                UpstreamError::Failed(format!("answered {status}"))
            }
            Err(error) => error,
        };
        attempts.record_failure(permit, &error);
    }
}

/// Checks a pod's 101 (RFC 6455 §4.1): it must prove the client's key and choose only what the client
/// has offered.
fn check_answer(request: &RequestHead, answer: &ResponseHead) -> Result<(), String> {
    let key = request.headers.get(header::SEC_WEBSOCKET_KEY).map_or(&[][..], |key| key.as_bytes());
    let mut accepts = answer.headers.get_all(header::SEC_WEBSOCKET_ACCEPT);
    let accept = accepts.next();
    if accept.is_none_or(|accept| accept.as_bytes() != hash_key(key)) || accepts.next().is_some() {
        return Err("101 with a wrong Sec-WebSocket-Accept".to_owned());
    }
    if !has_token(&answer.headers, header::UPGRADE, "websocket")
        || !has_token(&answer.headers, header::CONNECTION, "upgrade")
    {
        return Err("101 without Upgrade: websocket and Connection: Upgrade".to_owned());
    }
    let not_offered = |name: HeaderName| {
        let offered: Vec<&str> = tokens(&request.headers, name.clone()).map(first_word).collect();
        let mut chosen = tokens(&answer.headers, name).map(first_word);
        chosen.find(|chosen| !offered.contains(chosen)).map(str::to_owned)
    };
    if tokens(&answer.headers, header::SEC_WEBSOCKET_PROTOCOL).count() > 1 {
        return Err("101 with more than one Sec-WebSocket-Protocol".to_owned());
    }
    if let Some(subprotocol) = not_offered(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err(format!(
            "101 with Sec-WebSocket-Protocol {subprotocol:?}, which the client did not offer"
        ));
    }
    if let Some(extension) = not_offered(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err(format!(
            "101 with Sec-WebSocket-Extensions {extension:?}, which the client did not offer"
        ));
    }
    Ok(())
}

/// An extension's name without its parameters.
fn first_word(token: &str) -> &str {
    token.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in fields {
            head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        head
    }

    const GOOD: [(&str, &str); 5] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("host", "chat.example"),
    ];

    #[test]
    fn the_handshake_of_a_browser_is_accepted() {
        assert!(check(&request(&GOOD)).is_ok());
    }

    #[test]
    fn each_missing_or_wrong_field_is_named() {
        let wrong = [
            (0, "close", "Connection"),
            (1, "h2c", "Upgrade"),
            (2, "8", "Sec-WebSocket-Version"),
            (3, "c2hvcnQ=", "Sec-WebSocket-Key"),
            (4, "", "Host"),
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
    fn bodies_second_keys_and_other_methods_are_refused() {
        let with = |field| request(&[&GOOD[..], &[field]].concat());
        assert!(matches!(check(&with(("content-length", "5"))), Err(Refusal::Body(..))));
        assert!(matches!(check(&with(("transfer-encoding", "chunked"))), Err(Refusal::Body(..))));
        assert!(matches!(check(&with(GOOD[3])), Err(Refusal::Key(_))));
        let mut post = request(&GOOD);
        post.method = Method::POST;
        assert!(matches!(check(&post), Err(Refusal::Method(_))));
    }

    #[test]
    fn a_101_must_match_the_request() {
        let mut asked = request(&GOOD);
        let offer = HeaderValue::from_static("permessage-deflate; client_max_window_bits, x-a");
        asked.headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, offer);
        asked.headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("a, b"));
        let with = |fields: &[(&'static str, &'static str)]| {
            let mut answer = ResponseHead::new(actix_http::StatusCode::SWITCHING_PROTOCOLS);
            for (name, value) in fields {
                let value = HeaderValue::from_static(value);
                answer.headers.append(HeaderName::from_static(name), value);
            }
            check_answer(&asked, &answer)
        };
        // The example of RFC 6455 §1.3.
        let good = [
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
        ];
        assert_eq!(with(&good), Ok(()));
        for missing in 0..good.len() {
            let rest: Vec<_> = good.iter().copied().filter(|one| *one != good[missing]).collect();
            assert!(with(&rest).is_err(), "without {}", good[missing].0);
        }
        for (name, value, right) in [
            ("sec-websocket-protocol", "b", true),
            ("sec-websocket-protocol", "c", false),
            ("sec-websocket-protocol", "a, b", false),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", false),
            ("sec-websocket-extensions", "permessage-deflate; server_no_context_takeover", true),
            ("sec-websocket-extensions", "x-b", false),
        ] {
            assert_eq!(with(&[&good[..], &[(name, value)]].concat()).is_ok(), right, "{value}");
        }
    }
}
