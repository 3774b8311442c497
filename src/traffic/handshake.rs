//! From a client's request to its tunnel: check, pick, dial, answer, join.

use std::{
    io,
    net::IpAddr,
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
    upstream::{Answer, Body, UpstreamError},
    worker::WorkerState,
};
use crate::{
    actors::{
        registry::SessionInfo,
        session::{SessionActor, SessionPermit, SessionRules},
    },
    domain::{balance::lease::Backend, session::admission::Ticket},
    relay::TunnelPeer,
};

/// Takes a client over after its request head and either starts its session or refuses it.
///
/// When this returns, everything of the HTTP side is gone: a session holds its sockets alone.
///
/// # Errors
/// The client vanished before it had its answer.
pub async fn serve(
    state: &WorkerState,
    request: &RequestHead,
    mut client: HandshakeClient,
) -> io::Result<()> {
    let traffic = &state.traffic;
    let peer = client.peer;
    let address = traffic.settings.forwarding.client(&request.headers, peer.address);
    let opened = tokio::select! {
        opened = open(state, request, peer) => opened,
        () = client.left() => {
            log::debug!("{address} left during its handshake");
            return Ok(());
        }
    };
    match opened {
        Ok(HandshakeOutcome::Tunnel { answer, pod, permit, rules }) => {
            let client = client.switch(answer).await?;
            EstablishedSession { client, pod, permit, rules }.start(state, address);
            Ok(())
        }
        Ok(HandshakeOutcome::Rejection { mut answer, body }) => {
            let length = answer.headers_mut().remove(header::CONTENT_LENGTH).next();
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            client.answer(answer, length.map_or(BodySize::Stream, BodySize::Sized), body).await
        }
        Err(refusal) => {
            traffic.refused(&refusal, address);
            client.refuse(&refusal).await
        }
    }
}

/// Both sides have shaken hands.
pub struct EstablishedSession {
    /// The client's end of the tunnel.
    pub client: TunnelPeer,
    /// The pod's end.
    pub pod: TunnelPeer,
    /// What the session occupies.
    pub permit: SessionPermit,
    /// What holds for it.
    pub rules: Arc<SessionRules>,
}

impl EstablishedSession {
    /// Starts the session of the client at `address`.
    pub fn start(self, state: &WorkerState, address: IpAddr) {
        let Self { client, pod, permit, rules } = self;
        let traffic = &state.traffic;
        let info = SessionInfo::new(address, permit.lease.backend().clone(), rules.close_code);
        traffic.counters.sessions_opened.fetch_add(1, Relaxed);
        let told = (traffic.registry.clone(), traffic.counters.clone());
        SessionActor::start(client, pod, info, permit, told, &rules);
    }
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
    request::check(request)?;
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

/// 16 bytes in base64: 22 characters and two of padding. Two fields show as a list and fail too.
fn is_nonce(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|digits| {
        digits.len() == 22
            && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
    })
}

/// What the pods made of a handshake.
pub enum HandshakeOutcome {
    /// One said 101.
    Tunnel {
        /// The pod's answer, as the client gets it.
        answer: Response<()>,
        /// Its end of the tunnel.
        pod: TunnelPeer,
        /// What the session occupies.
        permit: SessionPermit,
        /// What holds for it.
        rules: Arc<SessionRules>,
    },
    /// One said something else, which is the client's to hear.
    Rejection {
        /// The pod's answer, as the client gets it.
        answer: Response<()>,
        /// The rest of it.
        body: Body,
    },
}

/// Checks the handshake, finds its service, lets the client in, and finds it a pod.
///
/// # Errors
/// Why there is no tunnel, where no pod has its own words for it.
pub async fn open(
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
    // Waiting in the queue has a time-out of its own.
    let deadline = service.settings.handshake_timeout + service.queue.timeout();
    timeout(deadline, try_pods(&routed, request, Some(ticket)))
        .await
        .map_err(|_| Refusal::Deadline(service.settings.handshake_timeout))?
}

/// Offers the handshake to the best pod, and to the next when one fails.
async fn try_pods(
    routed: &RoutedRequest<'_>,
    request: &RequestHead,
    ticket: Option<Ticket>,
) -> Result<HandshakeOutcome, Refusal> {
    let target: Uri =
        routed.target.parse().map_err(|_| Refusal::Target(request.uri.to_string()))?;
    let mut attempts = Attempts::for_session(routed, ticket);
    let rejection = |head: ResponseHead, body, backend: &Arc<Backend>| {
        HandshakeOutcome::Rejection { answer: routed.answer(&head, backend), body }
    };
    let mut unavailable = None;
    loop {
        let permit = match attempts.next().await {
            Ok(permit) => permit,
            // A pod's own words say more than ours.
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
            Ok(Answer::Switched(head, pod)) => match accept(request, &head) {
                Ok(()) => {
                    let answer = routed.switching(&head, backend);
                    let rules = routed.service.rules.clone();
                    return Ok(HandshakeOutcome::Tunnel { answer, pod, permit, rules });
                }
                Err(broken) => UpstreamError::Broken(broken),
            },
            Ok(Answer::Other(head, body)) => {
                let status = head.status.as_u16();
                if !routed.service.settings.retry_on.contains(&status) {
                    return Ok(rejection(head, body, backend));
                }
                unavailable = Some((head, body, backend.clone()));
                UpstreamError::Broken(format!("answered {status}"))
            }
            Err(error) => error,
        };
        attempts.failed(permit, &error);
    }
}

/// Whether a 101 answers what was asked (RFC 6455 §4.1): the key, and nothing that the client did
/// not offer.
fn accept(request: &RequestHead, answer: &ResponseHead) -> Result<(), String> {
    let key = request.headers.get(header::SEC_WEBSOCKET_KEY).map_or(&[][..], |key| key.as_bytes());
    let mut accepts = answer.headers.get_all(header::SEC_WEBSOCKET_ACCEPT);
    let accept = accepts.next();
    if accept.is_none_or(|accept| accept.as_bytes() != hash_key(key)) || accepts.next().is_some() {
        return Err("sent a wrong Sec-WebSocket-Accept".to_owned());
    }
    if !has_token(&answer.headers, header::UPGRADE, "websocket")
        || !has_token(&answer.headers, header::CONNECTION, "upgrade")
    {
        return Err("sent a 101 without Upgrade: websocket and Connection: Upgrade".to_owned());
    }
    let not_offered = |name: HeaderName| {
        let offered: Vec<&str> = tokens(&request.headers, name.clone()).map(first_word).collect();
        let mut chosen = tokens(&answer.headers, name).map(first_word);
        chosen.find(|chosen| !offered.contains(chosen)).map(str::to_owned)
    };
    if tokens(&answer.headers, header::SEC_WEBSOCKET_PROTOCOL).count() > 1 {
        return Err("chose more than one subprotocol".to_owned());
    }
    if let Some(subprotocol) = not_offered(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err(format!("chose the subprotocol {subprotocol:?}, which was not offered"));
    }
    if let Some(extension) = not_offered(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err(format!("chose the extension {extension:?}, which was not offered"));
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
            head.headers.append(
                header::HeaderName::from_static(name),
                header::HeaderValue::from_static(value),
            );
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
    fn a_body_a_second_key_and_another_method_are_refused() {
        let with = |field| request(&[&GOOD[..], &[field]].concat());
        assert!(matches!(check(&with(("content-length", "5"))), Err(Refusal::Body(..))));
        assert!(matches!(check(&with(("transfer-encoding", "chunked"))), Err(Refusal::Body(..))));
        assert!(matches!(check(&with(GOOD[3])), Err(Refusal::Key(_))));
        let mut post = request(&GOOD);
        post.method = Method::POST;
        assert!(matches!(check(&post), Err(Refusal::Method(_))));
    }

    #[test]
    fn the_pods_answer_must_fit_what_was_asked() {
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
            accept(&asked, &answer)
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
