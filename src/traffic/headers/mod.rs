//! Header fields: which are for one hop only, and how lists are read.

pub mod cookie;
pub mod forwarded;
pub mod malformed;
pub mod request;

use actix_http::{
    StatusCode,
    header::{self, HeaderMap, HeaderName},
};

/// Whether a proxy must not forward this field (RFC 9110 §7.6.1). `Upgrade` is set again for the pod.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    const KEEP_ALIVE: &str = "keep-alive";
    const PROXY_CONNECTION: &str = "proxy-connection";
    matches!(
        *name,
        header::CONNECTION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || [KEEP_ALIVE, PROXY_CONNECTION].contains(&name.as_str())
}

/// Whether a field is forwarded even when `Connection` names it: without it the message would be framed
/// or routed in another way than its sender meant (RFC 9110 §7.6.1).
fn is_structural(name: &HeaderName) -> bool {
    matches!(*name, header::HOST | header::CONTENT_LENGTH)
        || name.as_str().starts_with("sec-websocket-")
}

/// Returns the fields of `headers` for the next hop.
pub fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> =
        tokens(headers, header::CONNECTION).map(str::to_ascii_lowercase).collect();
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let named = named.iter().any(|token| token == name.as_str()) && !is_structural(name);
        if !named && !is_hop_by_hop(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Keeps `Upgrade` in a 426, which needs it (RFC 9110 §15.5.22).
pub fn keep_upgrade_required(status: StatusCode, received: &HeaderMap, kept: &mut HeaderMap) {
    if status == StatusCode::UPGRADE_REQUIRED {
        for protocol in received.get_all(header::UPGRADE) {
            kept.append(header::UPGRADE, protocol.clone());
        }
    }
}

/// Replaces a token that is not text. It is not equal to any name or address.
const UNREADABLE: &str = "\u{fffd}";

/// Returns the comma-separated tokens of all fields called `name` (RFC 9110 §5.6.1). A token that is not
/// text does not hide the other tokens of its field.
pub fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|token| std::str::from_utf8(token.trim_ascii()).unwrap_or(UNREADABLE))
        .filter(|token| !token.is_empty())
}

/// Returns whether the tokens of `name` contain `token`, without regard to case.
pub fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// Returns all values of `name` as one list, for texts.
pub fn shown(headers: &HeaderMap, name: HeaderName) -> String {
    let values = headers.get_all(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use actix_http::header::HeaderValue;

    use super::*;

    #[test]
    fn hop_by_hop_fields_and_those_named_in_connection_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade, X-Private, Host"),
            ("connection", "close"),
            ("upgrade", "websocket"),
            ("host", "a"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("proxy-connection", "keep-alive"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let kept = end_to_end(&headers);
        assert_eq!(kept.get_all("cookie").count(), 2, "repeated fields stay repeated");
        assert!(kept.contains_key("host"), "Connection cannot remove it");
        for gone in ["connection", "upgrade", "x-private", "te", "proxy-connection"] {
            assert!(!kept.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn a_token_that_is_not_text_does_not_hide_others() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(b"x-private, \xff").unwrap();
        headers.append(header::CONNECTION, value);
        headers.append(HeaderName::from_static("x-private"), HeaderValue::from_static("1"));
        assert!(!end_to_end(&headers).contains_key("x-private"));
        assert_eq!(tokens(&headers, header::CONNECTION).count(), 2);
    }

    #[test]
    fn tokens_are_found_in_lists_and_repeated_fields() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        headers.append(header::CONNECTION, HeaderValue::from_static("foo , UPGRADE"));
        assert!(has_token(&headers, header::CONNECTION, "upgrade"));
        assert!(!has_token(&headers, header::CONNECTION, "up"));
    }
}
