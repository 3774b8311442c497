//! Reaches pods through awc's connector, and shakes hands with them.
//!
//! The connector is used directly because `awc::Client::ws()` throws away every answer that is
//! not a 101, and because the tunnel wants the bare socket.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use actix_codec::{Framed, FramedParts};
use actix_http::{
    RequestHead, ResponseHead, StatusCode, Uri,
    body::BodySize,
    h1::{ClientCodec, ClientPayloadCodec, Message, MessageType},
    header,
};
use actix_service::{Service as _, ServiceExt as _};
use awc::{Connect, Connector, error::PayloadError};
use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt as _, SinkExt as _, Stream, StreamExt as _,
    future::LocalBoxFuture,
    stream::{self, LocalBoxStream},
};
use thiserror::Error;
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::{
    domain::lease::Backend,
    relay::{Io, Peer},
};

/// A pod's answer, from its head on.
pub type Body = LocalBoxStream<'static, Result<Bytes, PayloadError>>;

/// What a pod answered to a handshake.
pub enum Answer {
    /// 101, and the pod's side of the tunnel.
    Switched(ResponseHead, Peer),
    /// Any other status, with its body.
    Other(ResponseHead, Body),
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
    /// Connected, but no whole answer head, or one that breaks the protocol.
    #[error("broke off: {0}")]
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

    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
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

type Connecting = LocalBoxFuture<'static, Result<Box<dyn Io>, awc::error::ConnectError>>;

/// Opens connections to pods; one per worker thread.
pub struct Dialer {
    /// A closure, because awc's connector has no type that can be named.
    connect: Box<dyn Fn(Connect) -> Connecting>,
    timeouts: DialTimeouts,
}

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
        let connector =
            Rc::new(Connector::new().connector(tcp).timeout(timeouts.connect).limit(0).finish());
        let connect = Box::new(move |connect| {
            let connector = connector.clone();
            async move { Ok(Box::new(connector.call(connect).await?) as Box<dyn Io>) }.boxed_local()
        });
        Self { connect, timeouts }
    }

    /// From a request that has been sent to the head of its answer.
    pub fn head_timeout(&self) -> Duration {
        self.timeouts.head
    }

    /// A TCP connection to `backend`.
    ///
    /// # Errors
    /// [`DialError::Connect`] or [`DialError::ConnectTimeout`].
    pub async fn connect(&self, backend: &Backend) -> Result<Box<dyn Io>, DialError> {
        let uri = format!("http://{}", backend.address)
            .parse::<Uri>()
            .map_err(|error| DialError::Connect(error.to_string()))?;
        // A literal address saves the look-up, which would block a thread.
        let addr = backend.address.parse::<SocketAddr>().ok();
        let too_late = DialError::ConnectTimeout(self.timeouts.connect);
        // awc's own time-out covers neither its permit nor the whole of the look-up.
        match timeout(self.timeouts.connect, (self.connect)(Connect { uri, addr })).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(awc::error::ConnectError::Timeout)) | Err(_) => Err(too_late),
            Ok(Err(error)) => Err(DialError::Connect(error.to_string())),
        }
    }

    /// Sends a handshake's `head` to `backend` and waits for the head of the answer.
    ///
    /// # Errors
    /// A [`DialError`] when there is none; any status is an answer.
    pub async fn shake_hands(
        &self,
        backend: &Backend,
        head: RequestHead,
    ) -> Result<Answer, DialError> {
        let mut pod = Framed::new(self.connect(backend).await?, ClientCodec::default());
        let exchange = async {
            let request = Message::Item((head.into(), BodySize::None));
            pod.send(request).await.map_err(DialError::broken)?;
            loop {
                let head = pod.next().await.ok_or_else(|| DialError::broken("no answer"))?;
                let head = head.map_err(DialError::broken)?;
                // Interim answers (RFC 9110 §15.2) are not the answer.
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    return Ok(head);
                }
            }
        };
        let head = timeout(self.timeouts.head, exchange)
            .await
            .map_err(|_| DialError::HeadTimeout(self.timeouts.head))??;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let parts = pod.into_parts();
            return Ok(Answer::Switched(head, Peer::new(parts.io, parts.read_buf)));
        }
        let body = match pod.codec_ref().message_type() {
            // The codec sees no payload in some of these.
            _ if ends_with_connection(&head) => until_end(pod.into_parts()),
            // The payload codec panics where there is no payload.
            MessageType::None => stream::empty().boxed_local(),
            MessageType::Payload | MessageType::Stream => {
                framed(pod.into_map_codec(|codec| codec.into_payload_codec())).boxed_local()
            }
        };
        Ok(Answer::Other(head, body))
    }
}

/// Whether the body of an answer with `head` is as long as the connection (RFC 9112 §6.3).
fn ends_with_connection(head: &ResponseHead) -> bool {
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    !bodiless && !framed.iter().any(|name| head.headers.contains_key(name))
}

/// A body that has an end of its own: without it, it is not whole.
fn framed(
    pod: Framed<Box<dyn Io>, ClientPayloadCodec>,
) -> impl Stream<Item = Result<Bytes, PayloadError>> {
    stream::try_unfold(pod, |mut pod| async move {
        match pod.next().await {
            Some(Ok(Some(chunk))) => Ok(Some((chunk, pod))),
            Some(Ok(None)) => Ok(None),
            Some(Err(error)) => Err(error),
            None => Err(PayloadError::Incomplete(None)),
        }
    })
}

/// What has been read, then everything up to the end.
fn until_end(parts: FramedParts<Box<dyn Io>, ClientCodec>) -> Body {
    let FramedParts { io, read_buf, .. } = parts;
    let rest = stream::try_unfold(io, |mut io| async move {
        let mut chunk = BytesMut::with_capacity(16 * 1024);
        let n = io.read_buf(&mut chunk).await?;
        Ok((n > 0).then(|| (chunk.freeze(), io)))
    });
    stream::iter([Ok(read_buf.freeze())]).chain(rest).boxed_local()
}
