//! Asks DNS for the addresses behind a name.
//!
//! A name with a dot at its end is asked for as it is. Any other is completed the way the system's
//! resolver does it (`search` and `ndots` of resolv.conf(5)): `chat-headless` in a Kubernetes pod is
//! `chat-headless.NAMESPACE.svc.cluster.local`. Where name servers are configured instead of taken
//! from the system, names are complete as they stand. `/etc/hosts` counts as part of the system.
//!
//! Once a completed name has had addresses, it alone is asked for until [`Resolver::forget`]:
//! otherwise a moment without answers in one search domain would lead to whatever has the same name
//! in the next one. A name that was reached only because a likelier one could not be looked up is
//! taken, as the system would, but not held on to.

use std::{
    cell::RefCell,
    fmt,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use hickory_resolver::{
    Hosts, config::NameServerConfig, net::NetError, proto::rr::Name, system_conf::read_system_conf,
};
use tokio::task::spawn_blocking;

use super::{Asker, Finding};
use crate::domain::dns::{Answer, LookupError, Missing, TtlBounds};

/// A host's name as it was written, or an IP address.
#[derive(Clone, PartialEq, Eq)]
pub struct HostName {
    written: String,
    name: Name,
}

impl HostName {
    /// Reads a name; IPv6 addresses stand in brackets.
    ///
    /// # Errors
    /// What a name should look like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written = text.trim_start_matches('[').trim_end_matches(']');
        let is_ip = written.parse::<IpAddr>().is_ok();
        let may_hold = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let name = match is_ip {
            true => Ok(Name::root()),
            false => Name::from_ascii(written).map_err(|error| error.to_string()),
        };
        match name {
            Ok(name) if is_ip || (name.num_labels() > 0 && written.bytes().all(may_hold)) => {
                Ok(Self { written: written.to_owned(), name })
            }
            Ok(_) => Err("expected a DNS name such as chat-headless".to_owned()),
            Err(error) => Err(format!("expected a DNS name such as chat-headless ({error})")),
        }
    }

    /// As it was written, without brackets.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The address that it is, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.written.parse().ok()
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

/// What is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The A and AAAA records of a name, all with one port.
    Host {
        /// Whose records.
        name: HostName,
        /// The port.
        port: u16,
    },
    /// The SRV records of a name (RFC 2782), and the A and AAAA records of their targets. Of the
    /// targets those with the smallest priority count; weights do not.
    Service(HostName),
}

/// Who is asked, and how names are completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameServers {
    /// In this order: the next one when the one before cannot say.
    pub addresses: Vec<SocketAddr>,
    /// Domains that are put behind names without a dot at their end.
    pub search: Vec<String>,
    /// Dots that a name must have to be taken for complete at first.
    pub ndots: usize,
}

/// How a source is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// `None`: the system's.
    pub servers: Option<NameServers>,
    /// For one question, whoever answers it.
    pub timeout: Duration,
    /// How soon and how late to ask again.
    pub bounds: TtlBounds,
}

/// Looks one source up, again and again.
pub struct Resolver {
    source: Source,
    settings: ResolverSettings,
    /// Made when first needed; made anew after a failure, because the system's settings may have
    /// changed.
    asker: RefCell<Option<Rc<Asker>>>,
    /// The completed name that had addresses.
    found: RefCell<Option<Name>>,
}

impl Resolver {
    /// A resolver that has not asked yet.
    pub fn new(source: Source, settings: ResolverSettings) -> Self {
        Self { source, settings, asker: RefCell::default(), found: RefCell::default() }
    }

    /// Asks. Nothing is remembered from the time before but the completed name.
    ///
    /// # Errors
    /// Nobody knows the answer.
    pub async fn resolve(&self) -> Result<Answer, LookupError> {
        let bounds = self.settings.bounds;
        if let Source::Host { name, port } = &self.source
            && let Some(ip) = name.ip()
        {
            let addresses = vec![SocketAddr::new(ip, *port)];
            return Ok(Answer::Found { addresses, ttl: bounds.max, missing: Missing::default() });
        }
        let asker = self.asker().await?;
        let answer = self.find(&asker).await;
        if answer.is_err() {
            self.asker.take();
        }
        let bounded = |ttl: Option<Duration>| bounds.clamp(ttl.unwrap_or_default());
        Ok(match answer? {
            Finding::Addresses { mut addresses, ttl, missing } => {
                addresses.sort_unstable();
                addresses.dedup();
                Answer::Found { addresses, ttl: bounded(Some(ttl)), missing }
            }
            Finding::None { absence, ttl } => Answer::None { absence, ttl: bounded(ttl) },
        })
    }

    /// From now on the name is completed anew.
    pub fn forget(&self) {
        self.found.take();
    }

    async fn asker(&self) -> Result<Rc<Asker>, LookupError> {
        let known = self.asker.borrow().clone();
        if let Some(asker) = known {
            return Ok(asker);
        }
        let no_servers = |error: &dyn fmt::Display| LookupError::NoServers(error.to_string());
        let (servers, hosts) = match &self.settings.servers {
            Some(servers) => (servers.clone(), Hosts::default()),
            None => spawn_blocking(system)
                .await
                .map_err(|error| no_servers(&error))?
                .map_err(|error| no_servers(&error))?,
        };
        let asker = Asker::new(servers, hosts, self.settings.timeout);
        let asker = Rc::new(asker.map_err(|error| no_servers(&error))?);
        self.asker.replace(Some(asker.clone()));
        Ok(asker)
    }

    /// Asks for one completed name after the other. A server that cannot say anything of one does
    /// not hinder the others, but when none has addresses it is to blame.
    async fn find(&self, asker: &Asker) -> Result<Finding, LookupError> {
        let (Source::Host { name, .. } | Source::Service(name)) = &self.source;
        let found = self.found.borrow().clone();
        if let Some(found) = found {
            return self.ask(asker, &found).await;
        }
        if let Source::Host { port, .. } = &self.source
            && let Some(finding) = asker.in_hosts_file(&name.name, *port)
        {
            return Ok(finding);
        }
        let (mut absence, mut failure) = (None::<Finding>, None);
        for name in candidates(&name.name, &asker.search, asker.ndots) {
            match self.ask(asker, &name).await {
                Ok(addresses @ Finding::Addresses { .. }) => {
                    if failure.is_none() {
                        self.found.replace(Some(name));
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
                Err(failure.unwrap_or_else(|| LookupError::Refused("no name to ask for".into())))
            }
        }
    }

    async fn ask(&self, asker: &Asker, name: &Name) -> Result<Finding, LookupError> {
        match &self.source {
            Source::Host { port, .. } => asker.addresses(name, *port).await,
            Source::Service(_) => asker.services(name).await,
        }
    }
}

/// Name servers and `/etc/hosts` of this system.
fn system() -> Result<(NameServers, Hosts), NetError> {
    let (config, options) = read_system_conf()?;
    // `domain` is what is searched where there is no `search`.
    let search = match config.search() {
        [] => config.domain().into_iter().map(Name::to_string).collect(),
        search => search.iter().map(Name::to_string).collect(),
    };
    let port = |server: &NameServerConfig| server.connections.first().map_or(53, |way| way.port);
    let addresses =
        config.name_servers().iter().map(|server| SocketAddr::new(server.ip, port(server)));
    let servers = NameServers { addresses: addresses.collect(), search, ndots: options.ndots };
    Ok((servers, Hosts::from_system().unwrap_or_default()))
}

/// The complete names that `name` may stand for, the likeliest first.
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
    let is_likely = usize::from(name.num_labels()) > ndots;
    let (first, last) = if is_likely { (Some(complete), None) } else { (None, Some(complete)) };
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
    fn names_are_completed_as_the_system_does_it() {
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
    fn names_are_told_from_addresses_and_from_neither() {
        let ip = |text| HostName::parse(text).unwrap().ip().map(|ip| ip.to_string());
        assert_eq!(ip("10.0.0.1"), Some("10.0.0.1".to_owned()));
        assert_eq!(ip("[::1]"), Some("::1".to_owned()));
        assert_eq!(ip("_ws._tcp.chat"), None);
        assert_eq!(ip("10.0.0.300"), None);
        let long = "a".repeat(64);
        for wrong in ["", ".", "a..b", "a b", "ä", "a/b", &long, "*.a", "a\\.b"] {
            assert!(HostName::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_answers_itself() {
        let bounds = TtlBounds { min: Duration::from_secs(1), max: Duration::from_secs(30) };
        let servers = Some(NameServers::default());
        let settings = ResolverSettings { servers, timeout: Duration::ZERO, bounds };
        let source = Source::Host { name: HostName::parse("[fd00::7]").unwrap(), port: 80 };
        let answer = actix_rt::System::new().block_on(Resolver::new(source, settings).resolve());
        let addresses = vec!["[fd00::7]:80".parse().unwrap()];
        let missing = Missing::default();
        assert_eq!(answer, Ok(Answer::Found { addresses, ttl: bounds.max, missing }));
    }
}
