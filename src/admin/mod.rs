//! The admin listener: distribution, probes, telemetry, and the API for operators.

mod api;
mod auth;
mod dashboard;
mod distribution;
#[cfg(feature = "fault-hooks")]
mod fault_hooks;
mod respond;
mod state;

use std::{net::TcpListener, time::SystemTime};

use actix_web::{
    App, HttpResponse, HttpServer,
    dev::Server,
    error::ErrorInternalServerError,
    http::{
        Method, StatusCode,
        header::{Accept, CACHE_CONTROL, HeaderValue, VARY},
    },
    web,
};

pub use self::state::AdminState;
use self::{
    dashboard::{Format, FormatQuery},
    distribution::Distribution,
    respond::{error, route},
};
use crate::actors::{discovery::GetLookups, metrics::Snapshot, registry::CountSessions};

/// Path of the liveness probe.
pub const LIVEZ: &str = "/livez";

/// Path of the readiness probe.
pub const READYZ: &str = "/readyz";

/// Path of the counters for Prometheus.
pub const TELEMETRY: &str = "/telemetry";

/// Creates the admin server, with one thread of its own. It runs once it is awaited.
///
/// # Errors
/// The listener cannot be used.
pub fn server(
    listener: TcpListener,
    distribution_path: String,
    state: AdminState,
) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(state.clone()))
            .configure(api::routes)
            .service(route(&distribution_path, Method::GET, distribution))
            .service(route(LIVEZ, Method::GET, || async { "ok\n" }))
            .service(route(READYZ, Method::GET, readyz))
            .service(route(TELEMETRY, Method::GET, telemetry))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

/// Returns the distribution as JSON, or the page that shows it.
async fn distribution(
    state: web::Data<AdminState>,
    query: actix_web::Result<web::Query<FormatQuery>>,
    accept: Option<web::Header<Accept>>,
) -> actix_web::Result<HttpResponse> {
    let query = query.map_err(|error| error.to_string());
    let format = match query.and_then(|query| Format::negotiate(&query, accept.as_deref())) {
        Ok(format) => format,
        Err(problem) => return Ok(error(StatusCode::BAD_REQUEST, &problem)),
    };
    let mut response = match format {
        Format::Html => dashboard::page(),
        Format::Json => HttpResponse::Ok().json(current(&state).await?),
    };
    let fields = response.headers_mut();
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

async fn current(state: &AdminState) -> actix_web::Result<Distribution> {
    let backends = state.metrics.send(Snapshot).await.map_err(ErrorInternalServerError)?;
    let sessions = state.registry.send(CountSessions).await.map_err(ErrorInternalServerError)?;
    let lookups = state.discovery.send(GetLookups).await.map_err(ErrorInternalServerError)?;
    let reload = state.live_config.last_outcome();
    let now = SystemTime::now();
    Ok(Distribution::new(backends.0, lookups.0, sessions, now).with_reload(reload))
}

/// Ready until a shutdown begins; a balancer without pods is ready too.
async fn readyz(state: web::Data<AdminState>) -> HttpResponse {
    if state.lifecycle.is_serving() {
        HttpResponse::Ok().body("ok\n")
    } else {
        HttpResponse::ServiceUnavailable().body("shutting down\n")
    }
}

async fn telemetry(state: web::Data<AdminState>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(state.counters.render())
}
