//! The admin listener: where connections are, and whether the process is well.

use std::{net::TcpListener, sync::Arc, time::SystemTime};

use actix::Addr;
use actix_web::{
    App, HttpResponse, HttpServer,
    dev::Server,
    error::ErrorInternalServerError,
    http::header::{CACHE_CONTROL, CacheControl, CacheDirective},
    web,
};

use super::{
    api::{self, Access},
    distribution::Distribution,
    health::Health,
    traffic::Traffic,
};
use crate::{
    actors::{
        discovery::{Discovered, DiscoveryActor},
        metrics::{MetricsActor, Snapshot},
        registry::{CountSessions, RegistryActor},
    },
    config,
    telemetry::counters::Counters,
};

/// Path of the liveness probe.
pub const LIVEZ: &str = "/livez";

/// Path of the readiness probe.
pub const READYZ: &str = "/readyz";

/// Path of what Prometheus scrapes.
pub const TELEMETRY: &str = "/telemetry";

/// What the handlers ask.
#[derive(Clone)]
pub struct AdminState {
    /// Who knows the pods.
    pub metrics: Addr<MetricsActor>,
    /// Who looks names up, where there are any.
    pub discovery: Option<Addr<DiscoveryActor>>,
    /// Who knows the sessions.
    pub registry: Arc<Addr<RegistryActor>>,
    /// Whether the process takes connections.
    pub health: Arc<Health>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

impl AdminState {
    /// What belongs to `traffic`, and who looks names up for it.
    pub fn new(traffic: &Traffic, discovery: Option<Addr<DiscoveryActor>>) -> Self {
        Self {
            metrics: traffic.metrics.clone(),
            discovery,
            registry: traffic.registry.clone(),
            health: traffic.health.clone(),
            counters: traffic.counters.clone(),
        }
    }
}

/// The admin server on a thread of its own; it runs once awaited.
///
/// # Errors
/// The listener cannot be used.
pub fn server(
    listener: TcpListener,
    settings: config::Admin,
    state: AdminState,
) -> std::io::Result<Server> {
    let access = web::Data::new(Access(settings.token));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(state.clone()))
            .app_data(access.clone())
            .configure(api::routes)
            .route(&settings.balancer_metric_path, web::get().to(distribution))
            .route(LIVEZ, web::get().to(|| async { "ok\n" }))
            .route(READYZ, web::get().to(readyz))
            .route(TELEMETRY, web::get().to(telemetry))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

async fn distribution(state: web::Data<AdminState>) -> actix_web::Result<HttpResponse> {
    let backends = state.metrics.send(Snapshot).await.map_err(ErrorInternalServerError)?;
    let sessions = state.registry.send(CountSessions).await.map_err(ErrorInternalServerError)?;
    let lookups = match &state.discovery {
        Some(discovery) => discovery.send(Discovered).await.map_err(ErrorInternalServerError)?.0,
        None => Vec::new(),
    };
    let distribution = Distribution::new(backends.0, lookups, sessions, SystemTime::now());
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, CacheControl(vec![CacheDirective::NoStore])))
        .json(distribution))
}

/// Ready while new connections are welcome; having no pods does not matter here.
async fn readyz(state: web::Data<AdminState>) -> HttpResponse {
    if state.health.is_ready() {
        HttpResponse::Ok().body("ok\n")
    } else {
        HttpResponse::ServiceUnavailable().body("shutting down\n")
    }
}

async fn telemetry(state: web::Data<AdminState>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(state.counters.render())
}
