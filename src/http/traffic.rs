//! The service behind the traffic listener, the same in production and in tests.

use std::{rc::Rc, sync::Arc, time::Duration};

use actix::Addr;
use actix_codec::Framed;
use actix_http::{
    Error, HttpService, Request, Response, body::BoxBody, error::DispatchError, h1::Codec,
};
use actix_service::{ServiceFactory, fn_factory, fn_service};
use tokio::net::TcpStream;

use super::{
    dial::{DialTimeouts, Dialer},
    handshake::{self, Worker},
    health::Health,
};
use crate::{
    actors::{metrics::MetricsActor, registry::RegistryActor},
    config::Balancer,
};

/// What all workers share.
#[derive(Clone)]
pub struct Traffic {
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who knows the live sessions. Shared, because each address of its own costs a session two
    /// allocations.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Whether new connections are welcome.
    pub health: Arc<Health>,
    /// How handshakes go.
    pub settings: HandshakeSettings,
}

/// How handshakes go.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeSettings {
    /// Further pods tried for one connection.
    pub retries: usize,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For each step towards a pod.
    pub dial: DialTimeouts,
}

impl From<&Balancer> for HandshakeSettings {
    fn from(balancer: &Balancer) -> Self {
        Self {
            retries: balancer.retries,
            handshake_timeout: balancer.handshake_timeout,
            dial: DialTimeouts { connect: balancer.connect_timeout, head: balancer.read_timeout },
        }
    }
}

/// The service of one worker thread: upgrades become sessions, everything else is refused.
pub fn service(
    traffic: Traffic,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()>
{
    let upgrade = fn_factory(move || {
        let traffic = traffic.clone();
        let dialer = Dialer::new(traffic.settings.dial);
        let worker = Rc::new(Worker { traffic, dialer });
        async move {
            Ok::<_, ()>(fn_service(
                move |(request, client): (Request, Framed<TcpStream, Codec>)| {
                    let worker = worker.clone();
                    // Boxed, so that connections that never upgrade do not carry its size.
                    Box::pin(async move {
                        if let Err(error) = handshake::serve(worker, request, client).await {
                            log::debug!("a client left before its answer: {error}");
                        }
                        Ok::<_, Error>(())
                    })
                },
            ))
        }
    });
    HttpService::build()
        .tcp_nodelay(true)
        .upgrade(upgrade)
        .finish(fn_service(|request: Request| async move {
            Ok::<Response<BoxBody>, Error>(handshake::not_a_handshake(&request))
        }))
        .tcp()
}
