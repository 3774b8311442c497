//! Looks up the addresses of a name.
//!
//! A name that ends with a dot is looked up as written. Any other name is completed as the system's
//! resolver does it (`search` and `ndots` of resolv.conf(5)): `chat-headless` in a Kubernetes pod
//! becomes `chat-headless.NAMESPACE.svc.cluster.local`. With configured name servers, names are
//! complete as written and `/etc/hosts` is not used.
//!
//! After a completed name had addresses, only that name is looked up until
//! [`Resolver::forget_completed_name`]: otherwise a short outage of one search domain would lead to
//! another host with the same name in the next domain. If an earlier candidate could not be looked
//! up, the addresses of a later one are used, as the system does, but the name is not kept.

use std::{cell::RefCell, fmt, net::SocketAddr, rc::Rc, time::Duration};

use hickory_resolver::{
    Hosts, config::NameServerConfig, net::NetError, proto::rr::Name, system_conf::read_system_conf,
};
use tokio::task::spawn_blocking;

use super::{
    host_name::HostName,
    query::{AddressAnswer, NameServerPool, NameServers},
};
use crate::domain::dns::{Answer, LookupError, Missing, TtlBounds};

/// A name to look up and the type of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsSource {
    /// The A and AAAA records of a name. All pods have the same port.
    Host { name: HostName, port: u16 },
    /// The SRV records of a name (RFC 2782), and the A and AAAA records of their targets. Only the
    /// targets with the lowest priority value are used; weights are ignored.
    Srv(HostName),
}

/// How names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// `None` for the name servers of the system.
    pub servers: Option<NameServers>,
    /// Time limit for one query, all name servers included.
    pub timeout: Duration,
    /// Limits for the time until the next look-up.
    pub bounds: TtlBounds,
}

/// Looks up one source repeatedly.
pub struct Resolver {
    source: DnsSource,
    settings: ResolverSettings,
    /// Created at the first look-up, and again after a failure, because the settings of the system
    /// can have changed.
    name_servers: RefCell<Option<Rc<NameServerPool>>>,
    /// The completed name that had addresses.
    completed_name: RefCell<Option<Name>>,
}

impl Resolver {
    pub fn new(source: DnsSource, settings: ResolverSettings) -> Self {
        Self {
            source,
            settings,
            name_servers: RefCell::default(),
            completed_name: RefCell::default(),
        }
    }

    /// Looks up the source. Only the completed name is kept from earlier look-ups.
    ///
    /// # Errors
    /// No name server gave a usable answer.
    pub async fn resolve(&self) -> Result<Answer, LookupError> {
        let bounds = self.settings.bounds;
        if let DnsSource::Host { name, port } = &self.source
            && let Some(ip) = name.ip()
        {
            let addresses = vec![SocketAddr::new(ip, *port)];
            return Ok(Answer::Found { addresses, ttl: bounds.max, missing: Missing::default() });
        }
        let name_servers = self.name_servers().await?;
        let answer = self.find(&name_servers).await;
        if answer.is_err() {
            self.name_servers.take();
        }
        let bounded = |ttl: Option<Duration>| bounds.clamp(ttl.unwrap_or_default());
        Ok(match answer? {
            AddressAnswer::Addresses { mut addresses, ttl, missing } => {
                addresses.sort_unstable();
                addresses.dedup();
                Answer::Found { addresses, ttl: bounded(Some(ttl)), missing }
            }
            AddressAnswer::None { absence, ttl } => Answer::None { absence, ttl: bounded(ttl) },
        })
    }

    /// Completes the name anew at the next look-up.
    pub fn forget_completed_name(&self) {
        self.completed_name.take();
    }

    async fn name_servers(&self) -> Result<Rc<NameServerPool>, LookupError> {
        let known = self.name_servers.borrow().clone();
        if let Some(name_servers) = known {
            return Ok(name_servers);
        }
        let no_servers = |error: &dyn fmt::Display| LookupError::NoServers(error.to_string());
        let (servers, hosts) = match &self.settings.servers {
            Some(servers) => (servers.clone(), Hosts::default()),
            None => spawn_blocking(read_system_settings)
                .await
                .map_err(|error| no_servers(&error))?
                .map_err(|error| no_servers(&error))?,
        };
        let name_servers = NameServerPool::new(servers, hosts, self.settings.timeout);
        let name_servers = Rc::new(name_servers.map_err(|error| no_servers(&error))?);
        self.name_servers.replace(Some(name_servers.clone()));
        Ok(name_servers)
    }

    /// Looks up one completed name after the other. A failure for one name does not stop the
    /// others, and is reported if none has addresses.
    async fn find(&self, name_servers: &NameServerPool) -> Result<AddressAnswer, LookupError> {
        let (DnsSource::Host { name, .. } | DnsSource::Srv(name)) = &self.source;
        let completed = self.completed_name.borrow().clone();
        if let Some(completed) = completed {
            return self.query(name_servers, &completed).await;
        }
        if let DnsSource::Host { port, .. } = &self.source
            && let Some(finding) = name_servers.find_in_hosts_file(&name.name, *port)
        {
            return Ok(finding);
        }
        let (mut absence, mut failure) = (None::<AddressAnswer>, None);
        for name in candidates(&name.name, &name_servers.search, name_servers.ndots) {
            match self.query(name_servers, &name).await {
                Ok(addresses @ AddressAnswer::Addresses { .. }) => {
                    if failure.is_none() {
                        self.completed_name.replace(Some(name));
                    }
                    return Ok(addresses);
                }
                Ok(none) => absence = Some(absence.map_or(none.clone(), |before| before.or(none))),
                Err(error @ LookupError::Refused(_)) => failure = failure.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match (failure, absence) {
            (None, Some(absence)) => Ok(absence),
            (failure, _) => {
                Err(failure.unwrap_or_else(|| LookupError::Refused("no name to look up".into())))
            }
        }
    }

    async fn query(
        &self,
        name_servers: &NameServerPool,
        name: &Name,
    ) -> Result<AddressAnswer, LookupError> {
        match &self.source {
            DnsSource::Host { port, .. } => name_servers.query_addresses(name, *port).await,
            DnsSource::Srv(_) => name_servers.query_srv(name).await,
        }
    }
}

/// Reads `/etc/resolv.conf` and `/etc/hosts`.
fn read_system_settings() -> Result<(NameServers, Hosts), NetError> {
    let (config, options) = read_system_conf()?;
    // Without `search`, the search list is `domain`.
    let search = match config.search() {
        [] => config.domain().into_iter().map(Name::to_string).collect(),
        search => search.iter().map(Name::to_string).collect(),
    };
    let port = |server: &NameServerConfig| {
        server.connections.first().map_or(53, |connection| connection.port)
    };
    let addresses =
        config.name_servers().iter().map(|server| SocketAddr::new(server.ip, port(server)));
    let servers = NameServers { addresses: addresses.collect(), search, ndots: options.ndots };
    Ok((servers, Hosts::from_system().unwrap_or_default()))
}

/// Returns the complete names that `name` can stand for, in the order in which they are tried.
fn candidates(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    let mut complete = name.clone();
    complete.set_fqdn(true);
    if name.is_fqdn() {
        return vec![complete];
    }
    let searched = search.iter().filter_map(|domain| {
        let mut completed = name.clone().append_domain(domain).ok()?;
        completed.set_fqdn(true);
        Some(completed)
    });
    let mut names: Vec<Name> = Vec::new();
    let is_complete = usize::from(name.num_labels()) > ndots;
    let (first, last) = if is_complete { (Some(complete), None) } else { (None, Some(complete)) };
    for name in first.into_iter().chain(searched).chain(last) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(name: &str, search: &[&str], ndots: usize) -> Vec<String> {
        let search: Vec<Name> =
            search.iter().map(|domain| Name::from_str_relaxed(domain).unwrap()).collect();
        let name = HostName::parse(name).unwrap().name;
        candidates(&name, &search, ndots).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_completed_as_by_the_system() {
        let kubernetes = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        assert_eq!(
            completed("chat-headless", &kubernetes, 5),
            [
                "chat-headless.shop.svc.cluster.local.",
                "chat-headless.svc.cluster.local.",
                "chat-headless.cluster.local.",
                "chat-headless."
            ]
        );
        assert_eq!(
            completed("a.b.c.d.e.f", &kubernetes[..1], 5),
            ["a.b.c.d.e.f.", "a.b.c.d.e.f.shop.svc.cluster.local."]
        );
        assert_eq!(completed("chat.example.", &kubernetes, 5), ["chat.example."]);
        assert_eq!(completed("chat", &[], 1), ["chat."]);
        assert_eq!(completed("chat", &["lan", "lan."], 0), ["chat.", "chat.lan."]);
    }

    #[test]
    fn an_ip_address_needs_no_look_up() {
        let bounds = TtlBounds { min: Duration::from_secs(1), max: Duration::from_secs(30) };
        let servers = Some(NameServers::default());
        let settings = ResolverSettings { servers, timeout: Duration::ZERO, bounds };
        let source = DnsSource::Host { name: HostName::parse("[fd00::7]").unwrap(), port: 80 };
        let answer = actix_rt::System::new().block_on(Resolver::new(source, settings).resolve());
        let addresses = vec!["[fd00::7]:80".parse().unwrap()];
        let missing = Missing::default();
        assert_eq!(answer, Ok(Answer::Found { addresses, ttl: bounds.max, missing }));
    }
}
