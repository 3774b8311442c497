//! Where pods and replicas are looked up.

use std::net::{IpAddr, SocketAddr};

use actix_http::Uri;
use tokio_rustls::rustls::pki_types::ServerName;

use super::reader::{Reader, backend};
use crate::{
    domain::balance::lease::{Backend, Transport},
    net::dns::lookup::{HostName, Source},
};

/// Port of name servers that are given without one (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// Where the pods of a service are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// What is looked up.
    pub source: Source,
    /// What all pods have in common. The address is the configured one, which none of them has.
    pub pod: Backend,
}

impl Discovery {
    /// `{ dns = "http://name:3001" }`
    fn dns(url: &str, service: &str) -> Result<Self, String> {
        let (pod, name, port) = pod(url, service)?;
        Ok(Self { source: Source::Host { name, port }, pod })
    }

    /// `{ srv = "http://_service._tcp.name" }`
    fn srv(url: &str, service: &str) -> Result<Self, String> {
        let (pod, name, _) = pod(url, service)?;
        if name.ip().is_some() {
            return Err("expected a name: addresses have no SRV records".to_owned());
        }
        if url.parse().is_ok_and(|url: Uri| url.port().is_some()) {
            return Err("expected no port: SRV records say it".to_owned());
        }
        Ok(Self { source: Source::Service(name), pod })
    }

    /// The name that pods must prove over TLS: the one that was looked up, not an address. Of SRV
    /// records it is that of the domain, without `_service._tcp` (RFC 6125 §1.8).
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        let (Source::Host { name, .. } | Source::Service(name)) = &self.source;
        let mut host = name.as_str();
        if matches!(self.source, Source::Service(_)) {
            while let Some((_, domain)) = host.split_once('.').filter(|_| host.starts_with('_')) {
                host = domain;
            }
        }
        ServerName::try_from(host.trim_end_matches('.').to_owned()).ok()
    }
}

/// What the pods at `url` have in common, and the URL's host and port.
fn pod(url: &str, service: &str) -> Result<(Backend, HostName, u16), String> {
    let pod = backend(url, service)?;
    if pod.transport == Transport::Unix {
        return Err("expected a URL with a name to look up, such as http://name:3001".to_owned());
    }
    let address = pod.address.rsplit_once(':');
    let address = address.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = address.ok_or("expected a port from 1 to 65535")?;
    let name = HostName::parse(host)?;
    Ok((pod, name, port))
}

/// `discovery` of a service's table, which also says whether it is there at all.
pub(super) fn discovery(read: &mut Reader, service: &str) -> (Option<Discovery>, bool) {
    let table = format!("services.{service}.discovery");
    let [dns, srv] = ["dns", "srv"].map(|kind| format!("{table}.{kind}"));
    let is_there = [&table, &dns, &srv].map(|key| read.has(key));
    if is_there[0] {
        let advice = "expected a table: { dns = \"http://name:3001\" } or \
                      { srv = \"http://_service._tcp.name\" }";
        read.complain(&table, advice);
    }
    let by_dns = read.given(&dns, |url| Discovery::dns(url, service));
    let by_srv = read.given(&srv, |url| Discovery::srv(url, service));
    if is_there[1] && is_there[2] {
        read.complain(&srv, "and dns cannot both hold: choose one");
    }
    if read.has(&format!("services.{service}.backends")) {
        for key in [&dns, &srv].into_iter().filter(|key| read.has(key)).collect::<Vec<_>>() {
            read.complain(key, "and backends cannot both hold: choose one");
        }
    }
    (by_dns.or(by_srv), is_there.contains(&true))
}

/// Where the balancer's replicas are said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Replicas {
    /// So many.
    Configured(u32),
    /// As many as a name has addresses.
    Counted(HostName),
}

impl Replicas {
    /// `1`, or `dns:NAME`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("dns:") {
            return HostName::parse(name).map(Self::Counted);
        }
        let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
        let advice = "expected a whole number from 1 to 1000, or dns:NAME to count its addresses";
        number.map(Self::Configured).ok_or_else(|| advice.to_owned())
    }
}

/// `10.0.0.2:53`, or the address alone.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, String> {
    let with_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    let advice = "expected a name server's IP address, with a port unless it is 53";
    text.parse().or_else(|_| with_port()).map_err(|_| advice.to_owned())
}
