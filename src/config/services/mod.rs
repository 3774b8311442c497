//! Settings of the services: their pods, and how pods are polled, chosen and connected to.

pub mod affinity;
mod query;

use std::{num::NonZeroU32, time::Duration};

use actix_http::header::{HeaderName, HeaderValue};

use self::{
    affinity::{AffinitySettings, read_affinity},
    query::read_query,
};
use super::{
    discovery::{DiscoverySettings, Replicas, parse_name_server, read_discovery},
    parse::{parse_header_field, parse_header_name},
    reader::{PodList, Reader},
    session::{read_session_timeouts, read_tcp, read_tunnel},
    tls::read_client_tls,
};
use crate::{
    domain::{
        balance::{
            backend::Backend, health::HealthSettings, rebalance::RebalanceSettings,
            settings::PoolSettings, strategy::Strategy,
        },
        dns::TtlBounds,
        report::query::ReportQuery,
        routing::origin::OriginPattern,
        session::timeouts::SessionTimeouts,
    },
    net::{
        connect::ConnectSettings,
        dns::{HostName, NameServers, ResolverSettings},
    },
    relay::TunnelRules,
};

/// Name of the service whose pods are in the `services` list.
const DEFAULT_SERVICE: &str = "default";

const STRATEGIES: [(&str, Strategy); 4] = [
    ("least_connections", Strategy::LeastConnections),
    ("power_of_two", Strategy::PowerOfTwo),
    ("round_robin", Strategy::RoundRobin),
    ("random", Strategy::Random),
];

/// A named set of pods with one set of rules.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    pub name: String,
    /// The pods, in configured order; empty if they are discovered.
    pub backends: Vec<Backend>,
    /// Where pods are looked up, if they are not listed.
    pub discovery: Option<DiscoverySettings>,
    /// `[balancer]`, with the overrides of the service's own table.
    pub balancer: BalancerSettings,
}

/// `[balancer]`, resolved for one service.
#[derive(Clone, Debug)]
pub struct BalancerSettings {
    /// What pods are polled for; `None` if they are not polled.
    pub question: Option<ReportQuery>,
    /// Port of the metric route, if it is not the pod's own.
    pub metric_port: Option<u16>,
    /// Time from a pod's answer to the next poll.
    pub poll_interval: Duration,
    /// Time limit for a poll.
    pub poll_timeout: Duration,
    /// How pods are chosen. Its `replicas` is 1 until the addresses of `replicas_name` are known.
    pub pool: PoolSettings,
    /// DNS name whose addresses are the replicas of the balancer.
    pub replicas_name: Option<HostName>,
    /// How pods and replicas are looked up.
    pub resolver: ResolverSettings,
    /// `None` if sessions are not rebalanced.
    pub rebalance: Option<RebalanceSettings>,
    /// Further pods that are tried for one connection.
    pub retries: usize,
    /// Status codes of handshake answers after which the next pod is tried.
    pub retry_on: Vec<u16>,
    /// How long a client can wait while every pod is full.
    pub queue_timeout: Duration,
    /// How many clients can wait.
    pub queue_limit: usize,
    pub header_changes: HeaderChanges,
    /// Whether connections for plain HTTP are kept open.
    pub reuse_connections: bool,
    /// Origins that can open WebSockets; empty for all.
    pub allowed_origins: Vec<OriginPattern>,
    pub affinity: AffinitySettings,
    /// How pods are connected to, for sessions and for polls.
    pub connect: ConnectSettings,
    /// Time limit from the request to the head of the pod's answer.
    pub read_timeout: Duration,
    /// Time limit for a client's whole handshake.
    pub handshake_timeout: Duration,
    /// Time limits of sessions.
    pub timeouts: SessionTimeouts,
    /// Limits for the frames and messages of sessions.
    pub tunnel: TunnelRules,
    /// Time over which the sessions of a draining pod are moved; zero if they stay.
    pub pod_drain_time: Duration,
    /// Whether the sessions of an ejected pod are closed.
    pub closes_ejected: bool,
}

/// Changes to the header fields of requests to pods.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    /// Whether pods receive the client's Host field; otherwise their own address.
    pub pass_host_header: bool,
    /// Fields that are added after the others have been set.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Fields that replace those of the client.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Names of fields that pods do not receive.
    pub remove: Vec<HeaderName>,
}

impl BalancerSettings {
    /// Replaces the random key of affinity cookies by that of `old`, so that its cookies stay valid.
    pub(super) fn reuse_random_key(&mut self, old: &Self) {
        if let (AffinitySettings::Cookie(cookie), AffinitySettings::Cookie(known)) =
            (&mut self.affinity, &old.affinity)
            && !cookie.key_is_shared
            && !known.key_is_shared
        {
            cookie.key = known.key.clone();
            self.pool.affinity_key = Some(known.key.clone());
        }
    }
}

/// Reads the `services` list, or the table of each service.
pub(super) fn read_services(reader: &mut Reader) -> Vec<ServiceSettings> {
    let names = reader.table_names("services");
    let listed = reader.pods("services", DEFAULT_SERVICE);
    match (names.is_empty(), listed.backends.is_empty()) {
        (true, true) => reader.add_problem(
            "services",
            "no pods are configured: set services = [\"http://pod:3001\"] or WSBALANCER_SERVICES",
        ),
        (false, false) => reader.add_problem(
            "services",
            "a list of pods and [services.NAME] tables cannot be used together: choose one",
        ),
        _ => {}
    }
    if names.is_empty() {
        let balancer = read_balancer(reader, &listed, None);
        let (name, backends) = (DEFAULT_SERVICE.to_owned(), listed.backends);
        return vec![ServiceSettings { name, backends, discovery: None, balancer }];
    }
    names.into_iter().map(|name| read_service(reader, name)).collect()
}

fn read_service(reader: &mut Reader, name: String) -> ServiceSettings {
    let key = format!("services.{name}.backends");
    let is_name_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name_byte) {
        let advice = "expected a service name of lower-case letters, digits, - and _";
        reader.add_problem_in_table(&format!("services.{name}"), advice);
    }
    // A table without keys is a known key, too.
    reader.optional(&format!("services.{name}"), |_| Ok(()));
    let pods = if reader.has(&key) { reader.pods(&key, &name) } else { PodList::default() };
    let (discovery, is_discovered) = read_discovery(reader, &name);
    if pods.backends.is_empty() && !is_discovered {
        let advice = "no pods are configured: set it to a list such as [\"http://pod:3001\"], or set \
                      discovery = { dns = \"http://name:3001\" }";
        reader.add_problem_in_table(&key, advice);
    }
    reader.set_service(Some(&name));
    let balancer = read_balancer(reader, &pods, discovery.as_ref());
    reader.set_service(None);
    ServiceSettings { name, backends: pods.backends, discovery, balancer }
}

fn read_balancer(
    reader: &mut Reader,
    pods: &PodList,
    discovery: Option<&DiscoverySettings>,
) -> BalancerSettings {
    let millis = Duration::from_millis;
    let (minute, hour) = (millis(60_000), millis(3_600_000));
    let handshake = millis(10)..=10 * minute;
    let affinity = read_affinity(reader);
    let poll_interval = reader.duration("balancer.poll_interval", millis(100)..=hour);
    let (replicas, replicas_name) = match reader.value("balancer.replicas", Replicas::parse) {
        Replicas::Configured(replicas) => (replicas, None),
        Replicas::Counted(name) => (1, Some(name)),
    };
    let connect = ConnectSettings {
        timeout: reader.duration("balancer.connect_timeout", handshake.clone()),
        tls: read_client_tls(reader, &pods.backends, discovery),
        tcp: read_tcp(reader, "balancer"),
    };
    let timeouts = read_session_timeouts(reader);
    BalancerSettings {
        question: read_query(reader),
        metric_port: Some(reader.number("balancer.metric_port", 0..=65_535) as u16)
            .filter(|port| *port != 0),
        poll_interval,
        poll_timeout: reader.duration("balancer.poll_timeout", millis(10)..=minute),
        pool: PoolSettings {
            strategy: reader.choice("balancer.strategy", &STRATEGIES),
            replicas,
            stale_after: reader
                .duration("balancer.cache_ttl", millis(0)..=24 * hour)
                .max(3 * poll_interval),
            max_sessions: reader.limit("balancer.max_sessions"),
            max_sessions_per_pod: reader.limit("balancer.max_sessions_per_pod"),
            health: read_health(reader),
            grace: reader.duration("balancer.discovery_grace", millis(0)..=24 * hour),
            affinity_key: affinity.cookie_key().cloned(),
            capacities: pods.capacities.clone(),
        },
        replicas_name,
        resolver: read_resolver(reader, connect.timeout),
        rebalance: read_rebalance(reader),
        retries: reader.number("balancer.retries", 0..=100) as usize,
        retry_on: reader.list("balancer.retry_on", |text| {
            let status = text.parse().ok().filter(|status| (400..=599).contains(status));
            status.ok_or_else(|| "expected a status code from 400 to 599".to_owned())
        }),
        queue_timeout: reader.duration("balancer.queue_timeout", millis(0)..=10 * minute),
        queue_limit: reader.number("balancer.queue_limit", 0..=100_000) as usize,
        header_changes: HeaderChanges {
            pass_host_header: reader.boolean("balancer.pass_host_header"),
            add: reader.list("balancer.add_headers", parse_header_field),
            set: reader.list("balancer.set_headers", parse_header_field),
            remove: reader.list("balancer.remove_headers", parse_header_name),
        },
        reuse_connections: reader.boolean("balancer.reuse_connections"),
        allowed_origins: reader.list("balancer.allowed_origins", OriginPattern::parse),
        affinity,
        connect,
        read_timeout: reader.duration("balancer.read_timeout", handshake.clone()),
        handshake_timeout: reader.duration("balancer.handshake_timeout", handshake),
        tunnel: read_tunnel(reader, &timeouts),
        timeouts,
        pod_drain_time: reader.duration("balancer.pod_drain_time", millis(0)..=24 * hour),
        closes_ejected: reader.choice("balancer.on_ejected", &[("leave", false), ("close", true)]),
    }
}

fn read_health(reader: &mut Reader) -> HealthSettings {
    let (least, hour) = (Duration::from_millis(10), Duration::from_secs(3600));
    HealthSettings {
        eject_after: reader.number("balancer.eject_after", 0..=1000) as u32,
        eject_time: reader.duration("balancer.eject_time", least..=hour),
        eject_time_max: reader.duration("balancer.eject_time_max", least..=24 * hour),
        cold_time: reader.duration("balancer.cold_time", Duration::ZERO..=hour),
    }
}

/// Reads how names are looked up. The search list of the system does not apply to configured name
/// servers.
fn read_resolver(reader: &mut Reader, timeout: Duration) -> ResolverSettings {
    let addresses = reader.list("balancer.nameservers", parse_name_server);
    let bounds = read_ttl_bounds(reader);
    let servers =
        (!addresses.is_empty()).then(|| NameServers { addresses, ..NameServers::default() });
    ResolverSettings { servers, timeout, bounds }
}

fn read_ttl_bounds(reader: &mut Reader) -> TtlBounds {
    let (least, hour) = (Duration::from_millis(100), Duration::from_secs(3600));
    let bounds = TtlBounds {
        min: reader.duration("balancer.discovery_min_ttl", least..=hour),
        max: reader.duration("balancer.discovery_max_ttl", least..=24 * hour),
    };
    if bounds.max < bounds.min {
        let advice = "must not be shorter than discovery_min_ttl";
        reader.add_problem("balancer.discovery_max_ttl", advice);
    }
    bounds
}

fn read_rebalance(reader: &mut Reader) -> Option<RebalanceSettings> {
    let is_on = reader.boolean("balancer.rebalance");
    let band = reader.value("balancer.rebalance_band", |text| {
        let band = text.parse().ok().filter(|band| (0.01..=10.0).contains(band));
        band.ok_or_else(|| "expected a number from 0.01 to 10".to_owned())
    });
    let mut budget = |key: &str| {
        let number = reader.number(key, 1..=1_000_000) as u32;
        NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
    };
    let per_second = budget("balancer.rebalance_per_second");
    let per_hour = budget("balancer.rebalance_per_hour");
    is_on.then_some(RebalanceSettings { band, per_second, per_hour })
}
