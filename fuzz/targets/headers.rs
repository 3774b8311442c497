//! Fuzzes the header fields that a pod receives, against a second implementation of the rules.
//!
//! Input: a line with the peer's address, a line with the request target, then the header fields with
//! one `Name: value` per line. Invalid lines are ignored.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use actix_http::{
    RequestHead, Uri,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use wsbalancer::{
    config::HeaderChanges,
    domain::balance::backend::{Backend, Transport},
    traffic::headers::forwarded::{ForwardingRules, PeerInfo},
};

const TRUSTED: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];

/// Fields that are never forwarded (RFC 9110 §7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields that are forwarded even if `Connection` names them, in addition to those of the WebSocket
/// handshake.
const STRUCTURAL: [&str; 2] = ["host", "content-length"];

/// Fields that the balancer sets or changes itself.
const BALANCER_FIELDS: [&str; 10] = [
    "host",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-replaced-path",
    "x-request-id",
];

/// A request, with the rules for its header fields.
struct Case {
    peer: IpAddr,
    head: RequestHead,
    /// Names are in lower case, in the order of the input.
    fields: Vec<(String, HeaderValue)>,
    trusted: Vec<IpNet>,
}

impl Case {
    fn parse(input: &[u8]) -> Self {
        let mut lines = input.split(|byte| *byte == b'\n');
        let mut text = || std::str::from_utf8(lines.next().unwrap_or_default()).ok();
        let peer = text().and_then(|peer| peer.parse().ok());
        let target = text().and_then(|target| target.parse::<Uri>().ok());

        let mut head = RequestHead::default();
        head.uri = target.unwrap_or_default();
        let mut fields = Vec::new();
        for line in lines {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
            if let (Ok(name), Ok(value)) = (name, value) {
                fields.push((name.as_str().to_owned(), value.clone()));
                head.headers.append(name, value);
            }
        }
        let peer: IpAddr = peer.unwrap_or(IpAddr::from([192, 0, 2, 1]));
        let trusted = TRUSTED.iter().map(|range| range.parse().unwrap()).collect();
        Self { peer: peer.to_canonical(), head, fields, trusted }
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        let fields = self.fields.iter().filter(|(known, _)| known == name);
        fields.map(|(_, value)| value.as_bytes()).collect()
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(&address))
    }

    /// Returns whether the field `name` applies to one hop only and is not forwarded.
    fn is_hop_by_hop(&self, name: &str) -> bool {
        let structural = STRUCTURAL.contains(&name) || name.starts_with("sec-websocket-");
        let mut named = list_items(self.values("connection"));
        HOP_BY_HOP.contains(&name)
            || !structural && named.any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Returns the values of the field `name` if the peer is trusted.
    fn trusted_values(&self, name: &str) -> Vec<&[u8]> {
        if self.trusts(self.peer) && !self.is_hop_by_hop(name) {
            self.values(name)
        } else {
            Vec::new()
        }
    }

    /// Returns the nearest address that is not trusted, or the last one that can be parsed.
    fn client(&self) -> IpAddr {
        let hops: Vec<&[u8]> = list_items(self.values("x-forwarded-for")).collect();
        let mut client = self.peer;
        for hop in hops.into_iter().rev() {
            let Ok(hop) = std::str::from_utf8(hop) else { break };
            let bracketed = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']'));
            let with_port = || hop.parse().map(|address: SocketAddr| address.ip());
            match bracketed.unwrap_or(hop).parse().or_else(|_| with_port()) {
                Ok(address) if self.trusts(client) => client = address,
                _ => break,
            }
        }
        client
    }

    /// Returns the host of the request, without user and password.
    fn host(&self) -> Option<&[u8]> {
        match self.head.uri.authority() {
            Some(authority) => authority.as_str().as_bytes().rsplit(|byte| *byte == b'@').next(),
            None => self.values("host").first().copied(),
        }
    }
}

/// Returns the items of comma-separated lists.
fn list_items(values: Vec<&[u8]>) -> impl Iterator<Item = &[u8]> {
    let items = values.into_iter().flat_map(|value| value.split(|byte| *byte == b','));
    items.map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

fuzz_target!(|input: &[u8]| {
    let case = Case::parse(input);
    let forwarding = ForwardingRules { trusted_proxies: case.trusted.clone() };
    let forwarded = forwarding.apply(&case.head, PeerInfo { address: case.peer, tls: false });
    assert_eq!(forwarded.client, case.client());
    let changes = HeaderChanges { pass_host_header: true, ..HeaderChanges::default() };
    let backend = Backend {
        service: "fuzzed".to_owned(),
        url: "http://10.9.9.9:3001".to_owned(),
        address: "10.9.9.9:3001".to_owned(),
        transport: Transport::Tcp,
    };
    let headers = forwarded.headers(&changes, &backend);
    check_end_to_end(&case, &headers);
    check_forwarding_fields(&case, &headers);
});

/// Checks that hop-by-hop fields are removed and all others are forwarded unchanged and in order.
fn check_end_to_end(case: &Case, headers: &HeaderMap) {
    for (name, value) in headers {
        let name = name.as_str();
        let valid = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
        assert!(value.as_bytes().iter().all(valid), "{name}: {value:?}");
        assert!(
            BALANCER_FIELDS.contains(&name) || !case.values(name).is_empty(),
            "{name} was added"
        );
    }
    for (name, _) in
        case.fields.iter().filter(|(name, _)| !BALANCER_FIELDS.contains(&name.as_str()))
    {
        let expected = if case.is_hop_by_hop(name) { Vec::new() } else { case.values(name) };
        assert_values(headers, name, &expected);
    }
}

/// Checks the fields that the balancer sets. Those of an untrusted peer are replaced, those of a
/// trusted peer are kept or extended.
fn check_forwarding_fields(case: &Case, headers: &HeaderMap) {
    let sent = |name| headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let host = case.host();
    assert_values(headers, "host", host.as_slice());
    let host = host.unwrap_or_default();

    let peer = case.peer.to_string();
    assert_values(headers, "x-forwarded-for", &[&extended(case, "x-forwarded-for", &peer)]);

    let node = if case.peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer };
    let start = extended(case, "forwarded", &format!("for={node};host="));
    let forwarded = sent("forwarded");
    let ours =
        forwarded.strip_prefix(&start[..]).and_then(|ours| ours.strip_suffix(b";proto=http"));
    let ours = ours.unwrap_or_else(|| panic!("Forwarded: {}", forwarded.escape_ascii()));
    assert_eq!(unquote(ours), if host.is_ascii() { host } else { b"" });

    let client = case.client().to_string();
    for (name, own) in [
        ("x-forwarded-proto", &b"http"[..]),
        ("x-forwarded-host", host),
        ("x-real-ip", client.as_bytes()),
    ] {
        let kept = case.trusted_values(name);
        assert_values(
            headers,
            name,
            if kept.is_empty() { std::slice::from_ref(&own) } else { &kept },
        );
    }
    if case.trusted_values("x-forwarded-port").is_empty() {
        let port = sent("x-forwarded-port");
        assert_values(headers, "x-forwarded-port", &[port]);
        assert!(!port.is_empty() && port.iter().all(u8::is_ascii_digit));
        assert!(port == b"80" || host.ends_with(&[b":", port].concat()));
    }
    for name in ["x-forwarded-prefix", "x-replaced-path"] {
        assert_values(headers, name, &case.trusted_values(name));
    }
    let id = sent("x-request-id");
    match case.values("x-request-id").first() {
        Some(given) if !case.is_hop_by_hop("x-request-id") => {
            assert_values(headers, "x-request-id", &[given])
        }
        _ => assert!(id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit)),
    }
}

fn assert_values(headers: &HeaderMap, name: &str, expected: &[&[u8]]) {
    let sent: Vec<&[u8]> = headers.get_all(name).map(HeaderValue::as_bytes).collect();
    let show = |values: &[&[u8]]| values.join(&b" | "[..]).escape_ascii().to_string();
    assert!(sent == expected, "{name}: got {}, expected {}", show(&sent), show(expected));
}

/// Returns the trusted items of the list `name` with one more item.
fn extended(case: &Case, name: &str, item: &str) -> Vec<u8> {
    let mut values = case.trusted_values(name);
    values.retain(|value| !value.is_empty());
    values.push(item.as_bytes());
    values.join(&b", "[..])
}

/// Decodes the value of a parameter (RFC 9110 §5.6.6). All of `written` must be the value.
fn unquote(written: &[u8]) -> Vec<u8> {
    let Some(inner) = written.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        let separators = b"()<>@,;:\\\"/[]?={} \t";
        let is_token = !written.iter().any(|byte| separators.contains(byte));
        assert!(is_token, "{}", written.escape_ascii());
        return written.to_vec();
    };
    let mut bytes = inner.iter();
    let mut text = Vec::new();
    while let Some(&byte) = bytes.next() {
        assert_ne!(byte, b'"', "{}", written.escape_ascii());
        text.push(if byte == b'\\' {
            *bytes.next().expect("a character after the backslash")
        } else {
            byte
        });
    }
    text
}
