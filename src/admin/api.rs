//! The API for operators: `/api` on the admin listener, in JSON.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use actix_web::{
    Error, HttpRequest, HttpResponse,
    error::ErrorInternalServerError,
    http::{Method, StatusCode, header::ContentType},
    middleware::from_fn,
    web,
};
use serde::Serialize;
use serde_json::json;

use super::{
    auth::authorize,
    distribution::ListedBackend,
    respond::{error, not_found, route},
    state::AdminState,
};
use crate::{
    actors::{
        metrics::{DrainTarget, SetDrain, Snapshot},
        registry::{CloseById, ListSessions},
        session_info::SessionInfo,
    },
    config::live::ReloadResult,
    telemetry::logging,
};

/// Query parameter of a drain: the time over which sessions are moved.
const OVER: &str = "over";

/// Maximum of [`OVER`].
const MAX_OVER: Duration = Duration::from_secs(24 * 3600);

type State = web::Data<AdminState>;
type ApiResult = actix_web::Result<HttpResponse>;

/// Adds all routes below `/api`.
pub(super) fn routes(app: &mut web::ServiceConfig) {
    let api = web::scope("/api");
    #[cfg(feature = "fault-hooks")]
    let api = api.configure(super::fault_hooks::routes);
    app.service(
        api.wrap(from_fn(authorize))
            .service(route("/version", Method::GET, version))
            .service(route("/backends", Method::GET, backends))
            .service(route("/backends/{address}/drain", Method::POST, drain_backend))
            .service(route("/backends/{address}/undrain", Method::POST, undrain_backend))
            .service(route("/services/{name}/drain", Method::POST, drain_service))
            .service(route("/services/{name}/undrain", Method::POST, undrain_service))
            .service(route("/sessions", Method::GET, sessions))
            .service(route("/sessions/{id}", Method::DELETE, close_session))
            .service(route("/log-level", Method::PUT, set_log_level))
            .service(route("/config", Method::GET, config))
            .service(route("/reload", Method::POST, reload))
            .default_service(web::to(no_such_route)),
    );
}

async fn no_such_route(request: HttpRequest) -> HttpResponse {
    not_found(&format!("no such route: {} {}", request.method(), request.path()))
}

async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

async fn backends(state: State) -> ApiResult {
    let backends = state.metrics.send(Snapshot).await.map_err(ErrorInternalServerError)?;
    let listed: Vec<ListedBackend> = backends.0.into_iter().map(ListedBackend::from).collect();
    Ok(HttpResponse::Ok().json(listed))
}

type Query = web::Query<HashMap<String, String>>;

async fn drain_backend(state: State, address: web::Path<String>, query: Query) -> ApiResult {
    set_drain(&state, DrainTarget::Address(address.into_inner()), true, &query).await
}

async fn undrain_backend(state: State, address: web::Path<String>, query: Query) -> ApiResult {
    set_drain(&state, DrainTarget::Address(address.into_inner()), false, &query).await
}

async fn drain_service(state: State, name: web::Path<String>, query: Query) -> ApiResult {
    set_drain(&state, DrainTarget::Service(name.into_inner()), true, &query).await
}

async fn undrain_service(state: State, name: web::Path<String>, query: Query) -> ApiResult {
    set_drain(&state, DrainTarget::Service(name.into_inner()), false, &query).await
}

async fn set_drain(
    state: &AdminState,
    target: DrainTarget,
    drain: bool,
    query: &HashMap<String, String>,
) -> ApiResult {
    if let Some(key) = query.keys().find(|key| !drain || *key != OVER) {
        let message = match drain {
            true => format!("unknown query parameter {key:?}: expected {OVER}, as in ?{OVER}=20s"),
            false => format!("unknown query parameter {key:?}: undrain has no parameters"),
        };
        return Ok(error(StatusCode::BAD_REQUEST, &message));
    }
    let parse = |text: &String| {
        let over = humantime::parse_duration(text).ok().filter(|over| *over <= MAX_OVER);
        over.ok_or_else(|| {
            format!("{OVER} = {text:?}: expected a duration with unit from 0s to 24h, such as 20s")
        })
    };
    let over = match query.get(OVER).map(parse).transpose() {
        Ok(over) => over,
        Err(message) => return Ok(error(StatusCode::BAD_REQUEST, &message)),
    };
    let missing = match &target {
        DrainTarget::Address(address) => format!("no pod with the address {address:?}"),
        DrainTarget::Service(name) => format!("no service with the name {name:?}"),
    };
    let backends = state.metrics.send(SetDrain { target, drain, over }).await;
    Ok(match backends.map_err(ErrorInternalServerError)? {
        Some(backends) => {
            let listed: Vec<ListedBackend> =
                backends.0.into_iter().map(ListedBackend::from).collect();
            HttpResponse::Ok().json(listed)
        }
        None => not_found(&missing),
    })
}

/// A live session as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedSession<'a> {
    id: u64,
    client: IpAddr,
    /// The backend's URL as configured.
    backend: &'a str,
    address: &'a str,
    service: &'a str,
    age_ms: u128,
    idle_ms: u128,
    bytes_up: u64,
    bytes_down: u64,
    messages_up: u64,
    messages_down: u64,
}

impl<'a> From<&'a Arc<SessionInfo>> for ListedSession<'a> {
    fn from(info: &'a Arc<SessionInfo>) -> Self {
        let SessionInfo { id, client, backend, opened_at, stats, .. } = &**info;
        Self {
            id: *id,
            client: *client,
            backend: &backend.url,
            address: &backend.address,
            service: &backend.service,
            age_ms: opened_at.elapsed().as_millis(),
            idle_ms: info.idle().as_millis(),
            bytes_up: stats.from_client.bytes(),
            bytes_down: stats.from_pod.bytes(),
            messages_up: stats.from_client.messages(),
            messages_down: stats.from_pod.messages(),
        }
    }
}

async fn sessions(state: State) -> ApiResult {
    let sessions = state.registry.send(ListSessions).await.map_err(ErrorInternalServerError)?;
    let sessions: Vec<ListedSession<'_>> = sessions.0.iter().map(ListedSession::from).collect();
    Ok(HttpResponse::Ok().json(sessions))
}

async fn close_session(state: State, id: web::Path<String>) -> ApiResult {
    let closed = match id.parse() {
        Ok(id) => state.registry.send(CloseById { id }).await.map_err(ErrorInternalServerError)?,
        Err(_) => None,
    };
    Ok(match closed {
        Some(info) => HttpResponse::Ok().json(ListedSession::from(&info)),
        None => not_found(&format!("no live session with the id {id}")),
    })
}

async fn set_log_level(body: Result<String, Error>) -> HttpResponse {
    let names = || logging::LEVELS.map(|(name, _)| name).join(", ");
    let body = match body {
        Ok(body) => body,
        // The body is not text, or is too long.
        Err(unreadable) => {
            let status = unreadable.as_response_error().status_code();
            return error(status, &format!("log level: {unreadable}: expected one of {}", names()));
        }
    };
    let text = body.trim();
    match logging::LEVELS.iter().find(|(name, _)| *name == text) {
        Some((name, level)) => {
            logging::set_level(*level);
            HttpResponse::Ok().json(json!({ "level": name }))
        }
        None => {
            let message = format!("log level {text:?}: expected one of {}", names());
            error(StatusCode::BAD_REQUEST, &message)
        }
    }
}

async fn reload(state: State) -> HttpResponse {
    match state.live_config.request_reload().await {
        Some(outcome) => HttpResponse::build(status_of(outcome.result)).json(&*outcome),
        None => error(
            StatusCode::NOT_IMPLEMENTED,
            "reload not available: this process reads its settings only at its start",
        ),
    }
}

/// Returns the active settings, in the form that `wsbalancer check` prints.
async fn config(state: State) -> HttpResponse {
    let config = state.live_config.current().to_string();
    HttpResponse::Ok().insert_header(ContentType::plaintext()).body(config)
}

fn status_of(result: ReloadResult) -> StatusCode {
    match result {
        ReloadResult::Applied | ReloadResult::Unchanged => StatusCode::OK,
        ReloadResult::Refused => StatusCode::CONFLICT,
        ReloadResult::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
    }
}
