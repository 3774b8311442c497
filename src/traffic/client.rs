//! Answers the last request of a client connection: a 101, a pod's answer to the handshake, or a
//! refusal.

use std::{io, time::Duration};

use actix_codec::{Framed, FramedParts};
use actix_http::{
    ConnectionType, Response, ServiceConfig,
    body::BodySize,
    h1::{Codec, Message},
};
use bytes::BytesMut;
use futures_util::{FutureExt as _, SinkExt, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{headers::forwarded::PeerInfo, refusal::Refusal, upstream::PodBody};
use crate::{
    net::{ClientStream, write_timeout::WriteTimeout},
    relay::TunnelPeer,
};

/// Time that the client can take before it reads more of an answer. The timeouts of sessions do not
/// apply yet.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a refused client can take to read its answer and close the connection.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read from a client before its handshake is answered. Further bytes stay in its socket.
const MAX_EARLY: usize = 64 * 1024;

type Connection = Framed<WriteTimeout<ClientStream>, Codec>;

/// The client's side of a connection whose last request head has been read.
pub struct HandshakeClient {
    io: WriteTimeout<ClientStream>,
    codec: Codec,
    /// What the client has sent behind its request.
    early: BytesMut,
    pub peer: PeerInfo,
}

impl HandshakeClient {
    /// Creates the client of the handshake that `codec` has decoded.
    pub fn new(io: ClientStream, codec: Codec, early: BytesMut, peer: PeerInfo) -> Self {
        Self { io: WriteTimeout::new(io, WRITE_TIMEOUT), codec, early, peer }
    }

    /// Creates the client of a request that cannot be read: its answer depends on no request.
    pub fn without_request(io: ClientStream, early: BytesMut, peer: PeerInfo) -> Self {
        Self::new(io, Codec::new(ServiceConfig::default()), early, peer)
    }

    /// Waits until the client closes its connection. Bytes that it sends until then are kept.
    pub async fn wait_until_closed(&mut self) {
        while self.early.len() < MAX_EARLY {
            match self.io.read_buf(&mut self.early).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }

    /// Sends `response` as a 101 and returns the client's end of the tunnel.
    ///
    /// # Errors
    /// The client disconnected.
    pub async fn switch_protocols(self, mut response: Response<()>) -> io::Result<TunnelPeer> {
        response.head_mut().set_connection_type(ConnectionType::Upgrade);
        let mut framed = self.into_framed();
        framed.send(Message::Item((response, BodySize::None))).await?;
        let FramedParts { io, read_buf, .. } = framed.into_parts();
        Ok(TunnelPeer::new(io.into_inner(), read_buf))
    }

    /// Sends a pod's answer that is not a 101, with its body, then closes the connection.
    ///
    /// # Errors
    /// The client disconnected, or the pod's connection broke: then the client's is cut too.
    pub async fn send_response(
        self,
        mut response: Response<()>,
        size: BodySize,
        mut body: PodBody,
    ) -> io::Result<()> {
        // A codec that has not seen the upgrade writes a body of unknown length in chunks, so that the
        // client notices when it is cut short (RFC 9112 §8).
        let mut framed = self.into_framed().replace_codec(Codec::default());
        response.head_mut().set_connection_type(ConnectionType::Close);
        framed.feed(Message::Item((response, size))).await?;
        loop {
            // Data that is available is sent together with the head: some clients read only once.
            let next = match body.next().now_or_never() {
                Some(next) => next,
                None => {
                    flush(&mut framed).await?;
                    body.next().await
                }
            };
            let Some(chunk) = next else { break };
            match chunk {
                Ok(chunk) => framed.feed(Message::Chunk(Some(chunk))).await?,
                Err(error) => {
                    // Only a cut connection still shows the client that the body is incomplete.
                    flush(&mut framed).await?;
                    return Err(io::Error::other(error));
                }
            }
        }
        framed.send(Message::Chunk(None)).await?;
        close_gracefully(framed).await
    }

    /// Sends the answer of `refusal`, then closes the connection. The answer to a request with the
    /// HEAD method has no body.
    ///
    /// # Errors
    /// The client disconnected.
    pub async fn refuse(self, refusal: &Refusal, is_head_method: bool) -> io::Result<()> {
        let mut framed = self.into_framed();
        let (mut response, body) = (refusal.response(), refusal.body());
        response.head_mut().set_connection_type(ConnectionType::Close);
        let size = BodySize::Sized(body.len() as u64);
        framed.feed(Message::Item((response, size))).await?;
        if !is_head_method {
            framed.feed(Message::Chunk(Some(body.into()))).await?;
        }
        flush(&mut framed).await?;
        close_gracefully(framed).await
    }

    fn into_framed(self) -> Connection {
        Framed::from_parts(FramedParts::with_read_buf(self.io, self.codec, self.early))
    }
}

async fn flush(framed: &mut Connection) -> io::Result<()> {
    SinkExt::<Message<(Response<()>, BodySize)>>::flush(framed).await
}

/// Closes the connection without losing the answer: a reset because of unread bytes would overtake it
/// (RFC 9112 §9.6).
async fn close_gracefully(framed: Connection) -> io::Result<()> {
    let mut io = framed.into_parts().io;
    io.shutdown().await?;
    let mut unread = [0; 1024];
    let drain = async { while io.read(&mut unread).await.is_ok_and(|n| n > 0) {} };
    let _ = timeout(LINGER, drain).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use tokio::io::duplex;

    use super::*;

    fn client(io: tokio::io::DuplexStream) -> HandshakeClient {
        let peer = PeerInfo { address: [127, 0, 0, 1].into(), tls: false };
        HandshakeClient::without_request(Box::new(io), BytesMut::new(), peer)
    }

    #[actix_rt::test]
    async fn a_client_that_does_not_read_its_answer_is_disconnected() {
        tokio::time::pause();
        let (_silent, io) = duplex(64);
        let body = stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1 << 16])));
        let answered = client(io).send_response(
            Response::ok().drop_body(),
            BodySize::Stream,
            body.boxed_local(),
        );
        let error = answered.await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (_silent, io) = duplex(64);
        let error = client(io).refuse(&Refusal::ShuttingDown, false).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[actix_rt::test]
    async fn a_client_that_reads_slowly_gets_the_whole_answer() {
        tokio::time::pause();
        let (mut slow, io) = duplex(64);
        let body = stream::iter([Ok(Bytes::from_static(&[b'x'; 4096]))]).boxed_local();
        let size = BodySize::Sized(4096);
        let reading = async {
            let (mut all, mut piece) = (Vec::new(), [0; 64]);
            loop {
                tokio::time::sleep(WRITE_TIMEOUT / 2).await;
                match slow.read(&mut piece).await.unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&piece[..n]),
                }
            }
        };
        let answering = client(io).send_response(Response::ok().drop_body(), size, body);
        let (answered, all) = tokio::join!(answering, reading);
        answered.unwrap();
        assert!(all.ends_with(&[b'x'; 4096]), "{}", all.escape_ascii());
    }
}
