//! What the workers of the traffic listener share, in production and in tests.

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
    actors::{metrics::MetricsActor, registry::RegistryActor},
    config::{self, Config, live::ReloadResult},
    domain::{
        routing::route::Router,
        service_id::{ServiceId, ServiceIds, ServiceMap},
        session::{
            admission::{Admission, SessionLimits},
            ending::Ending,
        },
    },
    telemetry::counters::{Counters, LabelValues},
};

/// The current [`TrafficState`], replaced whole when the settings are reloaded.
pub type CurrentState = ArcSwap<TrafficState>;

/// What all workers share.
#[derive(Clone)]
pub struct TrafficState {
    /// Chooses pods.
    pub metrics: Addr<MetricsActor>,
    /// Knows the live sessions. Shared, because an address of its own costs a session two allocations.
    pub registry: Arc<Addr<RegistryActor>>,
    pub lifecycle: Arc<Lifecycle>,
    pub unanswered: Arc<UnansweredConnections>,
    /// Applies the limits on sessions.
    pub admission: Arc<Admission>,
    /// The service of every request, if no routes are configured.
    pub only_service: Option<ServiceId>,
    /// Finds the service of a request otherwise.
    pub router: Arc<Router<ServiceId>>,
    /// The services as configured.
    pub services: Arc<ServiceMap<Arc<ServiceState>>>,
    pub counters: Arc<Counters>,
    pub settings: Arc<ListenerSettings>,
}

/// The settings of the traffic listener.
pub struct ListenerSettings {
    pub head: HeadLimits,
    pub forwarding: ForwardingRules,
    /// Peers that must send a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// `None`: clients connect without TLS.
    pub tls: Option<TlsAcceptor>,
}

impl TrafficState {
    /// Creates the state for `config`, in front of the control actors.
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
                endings: &Ending::labels(),
            })),
            settings: Arc::new(ListenerSettings::new(config)),
        }
    }

    /// Returns the state for new settings, with the counters, queues and sessions of this one. Session
    /// limits apply at once, also to connections that still use the old state.
    pub fn with_config(&self, config: &Config, ids: &ServiceIds) -> Self {
        self.admission.set_limits(limits(config));
        Self {
            only_service: only_service(config, ids),
            router: Arc::new(router(config, ids)),
            services: Arc::new(services(config, ids, Some(&self.services))),
            settings: Arc::new(ListenerSettings::new(config)),
            ..self.clone()
        }
    }

    /// Returns the state in the form that workers share.
    pub fn into_shared(self) -> Arc<CurrentState> {
        Arc::new(CurrentState::from_pointee(self))
    }

    /// Counts and logs a connection that ends without an answer, because HTTP has not begun.
    pub fn record_dropped(&self, reason: &'static str, client: IpAddr, error: &impl fmt::Display) {
        self.counters.count_refusal(reason);
        log::info!("connection of client {client} closed ({reason}): {error}");
    }

    /// Counts and logs a refusal.
    pub fn record_refusal(&self, refusal: &Refusal, client: IpAddr) {
        self.counters.count_refusal(refusal.reason());
        let (status, reason) = (refusal.status().as_u16(), refusal.reason());
        log::log!(refusal.level(), "client {client} refused with {status} ({reason}): {refusal}");
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
