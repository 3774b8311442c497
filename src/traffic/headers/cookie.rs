//! Affinity: which pod a request prefers, and the cookie that makes the next request prefer it.

use std::net::IpAddr;

use actix_http::header::{self, HeaderMap, HeaderValue};

use crate::{
    config::{AffinitySettings, CookieSettings, SecureAttribute},
    domain::balance::{
        affinity::{Preference, hash},
        backend::Backend,
    },
    telemetry::counters::Counters,
};

/// Counter name of cookies whose client reached the pod of the cookie.
pub const FOLLOWED: &str = "followed";
/// Counter name of cookies whose pod was gone, full or did not answer.
pub const REPLACED: &str = "replaced";
/// Counter name of cookies that this service has not created with its key.
pub const INVALID: &str = "invalid";

/// The pod that one request prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityPreference {
    pub preference: Preference,
    /// Whether the request has a cookie with the configured name, valid or not.
    has_cookie: bool,
}

impl AffinityPreference {
    /// Reads the preference of the request of `client` with these `headers` for `service`.
    pub fn from_request(
        affinity: &AffinitySettings,
        service: &str,
        headers: &HeaderMap,
        client: IpAddr,
    ) -> Self {
        let hashed = |bytes: &[u8]| match bytes {
            [] => Preference::None,
            value => Preference::Hash(hash(value)),
        };
        let (preference, has_cookie) = match affinity {
            AffinitySettings::None => (Preference::None, false),
            AffinitySettings::Address => (hashed(client.to_string().as_bytes()), false),
            AffinitySettings::Header(name) => {
                (hashed(headers.get(name).map_or(&[], HeaderValue::as_bytes)), false)
            }
            AffinitySettings::Cookie(cookie) => {
                let mut values = cookie_values(headers, &cookie.name).peekable();
                let has_cookie = values.peek().is_some();
                let tag = values.find_map(|value| cookie.key.open(service, value));
                (tag.map_or(Preference::None, Preference::Tag), has_cookie)
            }
        };
        Self { preference, has_cookie }
    }

    /// Returns the cookie for `backend`, unless the request already has a valid one for it.
    pub fn cookie(
        self,
        affinity: &AffinitySettings,
        backend: &Backend,
        secure: bool,
        counters: &Counters,
    ) -> Option<HeaderValue> {
        let AffinitySettings::Cookie(cookie) = affinity else { return None };
        let tag = cookie.key.tag(&backend.service, &backend.address);
        let result = match self.preference {
            Preference::Tag(preferred) if preferred == tag => FOLLOWED,
            Preference::Tag(_) => REPLACED,
            _ => INVALID,
        };
        if self.has_cookie {
            counters.count_cookie(result);
        }
        (result != FOLLOWED)
            .then(|| set_cookie(cookie, &cookie.key.seal(&backend.service, tag), secure))?
    }
}

/// Returns a `Set-Cookie` value (RFC 6265 §4.1). The configuration has checked its parts.
fn set_cookie(cookie: &CookieSettings, value: &str, secure: bool) -> Option<HeaderValue> {
    let secure = match cookie.secure {
        SecureAttribute::Always => true,
        SecureAttribute::Never => false,
        SecureAttribute::Auto => secure,
    };
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{}={value}{}{secure}", cookie.name, cookie.attributes);
    HeaderValue::from_str(&text).ok()
}

/// Returns the values of all cookies called `name` (RFC 6265 §5.4).
fn cookie_values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .flat_map(|field| field.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='))
        .filter(move |(known, _)| known.trim() == name)
        .map(|(_, value)| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_in_every_position() {
        let mut headers = HeaderMap::new();
        for field in ["a=1; ws=one;ws=\"two\"", "xws=no; ws; ws = three ;ws="] {
            headers.append(header::COOKIE, HeaderValue::from_static(field));
        }
        let bytes = HeaderValue::from_bytes(b"b=\xff; ws=four").unwrap();
        headers.append(header::COOKIE, bytes);
        let found: Vec<&str> = cookie_values(&headers, "ws").collect();
        assert_eq!(found, ["one", "two", "three", "", "four"]);
    }
}
