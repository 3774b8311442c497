//! Wiring: from settings and bound listeners to a running balancer, and back to nothing.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix::{Actor as _, Addr, Arbiter};
use actix_server::{Server, ServerHandle};
use socket2::SockRef;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};

use crate::{
    actors::{
        discovery::{self, DiscoveryActor, Subject},
        metrics::{MetricsActor, Snapshot, Watch},
        poll::PollSettings,
        registry::{AwaitEmpty, CountDrained, DrainAll, Drained, RegistryActor},
    },
    config::{Affinity, Config, Service},
    domain::{
        pool::{Pool, PoolSettings},
        rebalance::Rebalancer,
    },
    http::{
        admin::{self, AdminState},
        health::Health,
        traffic::{self, Traffic},
    },
    net::{
        listen::{ListenAddress, Listener, SocketFile, bind_tcp},
        resolve::Source,
    },
};

/// How often it is looked whether requests are still under way at a shutdown.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The control actors, on a thread of their own.
pub struct Control {
    arbiter: Arbiter,
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who knows the live sessions.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Who asks DNS, where there is something to ask.
    pub discovery: Option<Addr<DiscoveryActor>>,
}

impl Control {
    /// Starts the actors for the pods of `config`. Polls and look-ups begin at once.
    pub fn start(config: &Config) -> Self {
        let arbiter = Arbiter::new();
        let watches: Vec<Watch> = config.services.iter().map(watch).collect();
        let handle = arbiter.handle();
        let registry = RegistryActor::start_in_arbiter(&handle, |_| RegistryActor::default());
        let (mover, drainer) = (registry.clone().recipient(), registry.clone().recipient());
        let metrics =
            MetricsActor::start_in_arbiter(&handle, |_| MetricsActor::new(watches, mover, drainer));
        let lookups = lookups(&config.services);
        let discovery = (!lookups.is_empty()).then(|| {
            let (backends, replicas) = (metrics.clone().recipient(), metrics.clone().recipient());
            DiscoveryActor::start_in_arbiter(&handle, |_| {
                DiscoveryActor::new(lookups, backends, replicas)
            })
        });
        Self { arbiter, metrics, registry: Arc::new(registry), discovery }
    }
}

/// What is looked up for `services`: pods for each, replicas once for all that count them alike.
fn lookups(services: &[Service]) -> Vec<discovery::Watch> {
    let mut lookups: Vec<discovery::Watch> = Vec::new();
    for (index, Service { discovery, balancer, .. }) in services.iter().enumerate() {
        let resolver = balancer.resolver_settings();
        if let Some(name) = &balancer.replicas_name {
            let lookup = Source::Host { name: name.clone(), port: 0 };
            let same = |watch: &&mut discovery::Watch| {
                matches!(watch.subject, Subject::Replicas { .. })
                    && watch.lookup == lookup
                    && watch.resolver == resolver
            };
            match lookups.iter_mut().find(same).map(|watch| &mut watch.subject) {
                Some(Subject::Replicas { services }) => services.push(index),
                _ => lookups.push(discovery::Watch {
                    source: format!("dns:{}", name.as_str()),
                    lookup,
                    resolver: resolver.clone(),
                    subject: Subject::Replicas { services: vec![index] },
                }),
            }
        }
        if let Some(discovery) = discovery {
            let (source, lookup) = (discovery.pod.url.clone(), discovery.source.clone());
            let subject = Subject::Pods { service: index, pod: discovery.pod.clone() };
            lookups.push(discovery::Watch { source, lookup, resolver, subject });
        }
    }
    lookups
}

/// The pool of a service, and how its pods are polled.
fn watch(service: &Service) -> Watch {
    let balancer = &service.balancer;
    let settings = PoolSettings {
        strategy: balancer.strategy,
        replicas: balancer.replicas,
        stale_after: balancer.stale_after,
        max_sessions: balancer.max_sessions,
        max_sessions_per_pod: balancer.max_sessions_per_pod,
        health: balancer.health,
        grace: balancer.discovery_grace,
        affinity_key: balancer.affinity_key().cloned(),
        shares: service.shares.clone(),
    };
    let polls = balancer.question.clone().map(|question| PollSettings {
        question,
        port: balancer.metric_port,
        interval: balancer.poll_interval,
        timeout: balancer.poll_timeout,
        connect: balancer.connect_settings(),
    });
    Watch {
        service: service.name.clone(),
        pool: Pool::new(service.backends.clone(), settings, fastrand::u64(..)),
        polls,
        rebalancer: balancer.rebalance.map(Rebalancer::new),
        pod_drain_time: balancer.pod_drain_time,
        closes_ejected: balancer.closes_ejected,
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

/// Listeners that are bound but not yet served, so that tests can use port 0.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub traffic: Listener,
    /// For operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds both listeners as configured.
    ///
    /// # Errors
    /// One cannot be bound; the error names its key and address.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let named = |key, address: &dyn fmt::Display, error: io::Error| {
            io::Error::new(error.kind(), format!("{key} = \"{address}\": {error}"))
        };
        let (traffic, admin) = (&config.server.listen, config.admin.listen);
        Ok(Self {
            traffic: Listener::bind(traffic)
                .map_err(|error| named("server.listen", traffic, error))?,
            admin: bind_tcp(admin).map_err(|error| named("admin.listen", &admin, error))?,
        })
    }
}

/// A running balancer.
pub struct App {
    /// Where clients connect.
    pub traffic_address: ListenAddress,
    /// Where operators connect.
    pub admin_address: SocketAddr,
    control: Control,
    health: Arc<Health>,
    traffic_server: ServerHandle,
    admin_server: ServerHandle,
    /// From the first word of the shutdown to the first refusal.
    drain_delay: Duration,
    drain_time: Duration,
    shutdown_timeout: Duration,
    /// Goes with the listener.
    _socket_file: Option<SocketFile>,
}

/// What a shutdown did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Sessions that it had to close.
    pub sessions: usize,
    /// Those among them that had not ended in time and were cut.
    pub cut: usize,
}

impl App {
    /// Starts everything; must be called within an actix system.
    ///
    /// # Errors
    /// A listener cannot be used.
    pub fn start(config: &Config, listeners: Listeners) -> io::Result<Self> {
        let traffic_address = listeners.traffic.address()?;
        let admin_address = listeners.admin.local_addr()?;
        let control = Control::start(config);
        let traffic = Traffic::new(config, control.metrics.clone(), control.registry.clone());
        let health = traffic.health.clone();
        let state = AdminState::new(&traffic, control.discovery.clone());
        // Sessions outlive the server's own idea of a connection, so the drain is ours.
        let server = Server::build().workers(config.server.workers).disable_signals();
        let (server, socket_file) = match listeners.traffic {
            Listener::Tcp(listener) => {
                config.server.tcp.apply(SockRef::from(&listener))?;
                let factory = move || traffic::service::<TcpStream>(traffic.clone());
                (server.listen("traffic", listener, factory)?, None)
            }
            Listener::Unix(listener, file) => {
                let factory = move || traffic::service::<UnixStream>(traffic.clone());
                (server.listen_uds("traffic", listener, factory)?, Some(file))
            }
        };
        let traffic_server = server.run();
        if let Some(tls) = &config.server.tls {
            actix_rt::spawn(tls.certificate.clone().watch());
        }
        let admin_server = admin::server(listeners.admin, config.admin.clone(), state)?;

        let app = Self {
            traffic_address,
            admin_address,
            control,
            health,
            traffic_server: traffic_server.handle(),
            admin_server: admin_server.handle(),
            drain_delay: config.server.drain_delay,
            drain_time: config.server.drain_time,
            shutdown_timeout: config.server.shutdown_timeout,
            _socket_file: socket_file,
        };
        actix_rt::spawn(traffic_server);
        actix_rt::spawn(admin_server);
        warn(config);
        log::info!("traffic on {}, admin on {admin_address}", app.traffic_address);
        Ok(app)
    }

    /// Says that no connections are wanted, refuses them after the delay, closes the sessions one
    /// after the other, waits for what is under way at most the shutdown time-out, and stops. Once
    /// `hurry` resolves it stops at once.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> Summary {
        tokio::select! {
            () = self.drain() => {}
            () = hurry => log::warn!("shutting down at once"),
        }
        let drained = self.control.registry.send(CountDrained).await;
        let Drained { sessions, live } = drained.unwrap_or(Drained { sessions: 0, live: 0 });
        self.traffic_server.stop(false).await;
        self.admin_server.stop(false).await;
        Summary { sessions, cut: live }
    }

    async fn drain(&self) {
        self.health.leave();
        sleep(self.drain_delay).await;
        self.health.drain();
        self.control.registry.do_send(DrainAll { over: self.drain_time });
        let _ = timeout(self.shutdown_timeout, self.until_idle()).await;
    }

    /// Waits until no session lives, no handshake that may become one is under way, and no plain
    /// request is.
    async fn until_idle(&self) {
        loop {
            let _ = self.control.registry.send(AwaitEmpty).await;
            if !self.control.metrics.send(Snapshot).await.is_ok_and(|pods| pods.are_busy()) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Says what works and is yet seldom meant.
fn warn(config: &Config) {
    for Service { name, balancer, .. } in &config.services {
        if let Affinity::Cookie(cookie) = &balancer.affinity
            && !cookie.key_is_shared
        {
            log::warn!(
                "service {name}: cookie_key is not set, so no other replica understands the \
                 cookies of this one, nor this one after a restart"
            );
        }
        if balancer.tls.as_ref().is_some_and(|tls| !tls.verifies) {
            log::warn!("service {name}: tls_verify is off, so anybody can pass for its pods");
        }
    }
}
