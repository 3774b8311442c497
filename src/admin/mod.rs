//! The admin listener: where connections are, and whether the process is well.

mod api;
mod dashboard;
mod distribution;
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
    dashboard::{Format, Wanted},
    distribution::Distribution,
};

use crate::actors::{discovery::Discovered, metrics::Snapshot, registry::CountSessions};

/// Path of the liveness probe.
pub const LIVEZ: &str = "/livez";

/// Path of the readiness probe.
pub const READYZ: &str = "/readyz";

/// Path of what Prometheus scrapes.
pub const TELEMETRY: &str = "/telemetry";

/// The admin server on a thread of its own; it runs once awaited.
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
            .service(api::only(&distribution_path, Method::GET, distribution))
            .service(api::only(LIVEZ, Method::GET, || async { "ok\n" }))
            .service(api::only(READYZ, Method::GET, readyz))
            .service(api::only(TELEMETRY, Method::GET, telemetry))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

/// Nothing, in a build that serves anybody.
#[cfg(not(feature = "fault-hooks"))]
pub(super) fn fault_hooks(_: &mut web::ServiceConfig) {}

/// `POST /api/fault/metrics` and `/api/fault/registry` make these actors panic, `/api/fault/pick` the
/// first of them when it is asked for a pod the next time.
#[cfg(feature = "fault-hooks")]
pub(super) fn fault_hooks(routes: &mut web::ServiceConfig) {
    use crate::actors::supervision::{Panic, PanicAtNextPick};

    async fn metrics(state: web::Data<AdminState>) -> HttpResponse {
        state.metrics.do_send(Panic);
        HttpResponse::Accepted().finish()
    }
    async fn registry(state: web::Data<AdminState>) -> HttpResponse {
        state.registry.do_send(Panic);
        HttpResponse::Accepted().finish()
    }
    async fn pick(state: web::Data<AdminState>) -> HttpResponse {
        state.metrics.do_send(PanicAtNextPick);
        HttpResponse::Accepted().finish()
    }
    routes
        .route("/fault/pick", web::post().to(pick))
        .route("/fault/metrics", web::post().to(metrics))
        .route("/fault/registry", web::post().to(registry));
}

/// The distribution, or the page that shows it.
async fn distribution(
    state: web::Data<AdminState>,
    wanted: actix_web::Result<web::Query<Wanted>>,
    accept: Option<web::Header<Accept>>,
) -> actix_web::Result<HttpResponse> {
    let told = wanted.map_err(|error| error.to_string());
    let format = match told.and_then(|wanted| Format::of(&wanted, accept.as_deref())) {
        Ok(format) => format,
        Err(problem) => return Ok(api::error(StatusCode::BAD_REQUEST, &problem)),
    };
    let mut answer = match format {
        Format::Html => dashboard::page(),
        Format::Json => HttpResponse::Ok().json(latest(&state).await?),
    };
    let fields = answer.headers_mut();
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(VARY, HeaderValue::from_static("accept"));
    Ok(answer)
}

async fn latest(state: &AdminState) -> actix_web::Result<Distribution> {
    let backends = state.metrics.send(Snapshot).await.map_err(ErrorInternalServerError)?;
    let sessions = state.registry.send(CountSessions).await.map_err(ErrorInternalServerError)?;
    let lookups = state.discovery.send(Discovered).await.map_err(ErrorInternalServerError)?.0;
    let reload = state.live_config.last_outcome();
    let now = SystemTime::now();
    Ok(Distribution::new(backends.0, lookups, sessions, now).with_reload(reload))
}

/// Ready while new connections are welcome; having no pods does not matter here.
async fn readyz(state: web::Data<AdminState>) -> HttpResponse {
    if state.health.is_serving() {
        HttpResponse::Ok().body("ok\n")
    } else {
        HttpResponse::ServiceUnavailable().body("shutting down\n")
    }
}

async fn telemetry(state: web::Data<AdminState>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(state.counters.render())
}
