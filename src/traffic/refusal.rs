//! Refused requests: the one table from reason to status, text, header fields, counter and log level.

use std::time::Duration;

use actix_http::{
    Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use log::Level;
use thiserror::Error;

use super::queue::QueueError;
use crate::domain::{balance::pool::NoBackend, session::admission::LimitReached};

/// Counter name of every handshake that breaks RFC 6455.
const BAD_HANDSHAKE: &str = "bad_handshake";

/// Counter name of connections without the PROXY protocol header that their peer must send.
pub const BAD_PROXY_HEADER: &str = "bad_proxy_header";

/// Counter name of connections whose TLS handshake failed.
pub const BAD_TLS: &str = "bad_tls";

/// All counter names.
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

/// Seconds for `Retry-After`, chosen at random so that refused clients do not all return at once.
const RETRY_AFTER: std::ops::RangeInclusive<u32> = 1..=5;

/// Why a request is refused. Each text names the header or setting and its value, and what to change.
#[derive(Debug, Error)]
pub enum Refusal {
    // The client's fault.
    /// RFC 6455 §4.2.1.
    #[error("method {0} cannot open a WebSocket: use GET")]
    Method(String),
    #[error("{0} cannot open a WebSocket: use HTTP/1.1")]
    HttpVersion(String),
    #[error("header Upgrade must be \"websocket\", received {0:?}")]
    Upgrade(String),
    #[error("header Connection must contain \"Upgrade\", received {0:?}")]
    Connection(String),
    #[error("header Sec-WebSocket-Version must be \"13\", received {0:?}")]
    WebSocketVersion(String),
    #[error("header Sec-WebSocket-Key must be 16 bytes in base64, once, received {0:?}")]
    Key(String),
    #[error("a WebSocket handshake must have no body: remove header {0}, received {1:?}")]
    Body(&'static str, String),
    /// RFC 9112 §3.2.
    #[error(
        "header Host must be one host name or IP address with an optional port, received {0:?}"
    )]
    Host(String),
    /// RFC 9112 §3.2.
    #[error("request target must be a path or an absolute http URL, received {0:?}")]
    Target(String),
    /// RFC 9110 §8.6.
    #[error("header Content-Length must be one number of bytes, received {0:?}")]
    ContentLength(String),
    /// Servers resolve such paths in different ways, so routes could be bypassed.
    #[error("request path must not contain \".\" or \"..\" segments, received {0:?}")]
    DotSegments(String),
    #[error("no route matches {0:?}: check the host and the path")]
    NoRoute(String),
    #[error("header Origin {0:?} is not in allowed_origins of this service")]
    Origin(String),
    /// RFC 9112.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// RFC 9112 §7.
    #[error("request body does not match its Content-Length or Transfer-Encoding")]
    BrokenBody,
    #[error("request head was not complete within {0:?} (request_timeout)")]
    SlowHead(Duration),
    #[error("request head is too large: {0}")]
    LargeHead(String),

    // Limits of this balancer.
    #[error("{0}: try again later")]
    Limit(#[from] LimitReached),
    #[error("every pod is full: {0}")]
    Queue(QueueError),

    // Faults of this balancer.
    #[error("balancer is shutting down: try again")]
    ShuttingDown,
    #[error("internal error: control actor unavailable")]
    Internal,

    // The pods' faults.
    #[error("no pod available: {0}")]
    NoBackend(#[from] NoBackend),
    /// The pod that was tried last could not be reached, or its answer does not count.
    #[error("pod {address} failed: {reason}")]
    Pod { address: String, reason: String, is_timeout: bool },
    #[error("no pod answered within {0:?} (handshake_timeout)")]
    Deadline(Duration),
}

impl Refusal {
    /// Returns the status for the client and the counter name.
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
            | Self::ContentLength(_)
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
            Self::Queue(QueueError::QueueFull(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "queue_full")
            }
            Self::Queue(QueueError::NoQueue | QueueError::TimedOut(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "pods_full")
            }
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::NoBackend(NoBackend::ServiceFull) => {
                (StatusCode::SERVICE_UNAVAILABLE, "service_full")
            }
            Self::NoBackend(_) => (StatusCode::SERVICE_UNAVAILABLE, "no_backend"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Pod { is_timeout: false, .. } => (StatusCode::BAD_GATEWAY, "pod_failed"),
            Self::Pod { is_timeout: true, .. } => (StatusCode::GATEWAY_TIMEOUT, "pod_timed_out"),
            Self::Deadline(_) => (StatusCode::GATEWAY_TIMEOUT, "handshake_timed_out"),
        }
    }

    /// Returns the status for the client.
    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// Returns the counter name, one of [`REASONS`].
    pub fn reason(&self) -> &'static str {
        self.kind().1
    }

    /// Returns the log level: clients make mistakes all the time, missing pods need an operator.
    pub fn level(&self) -> Level {
        match self {
            Self::Internal => Level::Error,
            Self::NoBackend(_) | Self::Queue(_) | Self::Pod { .. } | Self::Deadline(_) => {
                Level::Warn
            }
            _ => Level::Info,
        }
    }

    /// Returns the header fields that the status needs.
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

    /// Returns the text for the client. Addresses of pods appear in the log only.
    pub fn body(&self) -> String {
        match self {
            Self::Pod { is_timeout: false, .. } => "the pod could not be reached\n".to_owned(),
            Self::Pod { is_timeout: true, .. } => "the pod did not answer in time\n".to_owned(),
            refusal => format!("{refusal}\n"),
        }
    }

    /// Returns the answer without its body.
    pub fn response(&self) -> Response<()> {
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
    fn every_refusal_has_a_known_counter_name() {
        let text = String::new;
        let pod = |is_timeout| Refusal::Pod { address: text(), reason: text(), is_timeout };
        for refusal in [
            Refusal::Method(text()),
            Refusal::Host(text()),
            Refusal::NoRoute(text()),
            Refusal::Origin(text()),
            Refusal::SlowHead(Duration::ZERO),
            Refusal::LargeHead(text()),
            Refusal::Limit(LimitReached::Sessions),
            Refusal::Limit(LimitReached::SessionsPerAddress),
            Refusal::ContentLength(text()),
            Refusal::Queue(QueueError::QueueFull(1)),
            Refusal::Queue(QueueError::NoQueue),
            Refusal::Queue(QueueError::TimedOut(Duration::ZERO)),
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
