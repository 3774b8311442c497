//! A client whose request head has been read, before it is known what becomes of it.

use std::{io, time::Duration};

use actix_codec::{Framed, FramedParts};
use actix_http::{
    ConnectionType, Response,
    body::BodySize,
    h1::{Codec, Message},
};
use bytes::BytesMut;
use futures_util::{FutureExt as _, SinkExt, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{headers::forwarded::PeerInfo, refusal::Refusal, upstream::Body};
use crate::{
    net::{ClientStream, rewind::Rewind, write_timeout::WriteTimeout},
    relay::TunnelPeer,
};

/// How long a client may take nothing of an answer: nobody else looks after a connection that is no
/// session yet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a refused client may take to read its answer and hang up.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that a client may send before its handshake is answered; further ones wait in its socket.
const MAX_EARLY: usize = 64 * 1024;

type Connection = Framed<WriteTimeout<Rewind<ClientStream>>, Codec>;

/// The client's side of a handshake.
pub struct HandshakeClient {
    io: WriteTimeout<Rewind<ClientStream>>,
    codec: Codec,
    /// What it has sent behind its request.
    early: BytesMut,
    /// Where it came from.
    pub peer: PeerInfo,
}

impl HandshakeClient {
    /// Takes a client over once everything that was written to it has been flushed.
    ///
    /// # Errors
    /// It is gone.
    pub async fn new(
        framed: Framed<Rewind<ClientStream>, Codec>,
        peer: PeerInfo,
    ) -> io::Result<Self> {
        let mut framed = framed.into_map_io(|io| WriteTimeout::new(io, PATIENCE));
        flush(&mut framed).await?;
        let FramedParts { io, codec, read_buf, .. } = framed.into_parts();
        Ok(Self { io, codec, early: read_buf, peer })
    }

    /// Resolves when the client closes its connection; until then what it sends is kept.
    pub async fn left(&mut self) {
        while self.early.len() < MAX_EARLY {
            match self.io.read_buf(&mut self.early).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }

    /// Says 101 with the fields of `response` and becomes one end of a tunnel.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn switch(self, mut response: Response<()>) -> io::Result<TunnelPeer> {
        response.head_mut().set_connection_type(ConnectionType::Upgrade);
        let mut framed = self.into_framed();
        framed.send(Message::Item((response, BodySize::None))).await?;
        let FramedParts { io, mut read_buf, .. } = framed.into_parts();
        let (io, unread) = io.into_inner().into_parts();
        read_buf.unsplit(unread);
        Ok(TunnelPeer::new(io, read_buf))
    }

    /// Relays an answer that is not a 101, whole, then closes.
    ///
    /// # Errors
    /// The client is gone, or the pod broke off: then the client is cut off too.
    pub async fn answer(
        self,
        mut response: Response<()>,
        size: BodySize,
        mut body: Body,
    ) -> io::Result<()> {
        // A codec that has not seen the request as an upgrade: in chunks, a body that is cut short
        // can be told from a whole one (RFC 9112 §8).
        let mut framed = self.into_framed().replace_codec(Codec::default());
        response.head_mut().set_connection_type(ConnectionType::Close);
        framed.feed(Message::Item((response, size))).await?;
        loop {
            // What is there leaves together with the head: some clients read no further.
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
                    // Cutting the client off is the only way left to say that this is not all.
                    flush(&mut framed).await?;
                    return Err(io::Error::other(error));
                }
            }
        }
        framed.send(Message::Chunk(None)).await?;
        hang_up(framed).await
    }

    /// Says why there is no tunnel, then closes.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn refuse(self, refusal: &Refusal) -> io::Result<()> {
        let mut framed = self.into_framed();
        let (mut response, body) = (refusal.head(), refusal.body());
        response.head_mut().set_connection_type(ConnectionType::Close);
        let size = BodySize::Sized(body.len() as u64);
        framed.feed(Message::Item((response, size))).await?;
        framed.send(Message::Chunk(Some(body.into()))).await?;
        hang_up(framed).await
    }

    fn into_framed(self) -> Connection {
        Framed::from_parts(FramedParts::with_read_buf(self.io, self.codec, self.early))
    }
}

async fn flush(framed: &mut Connection) -> io::Result<()> {
    SinkExt::<Message<(Response<()>, BodySize)>>::flush(framed).await
}

/// Closes so that the answer arrives: a reset for unread bytes would overtake it (RFC 9112 §9.6).
async fn hang_up(framed: Connection) -> io::Result<()> {
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

    /// One that has asked for something, over a pipe that holds 64 bytes.
    async fn client(io: tokio::io::DuplexStream) -> HandshakeClient {
        let io: ClientStream = Box::new(io);
        let framed = Framed::new(Rewind::new(BytesMut::new(), io), Codec::default());
        HandshakeClient::new(framed, PeerInfo { address: [127, 0, 0, 1].into(), tls: false })
            .await
            .unwrap()
    }

    #[actix_rt::test]
    async fn who_takes_nothing_of_an_answer_is_given_up() {
        tokio::time::pause();
        let (_silent, io) = duplex(64);
        let body = stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1 << 16])));
        let answered = client(io).await.answer(
            Response::ok().drop_body(),
            BodySize::Stream,
            body.boxed_local(),
        );
        let error = answered.await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (_silent, io) = duplex(64);
        let error = client(io).await.refuse(&Refusal::ShuttingDown).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[actix_rt::test]
    async fn who_takes_an_answer_slowly_gets_it_whole() {
        tokio::time::pause();
        let (mut slow, io) = duplex(64);
        let body = stream::iter([Ok(Bytes::from_static(&[b'x'; 4096]))]).boxed_local();
        let size = BodySize::Sized(4096);
        let reading = async {
            let (mut all, mut piece) = (Vec::new(), [0; 64]);
            loop {
                tokio::time::sleep(PATIENCE / 2).await;
                match slow.read(&mut piece).await.unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&piece[..n]),
                }
            }
        };
        let answering = client(io).await.answer(Response::ok().drop_body(), size, body);
        let (answered, all) = tokio::join!(answering, reading);
        answered.unwrap();
        assert!(all.ends_with(&[b'x'; 4096]), "{}", all.escape_ascii());
    }
}
