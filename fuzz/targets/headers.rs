//! What a pod gets of a request's header fields, against the rules read byte by byte.
//!
//! Input: a line with the peer's address, a line with the request's target, then the fields, one
//! `Name: value` a line; what cannot be any of these is left out.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use actix_http::{
    RequestHead, Uri,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use wsbalancer::{
    domain::balance::lease::{Backend, Transport},
    traffic::headers::forwarded::{Changes, Forwarding, Hop},
};

const TRUSTED: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];

/// Never for the next hop (RFC 9110 §7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What `Connection` cannot take away, beside the fields of the WebSocket handshake.
const STRUCTURAL: [&str; 2] = ["host", "content-length"];

/// Fields that the balancer has its own say in.
const OURS: [&str; 10] = [
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

/// A request and what is to be expected of it.
struct Case {
    peer: IpAddr,
    head: RequestHead,
    /// Names in lower case, in the order of the input.
    fields: Vec<(String, HeaderValue)>,
    trusted: Vec<IpNet>,
}

impl Case {
    fn read(input: &[u8]) -> Self {
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

    fn got(&self, name: &str) -> Vec<&[u8]> {
        let fields = self.fields.iter().filter(|(known, _)| known == name);
        fields.map(|(_, value)| value.as_bytes()).collect()
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(&address))
    }

    /// Whether `name` is for one hop only.
    fn dropped(&self, name: &str) -> bool {
        let structural = STRUCTURAL.contains(&name) || name.starts_with("sec-websocket-");
        let mut named = items(self.got("connection"));
        HOP_BY_HOP.contains(&name)
            || !structural && named.any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// What a peer says about others, if it is believed.
    fn believed(&self, name: &str) -> Vec<&[u8]> {
        if self.trusts(self.peer) && !self.dropped(name) { self.got(name) } else { Vec::new() }
    }

    /// The nearest address that is not trusted, or the last that can be read.
    fn client(&self) -> IpAddr {
        let hops: Vec<&[u8]> = items(self.got("x-forwarded-for")).collect();
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

    /// Whom the request is for: never with a user and a password.
    fn host(&self) -> Option<&[u8]> {
        match self.head.uri.authority() {
            Some(authority) => authority.as_str().as_bytes().rsplit(|byte| *byte == b'@').next(),
            None => self.got("host").first().copied(),
        }
    }
}

/// The items of comma-separated lists.
fn items(values: Vec<&[u8]>) -> impl Iterator<Item = &[u8]> {
    let items = values.into_iter().flat_map(|value| value.split(|byte| *byte == b','));
    items.map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

fuzz_target!(|input: &[u8]| {
    let case = Case::read(input);
    let forwarding = Forwarding { trusted_proxies: case.trusted.clone() };
    let forwarded = forwarding.apply(&case.head, Hop { address: case.peer, tls: false });
    assert_eq!(forwarded.client, case.client());
    let changes = Changes { pass_host_header: true, ..Changes::default() };
    let backend = Backend {
        service: "fuzzed".to_owned(),
        url: "http://10.9.9.9:3001".to_owned(),
        address: "10.9.9.9:3001".to_owned(),
        transport: Transport::Tcp,
    };
    let headers = forwarded.headers(&changes, &backend);
    check_end_to_end(&case, &headers);
    check_who_asks(&case, &headers);
});

/// Nothing of one hop comes out; everything else does, in order and untouched.
fn check_end_to_end(case: &Case, headers: &HeaderMap) {
    for (name, value) in headers {
        let name = name.as_str();
        let valid = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
        assert!(value.as_bytes().iter().all(valid), "{name}: {value:?}");
        assert!(OURS.contains(&name) || !case.got(name).is_empty(), "{name} is new");
    }
    for (name, _) in case.fields.iter().filter(|(name, _)| !OURS.contains(&name.as_str())) {
        let expected = if case.dropped(name) { Vec::new() } else { case.got(name) };
        agree(headers, name, &expected);
    }
}

/// An untrusted peer speaks for itself, a trusted one for whom it says.
fn check_who_asks(case: &Case, headers: &HeaderMap) {
    let sent = |name| headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let host = case.host();
    agree(headers, "host", host.as_slice());
    let host = host.unwrap_or_default();

    let peer = case.peer.to_string();
    agree(headers, "x-forwarded-for", &[&extended(case, "x-forwarded-for", &peer)]);

    let node = if case.peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer };
    let start = extended(case, "forwarded", &format!("for={node};host="));
    let forwarded = sent("forwarded");
    let ours =
        forwarded.strip_prefix(&start[..]).and_then(|ours| ours.strip_suffix(b";proto=http"));
    let ours = ours.unwrap_or_else(|| panic!("Forwarded: {}", forwarded.escape_ascii()));
    assert_eq!(unquoted(ours), if host.is_ascii() { host } else { b"" });

    let client = case.client().to_string();
    for (name, own) in [
        ("x-forwarded-proto", &b"http"[..]),
        ("x-forwarded-host", host),
        ("x-real-ip", client.as_bytes()),
    ] {
        let kept = case.believed(name);
        agree(headers, name, if kept.is_empty() { std::slice::from_ref(&own) } else { &kept });
    }
    if case.believed("x-forwarded-port").is_empty() {
        let port = sent("x-forwarded-port");
        agree(headers, "x-forwarded-port", &[port]);
        assert!(!port.is_empty() && port.iter().all(u8::is_ascii_digit));
        assert!(port == b"80" || host.ends_with(&[b":", port].concat()));
    }
    for name in ["x-forwarded-prefix", "x-replaced-path"] {
        agree(headers, name, &case.believed(name));
    }
    let id = sent("x-request-id");
    match case.got("x-request-id").first() {
        Some(given) if !case.dropped("x-request-id") => agree(headers, "x-request-id", &[given]),
        _ => assert!(id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit)),
    }
}

fn agree(headers: &HeaderMap, name: &str, expected: &[&[u8]]) {
    let sent: Vec<&[u8]> = headers.get_all(name).map(HeaderValue::as_bytes).collect();
    let shown = |values: &[&[u8]]| values.join(&b" | "[..]).escape_ascii().to_string();
    assert!(sent == expected, "{name}: {} instead of {}", shown(&sent), shown(expected));
}

/// What is believed of the list called `name`, with one more item.
fn extended(case: &Case, name: &str, item: &str) -> Vec<u8> {
    let mut values = case.believed(name);
    values.retain(|value| !value.is_empty());
    values.push(item.as_bytes());
    values.join(&b", "[..])
}

/// What a value of a parameter says (RFC 9110 §5.6.6), which is all of `written`.
fn unquoted(written: &[u8]) -> Vec<u8> {
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
        text.push(if byte == b'\\' { *bytes.next().expect("a pair") } else { byte });
    }
    text
}
