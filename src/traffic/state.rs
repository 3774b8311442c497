//! The service behind the traffic listener, the same in production and in tests.

use std::{fmt, net::IpAddr, sync::Arc};

use actix::Addr;
use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

use super::{
    arrivals::Arrivals,
    headers::{
        cookie::{FOLLOWED, INVALID, REPLACED},
        forwarded::Forwarding,
        request::HeadLimits,
    },
    lifecycle::Health,
    refusal::{REASONS, Refusal},
    service::Service,
    worker::Live,
};
use crate::{
    actors::{ending::Ending, metrics::MetricsActor, registry::RegistryActor},
    config::{self, Config, live::ReloadResult},
    domain::{
        routing::route::Router,
        session::admission::{Admission, SessionLimits},
    },
    services::Indexes,
    telemetry::counters::{Counters, Labels},
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
    /// Who has been accepted and not answered yet.
    pub arrivals: Arc<Arrivals>,
    /// How many sessions there may be.
    pub admission: Arc<Admission>,
    /// Which requests are whose.
    pub router: Arc<Router>,
    /// The services, by the index that routes have.
    pub services: Arc<[Arc<Service>]>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// What holds for every connection.
    pub settings: Arc<Settings>,
}

/// What holds for every connection, whosever its requests are.
pub struct Settings {
    /// Limits of a request's head.
    pub head: HeadLimits,
    /// Who is believed about clients.
    pub forwarding: Forwarding,
    /// Who begins connections with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// Where clients speak TLS.
    pub tls: Option<TlsAcceptor>,
}

impl Traffic {
    /// As configured, in front of the control actors.
    pub fn new(
        config: &Config,
        metrics: Addr<MetricsActor>,
        registry: Arc<Addr<RegistryActor>>,
    ) -> Self {
        let services = config.services.iter().enumerate();
        let services =
            services.map(|(index, service)| Arc::new(Service::new(index, service, None)));
        Self {
            metrics,
            registry,
            health: Arc::default(),
            arrivals: Arc::default(),
            admission: Arc::new(Admission::new(limits(config))),
            router: Arc::new(config.router.clone()),
            services: services.collect(),
            counters: Arc::new(Counters::new(Labels {
                refusals: &REASONS,
                cookies: &[FOLLOWED, INVALID, REPLACED],
                reloads: &ReloadResult::ALL.map(ReloadResult::label),
                endings: &Ending::ALL.map(Ending::label),
            })),
            settings: Arc::new(Settings::new(config)),
        }
    }

    /// With other settings, and all that has come of the connections so far. Limits hold at once, for
    /// whoever comes by whichever rules.
    pub fn renewed(&self, config: &Config, indexes: &Indexes) -> Self {
        self.admission.set_limits(limits(config));
        let service = |(at, service): (usize, &config::Service)| {
            let before = self.services.iter().find(|known| known.name == service.name);
            let index = indexes.find(&service.name).unwrap_or(at);
            Arc::new(Service::new(index, service, before.map(AsRef::as_ref)))
        };
        Self {
            router: Arc::new(config.router.clone()),
            services: config.services.iter().enumerate().map(service).collect(),
            settings: Arc::new(Settings::new(config)),
            ..self.clone()
        }
    }

    /// As workers share it.
    pub fn live(self) -> Arc<Live> {
        Arc::new(Live::from_pointee(self))
    }

    /// Counts and logs a connection that ends before there is anybody to answer.
    pub fn dropped(&self, reason: &'static str, client: IpAddr, error: &impl fmt::Display) {
        self.counters.refused(reason);
        log::info!("{client} {reason}: {error}");
    }

    /// Counts and logs a refusal.
    pub fn refused(&self, refusal: &Refusal, client: IpAddr) {
        self.counters.refused(refusal.reason());
        log::log!(refusal.level(), "{client} {}: {refusal}", refusal.status().as_u16());
    }
}

fn limits(config: &Config) -> SessionLimits {
    SessionLimits {
        sessions: config.server.max_sessions,
        sessions_per_address: config.server.max_sessions_per_address,
    }
}

impl Settings {
    fn new(config: &Config) -> Self {
        let server = &config.server;
        Self {
            head: HeadLimits {
                timeout: server.request_timeout,
                fields: server.max_headers,
                bytes: server.max_header_bytes,
            },
            forwarding: Forwarding { trusted_proxies: server.trusted_proxies.clone() },
            proxy_protocol: server.proxy_protocol.clone(),
            tls: server.tls.as_ref().map(|tls| tls.acceptor.clone()),
        }
    }
}
