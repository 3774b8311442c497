//! Wiring: from settings and bound listeners to a running balancer, and back to nothing.

pub mod reload;

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use actix::{Addr, Arbiter};
use actix_server::{Server, ServerHandle};
use socket2::SockRef;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::{sleep, timeout},
};

use self::reload::{CertificateWatch, Reloader};
use crate::{
    actors::{
        discovery::DiscoveryActor,
        metrics::{MetricsActor, Snapshot},
        registry::{AwaitEmpty, CountDrained, DrainAll, Drained, RegistryActor},
        supervision::Supervisor,
    },
    admin::{self, AdminState},
    config::{self, Config, live::LiveConfig},
    domain::session::admission::Admission,
    net::{
        activation::{self, InheritedSockets},
        listen::{ListenAddress, Listener, SocketFile, bind_tcp},
    },
    services::Indexes,
    traffic::{
        lifecycle::{Lifecycle, UnansweredConnections},
        listener,
        state::TrafficState,
    },
};

/// How often it is looked whether requests are still under way at a shutdown.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long an answer that is known takes to leave, at most: connections that have never said a word
/// count as unanswered too.
const ANSWERED_WITHIN: Duration = Duration::from_millis(250);

/// The control actors, on a thread of their own.
pub struct Control {
    arbiter: Arbiter,
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who knows the live sessions.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Who asks DNS.
    pub discovery: Addr<DiscoveryActor>,
    /// Why an actor was given up.
    failures: UnboundedReceiver<String>,
    indexes: Indexes,
}

impl Control {
    /// Starts the actors for the pods of `config`. Polls and look-ups begin at once.
    pub fn start(config: &Config) -> Self {
        let arbiter = Arbiter::new();
        let mut indexes = Indexes::default();
        let rules = indexes.rules(config).into_iter().map(|(_, rules)| rules).collect();
        let (failed, failures) = unbounded_channel();
        let supervisor = Supervisor::new(arbiter.handle(), failed);
        let registry = supervisor.start("RegistryActor", |_| RegistryActor::default());
        let (mover, drainer) = (registry.clone().recipient(), registry.clone().recipient());
        let metrics =
            supervisor.start("MetricsActor", |_| MetricsActor::new(rules, mover, drainer));
        let lookups = indexes.lookups(config);
        let (backends, replicas) = (metrics.clone().recipient(), metrics.clone().recipient());
        let discovery = supervisor
            .start("DiscoveryActor", |_| DiscoveryActor::new(lookups, backends, replicas));
        Self { arbiter, metrics, registry: Arc::new(registry), discovery, failures, indexes }
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
        let handed = InheritedSockets::take(&config::socket_names())?;
        let inherited =
            Inherited { traffic: handed.traffic.is_some(), admin: handed.admin.is_some() };
        let traffic = match handed.traffic {
            Some(listener) => {
                activation::log_inherited(
                    "server.listen",
                    &config.server.listen,
                    &listener.address()?,
                );
                listener
            }
            None => bind_traffic(config)?,
        };
        let admin = match handed.admin {
            Some(listener) => {
                let configured = ListenAddress::Tcp(config.admin.listen);
                activation::log_inherited("admin.listen", &configured, &listener.address()?);
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
    live_config: Arc<LiveConfig>,
    /// Until it runs.
    reloader: Option<Reloader>,
    health: Arc<Lifecycle>,
    traffic_server: ServerHandle,
    admin_server: ServerHandle,
    inherited: Inherited,
    arrivals: Arc<UnansweredConnections>,
    admission: Arc<Admission>,
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
        let traffic = TrafficState::new(config, control.metrics.clone(), control.registry.clone());
        let (health, arrivals) = (traffic.lifecycle.clone(), traffic.unanswered.clone());
        let admission = traffic.admission.clone();
        let live_config = Arc::new(LiveConfig::new(config.clone()));
        let state = AdminState::new(&traffic, control.discovery.clone(), live_config.clone());
        let live = traffic.into_shared();
        let reloader = Reloader {
            live_config: live_config.clone(),
            live: live.clone(),
            metrics: control.metrics.clone(),
            discovery: control.discovery.clone(),
            indexes: control.indexes.clone(),
            certificate: CertificateWatch::new(config.server.tls.as_ref()),
        };
        // Sessions outlive the server's own idea of a connection, so the drain is ours.
        let server = Server::build().workers(config.server.workers).disable_signals();
        let (server, socket_file) = match listeners.traffic {
            Listener::Tcp(listener) => {
                config.server.tcp.apply(SockRef::from(&listener))?;
                let factory = move || listener::service::<TcpStream>(live.clone());
                (server.listen("traffic", listener, factory)?, None)
            }
            Listener::Unix(listener, file) => {
                let factory = move || listener::service::<UnixStream>(live.clone());
                (server.listen_uds("traffic", listener, factory)?, file)
            }
        };
        let traffic_server = server.run();
        let admin_server =
            admin::server(listeners.admin, config.admin.balancer_metric_path.clone(), state)?;

        let app = Self {
            traffic_address,
            admin_address,
            control,
            live_config,
            reloader: Some(reloader),
            health,
            traffic_server: traffic_server.handle(),
            admin_server: admin_server.handle(),
            inherited: listeners.inherited,
            arrivals,
            admission,
            _socket_file: socket_file,
        };
        actix_rt::spawn(traffic_server);
        actix_rt::spawn(admin_server);
        config.log_warnings();
        log::info!("traffic on {}, admin on {admin_address}", app.traffic_address);
        Ok(app)
    }

    /// Reads `file` and the environment again when asked to, or when the file has changed; what is
    /// returned asks. Where this is not called, the settings stay as they are.
    pub fn reload_from(&mut self, file: Option<PathBuf>) -> Arc<LiveConfig> {
        if let Some(reloader) = self.reloader.take() {
            actix_rt::spawn(reloader.run(file));
        }
        self.live_config.clone()
    }

    /// Why the process cannot go on; resolves when that is so.
    pub async fn failed(&mut self) -> String {
        match self.control.failures.recv().await {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
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
        self.health.start_leaving();
        self.hand_over().await;
        if !self.inherited.traffic {
            sleep(self.live_config.current().server.drain_delay).await;
        }
        self.health.start_draining();
        let config = self.live_config.current();
        self.control.registry.do_send(DrainAll { over: config.server.drain_time });
        let _ = timeout(config.server.shutdown_timeout, self.until_idle()).await;
    }

    /// Waits until no session lives, no handshake that may become one is under way or in a queue,
    /// and no plain request is; and until those who were refused have heard so.
    async fn until_idle(&self) {
        loop {
            let _ = self.control.registry.send(AwaitEmpty).await;
            let pods = self.control.metrics.send(Snapshot).await;
            if self.admission.is_empty() && !pods.is_ok_and(|pods| pods.are_busy()) {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        let _ = timeout(ANSWERED_WITHIN, self.arrivals.wait_until_none()).await;
    }

    /// Accepts nothing more from sockets that others share, so that the next process gets what waits
    /// in them, and answers those who have been accepted. The sockets stay open.
    async fn hand_over(&self) {
        let Inherited { traffic, admin } = self.inherited;
        if admin {
            self.admin_server.pause().await;
        }
        if traffic {
            self.traffic_server.pause().await;
            sleep(PAUSED_WITHIN).await;
            log::info!("accepts nothing more: what comes is for the next process");
            self.health.start_closing();
            // For a client that was accepted to say what it wants.
            let at_most = self.live_config.current().server.request_timeout;
            let _ = timeout(at_most, self.arrivals.wait_until_none()).await;
        }
    }
}
