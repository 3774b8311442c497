//! The service behind the traffic listener, the same in production and in tests.

use std::{fmt, net::IpAddr, sync::Arc};

use actix::Addr;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

use super::{
    headers::{
        cookie::{FOLLOWED, INVALID, REPLACED},
        forwarded::ForwardingRules,
        request::HeadLimits,
    },
    lifecycle::{Lifecycle, UnansweredConnections},
    refusal::{REASONS, Refusal},
    service::ServiceState,
};
use crate::{
    actors::{ending::Ending, metrics::MetricsActor, registry::RegistryActor},
    config::{self, Config, live::ReloadResult},
    domain::{
        routing::route::Router,
        service_id::{ServiceId, ServiceIds, ServiceMap},
        session::admission::{Admission, SessionLimits},
    },
    telemetry::counters::{Counters, LabelValues},
};

/// The current [`TrafficState`], replaced whole when the settings are reloaded.
pub type CurrentState = ArcSwap<TrafficState>;

/// What all workers share.
#[derive(Clone)]
pub struct TrafficState {
    /// Who chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Who knows the live sessions. Shared, because each address of its own costs a session two
    /// allocations.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Whether new connections are welcome.
    pub lifecycle: Arc<Lifecycle>,
    /// Who has been accepted and not answered yet.
    pub unanswered: Arc<UnansweredConnections>,
    /// How many sessions there may be.
    pub admission: Arc<Admission>,
    /// The service of every request, if no routes are configured.
    pub only_service: Option<ServiceId>,
    /// Finds the service of a request otherwise.
    pub router: Arc<Router<ServiceId>>,
    /// The services as configured.
    pub services: Arc<ServiceMap<Arc<ServiceState>>>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// What holds for every connection.
    pub settings: Arc<ListenerSettings>,
}

/// What holds for every connection, whosever its requests are.
pub struct ListenerSettings {
    /// Limits of a request's head.
    pub head: HeadLimits,
    /// Who is believed about clients.
    pub forwarding: ForwardingRules,
    /// Who begins connections with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// Where clients speak TLS.
    pub tls: Option<TlsAcceptor>,
}

impl TrafficState {
    /// As configured, in front of the control actors.
    pub fn new(
        config: &Config,
        ids: &ServiceIds,
        metrics: Addr<MetricsActor>,
        registry: Arc<Addr<RegistryActor>>,
    ) -> Self {
        Self {
            metrics,
            registry,
            lifecycle: Arc::default(),
            unanswered: Arc::default(),
            admission: Arc::new(Admission::new(limits(config))),
            only_service: only_service(config, ids),
            router: Arc::new(router(config, ids)),
            services: Arc::new(services(config, ids, None)),
            counters: Arc::new(Counters::new(LabelValues {
                refusals: &REASONS,
                cookies: &[FOLLOWED, INVALID, REPLACED],
                reloads: &ReloadResult::ALL.map(ReloadResult::label),
                endings: &Ending::ALL.map(Ending::label),
            })),
            settings: Arc::new(ListenerSettings::new(config)),
        }
    }

    /// With other settings, and all that has come of the connections so far. Limits hold at once, for
    /// whoever comes by whichever rules.
    pub fn renewed(&self, config: &Config, ids: &ServiceIds) -> Self {
        self.admission.set_limits(limits(config));
        Self {
            only_service: only_service(config, ids),
            router: Arc::new(router(config, ids)),
            services: Arc::new(services(config, ids, Some(&self.services))),
            settings: Arc::new(ListenerSettings::new(config)),
            ..self.clone()
        }
    }

    /// As workers share it.
    pub fn into_shared(self) -> Arc<CurrentState> {
        Arc::new(CurrentState::from_pointee(self))
    }

    /// Counts and logs a connection that ends before there is anybody to answer.
    pub fn dropped(&self, reason: &'static str, client: IpAddr, error: &impl fmt::Display) {
        self.counters.count_refusal(reason);
        log::info!("{client} {reason}: {error}");
    }

    /// Counts and logs a refusal.
    pub fn refused(&self, refusal: &Refusal, client: IpAddr) {
        self.counters.count_refusal(refusal.reason());
        log::log!(refusal.level(), "{client} {}: {refusal}", refusal.status().as_u16());
    }
}

fn id_of(ids: &ServiceIds, name: &str) -> ServiceId {
    ids.get(name).expect("every configured service has an id")
}

fn only_service(config: &Config, ids: &ServiceIds) -> Option<ServiceId> {
    let only = config.services.first().filter(|_| config.router.is_empty());
    only.map(|service| id_of(ids, &service.name))
}

fn router(config: &Config, ids: &ServiceIds) -> Router<ServiceId> {
    config.router.clone().map_services(|name| id_of(ids, &name))
}

/// Creates the states of all services; queues of `before` a reload are kept.
fn services(
    config: &Config,
    ids: &ServiceIds,
    before: Option<&ServiceMap<Arc<ServiceState>>>,
) -> ServiceMap<Arc<ServiceState>> {
    let service = |service: &config::ServiceSettings| {
        let id = id_of(ids, &service.name);
        let before = before.and_then(|services| services.get(id));
        (id, Arc::new(ServiceState::new(id, service, before.map(AsRef::as_ref))))
    };
    config.services.iter().map(service).collect()
}

fn limits(config: &Config) -> SessionLimits {
    SessionLimits {
        sessions: config.server.max_sessions,
        sessions_per_address: config.server.max_sessions_per_address,
    }
}

impl ListenerSettings {
    fn new(config: &Config) -> Self {
        let server = &config.server;
        Self {
            head: HeadLimits {
                timeout: server.request_timeout,
                fields: server.max_headers,
                bytes: server.max_header_bytes,
            },
            forwarding: ForwardingRules { trusted_proxies: server.trusted_proxies.clone() },
            proxy_protocol: server.proxy_protocol.clone(),
            tls: server.tls.as_ref().map(|tls| tls.acceptor.clone()),
        }
    }
}
