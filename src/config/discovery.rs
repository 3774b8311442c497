//! Settings of DNS look-ups, for pods and for replicas of the balancer.

use std::net::{IpAddr, SocketAddr};

use actix_http::Uri;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{parse::parse_pod_url, reader::Reader};
use crate::{
    domain::balance::backend::{Backend, Transport},
    net::dns::{DnsSource, HostName},
};

/// Port of a name server that is configured without one (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// Where the pods of a service are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverySettings {
    pub source: DnsSource,
    /// What all pods have in common. Its address is the name that is looked up.
    pub pod: Backend,
}

impl DiscoverySettings {
    /// Parses `{ dns = "http://name:3001" }`.
    fn dns(url: &str, service: &str) -> Result<Self, String> {
        let LookupUrl { pod, name, port } = LookupUrl::parse(url, service)?;
        Ok(Self { source: DnsSource::Host { name, port }, pod })
    }

    /// Parses `{ srv = "http://_service._tcp.name" }`.
    fn srv(url: &str, service: &str) -> Result<Self, String> {
        let LookupUrl { pod, name, .. } = LookupUrl::parse(url, service)?;
        if name.ip().is_some() {
            return Err("expected a DNS name: IP addresses have no SRV records".to_owned());
        }
        if url.parse().is_ok_and(|url: Uri| url.port().is_some()) {
            return Err("expected no port: SRV records contain the ports".to_owned());
        }
        Ok(Self { source: DnsSource::Srv(name), pod })
    }

    /// Returns the name that the certificates of pods must contain: the name that is looked up. For
    /// SRV records it is the domain without `_service._tcp` (RFC 6125 §1.8).
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        let (DnsSource::Host { name, .. } | DnsSource::Srv(name)) = &self.source;
        let mut host = name.as_str();
        if matches!(self.source, DnsSource::Srv(_)) {
            while let Some((_, domain)) = host.split_once('.').filter(|_| host.starts_with('_')) {
                host = domain;
            }
        }
        ServerName::try_from(host.trim_end_matches('.').to_owned()).ok()
    }
}

/// A pod's URL with a name to look up in place of an address.
struct LookupUrl {
    pod: Backend,
    name: HostName,
    port: u16,
}

impl LookupUrl {
    fn parse(url: &str, service: &str) -> Result<Self, String> {
        let pod = parse_pod_url(url, service)?;
        if pod.transport == Transport::Unix {
            let advice = "expected a URL with a name to look up, such as http://name:3001";
            return Err(advice.to_owned());
        }
        let address = pod.address.rsplit_once(':');
        let address = address.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = address.ok_or("expected a port from 1 to 65535")?;
        let name = HostName::parse(host)?;
        Ok(Self { pod, name, port })
    }
}

/// Reads `discovery` of a service's table; also returns whether the table has that key.
pub(super) fn read_discovery(
    reader: &mut Reader,
    service: &str,
) -> (Option<DiscoverySettings>, bool) {
    let table = format!("services.{service}.discovery");
    let [dns, srv] = ["dns", "srv"].map(|kind| format!("{table}.{kind}"));
    let [has_table, has_dns, has_srv] = [&table, &dns, &srv].map(|key| reader.has(key));
    if has_table {
        let advice = "expected a table: { dns = \"http://name:3001\" } or \
                      { srv = \"http://_service._tcp.name\" }";
        reader.add_problem(&table, advice);
    }
    let by_dns = reader.optional_or_empty(&dns, |url| DiscoverySettings::dns(url, service));
    let by_srv = reader.optional_or_empty(&srv, |url| DiscoverySettings::srv(url, service));
    if has_dns && has_srv {
        reader.add_problem(&srv, "cannot be used together with dns: choose one");
    }
    if reader.has(&format!("services.{service}.backends")) {
        for (key, is_set) in [(&dns, has_dns), (&srv, has_srv)] {
            if is_set {
                reader.add_problem(key, "cannot be used together with backends: choose one");
            }
        }
    }
    (by_dns.or(by_srv), has_table || has_dns || has_srv)
}

/// The value of `replicas`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Replicas {
    /// A number.
    Configured(u32),
    /// The number of addresses of a name.
    Counted(HostName),
}

impl Replicas {
    /// Parses a number, or `dns:NAME`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("dns:") {
            return HostName::parse(name).map(Self::Counted);
        }
        let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
        let advice = "expected a whole number from 1 to 1000, or dns:NAME to count its addresses";
        number.map(Self::Configured).ok_or_else(|| advice.to_owned())
    }
}

/// Parses `10.0.0.2:53`, or the address without a port.
pub(super) fn parse_name_server(text: &str) -> Result<SocketAddr, String> {
    let with_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    let advice = "expected the IP address of a name server, with a port unless it is 53";
    text.parse().or_else(|_| with_port()).map_err(|_| advice.to_owned())
}
