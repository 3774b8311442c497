//! Header fields between actix-http's types, which `traffic` uses everywhere, and hyper's, which speaks
//! HTTP with the pods of plain requests and writes their answers. The two crates use different
//! releases of the `http` crate.

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};

/// Returns the same fields for hyper.
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

/// Returns the same fields for `traffic`.
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
