//! Shakes hands with pods.
//!
//! awc's connector is used directly because `awc::Client::ws()` throws away every answer that is
//! not a 101, and because the tunnel wants the bare socket.

use std::{io, time::Duration};

use actix_codec::{Framed, FramedParts};
use actix_http::{
    RequestHead, ResponseHead, StatusCode,
    body::BodySize,
    h1::{ClientCodec, ClientPayloadCodec, Message, MessageType},
    header,
};
use awc::error::PayloadError;
use bytes::{Bytes, BytesMut};
use futures_util::{
    SinkExt as _, Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, LocalBoxStream},
};
use thiserror::Error;
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::{
    domain::balance::lease::Backend,
    net::connect::{ConnectError, ConnectSettings, Connector},
    relay::{Io, TunnelPeer},
};

/// A pod's answer, from its head on.
pub type Body = LocalBoxStream<'static, Result<Bytes, PayloadError>>;

/// What a pod answered to a handshake.
pub enum Answer {
    /// 101, and the pod's side of the tunnel.
    Switched(ResponseHead, TunnelPeer),
    /// Any other status, with its body.
    Other(ResponseHead, Body),
}

/// Why a pod gave no answer.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Connected, but no whole answer head, or one that breaks the protocol.
    #[error("broke off: {0}")]
    Broken(String),
    /// Connected, but no answer head in time.
    #[error("did not answer within {0:?}")]
    HeadTimeout(Duration),
}

impl UpstreamError {
    /// Too slow, rather than wrong.
    pub fn timed_out(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::TimedOut(_)) | Self::HeadTimeout(_))
    }

    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Opens connections to the pods of one service and shakes hands; one per worker thread.
pub struct UpstreamConnector {
    connector: Connector,
    /// From a request that has been sent to the head of its answer, and from one piece of a body that
    /// is no tunnel's to the next.
    pub read_timeout: Duration,
}

impl UpstreamConnector {
    /// A dialer for the current thread.
    pub fn new(settings: ConnectSettings, read_timeout: Duration) -> Self {
        Self { connector: Connector::new(settings), read_timeout }
    }

    /// A connection to `backend`.
    ///
    /// # Errors
    /// [`DialError::Connect`]
    pub async fn connect(&self, backend: &Backend) -> Result<Box<dyn Io>, UpstreamError> {
        Ok(self.connector.connect(backend).await?)
    }

    /// Sends a handshake's `head` to `backend` and waits for the head of the answer.
    ///
    /// # Errors
    /// A [`DialError`] when there is none; any status is an answer.
    pub async fn send_handshake(
        &self,
        backend: &Backend,
        head: RequestHead,
    ) -> Result<Answer, UpstreamError> {
        let mut pod = Framed::new(self.connect(backend).await?, ClientCodec::default());
        let exchange = async {
            let request = Message::Item((head.into(), BodySize::None));
            pod.send(request).await.map_err(UpstreamError::broken)?;
            loop {
                let head = pod.next().await.ok_or_else(|| UpstreamError::broken("no answer"))?;
                let head = head.map_err(UpstreamError::broken)?;
                // Interim answers (RFC 9110 §15.2) are not the answer.
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    return Ok::<_, UpstreamError>(head);
                }
            }
        };
        let head = timeout(self.read_timeout, exchange)
            .await
            .map_err(|_| UpstreamError::HeadTimeout(self.read_timeout))??;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let parts = pod.into_parts();
            return Ok(Answer::Switched(head, TunnelPeer::new(parts.io, parts.read_buf)));
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
        Ok(Answer::Other(head, within(self.read_timeout, body)))
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

/// `body`, none of whose pieces may take longer than `patience`.
fn within(patience: Duration, body: Body) -> Body {
    let next = move |mut body: Body| async move {
        match timeout(patience, body.try_next()).await {
            Ok(next) => Ok(next?.map(|chunk| (chunk, body))),
            Err(_) => Err(PayloadError::Io(io::ErrorKind::TimedOut.into())),
        }
    };
    stream::try_unfold(body, next).boxed_local()
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
