//! Checks of every request, handshake or not: size of the head, target, host, length of the body.

use std::time::Duration;

use actix_http::{
    Method, RequestHead, Uri, Version,
    header::{self, HeaderValue},
};

use super::{has_token, shown};
use crate::{domain::routing::route::Rewrite, traffic::refusal::Refusal};

/// The largest body that hyper can count.
const MAX_CONTENT_LENGTH: u64 = u64::MAX - 2;

/// Limits for one request head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Maximum time for the whole head.
    pub timeout: Duration,
    /// Maximum number of header fields.
    pub fields: usize,
    /// Maximum number of bytes.
    pub bytes: usize,
}

impl HeadLimits {
    /// Checks the number and the size of the decoded header fields of `request`.
    ///
    /// # Errors
    /// [`Refusal::LargeHead`]
    pub fn check(&self, request: &RequestHead) -> Result<(), Refusal> {
        let headers = &request.headers;
        if headers.len() > self.fields {
            return Err(self.too_many_headers(&headers.len().to_string()));
        }
        let of_field = |(name, value): (&header::HeaderName, &HeaderValue)| {
            name.as_str().len() + value.len() + ": \r\n".len()
        };
        let bytes: usize = headers.iter().map(of_field).sum();
        if bytes > self.bytes { Err(self.too_many_bytes()) } else { Ok(()) }
    }

    /// Returns the refusal of a head with `count` headers.
    pub fn too_many_headers(&self, count: &str) -> Refusal {
        Refusal::LargeHead(format!("{count} headers (max_headers = {})", self.fields))
    }

    /// Returns the refusal of a head that is too long.
    pub fn too_many_bytes(&self) -> Refusal {
        Refusal::LargeHead(format!("more than {0} bytes (max_header_bytes = {0})", self.bytes))
    }
}

/// Returns whether `request` asks for a WebSocket.
pub fn is_handshake(request: &RequestHead) -> bool {
    has_token(&request.headers, header::UPGRADE, "websocket")
}

/// Checks a plain request.
///
/// # Errors
/// [`Refusal::Method`] for CONNECT, otherwise those of [`check`].
pub fn check_plain(request: &RequestHead) -> Result<(), Refusal> {
    if request.method == Method::CONNECT {
        return Err(Refusal::Method(request.method.to_string()));
    }
    check(request)
}

/// Checks target, `Host` (RFC 9112 §3.2) and the size of `Content-Length`. Ambiguous values are
/// refused: two servers in a row that read them in two ways make request smuggling possible.
///
/// # Errors
/// [`Refusal::Target`], [`Refusal::Host`] or [`Refusal::ContentLength`]
pub fn check(request: &RequestHead) -> Result<(), Refusal> {
    let uri = &request.uri;
    let wrong_target = || Err(Refusal::Target(uri.to_string()));
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if uri.path() == "*" && request.method == Method::OPTIONS => {}
        (None, None) if uri.path().starts_with('/') => {}
        (Some("http" | "https" | "ws" | "wss"), Some(authority)) if is_host(authority.as_str()) => {
        }
        // RFC 9112 §3.2.3: only CONNECT, which is refused for its method.
        (None, Some(_)) if request.method == Method::CONNECT => {}
        _ => return wrong_target(),
    }
    match request.headers.get(header::HOST).map(HeaderValue::to_str) {
        Some(Ok(host)) if is_host(host) => {}
        None if request.version < Version::HTTP_11 => {}
        _ => return Err(Refusal::Host(shown(&request.headers, header::HOST))),
    }
    match content_length(request) {
        Some(length) if length > MAX_CONTENT_LENGTH => {
            Err(Refusal::ContentLength(length.to_string()))
        }
        _ => Ok(()),
    }
}

/// Returns the value of `Content-Length`. The codec has refused other values than numbers.
pub fn content_length(request: &RequestHead) -> Option<u64> {
    request.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether `text` is one host name or IP address, with or without a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text, ""),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
    let is_ipv6 = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
    let right = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(address)) => !address.is_empty() && address.bytes().all(is_ipv6),
        Some(None) => false,
        None => !host.is_empty() && host.bytes().all(is_name),
    };
    right && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the target for the pod, in origin form (RFC 9112 §3.2.1).
pub fn target(uri: &Uri, rewrite: &Rewrite) -> String {
    let path = rewrite.apply(uri.path());
    match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_syntax() {
        for right in ["a", "a.example", "a.example:8080", "10.0.0.1:1", "[::1]", "[::1]:80", "a:"] {
            assert!(is_host(right), "{right}");
        }
        for wrong in [
            "", ":80", "a b", "a,b", "a/b", "user@a", "a:80a", "a;b", "\"a\"", "[::1", "::1]",
            "[]", "[::g]", "a:1:2", "pöd",
        ] {
            assert!(!is_host(wrong), "{wrong}");
        }
    }

    #[test]
    fn targets_are_sent_in_origin_form() {
        for (target, origin) in [
            ("/a%20b?x=1", "/a%20b?x=1"),
            ("http://a.example", "/"),
            ("http://a.example?x=1", "/?x=1"),
            ("http://a.example/p?", "/p?"),
            ("*", "*"),
        ] {
            let uri = target.parse().unwrap();
            assert_eq!(super::target(&uri, &Rewrite::Keep), origin, "{target}");
        }
    }

    #[test]
    fn a_rewrite_keeps_the_query() {
        let uri = "/ws/a%20b?x=%2F&y=/ws".parse().unwrap();
        let strip = Rewrite::Strip("/ws".to_owned());
        assert_eq!(target(&uri, &strip), "/a%20b?x=%2F&y=/ws");
        assert_eq!(target(&uri, &Rewrite::Replace("/".to_owned())), "/?x=%2F&y=/ws");
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        let check = |method, target: &str| {
            let mut head = RequestHead::default();
            head.method = method;
            head.uri = target.parse().unwrap();
            head.headers.insert(header::HOST, HeaderValue::from_static("a"));
            check(&head).is_ok()
        };
        assert!(check(Method::GET, "/"));
        assert!(check(Method::GET, "http://other.example/"));
        assert!(check(Method::OPTIONS, "*"));
        for target in ["*", "relative", "a.example:80", "http://user@a.example/"] {
            assert!(!check(Method::GET, target), "{target}");
        }
    }
}
