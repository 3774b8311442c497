//! Opens the WebSocket to a pod through awc's connector.
//!
//! The connector is used directly because `awc::Client::ws()` throws away every answer that is
//! not a 101, and because the tunnel wants the bare socket.

use std::{net::SocketAddr, time::Duration};

use actix_http::{RequestHead, ResponseHead, StatusCode, Uri, h1::MessageType};
use actix_service::{Service as _, ServiceExt as _};
use awc::{Connect, Connector, error::PayloadError};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::LocalBoxFuture,
    stream::{self, LocalBoxStream},
};
use thiserror::Error;
use tokio::time::timeout;

use crate::{domain::lease::Backend, relay::Peer};

/// What a pod answered.
pub enum Answer {
    /// 101, and the pod's side of the tunnel.
    Switched(ResponseHead, Peer),
    /// Any other status, with its body.
    Other(ResponseHead, LocalBoxStream<'static, Result<Bytes, PayloadError>>),
}

/// Why a pod gave no answer.
#[derive(Debug, Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// No TCP connection in time.
    #[error("cannot be reached within {0:?}")]
    ConnectTimeout(Duration),
    /// Connected, but no whole answer head.
    #[error("broke off the handshake: {0}")]
    Broken(String),
    /// Connected, but no answer head in time.
    #[error("did not answer within {0:?}")]
    HeadTimeout(Duration),
}

impl DialError {
    /// Too slow, rather than wrong.
    pub fn timed_out(&self) -> bool {
        matches!(self, Self::ConnectTimeout(_) | Self::HeadTimeout(_))
    }
}

/// How long each step towards a pod may take.
#[derive(Clone, Copy, Debug)]
pub struct DialTimeouts {
    /// TCP connect, name look-up included.
    pub connect: Duration,
    /// From the request to the answer's head.
    pub head: Duration,
}

type Dialing = LocalBoxFuture<'static, Result<Answer, DialError>>;

/// Opens connections to pods; one per worker thread. A closure, because awc's connector has no
/// type that can be named.
pub struct Dialer(Box<dyn Fn(Connect, RequestHead) -> Dialing>);

impl Dialer {
    /// A dialer for the current thread.
    pub fn new(timeouts: DialTimeouts) -> Self {
        let tcp = actix_tls::connect::Connector::default().service().map(
            |connection: actix_tls::connect::Connection<Uri, _>| {
                // Small frames must not wait for the acknowledgement of earlier ones.
                let _ = tokio::net::TcpStream::set_nodelay(connection.io_ref(), true);
                connection
            },
        );
        // No limit: a tunnel keeps its permit for hours, and capacity is the pool's to judge.
        let connector = std::rc::Rc::new(
            Connector::new().connector(tcp).timeout(timeouts.connect).limit(0).finish(),
        );
        Self(Box::new(move |connect, head| {
            let connector = connector.clone();
            async move {
                let connection = timeout(timeouts.connect, connector.call(connect))
                    .await
                    .map_err(|_| DialError::ConnectTimeout(timeouts.connect))?
                    .map_err(|error| match error {
                        awc::error::ConnectError::Timeout => {
                            DialError::ConnectTimeout(timeouts.connect)
                        }
                        error => DialError::Connect(error.to_string()),
                    })?;
                let opening = async {
                    let broken =
                        |error: &dyn std::fmt::Display| DialError::Broken(error.to_string());
                    let (mut head, mut framed) =
                        connection.open_tunnel(head).await.map_err(|error| broken(&error))?;
                    // Interim answers (RFC 9110 §15.2) are not the answer.
                    while head.status.is_informational()
                        && head.status != StatusCode::SWITCHING_PROTOCOLS
                    {
                        head = framed
                            .next()
                            .await
                            .ok_or_else(|| broken(&"closed after an interim answer"))?
                            .map_err(|error| broken(&error))?;
                    }
                    Ok((head, framed))
                };
                let (head, framed) = timeout(timeouts.head, opening)
                    .await
                    .map_err(|_| DialError::HeadTimeout(timeouts.head))??;
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    let parts = framed.into_parts();
                    return Ok(Answer::Switched(head, Peer::new(parts.io, parts.read_buf)));
                }
                // The payload codec panics where there is no payload.
                let body = match framed.codec_ref().message_type() {
                    MessageType::None => stream::empty().boxed_local(),
                    MessageType::Payload | MessageType::Stream => framed
                        .into_map_codec(|codec| codec.into_payload_codec())
                        .map(Result::transpose)
                        .take_while(|item| std::future::ready(item.is_some()))
                        .filter_map(std::future::ready)
                        .boxed_local(),
                };
                Ok(Answer::Other(head, body))
            }
            .boxed_local()
        }))
    }

    /// Sends `head` to `backend` and waits for the head of its answer.
    ///
    /// # Errors
    /// A [`DialError`] when there is none; any status is an answer.
    pub async fn dial(&self, backend: &Backend, head: RequestHead) -> Result<Answer, DialError> {
        let uri = format!("http://{}", backend.address)
            .parse::<Uri>()
            .map_err(|error| DialError::Connect(error.to_string()))?;
        // A literal address saves the look-up, which would block a thread.
        let addr = backend.address.parse::<SocketAddr>().ok();
        (self.0)(Connect { uri, addr }, head).await
    }
}
