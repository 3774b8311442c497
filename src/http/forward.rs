//! The header fields that a pod sees: who asks, through whom, under which name.
//!
//! What a client says about its own address is worth nothing; what a trusted proxy says about its
//! client is believed and extended (RFC 7239 §8.1).

use std::net::IpAddr;

use actix_http::{
    RequestHead,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use ipnet::IpNet;

use super::headers::{end_to_end, tokens};

const FORWARDED: HeaderName = header::FORWARDED;
const X_FORWARDED_FOR: HeaderName = header::X_FORWARDED_FOR;
const X_FORWARDED_HOST: HeaderName = header::X_FORWARDED_HOST;
const X_FORWARDED_PROTO: HeaderName = header::X_FORWARDED_PROTO;

fn x_forwarded_port() -> HeaderName {
    HeaderName::from_static("x-forwarded-port")
}

fn x_real_ip() -> HeaderName {
    HeaderName::from_static("x-real-ip")
}

/// Name of the field that ties the log lines of all hops together.
pub fn x_request_id() -> HeaderName {
    HeaderName::from_static("x-request-id")
}

/// The scheme that clients use towards us.
const SCHEME: &str = "http";

/// Port of [`SCHEME`], where `Host` names none.
const DEFAULT_PORT: &str = "80";

/// How requests change on their way to a pod.
#[derive(Clone, Debug, Default)]
pub struct Forwarding {
    /// Peers that are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether pods see the client's `Host`, or else their own address.
    pub pass_host_header: bool,
    /// Fields added, after the others have been set.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Fields that replace what the client sent.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that do not reach pods.
    pub remove: Vec<HeaderName>,
}

/// A request's fields as every pod would get them, but for `Host`.
pub struct Forwarded {
    headers: HeaderMap,
    /// The client's address, as far as it can be believed.
    pub client: IpAddr,
    /// `X-Request-Id`, the client's or new.
    pub request_id: HeaderValue,
}

impl Forwarding {
    /// What pods get of `request`, which came from `peer`.
    pub fn apply(&self, request: &RequestHead, peer: IpAddr) -> Forwarded {
        let trusted = self.trusts(peer);
        let client = self.client(&request.headers, peer);
        let host = host(request);
        let mut headers = end_to_end(&request.headers);
        if let Some(host) = &host {
            headers.insert(header::HOST, host.clone());
        }
        let host = host.unwrap_or_else(|| HeaderValue::from_static(""));

        extend(&mut headers, X_FORWARDED_FOR, &peer.to_string(), trusted);
        extend(&mut headers, FORWARDED, &element(peer, &host), trusted);
        let port = HeaderValue::from_str(port(&host)).ok();
        for (name, value) in [
            (X_FORWARDED_PROTO, Some(HeaderValue::from_static(SCHEME))),
            (X_FORWARDED_HOST, Some(host)),
            (x_forwarded_port(), port),
            (x_real_ip(), HeaderValue::from_str(&client.to_string()).ok()),
        ] {
            if let Some(value) = value
                && !(trusted && headers.contains_key(&name))
            {
                headers.insert(name, value);
            }
        }
        let request_id = match headers.get(x_request_id()) {
            Some(id) => id.clone(),
            None => new_request_id(),
        };
        headers.insert(x_request_id(), request_id.clone());

        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        Forwarded { headers, client, request_id }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// The nearest address that is not a trusted proxy's. An address that nobody can read ends the
    /// search: what stands before it may be anyone's.
    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let mut client = peer;
        let chain: Vec<&str> = tokens(headers, X_FORWARDED_FOR).collect();
        for hop in chain.into_iter().rev() {
            if !self.trusts(client) {
                break;
            }
            let Some(address) = address(hop) else { break };
            client = address;
        }
        client
    }
}

impl Forwarded {
    /// The fields for the pod at `address` (`host:port`).
    pub fn headers(&self, forwarding: &Forwarding, address: &str) -> HeaderMap {
        let mut headers = self.headers.clone();
        if !forwarding.pass_host_header
            && let Ok(host) = HeaderValue::from_str(address)
        {
            headers.insert(header::HOST, host);
        }
        headers
    }
}

/// Whom the request is for: a target in absolute form overrides `Host` (RFC 9112 §3.2.2).
fn host(request: &RequestHead) -> Option<HeaderValue> {
    match request.uri.authority() {
        // Without a user name and password, which are no part of `Host`.
        Some(authority) => authority.as_str().rsplit('@').next().map(HeaderValue::from_str)?.ok(),
        None => request.headers.get(header::HOST).cloned(),
    }
}

/// The port that `host` names.
fn port(host: &HeaderValue) -> &str {
    let text = host.to_str().unwrap_or_default();
    match text.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port
        }
        _ => DEFAULT_PORT,
    }
}

/// Appends to the list called `name`, or replaces it when its sender is not believed.
fn extend(headers: &mut HeaderMap, name: HeaderName, item: &str, trusted: bool) {
    let mut list: Vec<u8> = Vec::new();
    if trusted {
        for value in headers.get_all(&name).filter(|value| !value.is_empty()) {
            list.extend_from_slice(value.as_bytes());
            list.extend_from_slice(b", ");
        }
    }
    list.extend_from_slice(item.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

/// One element of `Forwarded` (RFC 7239 §4).
fn element(peer: IpAddr, host: &HeaderValue) -> String {
    let node = match peer {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let host = host.to_str().unwrap_or_default();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !host.is_empty() && host.bytes().all(is_token) {
        format!("for={node};host={host};proto={SCHEME}")
    } else {
        let quoted = host.replace('\\', "\\\\").replace('"', "\\\"");
        format!("for={node};host=\"{quoted}\";proto={SCHEME}")
    }
}

/// An address as `X-Forwarded-For` has it: bare, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<std::net::SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(|_| with_port()).ok()
}

/// 128 random bits as 32 hexadecimal digits.
fn new_request_id() -> HeaderValue {
    HeaderValue::from_str(&format!("{:032x}", fastrand::u128(..))).expect("digits are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(trusted: &[&str]) -> Forwarding {
        Forwarding {
            trusted_proxies: trusted.iter().map(|network| network.parse().unwrap()).collect(),
            pass_host_header: true,
            ..Forwarding::default()
        }
    }

    fn request(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.headers.insert(header::HOST, HeaderValue::from_static("chat.example:8080"));
        for (name, value) in fields {
            let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
            head.headers.append(name, value);
        }
        head
    }

    /// The fields that are about addresses, as a pod sees them.
    fn seen(forwarding: &Forwarding, request: &RequestHead, peer: &str) -> Vec<String> {
        let headers = forwarding.apply(request, peer.parse().unwrap()).headers;
        let names = ["x-forwarded-for", "x-real-ip", "x-forwarded-proto", "forwarded"];
        let value = |name| headers.get_all(name).map(|value| value.to_str().unwrap().to_owned());
        names.into_iter().flat_map(value).collect()
    }

    const FORGED: [(&str, &str); 4] = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=6.6.6.6"),
    ];

    #[test]
    fn an_untrusted_peer_speaks_for_itself_only() {
        let expected =
            ["1.2.3.4", "1.2.3.4", "http", "for=1.2.3.4;host=\"chat.example:8080\";proto=http"];
        for fields in [&FORGED[..], &[]] {
            assert_eq!(seen(&forwarding(&["10.0.0.0/8"]), &request(fields), "1.2.3.4"), expected);
        }
    }

    #[test]
    fn a_trusted_proxy_speaks_for_its_client() {
        let expected = [
            "6.6.6.6, 10.0.0.1",
            "6.6.6.6",
            "https",
            "for=6.6.6.6, for=10.0.0.1;host=\"chat.example:8080\";proto=http",
        ];
        assert_eq!(seen(&forwarding(&["10.0.0.0/8"]), &request(&FORGED), "10.0.0.1"), expected);
    }

    #[test]
    fn the_client_is_the_nearest_address_that_is_not_trusted() {
        let forwarding = forwarding(&["10.0.0.0/8", "::1/128"]);
        for (chain, peer, client) in [
            ("6.6.6.6, 1.2.3.4, 10.0.0.2", "10.0.0.1", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4", "9.9.9.9", "9.9.9.9"),
            ("10.0.0.3", "10.0.0.1", "10.0.0.3"),
            ("6.6.6.6, nonsense, 10.0.0.2", "10.0.0.1", "10.0.0.2"),
            ("[2001:db8::7]:4711", "::1", "2001:db8::7"),
            ("1.2.3.4:80", "::1", "1.2.3.4"),
            ("", "10.0.0.1", "10.0.0.1"),
        ] {
            let mut head = request(&[]);
            let value = HeaderValue::from_str(chain).unwrap();
            head.headers.insert(X_FORWARDED_FOR, value);
            let forwarded = forwarding.apply(&head, peer.parse().unwrap());
            assert_eq!(forwarded.client, client.parse::<IpAddr>().unwrap(), "{chain} {peer}");
        }
    }

    #[test]
    fn an_address_that_is_no_text_does_not_hide_a_nearer_one() {
        let mut head = request(&[("x-forwarded-for", "6.6.6.6")]);
        let value = HeaderValue::from_bytes(b"\xff, 10.0.0.2").unwrap();
        head.headers.append(X_FORWARDED_FOR, value);
        let forwarded = forwarding(&["10.0.0.1/32"]).apply(&head, "10.0.0.1".parse().unwrap());
        assert_eq!(forwarded.client, "10.0.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn ipv6_nodes_are_quoted() {
        let host = HeaderValue::from_static("chat.example");
        let element = element("::1".parse().unwrap(), &host);
        assert_eq!(element, "for=\"[::1]\";host=chat.example;proto=http");
    }

    #[test]
    fn a_request_id_is_kept_or_made() {
        let made = forwarding(&[]).apply(&request(&[]), "1.2.3.4".parse().unwrap()).request_id;
        assert_eq!(made.len(), 32);
        let head = request(&[("x-request-id", "mine")]);
        let kept = forwarding(&[]).apply(&head, "1.2.3.4".parse().unwrap()).request_id;
        assert_eq!(kept, "mine");
    }

    #[test]
    fn configured_changes_come_last() {
        let field = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let forwarding = Forwarding {
            add: vec![field("x-tag", "b")],
            set: vec![field("x-tag", "a"), field("x-real-ip", "hidden")],
            remove: vec![HeaderName::from_static("cookie")],
            ..Forwarding::default()
        };
        let head = request(&[("cookie", "secret"), ("x-tag", "client's")]);
        let forwarded = forwarding.apply(&head, "1.2.3.4".parse().unwrap());
        let headers = forwarded.headers(&forwarding, "10.0.0.7:3001");
        assert!(!headers.contains_key("cookie"));
        assert_eq!(headers.get_all("x-tag").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers.get("x-real-ip").unwrap(), "hidden");
        assert_eq!(headers.get("host").unwrap(), "10.0.0.7:3001", "pass_host_header is off");
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        let mut head = request(&[]);
        head.uri = "http://other.example/path".parse().unwrap();
        let forwarded = forwarding(&[]).apply(&head, "1.2.3.4".parse().unwrap());
        assert_eq!(forwarded.headers.get("host").unwrap(), "other.example");
        assert_eq!(forwarded.headers.get("x-forwarded-host").unwrap(), "other.example");
    }
}
