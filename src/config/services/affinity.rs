//! Session affinity: how a returning client is brought back to its previous pod.

use std::time::Duration;

use actix_http::header::{HeaderName, HeaderValue};

use crate::{
    config::{discovery::Replicas, parse::parse_header_name, reader::Reader},
    domain::balance::affinity::Key,
};

/// Shortest accepted `cookie_key`, in characters: a shorter one could be guessed.
const MIN_KEY_LEN: usize = 16;

/// How a returning client finds its previous pod.
#[derive(Clone, Debug)]
pub enum AffinitySettings {
    None,
    /// By a cookie that the balancer sets.
    Cookie(CookieSettings),
    /// By the value of a header field.
    Header(HeaderName),
    /// By the client's IP address.
    Address,
}

impl AffinitySettings {
    /// Returns the key of affinity cookies, if they are used.
    pub fn cookie_key(&self) -> Option<&Key> {
        match self {
            Self::Cookie(cookie) => Some(&cookie.key),
            _ => None,
        }
    }
}

/// The affinity cookie (RFC 6265).
#[derive(Clone, Debug)]
pub struct CookieSettings {
    pub name: String,
    /// Key that seals the cookie's value.
    pub key: Key,
    /// Whether the key was configured, so that other replicas can have it too. Otherwise it is
    /// random.
    pub key_is_shared: bool,
    pub secure: SecureAttribute,
    /// The other attributes, each with a leading `; `.
    pub attributes: String,
}

/// When a cookie gets the attribute `Secure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureAttribute {
    Always,
    Never,
    /// If the client uses https, as far as known.
    Auto,
}

pub(super) fn read_affinity(reader: &mut Reader) -> AffinitySettings {
    let kinds = ["none", "cookie", "header", "address"].map(|kind| (kind, kind));
    let kind = reader.choice("balancer.affinity", &kinds);
    let header = reader.value("balancer.affinity_header", |text| match text {
        "" => Ok(None),
        name => parse_header_name(name).map(Some),
    });
    let cookie = read_cookie(reader, kind == "cookie");
    match (kind, header) {
        ("cookie", _) => AffinitySettings::Cookie(cookie),
        ("address", _) => AffinitySettings::Address,
        ("header", Some(name)) => AffinitySettings::Header(name),
        ("header", None) => {
            let advice =
                "is required by affinity = \"header\": set it to the name of a header field";
            reader.add_problem("balancer.affinity_header", advice);
            AffinitySettings::None
        }
        _ => AffinitySettings::None,
    }
}

fn read_cookie(reader: &mut Reader, is_used: bool) -> CookieSettings {
    let name = reader.value("balancer.cookie_name", |text| {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_valid = !text.is_empty() && text.bytes().all(is_token);
        let advice = "expected letters, digits, - or _";
        is_valid.then(|| text.to_owned()).ok_or_else(|| advice.to_owned())
    });
    let secret = reader.value("balancer.cookie_key", |text| match text.len() {
        0 => Ok(None),
        length if length < MIN_KEY_LEN => {
            Err(format!("has {length} characters, expected at least {MIN_KEY_LEN}"))
        }
        _ => Ok(Some(text.to_owned())),
    });
    let secure = reader.choice(
        "balancer.cookie_secure",
        &[
            ("true", SecureAttribute::Always),
            ("false", SecureAttribute::Never),
            ("auto", SecureAttribute::Auto),
        ],
    );
    let http_only = reader.boolean("balancer.cookie_http_only");
    let same_site = reader.choice(
        "balancer.cookie_same_site",
        &[("strict", "Strict"), ("lax", "Lax"), ("none", "None")],
    );
    let path = reader.value("balancer.cookie_path", |text| {
        let is_valid = text.starts_with('/') && !text.contains([';', ',', ' ']);
        if is_valid && HeaderValue::from_str(text).is_ok() {
            Ok(text.to_owned())
        } else {
            Err("expected a path such as / or /chat".to_owned())
        }
    });
    let year = Duration::from_secs(8760 * 3600);
    let max_age = reader.duration("balancer.cookie_max_age", Duration::ZERO..=year);

    if is_used {
        let replicas = reader.value("balancer.replicas", Replicas::parse);
        if secret.is_none() && replicas != Replicas::Configured(1) {
            let advice = "is required with several replicas: set the same secret on all of them";
            reader.add_problem("balancer.cookie_key", advice);
        }
        if secure == SecureAttribute::Never && same_site == "None" {
            let advice = "browsers reject a cookie with SameSite=None that is not Secure: set \
                          cookie_secure = true";
            reader.add_problem("balancer.cookie_secure", advice);
        }
        let is_prefixed = name.starts_with("__Secure-") || name.starts_with("__Host-");
        if is_prefixed && secure != SecureAttribute::Always {
            let advice = "browsers reject a cookie with this prefix that is not Secure: set \
                          cookie_secure = true";
            reader.add_problem("balancer.cookie_name", advice);
        }
        if name.starts_with("__Host-") && path != "/" {
            let advice = "browsers reject a cookie named __Host-... with another path than /";
            reader.add_problem("balancer.cookie_path", advice);
        }
    }
    let mut attributes = format!("; Path={path}; SameSite={same_site}");
    if http_only {
        attributes.push_str("; HttpOnly");
    }
    if !max_age.is_zero() {
        attributes.push_str(&format!("; Max-Age={}", max_age.as_secs()));
    }
    let key_is_shared = secret.is_some();
    let key = secret.map_or_else(Key::random, |secret| Key::new(&secret));
    CookieSettings { name, key, key_is_shared, secure, attributes }
}
