//! From an accepted connection to its first byte of HTTP: PROXY protocol header, TLS.

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
    arrivals::Arrival,
    first_request,
    headers::forwarded::Hop,
    refusal::{BAD_PROXY_HEADER, BAD_TLS},
    worker::{Live, Thread},
};
use crate::{
    net::{
        Stream,
        proxy_protocol::{self, HeaderError},
        rewind::Rewind,
    },
    relay::Io,
};

/// The service of one worker thread: handshakes become sessions, everything else is passed on.
pub fn service<S: Accepted>(
    live: Arc<Live>,
) -> impl ServiceFactory<S, Config = (), Response = (), Error = Infallible, InitError = ()> {
    fn_factory(move || {
        let thread = Rc::new(Thread::new(live.clone()));
        ready(Ok::<_, ()>(fn_service(move |io: S| {
            let (thread, arrival) = (thread.clone(), thread.worker().traffic.arrivals.begin());
            async move {
                // Boxed, because glibc splits what it aligns for a task: tasks of this size leave
                // holes that cost an idle session 0.9 kB.
                if let Err(error) = Box::pin(serve(thread, io, arrival)).await {
                    log::debug!("a client left before its answer: {error}");
                }
                Ok::<_, Infallible>(())
            }
        })))
    })
}

/// What a listener accepts.
pub trait Accepted: Io + Send + 'static {
    /// Who is at the other end.
    ///
    /// # Errors
    /// The connection is gone already.
    fn peer(&self) -> io::Result<IpAddr>;
}

impl Accepted for TcpStream {
    fn peer(&self) -> io::Result<IpAddr> {
        // Small frames must not wait for the acknowledgement of earlier ones.
        let _ = self.set_nodelay(true);
        // A client of IPv4 on a listener of both is still one of IPv4.
        Ok(self.peer_addr()?.ip().to_canonical())
    }
}

impl Accepted for UnixStream {
    fn peer(&self) -> io::Result<IpAddr> {
        Ok(Ipv4Addr::LOCALHOST.into())
    }
}

/// Serves one connection.
///
/// # Errors
/// The client vanished before it had its answer.
pub async fn serve(thread: Rc<Thread>, io: impl Accepted, arrival: Arrival) -> io::Result<()> {
    let peer = io.peer()?;
    let worker = thread.worker();
    let settings = &worker.traffic.settings;
    let deadline = Instant::now() + settings.head.timeout;
    let mut hop = Hop { address: peer, tls: false };
    let mut io: Stream = Box::new(io);
    if settings.proxy_protocol.iter().any(|network| network.contains(&peer)) {
        let read = timeout_at(deadline, proxy_protocol::read(&mut io)).await;
        let (client, rest) = match read.unwrap_or(Err(HeaderError::Late)) {
            Ok(read) => read,
            Err(HeaderError::Nothing) => return Ok(()),
            Err(error) => {
                worker.traffic.dropped(BAD_PROXY_HEADER, peer, &error);
                return Ok(());
            }
        };
        hop.address = client.map_or(peer, |client| client.to_canonical());
        io = Box::new(Rewind::new(rest, io));
    }
    if let Some(tls) = &settings.tls {
        let accepted = timeout_at(deadline, tls.accept(io)).await;
        io = match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(secured) => Box::new(secured),
            // A probe, or a client that has thought better of it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
            Err(error) => {
                worker.traffic.dropped(BAD_TLS, hop.address, &error);
                return Ok(());
            }
        };
        hop.tls = true;
    }
    first_request::serve(&thread, &worker, io, hop, arrival).await
}
