//! The service behind the traffic listener, the same in production and in tests.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use actix::Addr;
use actix_codec::Framed;
use actix_http::{Error, HttpService, Protocol, Request, error::DispatchError, h1::Codec};
use actix_service::{Service as _, ServiceFactory, fn_factory, fn_service};
use tokio::net::TcpStream;

use super::{
    dial::{DialTimeouts, Dialer},
    forward::Forwarding,
    front::{self, HeadLimits},
    handshake::{self, Worker},
    health::Health,
    plain,
    queue::Queue,
    refusal::{REASONS, Refusal},
    reuse::Idle,
    rewind::Rewind,
};
use crate::{
    actors::{metrics::MetricsActor, registry::RegistryActor},
    config::Config,
    domain::admission::{Admission, Limits},
    telemetry::counters::Counters,
};

/// How long a client may take to hang up after an answer that came before its request was read.
const LINGER: Duration = Duration::from_secs(1);

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
    /// How many sessions there may be.
    pub admission: Arc<Admission>,
    /// Where clients wait for a pod with room.
    pub queue: Arc<Queue>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// How handshakes and requests go.
    pub settings: Arc<Settings>,
}

/// How handshakes and requests go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Limits of a request's head.
    pub head: HeadLimits,
    /// How requests change on their way.
    pub forwarding: Forwarding,
    /// Further pods tried for one connection.
    pub retries: usize,
    /// Answers to a handshake that lead to the next pod.
    pub retry_on: Vec<u16>,
    /// For the whole handshake.
    pub handshake_timeout: Duration,
    /// For each step towards a pod.
    pub dial: DialTimeouts,
    /// Whether connections for plain requests are kept.
    pub reuse_connections: bool,
}

impl Traffic {
    /// As configured, in front of the control actors.
    pub fn new(
        config: &Config,
        metrics: Addr<MetricsActor>,
        registry: Arc<Addr<RegistryActor>>,
    ) -> Self {
        let (server, balancer) = (&config.server, &config.balancer);
        let settings = Settings {
            head: HeadLimits {
                timeout: server.request_timeout,
                fields: server.max_headers,
                bytes: server.max_header_bytes,
            },
            forwarding: Forwarding {
                trusted_proxies: server.trusted_proxies.clone(),
                pass_host_header: balancer.pass_host_header,
                add: balancer.add_headers.clone(),
                set: balancer.set_headers.clone(),
                remove: balancer.remove_headers.clone(),
            },
            retries: balancer.retries,
            retry_on: balancer.retry_on.clone(),
            handshake_timeout: balancer.handshake_timeout,
            dial: DialTimeouts { connect: balancer.connect_timeout, head: balancer.read_timeout },
            reuse_connections: balancer.reuse_connections,
        };
        let limits = Limits {
            sessions: server.max_sessions,
            sessions_per_address: server.max_sessions_per_address,
        };
        Self {
            metrics,
            registry,
            health: Arc::default(),
            admission: Arc::new(Admission::new(limits)),
            queue: Arc::new(Queue::new(balancer.queue_timeout, balancer.queue_limit)),
            counters: Arc::new(Counters::new(&REASONS)),
            settings: Arc::new(settings),
        }
    }

    /// Counts and logs a refusal.
    pub fn refused(&self, refusal: &Refusal, client: IpAddr) {
        self.counters.refused(refusal.reason());
        log::log!(refusal.level(), "{client} {}: {refusal}", refusal.status().as_u16());
    }
}

/// The service of one worker thread: upgrades become sessions, everything else is passed on.
pub fn service(
    traffic: Traffic,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()>
{
    fn_factory(move || {
        let traffic = traffic.clone();
        async move {
            let dialer = Dialer::new(traffic.settings.dial);
            let worker = Rc::new(Worker { traffic, dialer, idle: Idle::default() });
            let http = Rc::new(plain_http(&worker).new_service(()).await?);
            Ok::<_, ()>(fn_service(move |io: TcpStream| {
                let (worker, http) = (worker.clone(), http.clone());
                async move {
                    let _ = io.set_nodelay(true);
                    let plain = async |io, peer: IpAddr| {
                        let peer = Some((peer, 0).into());
                        if let Err(error) = http.call((io, Protocol::Http1, peer)).await {
                            log::debug!("a connection ended: {error}");
                        }
                    };
                    if let Err(error) = front::serve(worker, io, plain).await {
                        log::debug!("a client left before its answer: {error}");
                    }
                    Ok::<_, DispatchError>(())
                }
            }))
        }
    })
}

/// actix-http over what the front gives back.
fn plain_http(
    worker: &Rc<Worker>,
) -> impl ServiceFactory<
    (Rewind, Protocol, Option<std::net::SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
> + use<> {
    let timeout = worker.traffic.settings.head.timeout;
    let (for_upgrades, for_expect, for_plain) = (worker.clone(), worker.clone(), worker.clone());
    HttpService::build()
        .client_request_timeout(timeout)
        .client_disconnect_timeout(LINGER)
        .h1_allow_half_closed(false)
        .upgrade(fn_service(move |(request, framed): (Request, Framed<Rewind, Codec>)| {
            let worker = for_upgrades.clone();
            async move {
                handshake::serve_late(&worker, &request, framed).await;
                Ok::<_, Error>(())
            }
        }))
        .expect(fn_service(move |request| plain::expect(for_expect.clone(), request)))
        .finish(fn_service(move |request| plain::serve(for_plain.clone(), request)))
}
