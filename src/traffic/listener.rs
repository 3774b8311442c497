//! Accepted connections up to their first byte of HTTP: PROXY protocol header and TLS.

use std::{
    convert::Infallible,
    future::ready,
    io,
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    sync::Arc,
};

use actix_service::{ServiceFactory, fn_factory, fn_service};
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};

use super::{
    connection,
    headers::forwarded::PeerInfo,
    lifecycle::UnansweredConnection,
    refusal::{BAD_PROXY_HEADER, BAD_TLS},
    state::CurrentState,
    worker::Worker,
};
use crate::{
    net::{
        ClientStream,
        proxy_protocol::{self, ProxyHeaderError},
        rewind::Rewind,
    },
    relay::Io,
};

/// Returns the factory of the service that each worker thread runs for its connections.
pub fn service<S: AcceptedSocket>(
    state: Arc<CurrentState>,
) -> impl ServiceFactory<S, Config = (), Response = (), Error = Infallible, InitError = ()> {
    fn_factory(move || {
        let worker = Rc::new(Worker::new(state.clone()));
        ready(Ok::<_, ()>(fn_service(move |io: S| {
            let (worker, unanswered) = (worker.clone(), worker.state().traffic.unanswered.add());
            async move {
                // Boxed: a task of this size leaves holes in glibc's heap, which cost 0.9 kB per idle
                // session.
                if let Err(error) = Box::pin(serve(worker, io, unanswered)).await {
                    log::debug!("client disconnected before its answer: {error}");
                }
                Ok::<_, Infallible>(())
            }
        })))
    })
}

/// A socket that a listener accepts.
pub trait AcceptedSocket: Io + Send + 'static {
    /// Returns the address of the peer.
    ///
    /// # Errors
    /// The peer has disconnected already.
    fn peer_address(&self) -> io::Result<IpAddr>;
}

impl AcceptedSocket for TcpStream {
    fn peer_address(&self) -> io::Result<IpAddr> {
        // Without this, small frames wait for the acknowledgement of earlier ones.
        let _ = self.set_nodelay(true);
        // A dual-stack listener shows IPv4 clients with mapped IPv6 addresses.
        Ok(self.peer_addr()?.ip().to_canonical())
    }
}

impl AcceptedSocket for UnixStream {
    fn peer_address(&self) -> io::Result<IpAddr> {
        Ok(Ipv4Addr::LOCALHOST.into())
    }
}

/// Serves one connection.
///
/// # Errors
/// The client disconnected before it had its answer.
pub async fn serve(
    worker: Rc<Worker>,
    io: impl AcceptedSocket,
    unanswered: UnansweredConnection,
) -> io::Result<()> {
    let address = io.peer_address()?;
    let state = worker.state();
    let settings = &state.traffic.settings;
    let deadline = Instant::now() + settings.head.timeout;
    let mut peer = PeerInfo { address, tls: false };
    let mut io: ClientStream = Box::new(io);
    if settings.proxy_protocol.iter().any(|network| network.contains(&address)) {
        let read = timeout_at(deadline, proxy_protocol::read(&mut io)).await;
        let (client, rest) = match read.unwrap_or(Err(ProxyHeaderError::TimedOut)) {
            Ok(read) => read,
            Err(ProxyHeaderError::Empty) => return Ok(()),
            Err(error) => {
                state.traffic.record_dropped(BAD_PROXY_HEADER, address, &error);
                return Ok(());
            }
        };
        peer.address = client.map_or(address, |client| client.to_canonical());
        io = Box::new(Rewind::new(rest, io));
    }
    if let Some(tls) = &settings.tls {
        let accepted = timeout_at(deadline, tls.accept(io)).await;
        io = match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(secured) => Box::new(secured),
            // A probe, or a client that gave up.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
            Err(error) => {
                state.traffic.record_dropped(BAD_TLS, peer.address, &error);
                return Ok(());
            }
        };
        peer.tls = true;
    }
    connection::serve(&worker, &state, io, peer, unanswered).await
}
