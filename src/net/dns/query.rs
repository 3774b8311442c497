//! Queries name servers for one complete name. The result is its records, that it has none, or an
//! error.

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

use crate::domain::dns::{Absence, LookupError, Missing};

/// The name servers to query, and how names are completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameServers {
    /// In this order: the next one is queried if the previous one gives no usable answer.
    pub addresses: Vec<SocketAddr>,
    /// Domains that are appended to names without a dot at the end.
    pub search: Vec<String>,
    /// Number of dots from which a name is first tried as it is.
    pub ndots: usize,
}

/// Longest time that one name server has for a query: the default of resolv.conf(5).
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Targets of SRV records that are queried at the same time.
const MAX_CONCURRENT_TARGETS: usize = 32;

/// The addresses of a name, with the TTL of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AddressAnswer {
    Addresses { addresses: Vec<SocketAddr>, ttl: Duration, missing: Missing },
    None { absence: Absence, ttl: Option<Duration> },
}

impl AddressAnswer {
    /// Combines two answers of which at most one has addresses. A name without records is a
    /// stronger answer than a name that does not exist.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::None { absence: one, ttl: a }, Self::None { absence: two, ttl: b }) => {
                let absence = if one == Absence::NoRecords { one } else { two };
                Self::None { absence, ttl: a.into_iter().chain(b).min() }
            }
            (addresses @ Self::Addresses { .. }, _) | (_, addresses) => addresses,
        }
    }

    /// Combines the answers for A and AAAA. The failure of one is reported as missing addresses if
    /// the other has addresses.
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

    /// Combines the answers for all targets of SRV records. If a target could not be looked up,
    /// addresses of both families can be missing.
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

/// Returns targets and ports of the records with the lowest priority value. The root as a target
/// means that the service does not exist (RFC 2782).
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

/// The answer to one query.
enum RecordAnswer {
    Records(Vec<Record>),
    None { absence: Absence, ttl: Option<Duration> },
}

/// Queries name servers in order.
pub(super) struct NameServerPool {
    /// One resolver per name server: with several, hickory uses the first answer, even if it is a
    /// SERVFAIL.
    servers: Vec<(SocketAddr, TokioResolver)>,
    timeout: Duration,
    pub search: Vec<Name>,
    pub ndots: usize,
    hosts: Hosts,
}

impl NameServerPool {
    pub fn new(servers: NameServers, hosts: Hosts, timeout: Duration) -> Result<Self, NetError> {
        let NameServers { addresses, search, ndots } = servers;
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let timeout = min(timeout / count, SERVER_TIMEOUT);
        let mut options = ResolverOpts::default();
        options.timeout = timeout;
        // hickory repeats a lost packet within the time limit in any case.
        options.attempts = 0;
        // Not cached, so that a change shows as soon as the name server has it.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = |address: SocketAddr| {
            let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = address.port());
            let server = NameServerConfig::new(address.ip(), true, connections.into());
            let config = ResolverConfig::from_name_servers(vec![server]);
            let provider = TokioRuntimeProvider::default();
            let builder = TokioResolver::builder_with_config(config, provider);
            Ok((address, builder.with_options(options.clone()).build()?))
        };
        let servers: Result<Vec<_>, NetError> = addresses.into_iter().map(resolver).collect();
        let search = search.iter().filter_map(|domain| Name::from_str_relaxed(domain).ok());
        Ok(Self { servers: servers?, timeout, search: search.collect(), ndots, hosts })
    }

    /// Returns the addresses of `name` in `/etc/hosts`.
    pub fn find_in_hosts_file(&self, name: &Name, port: u16) -> Option<AddressAnswer> {
        let lookup = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups = [RecordType::A, RecordType::AAAA].map(lookup);
        let records = lookups.iter().flatten().flat_map(|lookup| lookup.answers());
        let addresses: Vec<SocketAddr> = records
            .filter_map(|record| Some(SocketAddr::new(record.data.ip_addr()?, port)))
            .collect();
        let (ttl, missing) = (Duration::MAX, Missing::default());
        (!addresses.is_empty()).then_some(AddressAnswer::Addresses { addresses, ttl, missing })
    }

    pub async fn query_addresses(
        &self,
        name: &Name,
        port: u16,
    ) -> Result<AddressAnswer, LookupError> {
        let query_kind = async |kind| {
            Ok(match self.query(name, kind).await? {
                RecordAnswer::None { absence, ttl } => AddressAnswer::None { absence, ttl },
                RecordAnswer::Records(records) => {
                    let ips = records.iter().filter_map(|record| record.data.ip_addr());
                    let addresses = ips.map(|ip| SocketAddr::new(ip, port)).collect();
                    let (ttl, missing) = (ttl(&records), Missing::default());
                    AddressAnswer::Addresses { addresses, ttl, missing }
                }
            })
        };
        let (v4, v6) = join(query_kind(RecordType::A), query_kind(RecordType::AAAA)).await;
        AddressAnswer::join(v4, v6)
    }

    pub async fn query_srv(&self, name: &Name) -> Result<AddressAnswer, LookupError> {
        let records = match self.query(name, RecordType::SRV).await? {
            RecordAnswer::None { absence, ttl } => return Ok(AddressAnswer::None { absence, ttl }),
            RecordAnswer::Records(records) => records,
        };
        let srv_records = records.iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        });
        let query_target =
            async |(target, port): (Name, u16)| self.query_addresses(&target, port).await;
        let targets = stream::iter(targets(srv_records))
            .map(query_target)
            .buffer_unordered(MAX_CONCURRENT_TARGETS);
        AddressAnswer::join_targets(ttl(&records), targets.collect().await)
    }

    /// Queries one name server after the other until one gives a usable answer.
    async fn query(&self, name: &Name, kind: RecordType) -> Result<RecordAnswer, LookupError> {
        let mut name = name.clone();
        name.set_fqdn(true);
        let mut failure = LookupError::NoServers("no name servers are configured".to_owned());
        for (address, resolver) in &self.servers {
            let at =
                |text: &dyn fmt::Display| format!("{name} {kind}: name server {address} {text}");
            let timed_out = || {
                LookupError::TimedOut(at(&format_args!(
                    "does not answer within {:?}",
                    self.timeout
                )))
            };
            // For the whole query: a truncated answer leads to a second one over TCP.
            let answer = timeout(self.timeout, resolver.lookup(name.clone(), kind)).await;
            failure = match answer.unwrap_or(Err(NetError::Timeout)) {
                Ok(lookup) => {
                    let records = lookup.answers().to_vec();
                    let has_records = records.iter().any(|record| record.record_type() == kind);
                    return Ok(match has_records {
                        true => RecordAnswer::Records(records),
                        false => RecordAnswer::None { absence: Absence::NoRecords, ttl: None },
                    });
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match absence(&none) {
                    Ok(absence) => {
                        let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
                        return Ok(RecordAnswer::None { absence, ttl });
                    }
                    Err(text) => LookupError::Refused(at(&text)),
                },
                Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                    LookupError::Refused(at(&format_args!("answers {}", code_name(code))))
                }
                Err(NetError::Timeout) => timed_out(),
                Err(NetError::Io(error)) => {
                    LookupError::Unreachable(at(&format_args!("cannot be reached: {error}")))
                }
                Err(error) => {
                    LookupError::Refused(at(&format_args!("sent a malformed answer: {error}")))
                }
            };
        }
        Err(failure)
    }
}

/// Returns what an answer without records means.
///
/// # Errors
/// The answer does not say that there are no records.
fn absence(none: &NoRecords) -> Result<Absence, String> {
    match none.response_code {
        ResponseCode::NXDomain => Ok(Absence::NoSuchName),
        // A referral: no SOA record, but NS records (RFC 2308 §2.2).
        ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => {
            Err("refers to other name servers".to_owned())
        }
        ResponseCode::NoError => Ok(Absence::NoRecords),
        code => Err(format!("answers {}", code_name(code))),
    }
}

/// Formats a code as the RFCs do, such as `SERVFAIL`.
fn code_name(code: ResponseCode) -> String {
    format!("{code:?}").to_uppercase()
}

/// Returns the shortest TTL of the records, aliases included.
fn ttl(records: &[Record]) -> Duration {
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
    Duration::from_secs(ttl.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn found(hosts: &[&str], ttl: Duration) -> AddressAnswer {
        let addresses = hosts.iter().map(|host| host.parse().unwrap()).collect();
        AddressAnswer::Addresses { addresses, ttl, missing: Missing::default() }
    }

    fn none(absence: Absence, ttl: u32) -> AddressAnswer {
        AddressAnswer::None { absence, ttl: Some(ttl * SECOND) }
    }

    fn failed(text: &str) -> LookupError {
        LookupError::Refused(text.to_owned())
    }

    #[test]
    fn addresses_of_both_families_are_joined_with_the_shorter_ttl() {
        let (v4, v6) = (found(&["10.0.0.1:80"], 9 * SECOND), found(&["[::1]:80"], 4 * SECOND));
        let both = found(&["10.0.0.1:80", "[::1]:80"], 4 * SECOND);
        assert_eq!(AddressAnswer::join(Ok(v4.clone()), Ok(v6)), Ok(both));
        let no_v6 = none(Absence::NoRecords, 1);
        assert_eq!(
            AddressAnswer::join(Ok(v4.clone()), Ok(no_v6)),
            Ok(v4),
            "no records are not a failure"
        );
    }

    #[test]
    fn a_failure_of_one_family_keeps_the_addresses_of_the_other() {
        let v6 = found(&["[::1]:80"], SECOND);
        let missing = Missing { v4: Some(failed("A")), v6: None };
        let AddressAnswer::Addresses { addresses, ttl, .. } = v6.clone() else { unreachable!() };
        let partly = AddressAnswer::Addresses { addresses, ttl, missing };
        assert_eq!(AddressAnswer::join(Err(failed("A")), Ok(v6)), Ok(partly));
        let no_v6 = none(Absence::NoRecords, 1);
        assert_eq!(AddressAnswer::join(Err(failed("A")), Ok(no_v6)), Err(failed("A")));
        assert_eq!(AddressAnswer::join(Err(failed("A")), Err(failed("AAAA"))), Err(failed("A")));
    }

    #[test]
    fn no_records_is_preferred_to_no_such_name() {
        let (no_name, no_records) = (none(Absence::NoSuchName, 3), none(Absence::NoRecords, 5));
        let both = none(Absence::NoRecords, 3);
        assert_eq!(AddressAnswer::join(Ok(no_name), Ok(no_records)), Ok(both));
    }

    #[test]
    fn addresses_are_kept_when_other_targets_fail() {
        let targets = vec![
            Ok(found(&["10.0.0.1:80"], 4 * SECOND)),
            Ok(none(Absence::NoSuchName, 2)),
            Err(failed("x")),
        ];
        let missing = Missing { v4: Some(failed("x")), v6: Some(failed("x")) };
        let Ok(AddressAnswer::Addresses { addresses, ttl, missing: found_missing }) =
            AddressAnswer::join_targets(9 * SECOND, targets)
        else {
            panic!("no addresses")
        };
        assert_eq!((addresses.len(), ttl, found_missing), (1, 2 * SECOND, missing));
        let all_failed = vec![Err(failed("x")), Ok(none(Absence::NoSuchName, 2))];
        assert_eq!(AddressAnswer::join_targets(SECOND, all_failed), Err(failed("x")));
        let none_exist = vec![Ok(none(Absence::NoSuchName, 2))];
        let nothing = Ok(none(Absence::NoRecords, 2));
        assert_eq!(AddressAnswer::join_targets(9 * SECOND, none_exist), nothing);
    }

    #[test]
    fn only_targets_of_the_lowest_priority_value_are_used() {
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
