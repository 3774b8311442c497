//! actix-http and hyper use different releases of the same types.

use actix_http::{
    Method, RequestHead, Response, Uri, Version,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use crate::traffic::refusal::Refusal;

/// The head of a request.
///
/// # Errors
/// What one of them takes and the other does not.
pub fn request_head(incoming: &hyper::Request<impl Sized>) -> Result<RequestHead, Refusal> {
    let unreadable = || Refusal::Target(incoming.uri().to_string());
    let mut head = RequestHead::default();
    head.method = Method::from_bytes(incoming.method().as_str().as_bytes())
        .map_err(|_| Refusal::Method(incoming.method().to_string()))?;
    head.uri = incoming.uri().to_string().parse::<Uri>().map_err(|_| unreadable())?;
    head.version = match incoming.version() {
        hyper::Version::HTTP_11 => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    head.headers = from_hyper(incoming.headers());
    Ok(head)
}

/// The head of `response` with `body`.
pub fn response_head<B, C>(response: Response<B>, body: C) -> hyper::Response<C> {
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = hyper::StatusCode::from_u16(response.status().as_u16())
        .unwrap_or(hyper::StatusCode::BAD_GATEWAY);
    *answer.headers_mut() = to_hyper(response.headers());
    answer
}

/// The same fields.
pub fn to_hyper(headers: &HeaderMap) -> hyper::HeaderMap {
    let mut map = hyper::HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_str().as_bytes());
        let value = hyper::header::HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
}

/// The same fields.
pub fn from_hyper(headers: &hyper::HeaderMap) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            map.append(name, value);
        }
    }
    map
}
