//! What the admin routes have in common: methods, and errors as JSON.

use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, guard,
    http::{Method, StatusCode, header},
    web,
};
use futures_util::future::ready;
use serde_json::json;

/// A route for one method, and for HEAD where that is GET (RFC 9110 §9.1). Other methods get 405
/// with `Allow`.
pub(super) fn route<H, Args>(path: &str, method: Method, handler: H) -> Resource
where
    H: Handler<Args, Output: Responder + 'static>,
    Args: FromRequest + 'static,
{
    let methods = if method == Method::GET { vec![method, Method::HEAD] } else { vec![method] };
    let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let is_allowed = guard::fn_guard(move |request| methods.contains(&request.head().method));
    let refuse = web::to(move |request: HttpRequest| ready(not_allowed(&request, &allow)));
    web::resource(path).route(web::route().guard(is_allowed).to(handler)).default_service(refuse)
}

fn not_allowed(request: &HttpRequest, allow: &str) -> HttpResponse {
    let (method, path) = (request.method(), request.path());
    let message = format!("method {method} not allowed for {path}: use {allow}");
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &message);
    let allow = allow.parse().expect("method names are valid header values");
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

/// An error response: `{"error": message}`.
pub(super) fn error(status: StatusCode, message: &str) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "error": message }))
}

/// A 404 response: `{"error": message}`.
pub(super) fn not_found(message: &str) -> HttpResponse {
    error(StatusCode::NOT_FOUND, message)
}
