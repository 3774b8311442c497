//! Why a client gets no tunnel: the one table from reason to status, header fields and log level.

use std::time::Duration;

use actix_http::{
    Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use log::Level;
use thiserror::Error;

use super::queue::QueueError;
use crate::domain::{balance::pool::NoBackend, session::admission::LimitReached};

/// Every handshake that breaks RFC 6455 is counted under one name.
const BAD_HANDSHAKE: &str = "bad_handshake";

/// A connection from a peer that must send a PROXY protocol header began with something else.
pub const BAD_PROXY_HEADER: &str = "bad_proxy_header";

/// A connection on which TLS failed.
pub const BAD_TLS: &str = "bad_tls";

/// The names that refusals are counted under.
pub const REASONS: [&str; 19] = [
    BAD_HANDSHAKE,
    BAD_PROXY_HEADER,
    "bad_request",
    BAD_TLS,
    "handshake_timed_out",
    "internal",
    "large_head",
    "max_sessions",
    "max_sessions_per_address",
    "no_backend",
    "no_route",
    "origin",
    "pod_failed",
    "pod_timed_out",
    "pods_full",
    "queue_full",
    "service_full",
    "shutting_down",
    "slow_head",
];

/// Seconds that refused clients are asked to wait, at random so that they do not come back as one.
const RETRY_AFTER: std::ops::RangeInclusive<u32> = 1..=5;

/// A reason, named by blame: the client's request, us, or the pods.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Client: not GET (RFC 6455 §4.2.1).
    #[error("method {0} cannot open a WebSocket: use GET")]
    Method(String),
    /// Client: HTTP/1.0 has no upgrade.
    #[error("{0} cannot open a WebSocket: use HTTP/1.1")]
    HttpVersion(String),
    /// Client: no `Upgrade: websocket`.
    #[error("this is a WebSocket service: the Upgrade header must be \"websocket\", not {0:?}")]
    Upgrade(String),
    /// Client: no `Connection: Upgrade`.
    #[error("the Connection header must name \"Upgrade\", not {0:?}")]
    Connection(String),
    /// Client: `Sec-WebSocket-Version` is not 13.
    #[error("the Sec-WebSocket-Version header must be \"13\", not {0:?}")]
    WebSocketVersion(String),
    /// Client: `Sec-WebSocket-Key` is not one nonce of 16 bytes in base64.
    #[error("the Sec-WebSocket-Key header must be 16 bytes in base64, not {0:?}")]
    Key(String),
    /// Client: a handshake has no body.
    #[error("the {0} header has no place in a WebSocket handshake, here with {1:?}")]
    Body(&'static str, String),
    /// Client: not one `Host` (RFC 9112 §3.2).
    #[error("the Host header must be one name or address, with or without a port, not {0:?}")]
    Host(String),
    /// Client: a target that is neither a path nor a URL (RFC 9112 §3.2).
    #[error("the request's target must be a path or an absolute URL, not {0:?}")]
    Target(String),
    /// Client: a path with segments that others may resolve.
    #[error("the request's path must not have segments of dots: {0:?}")]
    DotSegments(String),
    /// Client: nobody's request.
    #[error("no route leads to {0:?}")]
    NoRoute(String),
    /// Client: a page that may not.
    #[error("pages of the origin {0:?} may not open WebSockets here")]
    Origin(String),
    /// Client: a head that breaks the syntax (RFC 9112).
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// Client: the body ends before it should, or breaks its framing (RFC 9112 §7).
    #[error("the request's body is not framed as its Content-Length or Transfer-Encoding says")]
    BrokenBody,
    /// Client: the head is not there in time.
    #[error("the request's header fields did not come within {0:?}")]
    SlowHead(Duration),
    /// Client: the head is too large.
    #[error("the request's head is larger than this balancer takes: {0}")]
    LargeHead(String),
    /// Limits of ours.
    #[error("{0}: try again later")]
    Limit(#[from] LimitReached),
    /// Limits of the service, with nothing gained by waiting.
    #[error("every pod is full: {0}")]
    Queue(QueueError),
    /// Us: going down.
    #[error("this balancer is shutting down: try again")]
    ShuttingDown,
    /// Us: a control actor is gone.
    #[error("the balancer cannot choose a pod")]
    Internal,
    /// Pods: none to offer.
    #[error("no pod available: {0}")]
    NoBackend(#[from] NoBackend),
    /// Pods: the last one tried could not be reached or broke the protocol.
    #[error("{address}: {reason}")]
    Pod {
        /// The pod.
        address: String,
        /// What it did.
        reason: String,
        /// It was too slow, rather than wrong.
        timed_out: bool,
    },
    /// Pods: none answered before the handshake's own deadline.
    #[error("no pod answered within {0:?}")]
    Deadline(Duration),
}

impl Refusal {
    /// The status that the client gets, and the name that the reason is counted under.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, BAD_HANDSHAKE),
            Self::WebSocketVersion(_) => (StatusCode::UPGRADE_REQUIRED, BAD_HANDSHAKE),
            Self::HttpVersion(_)
            | Self::Upgrade(_)
            | Self::Connection(_)
            | Self::Key(_)
            | Self::Body(..) => (StatusCode::BAD_REQUEST, BAD_HANDSHAKE),
            Self::Host(_)
            | Self::Target(_)
            | Self::DotSegments(_)
            | Self::Malformed(_)
            | Self::BrokenBody => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::NoRoute(_) => (StatusCode::NOT_FOUND, "no_route"),
            Self::Origin(_) => (StatusCode::FORBIDDEN, "origin"),
            Self::SlowHead(_) => (StatusCode::REQUEST_TIMEOUT, "slow_head"),
            Self::LargeHead(_) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "large_head"),
            Self::Limit(LimitReached::Sessions) => {
                (StatusCode::SERVICE_UNAVAILABLE, "max_sessions")
            }
            Self::Limit(LimitReached::SessionsPerAddress) => {
                (StatusCode::TOO_MANY_REQUESTS, "max_sessions_per_address")
            }
            Self::Queue(QueueError::QueueFull) => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
            Self::Queue(QueueError::TimedOut) => (StatusCode::SERVICE_UNAVAILABLE, "pods_full"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::NoBackend(NoBackend::ServiceFull) => {
                (StatusCode::SERVICE_UNAVAILABLE, "service_full")
            }
            Self::NoBackend(_) => (StatusCode::SERVICE_UNAVAILABLE, "no_backend"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Pod { timed_out: false, .. } => (StatusCode::BAD_GATEWAY, "pod_failed"),
            Self::Pod { timed_out: true, .. } => (StatusCode::GATEWAY_TIMEOUT, "pod_timed_out"),
            Self::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "handshake_timed_out"),
        }
    }

    /// The status that the client gets.
    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// The name that the reason is counted under: one of [`REASONS`].
    pub fn reason(&self) -> &'static str {
        self.kind().1
    }

    /// How loudly it is logged: clients' mistakes are everyday life, missing pods are not.
    pub fn level(&self) -> Level {
        match self {
            Self::Internal => Level::Error,
            Self::NoBackend(_) | Self::Queue(_) | Self::Pod { .. } | Self::Deadline(_) => {
                Level::Warn
            }
            _ => Level::Info,
        }
    }

    /// The header fields that its status calls for.
    fn fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let fixed = HeaderValue::from_static;
        match self {
            Self::Method(_) => vec![(header::ALLOW, fixed("GET"))],
            Self::WebSocketVersion(_) => vec![
                (header::SEC_WEBSOCKET_VERSION, fixed("13")),
                (header::UPGRADE, fixed("websocket")),
            ],
            Self::ShuttingDown | Self::NoBackend(_) | Self::Limit(_) | Self::Queue(_) => {
                vec![(header::RETRY_AFTER, fastrand::u32(RETRY_AFTER).into())]
            }
            _ => Vec::new(),
        }
    }

    /// What the client is told. Where pods are stays in the log.
    pub fn body(&self) -> String {
        match self {
            Self::Pod { timed_out: false, .. } => "the pod could not be reached\n".to_owned(),
            Self::Pod { timed_out: true, .. } => "the pod did not answer in time\n".to_owned(),
            told => format!("{told}\n"),
        }
    }

    /// The answer without its body.
    pub fn head(&self) -> Response<()> {
        let mut response = Response::with_body(self.status(), ());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        for (name, value) in self.fields() {
            headers.insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_counted_under_a_known_name() {
        let text = String::new;
        let pod = |timed_out| Refusal::Pod { address: text(), reason: text(), timed_out };
        for refusal in [
            Refusal::Method(text()),
            Refusal::Host(text()),
            Refusal::NoRoute(text()),
            Refusal::Origin(text()),
            Refusal::SlowHead(Duration::ZERO),
            Refusal::LargeHead(text()),
            Refusal::Limit(LimitReached::Sessions),
            Refusal::Limit(LimitReached::SessionsPerAddress),
            Refusal::Queue(QueueError::QueueFull),
            Refusal::Queue(QueueError::TimedOut),
            Refusal::ShuttingDown,
            Refusal::NoBackend(NoBackend::ServiceFull),
            Refusal::NoBackend(NoBackend::Empty),
            Refusal::Internal,
            pod(true),
            pod(false),
            Refusal::Deadline(Duration::ZERO),
        ] {
            assert!(REASONS.contains(&refusal.reason()), "{refusal:?}");
        }
        assert!(REASONS.is_sorted());
        assert!(REASONS.contains(&BAD_PROXY_HEADER) && REASONS.contains(&BAD_TLS));
    }
}
