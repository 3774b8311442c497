//! Authorization of admin calls that change something.
//!
//! With `admin.token` set, only holders of the token. Without it, only programs on the same
//! machine: not other machines, not clients of a proxy on this machine, and not web pages,
//! whose author is unknown.

use std::net::IpAddr;

use actix_web::{
    Error, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{self, HeaderMap},
    },
    middleware::Next,
    web,
};

use super::{respond::error, state::AdminState};
use crate::config::Token;

/// Header fields that proxies add.
const PROXY_FIELDS: [header::HeaderName; 3] =
    [header::FORWARDED, header::X_FORWARDED_FOR, header::VIA];

/// Middleware: refuses calls that change something if they are not authorized, and logs them all.
pub(super) async fn authorize(
    state: web::Data<AdminState>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if request.method().is_safe() {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let peer = request.peer_addr().map(|peer| peer.ip());
    let call = format!("{} {}", request.method(), request.uri());
    let token = state.live_config.current().admin.token.clone();
    let response = match check(token.as_ref(), peer, request.headers()) {
        Ok(()) => next.call(request).await?.map_into_boxed_body(),
        Err(denial) => request.into_response(denial.response()),
    };
    let peer = peer.map_or_else(|| "unknown address".to_owned(), |peer| peer.to_string());
    log::info!("admin call from {peer}: {call}: status {}", response.status().as_u16());
    Ok(response)
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    /// The token is missing or wrong.
    Token,
    /// There is no token, and the call comes from another machine or through a proxy.
    Address,
    /// There is no token, and the call comes from a web page.
    Page,
}

/// Checks whether a call from `peer` with these header fields may change something.
fn check(token: Option<&Token>, peer: Option<IpAddr>, fields: &HeaderMap) -> Result<(), Denial> {
    let Some(token) = token else {
        let from_proxy = PROXY_FIELDS.iter().any(|name| fields.contains_key(name));
        if from_proxy || !peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
            return Err(Denial::Address);
        }
        // Browsers name the page that makes a call.
        return if fields.contains_key(header::ORIGIN) { Err(Denial::Page) } else { Ok(()) };
    };
    let value = fields.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match value.and_then(|value| value.split_once(' ')) {
        Some((scheme, given))
            if scheme.eq_ignore_ascii_case("bearer") && token.matches(given.trim()) =>
        {
            Ok(())
        }
        _ => Err(Denial::Token),
    }
}

impl Denial {
    fn response(self) -> HttpResponse {
        match self {
            Self::Token => {
                let message = "token missing or wrong: send the header Authorization: Bearer TOKEN";
                let mut response = error(StatusCode::UNAUTHORIZED, message);
                let bearer = header::HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
                response
            }
            Self::Address => error(
                StatusCode::FORBIDDEN,
                "admin.token is empty, so calls that change something are allowed only from this \
                 machine and not through a proxy: set admin.token",
            ),
            Self::Page => error(
                StatusCode::FORBIDDEN,
                "admin.token is empty, so calls that change something are not allowed from a web \
                 page: set admin.token",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(header::HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn without_a_token_only_programs_on_this_machine_are_authorized() {
        let check = |peer: &str, list: &[_]| check(None, peer.parse().ok(), &fields(list));
        for peer in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check(peer, &[]), Ok(()), "{peer}");
        }
        for peer in ["10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "unix"] {
            assert_eq!(check(peer, &[]), Err(Denial::Address), "{peer}");
        }
        // The client of a proxy on this machine may be on any machine.
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
    fn with_a_token_every_caller_needs_it() {
        let token = Token::parse("s3cret").ok();
        let check =
            |peer: &str, list: &[_]| check(token.as_ref(), peer.parse().ok(), &fields(list));
        for value in ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret"] {
            assert_eq!(check("10.0.0.1", &[(header::AUTHORIZATION, value)]), Ok(()), "{value}");
        }
        for value in ["Bearer", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret"] {
            let denied = check("127.0.0.1", &[(header::AUTHORIZATION, value)]);
            assert_eq!(denied, Err(Denial::Token), "{value}");
        }
        assert_eq!(check("127.0.0.1", &[]), Err(Denial::Token));
    }
}
