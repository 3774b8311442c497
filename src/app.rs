//! Wiring: from settings and bound listeners to a running balancer, and back to nothing.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix::{Addr, Arbiter};
use actix_server::{Server, ServerHandle};
use socket2::SockRef;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use crate::{
    actors::{
        discovery::{self, DiscoveryActor, Subject},
        metrics::{MetricsActor, Watch},
        poll::PollSettings,
        registry::{AwaitEmpty, CloseAll, CountSessions, RegistryActor},
        session::CloseSession,
        supervision::Supervisor,
    },
    config::{self, Affinity, Config, Service},
    domain::{
        pool::{Pool, PoolSettings},
        rebalance::Rebalancer,
    },
    http::{
        admin::{self, AdminState},
        arrivals::Arrivals,
        health::Health,
        traffic::{self, Traffic},
    },
    net::{
        activation::{self, Handed},
        listen::{ListenAddress, Listener, SocketFile, bind_tcp},
        resolve::Source,
    },
    relay::close::CloseCode,
};

/// The control actors, on a thread of their own.
pub struct Control {
    arbiter: Arbiter,
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who knows the live sessions.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Who asks DNS, where there is something to ask.
    pub discovery: Option<Addr<DiscoveryActor>>,
    /// Why an actor was given up.
    failures: UnboundedReceiver<String>,
}

impl Control {
    /// Starts the actors for the pods of `config`. Polls and look-ups begin at once.
    pub fn start(config: &Config) -> Self {
        let arbiter = Arbiter::new();
        let watches: Vec<Watch> = config.services.iter().map(watch).collect();
        let (failed, failures) = unbounded_channel();
        let supervisor = Supervisor::new(arbiter.handle(), failed);
        let registry = supervisor.start("RegistryActor", |_| RegistryActor::default());
        let mover = registry.clone().recipient();
        let metrics = supervisor.start("MetricsActor", |_| MetricsActor::new(watches, mover));
        let lookups = lookups(&config.services);
        let discovery = (!lookups.is_empty()).then(|| {
            let (backends, replicas) = (metrics.clone().recipient(), metrics.clone().recipient());
            supervisor.start("DiscoveryActor", |_| DiscoveryActor::new(lookups, backends, replicas))
        });
        Self { arbiter, metrics, registry: Arc::new(registry), discovery, failures }
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
        pool: Pool::new(service.backends.clone(), settings, fastrand::u64(..)),
        polls,
        rebalancer: balancer.rebalance.map(Rebalancer::new),
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
    /// Those that are not ours alone: another process may accept from them after us.
    pub inherited: Inherited,
}

/// Which listeners were handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// For clients.
    pub traffic: bool,
    /// For operators.
    pub admin: bool,
}

impl Listeners {
    /// Takes over the listeners that were handed to this process and binds the others as
    /// configured.
    ///
    /// # Errors
    /// One cannot be taken over or bound; the error names its key and address.
    pub fn take(config: &Config) -> io::Result<Self> {
        let handed = Handed::take(&config::socket_names())?;
        let inherited =
            Inherited { traffic: handed.traffic.is_some(), admin: handed.admin.is_some() };
        let traffic = match handed.traffic {
            Some(listener) => {
                activation::tell("server.listen", &config.server.listen, &listener.address()?);
                listener
            }
            None => bind_traffic(config)?,
        };
        let admin = match handed.admin {
            Some(listener) => {
                let configured = ListenAddress::Tcp(config.admin.listen);
                activation::tell("admin.listen", &configured, &listener.address()?);
                match listener {
                    Listener::Tcp(listener) => listener,
                    Listener::Unix(..) => {
                        let told = "admin.listen: expected a TCP socket to be handed over";
                        return Err(io::Error::new(io::ErrorKind::InvalidInput, told));
                    }
                }
            }
            None => bind_admin(config)?,
        };
        Ok(Self { traffic, admin, inherited })
    }

    /// Binds both listeners as configured.
    ///
    /// # Errors
    /// One cannot be bound; the error names its key and address.
    pub fn bind(config: &Config) -> io::Result<Self> {
        Ok(Self {
            traffic: bind_traffic(config)?,
            admin: bind_admin(config)?,
            inherited: Inherited::default(),
        })
    }
}

fn bind_traffic(config: &Config) -> io::Result<Listener> {
    let address = &config.server.listen;
    Listener::bind(address).map_err(|error| not_bound("server.listen", address, &error))
}

fn bind_admin(config: &Config) -> io::Result<TcpListener> {
    let address = config.admin.listen;
    bind_tcp(address).map_err(|error| not_bound("admin.listen", &address, &error))
}

fn not_bound(key: &str, address: &dyn fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{key} = \"{address}\": {error}"))
}

/// How long a connection that is being accepted takes to reach its worker, at most: actix-server
/// does not tell when its accepting thread has heard of a pause, and drops what a worker has not
/// begun with when it is stopped.
const PAUSED_WITHIN: Duration = Duration::from_millis(250);

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
    shutdown_timeout: Duration,
    inherited: Inherited,
    arrivals: Arc<Arrivals>,
    /// For a client that was accepted to say what it wants.
    request_timeout: Duration,
    /// Goes with the listener.
    _socket_file: Option<SocketFile>,
}

/// What a shutdown did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Sessions that lived when it began.
    pub sessions: usize,
    /// Sessions that had not closed in time and were cut.
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
        let (health, arrivals) = (traffic.health.clone(), traffic.arrivals.clone());
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
                (server.listen_uds("traffic", listener, factory)?, file)
            }
        };
        let traffic_server = server.run();
        if let Some(tls) = &config.server.tls {
            actix_rt::spawn(tls.certificate.clone().watch());
        }
        let path = config.admin.balancer_metric_path.clone();
        let admin_server = admin::server(listeners.admin, path, state)?;

        let app = Self {
            traffic_address,
            admin_address,
            control,
            health,
            traffic_server: traffic_server.handle(),
            admin_server: admin_server.handle(),
            shutdown_timeout: config.server.shutdown_timeout,
            inherited: listeners.inherited,
            arrivals,
            request_timeout: config.server.request_timeout,
            _socket_file: socket_file,
        };
        actix_rt::spawn(traffic_server);
        actix_rt::spawn(admin_server);
        warn(config);
        log::info!("traffic on {}, admin on {admin_address}", app.traffic_address);
        Ok(app)
    }

    /// Why the process cannot go on; resolves when that is so.
    pub async fn failed(&mut self) -> String {
        match self.control.failures.recv().await {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Refuses new connections, closes all sessions, waits for them at most the shutdown time-out,
    /// and stops.
    pub async fn stop(self) -> Summary {
        self.hand_over().await;
        self.health.drain();
        let registry = &self.control.registry;
        let sessions = registry.send(CountSessions).await.unwrap_or_default();
        registry.do_send(CloseAll(CloseSession {
            to_client: CloseCode::SERVICE_RESTART,
            to_pod: CloseCode::GOING_AWAY,
            reason: "balancer is shutting down",
        }));
        let _ = timeout(self.shutdown_timeout, registry.send(AwaitEmpty)).await;
        let cut = registry.send(CountSessions).await.unwrap_or_default();
        self.traffic_server.stop(false).await;
        self.admin_server.stop(false).await;
        Summary { sessions, cut }
    }
}

impl App {
    /// Accepts nothing more from sockets that others share, so that the next process gets what waits
    /// in them, and answers those who have been accepted. The sockets stay open.
    async fn hand_over(&self) {
        let Inherited { traffic, admin } = self.inherited;
        if admin {
            self.admin_server.pause().await;
        }
        if traffic {
            self.traffic_server.pause().await;
            tokio::time::sleep(PAUSED_WITHIN).await;
            log::info!("accepts nothing more: what comes is for the next process");
            let _ = timeout(self.request_timeout, self.arrivals.none_left()).await;
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
