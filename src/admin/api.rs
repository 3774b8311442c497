//! What operators may ask and do: `/api` on the admin listener, in JSON.
//!
//! Calls that change something need the token of `admin.token`. Without a token they are for
//! programs on the same machine: neither for others, by way of a proxy on it or not, nor for pages in
//! a browser, which anybody may have written.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use actix_web::{
    Error, FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    error::ErrorInternalServerError,
    guard,
    http::{
        Method, StatusCode,
        header::{self, ContentType, HeaderMap},
    },
    middleware::{Next, from_fn},
    web,
};
use futures_util::future::ready;
use serde::Serialize;
use serde_json::json;

use super::{AdminState, distribution::Listed, fault_hooks};
use crate::{
    actors::{
        metrics::{OperatorDrain, Snapshot, Whose},
        registry::{CloseOne, ListSessions, SessionInfo},
    },
    config::{Token, live::ReloadResult},
    telemetry::logging,
};

/// What the query of a drain may say: over which time its sessions are moved.
const OVER: &str = "over";

/// The longest time over which sessions may be moved.
const MAX_OVER: Duration = Duration::from_secs(24 * 3600);

/// Fields that proxies add to the requests of others.
const PROXY_FIELDS: [header::HeaderName; 3] =
    [header::FORWARDED, header::X_FORWARDED_FOR, header::VIA];

type State = web::Data<AdminState>;
type Answered = actix_web::Result<HttpResponse>;

/// Who may change something: bearers of the token, or everybody on this machine without one.
struct Access(Option<Token>);

/// All routes below `/api`.
pub fn routes(app: &mut web::ServiceConfig) {
    app.service(
        web::scope("/api")
            .wrap(from_fn(authorise))
            .service(only("/version", Method::GET, version))
            .service(only("/backends", Method::GET, backends))
            .service(only("/backends/{address}/drain", Method::POST, drain_backend))
            .service(only("/backends/{address}/undrain", Method::POST, undrain_backend))
            .service(only("/services/{name}/drain", Method::POST, drain_service))
            .service(only("/services/{name}/undrain", Method::POST, undrain_service))
            .service(only("/sessions", Method::GET, sessions))
            .service(only("/sessions/{id}", Method::DELETE, close_session))
            .service(only("/log-level", Method::PUT, set_log_level))
            .service(only("/config", Method::GET, config))
            .service(only("/reload", Method::POST, reload))
            .configure(fault_hooks)
            .default_service(web::to(nothing)),
    );
}

/// `path` for calls of one `method`, and HEAD where that is GET (RFC 9110 §9.1); others hear which.
pub(super) fn only<H, Args>(path: &str, method: Method, handler: H) -> Resource
where
    H: Handler<Args, Output: Responder + 'static>,
    Args: FromRequest + 'static,
{
    let methods = if method == Method::GET { vec![method, Method::HEAD] } else { vec![method] };
    let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let is_taken = guard::fn_guard(move |request| methods.contains(&request.head().method));
    let refuse = web::to(move |request: HttpRequest| ready(not_allowed(&request, &allow)));
    web::resource(path).route(web::route().guard(is_taken).to(handler)).default_service(refuse)
}

fn not_allowed(request: &HttpRequest, allow: &str) -> HttpResponse {
    let sentence = format!("{} takes no {}, but {allow}", request.path(), request.method());
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, &sentence);
    let allow = allow.parse().expect("names of methods");
    answer.headers_mut().insert(header::ALLOW, allow);
    answer
}

/// Why a call that changes something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    Token,
    Address,
    Page,
}

impl Access {
    /// Whether a call from `peer` with these fields may change something.
    fn check(&self, peer: Option<IpAddr>, fields: &HeaderMap) -> Result<(), Denial> {
        let Some(token) = &self.0 else {
            // A proxy on this machine asks for somebody else, and mostly says so.
            let passed_on = PROXY_FIELDS.iter().any(|name| fields.contains_key(name));
            if passed_on || !peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
                return Err(Denial::Address);
            }
            // Browsers name the page that a call comes from.
            return if fields.contains_key(header::ORIGIN) { Err(Denial::Page) } else { Ok(()) };
        };
        let given = fields.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.split_once(' '));
        match given {
            Some((scheme, given))
                if scheme.eq_ignore_ascii_case("bearer") && token.matches(given.trim()) =>
            {
                Ok(())
            }
            _ => Err(Denial::Token),
        }
    }
}

impl Denial {
    fn answer(self) -> HttpResponse {
        match self {
            Self::Token => {
                let mut answer = error(
                    StatusCode::UNAUTHORIZED,
                    "this call needs the token: Authorization: Bearer TOKEN",
                );
                let bearer = header::HeaderValue::from_static("Bearer");
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
                answer
            }
            Self::Address => error(
                StatusCode::FORBIDDEN,
                "without admin.token, calls that change something are for programs on this machine, \
                 not through a proxy: set admin.token",
            ),
            Self::Page => error(
                StatusCode::FORBIDDEN,
                "without admin.token, calls that change something are not for pages in a browser",
            ),
        }
    }
}

/// Lets calls through that change nothing, or that may; each of the latter is logged.
async fn authorise(
    state: State,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if request.method().is_safe() {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let peer = request.peer_addr().map(|peer| peer.ip());
    let call = format!("{} {}", request.method(), request.uri());
    let access = Access(state.live_config.current().admin.token.clone());
    let answered = match access.check(peer, request.headers()) {
        Ok(()) => next.call(request).await?.map_into_boxed_body(),
        Err(denial) => request.into_response(denial.answer()),
    };
    let peer = peer.map_or_else(|| "somebody".to_owned(), |peer| peer.to_string());
    log::info!("{peer} {}: {call}", answered.status().as_u16());
    Ok(answered)
}

pub(super) fn error(status: StatusCode, sentence: &str) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "error": sentence }))
}

fn not_found(sentence: &str) -> HttpResponse {
    error(StatusCode::NOT_FOUND, sentence)
}

async fn nothing(request: HttpRequest) -> HttpResponse {
    not_found(&format!("there is no {} {}", request.method(), request.path()))
}

async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

async fn backends(state: State) -> Answered {
    let backends = state.metrics.send(Snapshot).await.map_err(ErrorInternalServerError)?;
    let listed: Vec<Listed> = backends.0.into_iter().map(Listed::from).collect();
    Ok(HttpResponse::Ok().json(listed))
}

type Query = web::Query<HashMap<String, String>>;

async fn drain_backend(state: State, address: web::Path<String>, query: Query) -> Answered {
    drain(&state, Whose::Address(address.into_inner()), true, &query).await
}

async fn undrain_backend(state: State, address: web::Path<String>, query: Query) -> Answered {
    drain(&state, Whose::Address(address.into_inner()), false, &query).await
}

async fn drain_service(state: State, name: web::Path<String>, query: Query) -> Answered {
    drain(&state, Whose::Service(name.into_inner()), true, &query).await
}

async fn undrain_service(state: State, name: web::Path<String>, query: Query) -> Answered {
    drain(&state, Whose::Service(name.into_inner()), false, &query).await
}

async fn drain(
    state: &AdminState,
    whose: Whose,
    drains: bool,
    query: &HashMap<String, String>,
) -> Answered {
    if let Some(key) = query.keys().find(|key| !drains || *key != OVER) {
        let sentence = match drains {
            true => format!("{key:?}: unknown, expected {OVER}, such as ?{OVER}=20s"),
            false => format!("{key:?}: expected no query, sessions that are left just stay"),
        };
        return Ok(error(StatusCode::BAD_REQUEST, &sentence));
    }
    let parse = |text: &String| {
        let over = humantime::parse_duration(text).ok().filter(|over| *over <= MAX_OVER);
        over.ok_or_else(|| {
            format!("{OVER} = {text:?}: expected a duration with its unit, 0s to 24h")
        })
    };
    let over = match query.get(OVER).map(parse).transpose() {
        Ok(over) => over,
        Err(sentence) => return Ok(error(StatusCode::BAD_REQUEST, &sentence)),
    };
    let missing = match &whose {
        Whose::Address(address) => format!("no backend has the address {address:?}"),
        Whose::Service(name) => format!("no service is called {name:?}"),
    };
    let meant = state.metrics.send(OperatorDrain { whose, drains, over }).await;
    Ok(match meant.map_err(ErrorInternalServerError)? {
        Some(meant) => {
            let listed: Vec<Listed> = meant.0.into_iter().map(Listed::from).collect();
            HttpResponse::Ok().json(listed)
        }
        None => not_found(&missing),
    })
}

/// A live session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Session<'a> {
    id: u64,
    client: IpAddr,
    /// The backend's configured URL, verbatim.
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

impl<'a> From<&'a Arc<SessionInfo>> for Session<'a> {
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
            bytes_up: stats.up.bytes(),
            bytes_down: stats.down.bytes(),
            messages_up: stats.up.messages(),
            messages_down: stats.down.messages(),
        }
    }
}

async fn sessions(state: State) -> Answered {
    let sessions = state.registry.send(ListSessions).await.map_err(ErrorInternalServerError)?;
    let sessions: Vec<Session> = sessions.0.iter().map(Session::from).collect();
    Ok(HttpResponse::Ok().json(sessions))
}

async fn close_session(state: State, id: web::Path<String>) -> Answered {
    let closed = match id.parse() {
        Ok(id) => state.registry.send(CloseOne { id }).await.map_err(ErrorInternalServerError)?,
        Err(_) => None,
    };
    Ok(match closed {
        Some(info) => HttpResponse::Ok().json(Session::from(&info)),
        None => not_found(&format!("no session has the id {id}")),
    })
}

async fn set_log_level(body: Result<String, Error>) -> HttpResponse {
    let names = || logging::LEVELS.map(|(name, _)| name).join(", ");
    let body = match body {
        Ok(body) => body,
        // No text, or too much of it.
        Err(unread) => {
            let status = unread.as_response_error().status_code();
            return error(status, &format!("{unread}: expected one of {}", names()));
        }
    };
    let text = body.trim();
    match logging::LEVELS.iter().find(|(name, _)| *name == text) {
        Some((name, level)) => {
            logging::set_level(*level);
            HttpResponse::Ok().json(json!({ "level": name }))
        }
        None => {
            let sentence = format!("{text:?}: expected one of {}", names());
            error(StatusCode::BAD_REQUEST, &sentence)
        }
    }
}

/// `POST /api/reload`
async fn reload(state: State) -> HttpResponse {
    match state.live_config.request_reload().await {
        Some(outcome) => HttpResponse::build(status_of(outcome.result)).json(&*outcome),
        None => error(StatusCode::NOT_IMPLEMENTED, "this process reads its settings only once"),
    }
}

/// `GET /api/config`: what `wsbalancer check` would print of the settings that hold.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(header::HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn without_a_token_only_programs_on_this_machine_may() {
        let access = Access(None);
        let check = |peer: &str, list: &[_]| access.check(peer.parse().ok(), &fields(list));
        for peer in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check(peer, &[]), Ok(()), "{peer}");
        }
        for peer in ["10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "nobody"] {
            assert_eq!(check(peer, &[]), Err(Denial::Address), "{peer}");
        }
        // What proxies say: whoever is behind one on this machine may be anywhere.
        for (name, value) in [
            (header::FORWARDED, "for=10.0.0.1"),
            (header::X_FORWARDED_FOR, "10.0.0.1"),
            (header::VIA, "1.1 nginx"),
        ] {
            assert_eq!(check("127.0.0.1", &[(name, value)]), Err(Denial::Address), "{value}");
        }
        let page = [(header::ORIGIN, "http://localhost:9090")];
        assert_eq!(check("127.0.0.1", &page), Err(Denial::Page));
    }

    #[test]
    fn with_a_token_it_is_needed_from_everywhere() {
        let access = Access(Token::parse("s3cret").ok());
        let check = |peer: &str, value: &str| {
            access.check(peer.parse().ok(), &fields(&[(header::AUTHORIZATION, value)]))
        };
        for value in ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret"] {
            assert_eq!(check("10.0.0.1", value), Ok(()), "{value}");
        }
        for value in ["Bearer", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret"] {
            assert_eq!(check("127.0.0.1", value), Err(Denial::Token), "{value}");
        }
        let nothing = access.check("127.0.0.1".parse().ok(), &fields(&[]));
        assert_eq!(nothing, Err(Denial::Token));
    }
}
