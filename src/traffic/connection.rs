//! One client connection: its requests are read, and each goes to the handshake or to plain HTTP.
//!
//! Most connections are one handshake, and a tunnel needs none of the buffers that an HTTP server
//! keeps for further requests: a handshake that comes first never reaches hyper.

use std::{io, rc::Rc};

use super::{
    client::HandshakeClient,
    handshake,
    headers::forwarded::PeerInfo,
    lifecycle::UnansweredConnection,
    plain,
    request_reader::{Head, LastHead, RequestReader},
    worker::{Worker, WorkerState},
};
use crate::net::ClientStream;

/// Serves one connection from its first byte of HTTP on.
///
/// # Errors
/// The client disconnected before it had its answer.
pub async fn serve(
    worker: &Rc<Worker>,
    state: &WorkerState,
    mut io: ClientStream,
    peer: PeerInfo,
    unanswered: UnansweredConnection,
) -> io::Result<()> {
    let mut reader = RequestReader::new(state.traffic.settings.head);
    match reader.read_first(&mut io).await? {
        None => Ok(()),
        Some(Head::Plain(request)) => {
            let client = plain::PlainClient { io, reader, peer };
            match plain::serve(worker.clone(), client, request, unanswered).await {
                Some((io, reader, head)) => finish(&worker.state(), io, reader, peer, head).await,
                None => Ok(()),
            }
        }
        Some(Head::Last(head)) => finish(state, io, reader, peer, head).await,
    }
}

/// Answers the last head of a connection: a handshake, or a head that is refused.
async fn finish(
    state: &WorkerState,
    io: ClientStream,
    reader: RequestReader,
    peer: PeerInfo,
    head: LastHead,
) -> io::Result<()> {
    let (codec, early) = reader.into_parts();
    match head {
        LastHead::Handshake(request) => {
            let client = HandshakeClient::new(io, codec, early, peer);
            handshake::serve(state, request.head(), client).await
        }
        LastHead::Refused(refused) => {
            state.traffic.record_refusal(&refused.refusal, peer.address);
            let client = HandshakeClient::without_request(io, early, peer);
            client.refuse(&refused.refusal, refused.is_head_method).await
        }
    }
}
