//! Why a client gets no tunnel: the one table from reason to status, header fields and log level.

use actix_http::{
    Response, StatusCode,
    body::BoxBody,
    header::{self, HeaderName, HeaderValue},
};
use log::Level;
use thiserror::Error;

use crate::domain::pool::NoBackend;

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
    #[error("the {0} header has no place in a WebSocket handshake")]
    Body(&'static str),
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
    Deadline(std::time::Duration),
}

impl Refusal {
    /// The status that the client gets.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::WebSocketVersion(_) => StatusCode::UPGRADE_REQUIRED,
            Self::HttpVersion(_)
            | Self::Upgrade(_)
            | Self::Connection(_)
            | Self::Key(_)
            | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::ShuttingDown | Self::NoBackend(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Pod { timed_out: false, .. } => StatusCode::BAD_GATEWAY,
            Self::Pod { timed_out: true, .. } | Self::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// How loudly it is logged: clients' mistakes are everyday life, missing pods are not.
    pub fn level(&self) -> Level {
        match self {
            Self::Internal => Level::Error,
            Self::NoBackend(_) | Self::Pod { .. } | Self::Deadline(_) => Level::Warn,
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
            Self::ShuttingDown | Self::NoBackend(_) => {
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

    /// The whole answer.
    pub fn response(&self) -> Response<BoxBody> {
        self.head().set_body(BoxBody::new(self.body()))
    }
}
