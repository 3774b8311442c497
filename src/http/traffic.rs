//! The service behind the traffic listener, the same in production and in tests.

use std::{convert::Infallible, future::ready, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use actix::Addr;
use actix_service::{ServiceFactory, fn_factory, fn_service};
use tokio::net::TcpStream;

use super::{
    dial::{DialTimeouts, Dialer},
    forward::Forwarding,
    front::{self, HeadLimits},
    handshake::Worker,
    health::Health,
    queue::Queue,
    refusal::{REASONS, Refusal},
    reuse::Idle,
};
use crate::{
    actors::{metrics::MetricsActor, registry::RegistryActor},
    config::Config,
    domain::admission::{Admission, Limits},
    telemetry::counters::Counters,
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

/// The service of one worker thread: handshakes become sessions, everything else is passed on.
pub fn service(
    traffic: Traffic,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = Infallible, InitError = ()>
{
    fn_factory(move || {
        let dialer = Dialer::new(traffic.settings.dial);
        let worker = Rc::new(Worker { traffic: traffic.clone(), dialer, idle: Idle::default() });
        ready(Ok::<_, ()>(fn_service(move |io: TcpStream| {
            let worker = worker.clone();
            async move {
                let _ = io.set_nodelay(true);
                // Boxed, because glibc splits what it aligns for a task: tasks of this size leave
                // holes that cost an idle session 0.9 kB.
                if let Err(error) = Box::pin(front::serve(worker, io)).await {
                    log::debug!("a client left before its answer: {error}");
                }
                Ok::<_, Infallible>(())
            }
        })))
    })
}
