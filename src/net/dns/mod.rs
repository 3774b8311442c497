//! One complete name at name servers: which records there are, none, or that nobody knows.

pub mod lookup;

use std::{cmp::min, fmt, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, future::join, stream};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, Record, RecordType, rdata::SRV},
    },
};
use tokio::time::timeout;

use self::lookup::NameServers;
use crate::domain::dns::{Absence, LookupError, Missing};

/// What one name server may take for one question at most: what resolv.conf(5) has as its default.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Targets of SRV records that are looked up at once.
const TARGETS_AT_ONCE: usize = 32;

/// An answer with its records' own times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Addresses { addresses: Vec<SocketAddr>, ttl: Duration, missing: Missing },
    None { absence: Absence, ttl: Option<Duration> },
}

impl Finding {
    /// The absence of both: that a name lacks records says more than that another does not exist.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::None { absence: one, ttl: a }, Self::None { absence: two, ttl: b }) => {
                let absence = if one == Absence::NoRecords { one } else { two };
                Self::None { absence, ttl: a.into_iter().chain(b).min() }
            }
            (addresses @ Self::Addresses { .. }, _) | (_, addresses) => addresses,
        }
    }

    /// What both say together. A failure counts only for its kind of addresses, unless there are no
    /// others.
    fn join(
        v4: Result<Self, LookupError>,
        v6: Result<Self, LookupError>,
    ) -> Result<Self, LookupError> {
        match (v4, v6) {
            (
                Ok(Self::Addresses { addresses: mut all, ttl: one, .. }),
                Ok(Self::Addresses { addresses, ttl: two, .. }),
            ) => {
                all.extend(addresses);
                let missing = Missing::default();
                Ok(Self::Addresses { addresses: all, ttl: min(one, two), missing })
            }
            (Ok(Self::Addresses { addresses, ttl, .. }), Err(error)) => {
                let missing = Missing { v4: None, v6: Some(error) };
                Ok(Self::Addresses { addresses, ttl, missing })
            }
            (Err(error), Ok(Self::Addresses { addresses, ttl, .. })) => {
                let missing = Missing { v4: Some(error), v6: None };
                Ok(Self::Addresses { addresses, ttl, missing })
            }
            (Ok(one), Ok(other)) => Ok(one.or(other)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// The addresses of all targets. Those of a target that could not be looked up are missing,
    /// whatever their kind.
    fn join_targets(
        srv_ttl: Duration,
        targets: Vec<Result<Self, LookupError>>,
    ) -> Result<Self, LookupError> {
        let (mut all, mut ttl, mut missing) = (Vec::new(), srv_ttl, Missing::default());
        for target in targets {
            match target {
                Ok(Self::Addresses { addresses, ttl: own, missing: own_missing }) => {
                    all.extend(addresses);
                    ttl = min(ttl, own);
                    missing.v4 = missing.v4.or(own_missing.v4);
                    missing.v6 = missing.v6.or(own_missing.v6);
                }
                Ok(Self::None { ttl: own, .. }) => ttl = own.map_or(ttl, |own| min(ttl, own)),
                Err(error) => {
                    missing.v4 = missing.v4.or_else(|| Some(error.clone()));
                    missing.v6 = missing.v6.or(Some(error));
                }
            }
        }
        match (all.is_empty(), missing.v4.clone().or(missing.v6.clone())) {
            (false, _) => Ok(Self::Addresses { addresses: all, ttl, missing }),
            (true, Some(error)) => Err(error),
            (true, None) => Ok(Self::None { absence: Absence::NoRecords, ttl: Some(ttl) }),
        }
    }
}

/// Targets and ports of the records with the smallest priority. The root as a target says that
/// there is no such service (RFC 2782).
fn targets<'a>(records: impl Iterator<Item = &'a SRV> + Clone) -> Vec<(Name, u16)> {
    let priority = records.clone().map(|record| record.priority).min();
    let first = records.filter(|record| Some(record.priority) == priority);
    let mut targets: Vec<(Name, u16)> = first
        .filter(|record| !record.target.is_root())
        .map(|record| (record.target.clone(), record.port))
        .collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// An answer to one question.
enum Asked {
    Records(Vec<Record>),
    None { absence: Absence, ttl: Option<Duration> },
}

/// Asks name servers for complete names.
pub(super) struct Asker {
    /// Each with a resolver of its own: given several, hickory takes the first answer, even if it
    /// is a SERVFAIL.
    servers: Vec<(SocketAddr, TokioResolver)>,
    timeout: Duration,
    pub search: Vec<Name>,
    pub ndots: usize,
    hosts: Hosts,
}

impl Asker {
    pub fn new(servers: NameServers, hosts: Hosts, timeout: Duration) -> Result<Self, NetError> {
        let NameServers { addresses, search, ndots } = servers;
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let timeout = min(timeout / count, SERVER_TIMEOUT);
        let mut options = ResolverOpts::default();
        options.timeout = timeout;
        // A lost packet is repeated within the time-out anyway.
        options.attempts = 0;
        // What changes within a record's TTL is seen as soon as the name server tells.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = |address: SocketAddr| {
            let mut ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            ways.iter_mut().for_each(|way| way.port = address.port());
            let server = NameServerConfig::new(address.ip(), true, ways.into());
            let config = ResolverConfig::from_name_servers(vec![server]);
            let provider = TokioRuntimeProvider::default();
            let builder = TokioResolver::builder_with_config(config, provider);
            Ok((address, builder.with_options(options.clone()).build()?))
        };
        let servers: Result<Vec<_>, NetError> = addresses.into_iter().map(resolver).collect();
        let search = search.iter().filter_map(|domain| Name::from_str_relaxed(domain).ok());
        Ok(Self { servers: servers?, timeout, search: search.collect(), ndots, hosts })
    }

    /// What `/etc/hosts` knows of `name`.
    pub fn in_hosts_file(&self, name: &Name, port: u16) -> Option<Finding> {
        let look = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups = [RecordType::A, RecordType::AAAA].map(look);
        let records = lookups.iter().flatten().flat_map(|lookup| lookup.answers());
        let addresses: Vec<SocketAddr> = records
            .filter_map(|record| Some(SocketAddr::new(record.data.ip_addr()?, port)))
            .collect();
        let (ttl, missing) = (Duration::MAX, Missing::default());
        (!addresses.is_empty()).then_some(Finding::Addresses { addresses, ttl, missing })
    }

    pub async fn addresses(&self, name: &Name, port: u16) -> Result<Finding, LookupError> {
        let of_kind = async |kind| {
            Ok(match self.ask(name, kind).await? {
                Asked::None { absence, ttl } => Finding::None { absence, ttl },
                Asked::Records(records) => {
                    let ips = records.iter().filter_map(|record| record.data.ip_addr());
                    let addresses = ips.map(|ip| SocketAddr::new(ip, port)).collect();
                    let (ttl, missing) = (ttl(&records), Missing::default());
                    Finding::Addresses { addresses, ttl, missing }
                }
            })
        };
        let (v4, v6) = join(of_kind(RecordType::A), of_kind(RecordType::AAAA)).await;
        Finding::join(v4, v6)
    }

    pub async fn services(&self, name: &Name) -> Result<Finding, LookupError> {
        let records = match self.ask(name, RecordType::SRV).await? {
            Asked::None { absence, ttl } => return Ok(Finding::None { absence, ttl }),
            Asked::Records(records) => records,
        };
        let services = records.iter().filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service),
            _ => None,
        });
        let look_up = async |(target, port): (Name, u16)| self.addresses(&target, port).await;
        let targets =
            stream::iter(targets(services)).map(look_up).buffer_unordered(TARGETS_AT_ONCE);
        Finding::join_targets(ttl(&records), targets.collect().await)
    }

    /// Asks one server after the other until one can say.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Asked, LookupError> {
        let mut name = name.clone();
        name.set_fqdn(true);
        let mut failure = LookupError::NoServers("there is none".to_owned());
        for (address, resolver) in &self.servers {
            let at = |text: &dyn fmt::Display| format!("{name} {kind}: {address} {text}");
            let late = || {
                LookupError::TimedOut(at(&format_args!(
                    "does not answer within {:?}",
                    self.timeout
                )))
            };
            // For all of it: a truncated answer leads to a second question, through TCP.
            let asked = timeout(self.timeout, resolver.lookup(name.clone(), kind)).await;
            failure = match asked.unwrap_or(Err(NetError::Timeout)) {
                Ok(lookup) => {
                    let records = lookup.answers().to_vec();
                    let is_there = records.iter().any(|record| record.record_type() == kind);
                    return Ok(match is_there {
                        true => Asked::Records(records),
                        false => Asked::None { absence: Absence::NoRecords, ttl: None },
                    });
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match absence(&none) {
                    Ok(absence) => {
                        let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
                        return Ok(Asked::None { absence, ttl });
                    }
                    Err(text) => LookupError::Refused(at(&text)),
                },
                Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                    LookupError::Refused(at(&format_args!("answers {}", code_name(code))))
                }
                Err(NetError::Timeout) => late(),
                Err(NetError::Io(error)) => {
                    LookupError::Unreachable(at(&format_args!("cannot be reached: {error}")))
                }
                Err(error) => LookupError::Refused(at(&format_args!("answers nonsense: {error}"))),
            };
        }
        Err(failure)
    }
}

/// Whether an answer without records says that there are none.
fn absence(none: &NoRecords) -> Result<Absence, String> {
    match none.response_code {
        ResponseCode::NXDomain => Ok(Absence::NoSuchName),
        // Without a word about its own zone, but of other servers' (RFC 2308 §2.2).
        ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => {
            Err("refers to other name servers".to_owned())
        }
        ResponseCode::NoError => Ok(Absence::NoRecords),
        code => Err(format!("answers {}", code_name(code))),
    }
}

/// As in RFC 1035 and after: `SERVFAIL`.
fn code_name(code: ResponseCode) -> String {
    format!("{code:?}").to_uppercase()
}

/// Of the record that ends first, aliases on the way included.
fn ttl(records: &[Record]) -> Duration {
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
    Duration::from_secs(ttl.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn found(hosts: &[&str], ttl: Duration) -> Finding {
        let addresses = hosts.iter().map(|host| host.parse().unwrap()).collect();
        Finding::Addresses { addresses, ttl, missing: Missing::default() }
    }

    fn none(absence: Absence, ttl: u32) -> Finding {
        Finding::None { absence, ttl: Some(ttl * SECOND) }
    }

    fn failed(text: &str) -> LookupError {
        LookupError::Refused(text.to_owned())
    }

    #[test]
    fn both_kinds_of_addresses_count_and_the_shorter_time() {
        let (v4, v6) = (found(&["10.0.0.1:80"], 9 * SECOND), found(&["[::1]:80"], 4 * SECOND));
        let both = found(&["10.0.0.1:80", "[::1]:80"], 4 * SECOND);
        assert_eq!(Finding::join(Ok(v4.clone()), Ok(v6)), Ok(both));
        let no_v6 = none(Absence::NoRecords, 1);
        assert_eq!(Finding::join(Ok(v4.clone()), Ok(no_v6)), Ok(v4), "none is no failure");
    }

    #[test]
    fn a_failure_of_one_kind_leaves_the_other() {
        let v6 = found(&["[::1]:80"], SECOND);
        let missing = Missing { v4: Some(failed("A")), v6: None };
        let Finding::Addresses { addresses, ttl, .. } = v6.clone() else { unreachable!() };
        let partly = Finding::Addresses { addresses, ttl, missing };
        assert_eq!(Finding::join(Err(failed("A")), Ok(v6)), Ok(partly));
        let no_v6 = none(Absence::NoRecords, 1);
        assert_eq!(Finding::join(Err(failed("A")), Ok(no_v6)), Err(failed("A")));
        assert_eq!(Finding::join(Err(failed("A")), Err(failed("AAAA"))), Err(failed("A")));
    }

    #[test]
    fn of_two_absences_the_one_of_records_counts() {
        let (no_name, no_records) = (none(Absence::NoSuchName, 3), none(Absence::NoRecords, 5));
        let both = none(Absence::NoRecords, 3);
        assert_eq!(Finding::join(Ok(no_name), Ok(no_records)), Ok(both));
    }

    #[test]
    fn targets_that_fail_take_none_of_the_others_away() {
        let targets = vec![
            Ok(found(&["10.0.0.1:80"], 4 * SECOND)),
            Ok(none(Absence::NoSuchName, 2)),
            Err(failed("x")),
        ];
        let missing = Missing { v4: Some(failed("x")), v6: Some(failed("x")) };
        let Ok(Finding::Addresses { addresses, ttl, missing: told }) =
            Finding::join_targets(9 * SECOND, targets)
        else {
            panic!("no addresses")
        };
        assert_eq!((addresses.len(), ttl, told), (1, 2 * SECOND, missing));
        let all_failed = vec![Err(failed("x")), Ok(none(Absence::NoSuchName, 2))];
        assert_eq!(Finding::join_targets(SECOND, all_failed), Err(failed("x")));
        let none_there = vec![Ok(none(Absence::NoSuchName, 2))];
        let nothing = Ok(none(Absence::NoRecords, 2));
        assert_eq!(Finding::join_targets(9 * SECOND, none_there), nothing);
    }

    #[test]
    fn only_the_smallest_priority_counts_whatever_the_weight() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let records = [
            SRV::new(20, 0, 1, name("late.")),
            SRV::new(10, 0, 2, name("b.")),
            SRV::new(10, 90, 3, name("a.")),
            SRV::new(10, 1, 2, name("b.")),
        ];
        assert_eq!(targets(records.iter()), [(name("a."), 3), (name("b."), 2)]);
        let not_there = [SRV::new(0, 0, 0, Name::root()), SRV::new(1, 0, 1, name("a."))];
        assert_eq!(targets(not_there.iter()), []);
        assert_eq!(targets([].iter()), []);
    }
}
