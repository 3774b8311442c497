//! Wiring: from settings and bound listeners to a running balancer, and back to nothing.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix::{Actor as _, Addr, Arbiter};
use actix_server::{Server, ServerHandle};
use socket2::{Domain, Socket, Type};
use tokio::time::timeout;

use crate::{
    actors::{
        metrics::MetricsActor,
        poll::PollSettings,
        registry::{AwaitEmpty, CloseAll, CountSessions, RegistryActor},
        session::CloseSession,
    },
    config::Config,
    domain::pool::{Pool, PoolSettings},
    http::{
        admin::{self, AdminState},
        health::Health,
        traffic::{self, Traffic},
    },
    relay::close::CloseCode,
};

/// Connections that may wait to be accepted: after a restart everyone comes back at once. The
/// kernel cuts it to `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;

/// The control actors, on a thread of their own.
pub struct Control {
    arbiter: Arbiter,
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who knows the live sessions.
    pub registry: Arc<Addr<RegistryActor>>,
}

impl Control {
    /// Starts the actors for the pods of `config`. Polling begins at once.
    pub fn start(config: &Config) -> Self {
        let arbiter = Arbiter::new();
        let balancer = &config.balancer;
        let settings = PoolSettings {
            replicas: balancer.replicas,
            stale_after: balancer.stale_after,
            max_sessions: balancer.max_sessions,
            max_sessions_per_pod: balancer.max_sessions_per_pod,
        };
        let pool = Pool::new(config.backends.clone(), settings, fastrand::u64(..));
        let polls = balancer.metric_path.clone().map(|path| PollSettings {
            path,
            port: balancer.metric_port,
            interval: balancer.poll_interval,
            timeout: balancer.poll_timeout,
        });
        let handle = arbiter.handle();
        let metrics = MetricsActor::start_in_arbiter(&handle, |_| MetricsActor::new(pool, polls));
        let registry = RegistryActor::start_in_arbiter(&handle, |_| RegistryActor::default());
        Self { arbiter, metrics, registry: Arc::new(registry) }
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
    pub traffic: TcpListener,
    /// For operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds both listeners as configured.
    ///
    /// # Errors
    /// One cannot be bound; the error names its key and address.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let bind = |key, address| {
            bind(address).map_err(|error| {
                io::Error::new(error.kind(), format!("{key} = \"{address}\": {error}"))
            })
        };
        Ok(Self {
            traffic: bind("server.listen", config.server.listen)?,
            admin: bind("admin.listen", config.admin.listen)?,
        })
    }
}

/// Like `TcpListener::bind`, but with a longer queue than the standard library's 128.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A running balancer.
pub struct App {
    /// Where clients connect.
    pub traffic_address: SocketAddr,
    /// Where operators connect.
    pub admin_address: SocketAddr,
    control: Control,
    health: Arc<Health>,
    traffic_server: ServerHandle,
    admin_server: ServerHandle,
    shutdown_timeout: Duration,
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
        let traffic_address = listeners.traffic.local_addr()?;
        let admin_address = listeners.admin.local_addr()?;
        let control = Control::start(config);
        let traffic = Traffic::new(config, control.metrics.clone(), control.registry.clone());
        let health = traffic.health.clone();
        let state = AdminState::from(&traffic);
        // Sessions outlive the server's own idea of a connection, so the drain is ours.
        let traffic_server = Server::build()
            .workers(config.server.workers)
            .disable_signals()
            .listen("traffic", listeners.traffic, move || traffic::service(traffic.clone()))?
            .run();
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
        };
        actix_rt::spawn(traffic_server);
        actix_rt::spawn(admin_server);
        log::info!("traffic on {traffic_address}, admin on {admin_address}");
        Ok(app)
    }

    /// Refuses new connections, closes all sessions, waits for them at most the shutdown time-out,
    /// and stops.
    pub async fn stop(self) -> Summary {
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
