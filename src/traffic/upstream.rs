//! Connects to pods and sends handshakes to them.
//!
//! The socket and actix-http's client codec are used directly: `awc::Client::ws()` drops every answer
//! that is not a 101, and the tunnel needs the bare socket.

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
    domain::balance::backend::Backend,
    net::connect::{ConnectError, ConnectSettings, Connector},
    relay::{Io, TunnelPeer},
};

/// The body of a pod's answer to a handshake.
pub type PodBody = LocalBoxStream<'static, Result<Bytes, PayloadError>>;

/// A pod's answer to a handshake.
pub enum PodAnswer {
    /// 101, and the pod's side of the tunnel.
    Switched(ResponseHead, TunnelPeer),
    /// Any other status, with its body.
    Other(ResponseHead, PodBody),
}

/// Why a pod gave no answer that counts.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// The connection could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The answer is missing, malformed, or one that leads to the next pod.
    #[error("{0}")]
    Failed(String),
    /// The head of the answer did not arrive in time.
    #[error("no response head within {0:?} (read_timeout)")]
    HeadTimeout(Duration),
}

impl UpstreamError {
    /// Returns whether the pod was too slow.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::TimedOut(_)) | Self::HeadTimeout(_))
    }

    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("connection broke before the response head was complete: {error}"))
    }
}

/// Opens connections to the pods of one service. Each worker thread has its own.
pub struct UpstreamConnector {
    connector: Connector,
    /// Maximum time from the end of a request to the head of its answer, and between two parts of the
    /// body of an answer to a handshake.
    pub read_timeout: Duration,
}

impl UpstreamConnector {
    /// Creates the connector of the current thread.
    pub fn new(settings: ConnectSettings, read_timeout: Duration) -> Self {
        Self { connector: Connector::new(settings), read_timeout }
    }

    /// Opens a connection to `backend`.
    ///
    /// # Errors
    /// [`UpstreamError::Connect`]
    pub async fn connect(&self, backend: &Backend) -> Result<Box<dyn Io>, UpstreamError> {
        Ok(self.connector.connect(backend).await?)
    }

    /// Sends a handshake's `head` to `backend` and waits for the head of the answer.
    ///
    /// # Errors
    /// An [`UpstreamError`] when there is none; any status is an answer.
    pub async fn send_handshake(
        &self,
        backend: &Backend,
        head: RequestHead,
    ) -> Result<PodAnswer, UpstreamError> {
        let mut pod = Framed::new(self.connect(backend).await?, ClientCodec::default());
        let exchange = async {
            let request = Message::Item((head.into(), BodySize::None));
            pod.send(request).await.map_err(UpstreamError::broken)?;
            loop {
                let head = pod.next().await.ok_or_else(|| {
                    UpstreamError::Failed("closed the connection without an answer".into())
                })?;
                let head = head.map_err(UpstreamError::broken)?;
                // Interim answers (RFC 9110 §15.2) come before the answer.
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
            return Ok(PodAnswer::Switched(head, TunnelPeer::new(parts.io, parts.read_buf)));
        }
        let body = match pod.codec_ref().message_type() {
            // The codec does not see every body that ends with the connection.
            _ if ends_with_connection(&head) => until_end(pod.into_parts()),
            // The payload codec panics without a payload.
            MessageType::None => stream::empty().boxed_local(),
            MessageType::Payload | MessageType::Stream => {
                framed(pod.into_map_codec(|codec| codec.into_payload_codec())).boxed_local()
            }
        };
        Ok(PodAnswer::Other(head, within(self.read_timeout, body)))
    }
}

/// Whether the body of an answer with `head` ends with the connection (RFC 9112 §6.3).
fn ends_with_connection(head: &ResponseHead) -> bool {
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    !bodiless && !framed.iter().any(|name| head.headers.contains_key(name))
}

/// Reads a body with a known end; it is incomplete when the connection ends before.
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

/// Fails when the next part of `body` takes longer than `limit`.
fn within(limit: Duration, body: PodBody) -> PodBody {
    let next = move |mut body: PodBody| async move {
        match timeout(limit, body.try_next()).await {
            Ok(next) => Ok(next?.map(|chunk| (chunk, body))),
            Err(_) => Err(PayloadError::Io(io::ErrorKind::TimedOut.into())),
        }
    };
    stream::try_unfold(body, next).boxed_local()
}

/// Returns the bytes read so far, then everything up to the end of the connection.
fn until_end(parts: FramedParts<Box<dyn Io>, ClientCodec>) -> PodBody {
    let FramedParts { io, read_buf, .. } = parts;
    let rest = stream::try_unfold(io, |mut io| async move {
        let mut chunk = BytesMut::with_capacity(16 * 1024);
        let n = io.read_buf(&mut chunk).await?;
        Ok((n > 0).then(|| (chunk.freeze(), io)))
    });
    stream::iter([Ok(read_buf.freeze())]).chain(rest).boxed_local()
}
