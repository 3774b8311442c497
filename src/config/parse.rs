//! Parsers of single values that several sections of the settings share. Their errors name the
//! expected value.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    ops::RangeInclusive,
    time::Duration,
};

use actix_http::{
    Uri,
    header::{HeaderName, HeaderValue},
};
use ipnet::IpNet;

use crate::{
    domain::{
        balance::{
            backend::{Backend, Transport},
            settings::Capacity,
        },
        routing::route::has_dot_segments,
    },
    net::listen::ListenAddress,
};

/// Range of a pod's configured weight.
const WEIGHTS: RangeInclusive<f64> = 0.01..=1000.0;

pub(super) fn parse_listen_address(text: &str) -> Result<ListenAddress, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(ListenAddress::Unix(path.into())),
        Some(_) => Err("expected an absolute path after unix:".to_owned()),
        None => parse_socket_address(text).map(ListenAddress::Tcp),
    }
}

pub(super) fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    let advice = "expected IP address and port, such as 0.0.0.0:8080 or [::]:8080";
    text.parse().map_err(|_| advice.to_owned())
}

/// Parses an IP address or a CIDR range.
pub(super) fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "expected an IP address or a range such as 10.0.0.0/8".to_owned())
}

/// Parses a duration with a unit, within `range`.
pub(super) fn parse_duration(
    text: &str,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, String> {
    let bounds =
        || format!("{} to {}", format_duration(*range.start()), format_duration(*range.end()));
    match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => Ok(duration),
        Ok(_) => Err(format!("out of range, expected {}", bounds())),
        Err(_) => Err(format!("expected a duration with its unit, {}", bounds())),
    }
}

/// Formats whole days as days: humantime prints 365 days as months.
fn format_duration(duration: Duration) -> String {
    const DAY: u64 = 86_400;
    match duration.as_secs() {
        seconds if seconds >= DAY && seconds % DAY == 0 => format!("{}d", seconds / DAY),
        _ => humantime::format_duration(duration).to_string(),
    }
}

/// Parses an absolute path without a query.
pub(super) fn parse_path(text: &str) -> Result<String, String> {
    if has_dot_segments(text) {
        return Err("expected a path without . and .. segments".to_owned());
    }
    let origin_form = text.starts_with('/') && !text.contains(['?', '#', '{', '}']);
    if origin_form && text.parse::<Uri>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("expected a path such as /metric, without query".to_owned())
    }
}

/// Parses a pod's URL and the options after it: `http://pod:3001 weight=3 max_connections=500`.
pub(super) fn parse_pod(text: &str, service: &str) -> Result<(Backend, Capacity), String> {
    let mut words = text.split_whitespace();
    let backend = parse_pod_url(words.next().unwrap_or_default(), service)?;
    let mut capacity = Capacity::default();
    for word in words {
        match word.split_once('=') {
            Some(("weight", weight)) => {
                let weight = weight.parse().ok().filter(|weight| WEIGHTS.contains(weight));
                let (least, most) = WEIGHTS.into_inner();
                capacity.weight =
                    weight.ok_or_else(|| format!("expected weight={least} to {most}"))?;
            }
            Some(("max_connections", max)) => {
                let max = max.parse().ok().filter(|max| *max > 0);
                let max =
                    max.ok_or("expected a whole number, at least 1, after max_connections=")?;
                capacity.max_connections = Some(max);
            }
            _ => {
                let advice = "unknown option, expected weight=3 or max_connections=500";
                return Err(format!("{word:?}: {advice}"));
            }
        }
    }
    Ok((backend, capacity))
}

/// Parses a pod's URL: `http://host:port`, `https://host:port` or `unix:/path`, without anything
/// else.
pub(super) fn parse_pod_url(url: &str, service: &str) -> Result<Backend, String> {
    let expected = "expected a pod's URL such as http://pod:3001";
    let (service, written) = (service.to_owned(), url.to_owned());
    if let Some(path) = url.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err("expected an absolute path after unix:".to_owned());
        }
        let (address, transport) = (path.to_owned(), Transport::Unix);
        return Ok(Backend { service, url: written, address, transport });
    }
    let uri: Uri = url.parse().map_err(|error| format!("{expected} ({error})"))?;
    let (transport, default_port) = match uri.scheme_str() {
        Some("http" | "ws") => (Transport::Tcp, 80),
        Some("https" | "wss") => (Transport::Tls, 443),
        _ => return Err(expected.to_owned()),
    };
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let Some(authority) = authority else { return Err(expected.to_owned()) };
    if authority.as_str().contains('@') {
        return Err(format!("{expected}, without user name and password"));
    }
    // Uri removes a fragment silently.
    if uri.path() != "/" || uri.query().is_some() || url.contains('#') {
        return Err(format!("{expected}, without path: requests keep their own paths"));
    }
    // Uri ignores an invalid port.
    let port = match authority.as_str()[authority.host().len()..].trim_start_matches(':') {
        "" => default_port,
        port => {
            let advice = "expected a port from 1 to 65535 in the pod's URL";
            port.parse().map(NonZeroU16::get).map_err(|_| format!("{advice}, not {port:?}"))?
        }
    };
    let address = format!("{}:{port}", authority.host());
    Ok(Backend { service, url: written, address, transport })
}

/// Parses `Name: value`.
pub(super) fn parse_header_field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected \"Name: value\"")?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| "the value contains characters that a header field cannot have".to_owned())?;
    Ok((parse_header_name(name.trim())?, value))
}

pub(super) fn parse_header_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "expected the name of a header field".to_owned())
}

/// Returns `; did you mean "…"?` with the name that is most similar to `wrong`, or an empty text if
/// none is similar.
pub(super) fn did_you_mean<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    let nearest = names
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"))
}
