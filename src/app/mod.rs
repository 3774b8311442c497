//! Wiring: from settings and bound listeners to a running balancer.

mod control;
mod listeners;
mod reload;
mod shutdown;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use actix_server::Server;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

pub use self::{
    control::ControlActors,
    listeners::{Inherited, Listeners},
    shutdown::Summary,
};
use self::{
    reload::{CertificateWatch, Reloader},
    shutdown::Shutdown,
};
use crate::{
    admin::{self, AdminState},
    config::{Config, live::LiveConfig},
    net::listen::{ListenAddress, Listener, SocketFile},
    traffic::{listener, state::TrafficState},
};

/// A running balancer.
pub struct App {
    /// Address of the traffic listener.
    pub traffic_address: ListenAddress,
    /// Address of the admin listener.
    pub admin_address: SocketAddr,
    control: ControlActors,
    live_config: Arc<LiveConfig>,
    /// `None` once it runs.
    reloader: Option<Reloader>,
    shutdown: Shutdown,
    /// Removed when the balancer stops.
    _socket_file: Option<SocketFile>,
}

impl App {
    /// Starts everything; must be called within an actix system.
    ///
    /// # Errors
    /// A listener cannot be used.
    pub fn start(config: &Config, listeners: Listeners) -> io::Result<Self> {
        let traffic_address = listeners.traffic.address()?;
        let admin_address = listeners.admin.local_addr()?;
        let control = ControlActors::start(config);
        let traffic = TrafficState::new(
            config,
            &control.ids,
            control.metrics.clone(),
            control.registry.clone(),
        );
        let live_config = Arc::new(LiveConfig::new(config.clone()));
        let state = AdminState::new(&traffic, control.discovery.clone(), live_config.clone());
        let (lifecycle, unanswered) = (traffic.lifecycle.clone(), traffic.unanswered.clone());
        let admission = traffic.admission.clone();
        let current = traffic.into_shared();
        let reloader = Reloader {
            live_config: live_config.clone(),
            current: current.clone(),
            metrics: control.metrics.clone(),
            discovery: control.discovery.clone(),
            ids: control.ids.clone(),
            certificate: CertificateWatch::new(config.server.tls.as_ref()),
        };
        // actix-server does not count detached tunnels as connections: the drain is ours.
        let server = Server::build().workers(config.server.workers).disable_signals();
        let (server, socket_file) = match listeners.traffic {
            Listener::Tcp(listener) => {
                config.server.tcp.apply(SockRef::from(&listener))?;
                let factory = move || listener::service::<TcpStream>(current.clone());
                (server.listen("traffic", listener, factory)?, None)
            }
            Listener::Unix(listener, file) => {
                let factory = move || listener::service::<UnixStream>(current.clone());
                (server.listen_uds("traffic", listener, factory)?, file)
            }
        };
        let traffic_server = server.run();
        let admin_server =
            admin::server(listeners.admin, config.admin.balancer_metric_path.clone(), state)?;
        let app = Self {
            traffic_address,
            admin_address,
            shutdown: Shutdown {
                lifecycle,
                unanswered,
                admission,
                traffic_server: traffic_server.handle(),
                admin_server: admin_server.handle(),
                inherited: listeners.inherited,
                live_config: live_config.clone(),
                metrics: control.metrics.clone(),
                registry: control.registry.clone(),
            },
            control,
            live_config,
            reloader: Some(reloader),
            _socket_file: socket_file,
        };
        actix_rt::spawn(traffic_server);
        actix_rt::spawn(admin_server);
        config.log_warnings();
        log::info!("listening: traffic on {}, admin on {admin_address}", app.traffic_address);
        Ok(app)
    }

    /// Reloads the settings from `file` and the environment on request, and when the file changes.
    /// The returned handle requests reloads. Without this call the settings never change.
    pub fn reload_from(&mut self, file: Option<PathBuf>) -> Arc<LiveConfig> {
        if let Some(reloader) = self.reloader.take() {
            // Taken here, so that a request right after the start is not refused.
            let requests = self.live_config.take_requests();
            actix_rt::spawn(reloader.run(file, requests));
        }
        self.live_config.clone()
    }

    /// Waits until the process cannot continue, and returns why.
    pub async fn failed(&mut self) -> String {
        match self.control.failures.recv().await {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Drains and stops the balancer; see the module `shutdown`. Stops at once when `hurry` resolves.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> Summary {
        self.shutdown.run(hurry).await
    }
}
