//! The header fields that a pod gets: the client's address, the proxies in between, the requested host.
//!
//! An untrusted peer's `X-Forwarded-*` and `Forwarded` fields are replaced; those of a trusted proxy
//! are kept and extended (RFC 7239 §8.1).

use std::net::IpAddr;

use actix_http::{
    RequestHead,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use ipnet::IpNet;

use super::{end_to_end, tokens};
use crate::{
    config::HeaderChanges,
    domain::{balance::backend::Backend, routing::route::Rewrite},
};

const FORWARDED: HeaderName = header::FORWARDED;
const X_FORWARDED_FOR: HeaderName = header::X_FORWARDED_FOR;
const X_FORWARDED_HOST: HeaderName = header::X_FORWARDED_HOST;
const X_FORWARDED_PROTO: HeaderName = header::X_FORWARDED_PROTO;

fn x_forwarded_port() -> HeaderName {
    HeaderName::from_static("x-forwarded-port")
}

/// The prefix that a route has stripped from the path; the name is that of Traefik's StripPrefix.
fn x_forwarded_prefix() -> HeaderName {
    HeaderName::from_static("x-forwarded-prefix")
}

/// The path that a route has replaced; the name is that of Traefik's ReplacePath.
fn x_replaced_path() -> HeaderName {
    HeaderName::from_static("x-replaced-path")
}

fn x_real_ip() -> HeaderName {
    HeaderName::from_static("x-real-ip")
}

/// The field that connects the log lines of one request across proxies and pods.
pub fn x_request_id() -> HeaderName {
    HeaderName::from_static("x-request-id")
}

/// The other end of a client connection: a client, or a proxy in front of this balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The address of the peer, or the one in its PROXY protocol header.
    pub address: IpAddr,
    /// Whether the connection uses TLS.
    pub tls: bool,
}

impl PeerInfo {
    fn scheme(self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// Returns the port for a `Host` without a port.
    fn default_port(self) -> &'static str {
        if self.tls { "443" } else { "80" }
    }
}

/// Which peers can speak for other clients.
#[derive(Clone, Debug, Default)]
pub struct ForwardingRules {
    pub trusted_proxies: Vec<IpNet>,
}

/// The header fields of a request for a pod, except that `Host` may depend on the pod.
pub struct ForwardedHeaders {
    headers: HeaderMap,
    /// The client's address according to the trusted proxies.
    pub client: IpAddr,
    /// `X-Request-Id`: the client's, or a new one.
    pub request_id: HeaderValue,
    /// Whether the client uses https according to the trusted proxies.
    pub secure: bool,
}

impl ForwardingRules {
    /// Builds the fields for the pod from `request`, which `peer` has sent.
    pub fn apply(&self, request: &RequestHead, peer: PeerInfo) -> ForwardedHeaders {
        let trusted = self.trusts(peer.address);
        let client = self.client(&request.headers, peer.address);
        let host = host(request);
        let mut headers = end_to_end(&request.headers);
        if let Some(host) = &host {
            headers.insert(header::HOST, host.clone());
        }
        let host = host.unwrap_or_else(|| HeaderValue::from_static(""));

        extend(&mut headers, X_FORWARDED_FOR, &peer.address.to_string(), trusted);
        extend(&mut headers, FORWARDED, &forwarded_element(peer, &host), trusted);
        let port = HeaderValue::from_str(port(&host).unwrap_or(peer.default_port())).ok();
        for (name, value) in [
            (X_FORWARDED_PROTO, Some(HeaderValue::from_static(peer.scheme()))),
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
        if !trusted {
            headers.remove(x_forwarded_prefix());
            headers.remove(x_replaced_path());
        }
        // The first of several values is the scheme between the client and the outermost proxy.
        let proto = tokens(&headers, X_FORWARDED_PROTO).next().unwrap_or_default();
        let secure = ["https", "wss"].iter().any(|one| proto.eq_ignore_ascii_case(one));
        let request_id = match headers.get(x_request_id()) {
            Some(id) => id.clone(),
            None => new_request_id(),
        };
        headers.insert(x_request_id(), request_id.clone());
        ForwardedHeaders { headers, client, request_id, secure }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// Returns the address of the client: the nearest one to `peer_address` in `X-Forwarded-For` that
    /// is not a trusted proxy's. The search ends at an address that cannot be parsed, because
    /// any client can have written those before it.
    pub fn client(&self, headers: &HeaderMap, peer_address: IpAddr) -> IpAddr {
        let mut client = peer_address;
        let chain: Vec<&str> = tokens(headers, X_FORWARDED_FOR).collect();
        for item in chain.into_iter().rev() {
            if !self.trusts(client) {
                break;
            }
            let Some(address) = parse_address(item) else { break };
            client = address;
        }
        client
    }
}

impl ForwardedHeaders {
    /// Adds the field that shows the pod how a route has changed `path`.
    pub fn record_rewrite(&mut self, rewrite: &Rewrite, path: &str) {
        let (name, value) = match rewrite {
            Rewrite::Keep => return,
            Rewrite::Strip(prefix) => (x_forwarded_prefix(), prefix.as_str()),
            Rewrite::Replace(_) => (x_replaced_path(), path),
        };
        // Values of untrusted peers have been removed already.
        extend(&mut self.headers, name, value, true);
    }

    /// Applies the header settings of a service.
    pub fn apply_changes(&mut self, changes: &HeaderChanges) {
        for name in &changes.remove {
            self.headers.remove(name);
        }
        for (name, value) in &changes.set {
            self.headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &changes.add {
            self.headers.append(name.clone(), value.clone());
        }
    }

    /// Returns the fields for `backend`.
    pub fn headers(&self, changes: &HeaderChanges, backend: &Backend) -> HeaderMap {
        let mut headers = self.headers.clone();
        if !changes.pass_host_header
            && let Ok(host) = HeaderValue::from_str(backend.host())
        {
            headers.insert(header::HOST, host);
        }
        headers
    }
}

/// Returns the requested host: a target in absolute form overrides `Host` (RFC 9112 §3.2.2).
pub fn host(request: &RequestHead) -> Option<HeaderValue> {
    match request.uri.authority() {
        // User name and password are not part of `Host`.
        Some(authority) => authority.as_str().rsplit('@').next().map(HeaderValue::from_str)?.ok(),
        None => request.headers.get(header::HOST).cloned(),
    }
}

/// Returns the port in `host`.
fn port(host: &HeaderValue) -> Option<&str> {
    let (_, port) = host.to_str().ok()?.rsplit_once(':')?;
    (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(port)
}

/// Appends `item` to the list called `name`; replaces the list when its sender is not trusted.
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

/// Returns the element for `peer` in `Forwarded` (RFC 7239 §4).
fn forwarded_element(peer: PeerInfo, host: &HeaderValue) -> String {
    let scheme = peer.scheme();
    let node = match peer.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let host = host.to_str().unwrap_or_default();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !host.is_empty() && host.bytes().all(is_token) {
        format!("for={node};host={host};proto={scheme}")
    } else {
        let quoted = host.replace('\\', "\\\\").replace('"', "\\\"");
        format!("for={node};host=\"{quoted}\";proto={scheme}")
    }
}

/// Parses an address in `X-Forwarded-For`: bare, in brackets, or with a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<std::net::SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(|_| with_port()).ok()
}

/// Returns 128 random bits as 32 hexadecimal digits.
fn new_request_id() -> HeaderValue {
    HeaderValue::from_str(&format!("{:032x}", fastrand::u128(..))).expect("digits are valid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::balance::backend::Transport;

    fn forwarding(trusted: &[&str]) -> ForwardingRules {
        ForwardingRules {
            trusted_proxies: trusted.iter().map(|network| network.parse().unwrap()).collect(),
        }
    }

    fn peer_info(address: &str) -> PeerInfo {
        PeerInfo { address: address.parse().unwrap(), tls: false }
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

    /// The fields about addresses that a pod gets.
    fn seen(forwarding: &ForwardingRules, request: &RequestHead, peer: &str) -> Vec<String> {
        let headers = forwarding.apply(request, peer_info(peer)).headers;
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
    fn fields_of_an_untrusted_peer_are_replaced() {
        let expected =
            ["1.2.3.4", "1.2.3.4", "http", "for=1.2.3.4;host=\"chat.example:8080\";proto=http"];
        for fields in [&FORGED[..], &[]] {
            assert_eq!(seen(&forwarding(&["10.0.0.0/8"]), &request(fields), "1.2.3.4"), expected);
        }
    }

    #[test]
    fn fields_of_a_trusted_proxy_are_extended() {
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
            let forwarded = forwarding.apply(&head, peer_info(peer));
            assert_eq!(forwarded.client, client.parse::<IpAddr>().unwrap(), "{chain} {peer}");
        }
    }

    #[test]
    fn an_address_that_is_not_text_does_not_hide_a_nearer_one() {
        let mut head = request(&[("x-forwarded-for", "6.6.6.6")]);
        let value = HeaderValue::from_bytes(b"\xff, 10.0.0.2").unwrap();
        head.headers.append(X_FORWARDED_FOR, value);
        let forwarded = forwarding(&["10.0.0.1/32"]).apply(&head, peer_info("10.0.0.1"));
        assert_eq!(forwarded.client, "10.0.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn ipv6_nodes_are_quoted() {
        let host = HeaderValue::from_static("chat.example");
        let element = forwarded_element(peer_info("::1"), &host);
        assert_eq!(element, "for=\"[::1]\";host=chat.example;proto=http");
    }

    #[test]
    fn tls_sets_scheme_and_port() {
        let mut head = request(&[]);
        head.headers.insert(header::HOST, HeaderValue::from_static("chat.example"));
        let over_tls = PeerInfo { tls: true, ..peer_info("1.2.3.4") };
        let forwarded = forwarding(&[]).apply(&head, over_tls);
        assert_eq!(forwarded.headers.get("x-forwarded-proto").unwrap(), "https");
        assert_eq!(forwarded.headers.get("x-forwarded-port").unwrap(), "443");
        assert_eq!(
            forwarded.headers.get("forwarded").unwrap(),
            "for=1.2.3.4;host=chat.example;proto=https"
        );
        assert!(forwarded.secure);
        let behind = request(&[("x-forwarded-proto", "wss, http")]);
        assert!(forwarding(&["1.2.3.4/32"]).apply(&behind, peer_info("1.2.3.4")).secure);
        assert!(
            !forwarding(&[]).apply(&behind, peer_info("1.2.3.4")).secure,
            "the peer is not trusted"
        );
    }

    #[test]
    fn pods_learn_how_a_route_changed_the_path() {
        let forged = request(&[("x-forwarded-prefix", "/evil"), ("x-replaced-path", "/evil")]);
        let rewritten = |rewrite: &Rewrite| {
            let mut forwarded = forwarding(&[]).apply(&forged, peer_info("1.2.3.4"));
            forwarded.record_rewrite(rewrite, "/ws/a%20b");
            let value = |name| Some(forwarded.headers.get(name)?.to_str().unwrap().to_owned());
            (value("x-forwarded-prefix"), value("x-replaced-path"))
        };
        assert_eq!(rewritten(&Rewrite::Keep), (None, None));
        assert_eq!(rewritten(&Rewrite::Strip("/ws".into())), (Some("/ws".into()), None));
        assert_eq!(rewritten(&Rewrite::Replace("/".into())), (None, Some("/ws/a%20b".into())));
    }

    #[test]
    fn a_request_id_is_kept_or_created() {
        let made = forwarding(&[]).apply(&request(&[]), peer_info("1.2.3.4")).request_id;
        assert_eq!(made.len(), 32);
        let head = request(&[("x-request-id", "mine")]);
        let kept = forwarding(&[]).apply(&head, peer_info("1.2.3.4")).request_id;
        assert_eq!(kept, "mine");
    }

    #[test]
    fn configured_changes_are_applied_last() {
        let field = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let changes = HeaderChanges {
            pass_host_header: false,
            add: vec![field("x-tag", "b")],
            set: vec![field("x-tag", "a"), field("x-real-ip", "hidden")],
            remove: vec![HeaderName::from_static("cookie")],
        };
        let head = request(&[("cookie", "secret"), ("x-tag", "client's")]);
        let mut forwarded = forwarding(&[]).apply(&head, peer_info("1.2.3.4"));
        forwarded.apply_changes(&changes);
        let backend = Backend {
            service: "chat".into(),
            url: "http://10.0.0.7:3001".into(),
            address: "10.0.0.7:3001".into(),
            transport: Transport::Tcp,
        };
        let headers = forwarded.headers(&changes, &backend);
        assert!(!headers.contains_key("cookie"));
        assert_eq!(headers.get_all("x-tag").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers.get("x-real-ip").unwrap(), "hidden");
        assert_eq!(headers.get("host").unwrap(), "10.0.0.7:3001", "pass_host_header is off");
    }

    #[test]
    fn the_host_of_an_absolute_target_overrides_host() {
        let mut head = request(&[]);
        head.uri = "http://other.example/path".parse().unwrap();
        let forwarded = forwarding(&[]).apply(&head, peer_info("1.2.3.4"));
        assert_eq!(forwarded.headers.get("host").unwrap(), "other.example");
        assert_eq!(forwarded.headers.get("x-forwarded-host").unwrap(), "other.example");
    }
}
