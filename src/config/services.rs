//! The services: their pods, and how these are watched, chosen and reached.

use std::{
    collections::BTreeMap, net::SocketAddr, num::NonZeroU32, path::PathBuf, sync::Arc,
    time::Duration,
};

use actix_http::header::{HeaderName, HeaderValue};
use tokio_rustls::rustls::pki_types::ServerName;

use super::{
    discovery::{Discovery, Replicas, discovery, name_server},
    reader::{self, Pods, Reader, SWITCH, field, field_name},
    session::{tcp, timeouts, tunnel},
};
use crate::{
    domain::{
        balance::{
            affinity::Key,
            health::HealthSettings,
            lease::{Backend, Transport},
            rebalance::RebalanceSettings,
            settings::Share,
            strategy::Strategy,
        },
        dns::TtlBounds,
        report::{
            AgentReader, JsonReader, Pointer, PrometheusReader, SettingError, query::Question,
        },
        routing::origin::OriginPattern,
        session::timeouts::SessionTimeouts,
    },
    net::{
        connect::ConnectSettings,
        dns::lookup::{HostName, NameServers, ResolverSettings},
        tcp::TcpSettings,
        tls::{ClientSettings, ClientTls, FileError, KeyPair},
    },
    relay::{TunnelRules, close::CloseCode},
};

/// Name of the service that the `services` list makes.
const DEFAULT_SERVICE: &str = "default";

/// Names of the strategies.
const STRATEGIES: [(&str, Strategy); 4] = [
    ("least_connections", Strategy::LeastConnections),
    ("power_of_two", Strategy::PowerOfTwo),
    ("round_robin", Strategy::RoundRobin),
    ("random", Strategy::Random),
];

/// How pods answer on their metric route.
const FORMATS: [(&str, &str); 3] =
    [("json", "json"), ("prometheus", "prometheus"), ("agent", "agent")];

/// Characters of a cookie key at least: fewer could be guessed.
const MIN_KEY_LEN: usize = 16;

/// A named set of pods with one set of rules.
#[derive(Clone, Debug)]
pub struct Service {
    /// What routes call it.
    pub name: String,
    /// The pods, in the order they were given; none where they are discovered.
    pub backends: Vec<Backend>,
    /// How large they are, by address, where that is said.
    pub shares: BTreeMap<String, Share>,
    /// Where pods are looked up, instead.
    pub discovery: Option<Discovery>,
    /// `[balancer]`, with what the service's own table overrides.
    pub balancer: Balancer,
}

/// `[balancer]`
#[derive(Clone, Debug)]
pub struct Balancer {
    /// What pods are asked, unless they are not.
    pub question: Option<Question>,
    /// Port of that route, unless it is the pod's own.
    pub metric_port: Option<u16>,
    /// From a pod's answer to the next poll.
    pub poll_interval: Duration,
    /// For a whole poll.
    pub poll_timeout: Duration,
    /// Age at which a report is stale, at least three polls.
    pub stale_after: Duration,
    /// Replicas that share the pods, at least 1; 1 while they have yet to be counted.
    pub replicas: u32,
    /// Whose addresses are counted for that number.
    pub replicas_name: Option<HostName>,
    /// How soon and how late DNS is asked again.
    pub discovery_ttl: TtlBounds,
    /// How long a pod that DNS no longer names keeps its counts.
    pub discovery_grace: Duration,
    /// Who is asked, unless it is the system's name servers.
    pub nameservers: Vec<SocketAddr>,
    /// How the next pod is chosen.
    pub strategy: Strategy,
    /// When a pod is ejected, and what happens after.
    pub health: HealthSettings,
    /// Whether and how sessions are moved after a scale-out.
    pub rebalance: Option<RebalanceSettings>,
    /// Further pods tried for one connection.
    pub retries: usize,
    /// Answers to a handshake that lead to the next pod.
    pub retry_on: Vec<u16>,
    /// Sessions of the service.
    pub max_sessions: Option<NonZeroU32>,
    /// Connections of one pod, by its estimate.
    pub max_sessions_per_pod: Option<NonZeroU32>,
    /// How long a client waits while every pod is full.
    pub queue_timeout: Duration,
    /// How many clients wait.
    pub queue_limit: usize,
    /// Whether pods see the client's Host.
    pub pass_host_header: bool,
    /// Fields added to requests.
    pub add_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields set on requests.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields removed from requests.
    pub remove_headers: Vec<HeaderName>,
    /// Whether connections for plain HTTP are kept.
    pub reuse_connections: bool,
    /// Pages that may open WebSockets; empty means all.
    pub allowed_origins: Vec<OriginPattern>,
    /// What brings a client back to its pod.
    pub affinity: Affinity,
    /// For pods that speak TLS; `None` where none does.
    pub tls: Option<Arc<ClientTls>>,
    /// When TCP gives a pod up.
    pub tcp: TcpSettings,
    /// To reach a pod, TLS included.
    pub connect_timeout: Duration,
    /// From the request to the head of the pod's answer.
    pub read_timeout: Duration,
    /// For a client's whole handshake.
    pub handshake_timeout: Duration,
    /// When sessions end by themselves.
    pub timeouts: SessionTimeouts,
    /// What may pass in sessions.
    pub tunnel: TunnelRules,
    /// Close code for clients that should come back.
    pub close_code_drain: CloseCode,
    /// Over how long the sessions of a draining pod are moved; zero means that they stay.
    pub pod_drain_time: Duration,
    /// Whether the sessions of an ejected pod are closed.
    pub closes_ejected: bool,
}

impl Balancer {
    /// How pods are reached, by sessions and by polls.
    pub fn connect_settings(&self) -> ConnectSettings {
        ConnectSettings { timeout: self.connect_timeout, tls: self.tls.clone(), tcp: self.tcp }
    }

    /// How names are looked up. Configured name servers know nothing of the system's search list.
    pub fn resolver_settings(&self) -> ResolverSettings {
        let servers = || NameServers { addresses: self.nameservers.clone(), ..Default::default() };
        ResolverSettings {
            servers: (!self.nameservers.is_empty()).then(servers),
            timeout: self.connect_timeout,
            bounds: self.discovery_ttl,
        }
    }

    /// The key of cookies, where there are cookies.
    pub fn affinity_key(&self) -> Option<&Key> {
        match &self.affinity {
            Affinity::Cookie(cookie) => Some(&cookie.key),
            _ => None,
        }
    }
}

/// What brings a client back to its pod.
#[derive(Clone, Debug)]
pub enum Affinity {
    /// Nothing.
    None,
    /// A cookie of ours.
    Cookie(Cookie),
    /// The value of a header field.
    Header(HeaderName),
    /// The client's address.
    Address,
}

/// The cookie that brings a client back (RFC 6265).
#[derive(Clone, Debug)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// What seals its value.
    pub key: Key,
    /// Whether other processes have that key.
    pub key_is_shared: bool,
    /// When it has the attribute `Secure`.
    pub secure: Secure,
    /// Its other attributes, each with `; ` before it.
    pub attributes: String,
}

/// When a cookie has the attribute `Secure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secure {
    /// Always.
    Always,
    /// Never.
    Never,
    /// When the client speaks https, as far as known.
    Auto,
}

/// The services list, or a table for each.
pub(super) fn services(read: &mut Reader) -> Vec<Service> {
    let names = read.names_below("services");
    let listed = read.backends("services", DEFAULT_SERVICE);
    match (names.is_empty(), listed.backends.is_empty()) {
        (true, true) => read.complain(
            "services",
            "names no pod: set services = [\"http://pod:3001\"] or WSBALANCER_SERVICES",
        ),
        (false, false) => read.complain(
            "services",
            "is a list, and there are [services.NAME] tables too: use one of both",
        ),
        _ => {}
    }
    if names.is_empty() {
        let Pods { backends, shares } = listed;
        let balancer = balancer(read, &backends, None);
        let name = DEFAULT_SERVICE.to_owned();
        return vec![Service { name, backends, shares, discovery: None, balancer }];
    }
    names.into_iter().map(|name| service(read, name)).collect()
}

fn service(read: &mut Reader, name: String) -> Service {
    let key = format!("services.{name}.backends");
    let is_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name) {
        let advice = "expected a service's name of lower-case letters, digits, - and _";
        read.complain_of_table(&format!("services.{name}"), advice);
    }
    // A table without a single key.
    read.optional(&format!("services.{name}"), |_| Ok(()));
    let Pods { backends, shares } =
        if read.has(&key) { read.backends(&key, &name) } else { Pods::default() };
    let (discovery, is_discovered) = discovery(read, &name);
    if backends.is_empty() && !is_discovered {
        let advice = "names no pod: set it to a list such as [\"http://pod:3001\"], or set \
                      discovery = { dns = \"http://name:3001\" }";
        read.complain_of_table(&key, advice);
    }
    read.of_service(Some(&name));
    let balancer = balancer(read, &backends, discovery.as_ref());
    read.of_service(None);
    Service { name, backends, shares, discovery, balancer }
}

fn balancer(read: &mut Reader, backends: &[Backend], discovery: Option<&Discovery>) -> Balancer {
    let millis = Duration::from_millis;
    let (minute, hour) = (millis(60_000), millis(3_600_000));
    let poll_interval = read.duration("balancer.poll_interval", millis(100)..=hour);
    let cache_ttl = read.duration("balancer.cache_ttl", millis(0)..=24 * hour);
    let handshake = millis(10)..=10 * minute;
    let timeouts = timeouts(read);
    let (replicas, replicas_name) = match read.value("balancer.replicas", Replicas::parse) {
        Replicas::Configured(replicas) => (replicas, None),
        Replicas::Counted(name) => (1, Some(name)),
    };
    let discovery_ttl = TtlBounds {
        min: read.duration("balancer.discovery_min_ttl", millis(100)..=hour),
        max: read.duration("balancer.discovery_max_ttl", millis(100)..=24 * hour),
    };
    if discovery_ttl.max < discovery_ttl.min {
        read.complain("balancer.discovery_max_ttl", "is shorter than discovery_min_ttl");
    }
    Balancer {
        question: question(read),
        metric_port: Some(read.number("balancer.metric_port", 0..=65_535) as u16)
            .filter(|port| *port != 0),
        poll_interval,
        poll_timeout: read.duration("balancer.poll_timeout", millis(10)..=minute),
        stale_after: cache_ttl.max(3 * poll_interval),
        replicas,
        replicas_name,
        discovery_ttl,
        discovery_grace: read.duration("balancer.discovery_grace", millis(0)..=24 * hour),
        nameservers: read.list("balancer.nameservers", name_server),
        strategy: read.choice("balancer.strategy", &STRATEGIES),
        health: HealthSettings {
            eject_after: read.number("balancer.eject_after", 0..=1000) as u32,
            eject_time: read.duration("balancer.eject_time", millis(10)..=hour),
            eject_time_max: read.duration("balancer.eject_time_max", millis(10)..=24 * hour),
            cold_time: read.duration("balancer.cold_time", millis(0)..=hour),
        },
        rebalance: rebalance(read),
        retries: read.number("balancer.retries", 0..=100) as usize,
        retry_on: read.list("balancer.retry_on", |text| {
            let status = text.parse().ok().filter(|status| (400..=599).contains(status));
            status.ok_or_else(|| "expected statuses from 400 to 599".to_owned())
        }),
        max_sessions: read.limit("balancer.max_sessions"),
        max_sessions_per_pod: read.limit("balancer.max_sessions_per_pod"),
        queue_timeout: read.duration("balancer.queue_timeout", millis(0)..=10 * minute),
        queue_limit: read.number("balancer.queue_limit", 0..=100_000) as usize,
        pass_host_header: read.choice("balancer.pass_host_header", &SWITCH),
        add_headers: read.list("balancer.add_headers", field),
        set_headers: read.list("balancer.set_headers", field),
        remove_headers: read.list("balancer.remove_headers", field_name),
        reuse_connections: read.choice("balancer.reuse_connections", &SWITCH),
        allowed_origins: read.list("balancer.allowed_origins", OriginPattern::parse),
        affinity: affinity(read),
        tls: tls(read, backends, discovery),
        tcp: tcp(read, "balancer"),
        connect_timeout: read.duration("balancer.connect_timeout", handshake.clone()),
        read_timeout: read.duration("balancer.read_timeout", handshake.clone()),
        handshake_timeout: read.duration("balancer.handshake_timeout", handshake),
        tunnel: tunnel(read, &timeouts),
        timeouts,
        close_code_drain: close_code(read, "balancer.close_code_drain"),
        pod_drain_time: read.duration("balancer.pod_drain_time", millis(0)..=24 * hour),
        closes_ejected: read.choice("balancer.on_ejected", &[("leave", false), ("close", true)]),
    }
}

/// A close code that may travel (RFC 6455 §7.4).
pub(super) fn close_code(read: &mut Reader, key: &str) -> CloseCode {
    read.value(key, |text| {
        let code = text.parse().ok().and_then(CloseCode::new);
        code.ok_or_else(|| "expected 1000 to 4999, but not 1004, 1005, 1006 or 1015".to_owned())
    })
}

/// What pods are asked: their metric route in one of three formats, or else only for their health.
fn question(read: &mut Reader) -> Option<Question> {
    let has_no_route = read.value("balancer.metric_path", |text| Ok(["", "none"].contains(&text)));
    let metric_path = (!has_no_route).then(|| read.path("balancer.metric_path"));
    let format = read.choice("balancer.metric_format", &FORMATS);
    let json = JsonReader {
        count: read.value("balancer.metric_count", |text| pointer(text)?.ok_or_else(no_pointer)),
        max: read.value("balancer.metric_max", pointer),
        weight: read.value("balancer.metric_weight", pointer),
        draining: read.value("balancer.metric_draining", pointer),
    };
    let name = read.value("balancer.metric_name", |text| match text {
        "" => Ok(None),
        name => name.parse().map(Some).map_err(|error: SettingError| error.to_string()),
    });
    let labels = read.list("balancer.metric_labels", |text| {
        text.parse().map_err(|error: SettingError| error.to_string())
    });
    let health_path = read.text("balancer.health_path");
    let health_tcp = read.choice("balancer.health_tcp", &SWITCH);
    if format == "prometheus" && name.is_none() {
        let advice = "names no metric, which metric_format = \"prometheus\" needs";
        read.complain("balancer.metric_name", advice);
    }
    if let Some(path) = &health_path
        && let Err(advice) = reader::path(path)
    {
        read.complain("balancer.health_path", advice);
    }
    match (format, metric_path, name) {
        ("agent", ..) => Some(Question::Agent(Arc::new(AgentReader))),
        ("prometheus", Some(path), Some(name)) => {
            Some(Question::Metric { path, reader: Arc::new(PrometheusReader { name, labels }) })
        }
        (_, Some(path), _) => Some(Question::Metric { path, reader: Arc::new(json) }),
        (_, None, _) => match health_path {
            Some(path) => Some(Question::Health(path)),
            None => health_tcp.then_some(Question::Connect),
        },
    }
}

fn pointer(text: &str) -> Result<Option<Pointer>, String> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|error: SettingError| error.to_string()),
    }
}

fn no_pointer() -> String {
    "expected a JSON pointer such as /agentsConnections".to_owned()
}

fn rebalance(read: &mut Reader) -> Option<RebalanceSettings> {
    let is_on = read.choice("balancer.rebalance", &SWITCH);
    let band = read.value("balancer.rebalance_band", |text| {
        let band = text.parse().ok().filter(|band| (0.01..=10.0).contains(band));
        band.ok_or_else(|| "expected a share from 0.01 to 10".to_owned())
    });
    let mut budget = |key: &str| {
        let number = read.number(key, 1..=1_000_000) as u32;
        NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
    };
    let per_second = budget("balancer.rebalance_per_second");
    let per_hour = budget("balancer.rebalance_per_hour");
    is_on.then_some(RebalanceSettings { band, per_second, per_hour })
}

fn affinity(read: &mut Reader) -> Affinity {
    let kinds = ["none", "cookie", "header", "address"].map(|kind| (kind, kind));
    let kind = read.choice("balancer.affinity", &kinds);
    let header = read.value("balancer.affinity_header", |text| match text {
        "" => Ok(None),
        name => field_name(name).map(Some),
    });
    let cookie = cookie(read, kind == "cookie");
    match (kind, header) {
        ("cookie", _) => Affinity::Cookie(cookie),
        ("address", _) => Affinity::Address,
        ("header", Some(name)) => Affinity::Header(name),
        ("header", None) => {
            let advice = "names no field, which affinity = \"header\" needs";
            read.complain("balancer.affinity_header", advice);
            Affinity::None
        }
        _ => Affinity::None,
    }
}

fn cookie(read: &mut Reader, is_used: bool) -> Cookie {
    let name = read.value("balancer.cookie_name", |text| {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let right = !text.is_empty() && text.bytes().all(is_token);
        right.then(|| text.to_owned()).ok_or_else(|| "expected letters, digits, - or _".to_owned())
    });
    let secret = read.value("balancer.cookie_key", |text| match text.len() {
        0 => Ok(None),
        length if length < MIN_KEY_LEN => {
            Err(format!("has {length} characters, expected {MIN_KEY_LEN} at least"))
        }
        _ => Ok(Some(text.to_owned())),
    });
    let secures = [("true", Secure::Always), ("false", Secure::Never), ("auto", Secure::Auto)];
    let secure = read.choice("balancer.cookie_secure", &secures);
    let http_only = read.choice("balancer.cookie_http_only", &SWITCH);
    let sites = [("strict", "Strict"), ("lax", "Lax"), ("none", "None")];
    let same_site = read.choice("balancer.cookie_same_site", &sites);
    let path = read.value("balancer.cookie_path", |text| {
        let right = text.starts_with('/') && !text.contains([';', ',', ' ']);
        if right && HeaderValue::from_str(text).is_ok() {
            Ok(text.to_owned())
        } else {
            Err("expected a path such as / or /chat".to_owned())
        }
    });
    let year = Duration::from_secs(8760 * 3600);
    let max_age = read.duration("balancer.cookie_max_age", Duration::ZERO..=year);

    if is_used {
        let replicas = read.value("balancer.replicas", Replicas::parse);
        if secret.is_none() && replicas != Replicas::Configured(1) {
            let advice = "is needed where there are several replicas: give all the same secret";
            read.complain("balancer.cookie_key", advice);
        }
        if secure == Secure::Never && same_site == "None" {
            let advice = "browsers take a cookie with SameSite=None only when it is Secure";
            read.complain("balancer.cookie_secure", advice);
        }
        let is_prefixed = name.starts_with("__Secure-") || name.starts_with("__Host-");
        if is_prefixed && secure != Secure::Always {
            let advice = "browsers take a cookie with this prefix only when it is Secure: set \
                          cookie_secure = true";
            read.complain("balancer.cookie_name", advice);
        }
        if name.starts_with("__Host-") && path != "/" {
            let advice = "browsers take a cookie called __Host-... only for the path /";
            read.complain("balancer.cookie_path", advice);
        }
    }
    let mut attributes = format!("; Path={path}; SameSite={same_site}");
    if http_only {
        attributes.push_str("; HttpOnly");
    }
    if !max_age.is_zero() {
        attributes.push_str(&format!("; Max-Age={}", max_age.as_secs()));
    }
    let key_is_shared = secret.is_some();
    let key = secret.map_or_else(Key::random, |secret| Key::new(&secret));
    Cookie { name, key, key_is_shared, secure, attributes }
}

/// The files are looked at only where a pod speaks TLS. Pods that are discovered prove the name that
/// was looked up, as their addresses say nothing of them.
fn tls(
    read: &mut Reader,
    backends: &[Backend],
    discovery: Option<&Discovery>,
) -> Option<Arc<ClientTls>> {
    let mut settings = ClientSettings {
        verify: read.choice("balancer.tls_verify", &SWITCH),
        ca_file: read.text("balancer.tls_ca_file").map(PathBuf::from),
        identity: key_pair(read, "balancer"),
        server_name: read.value("balancer.tls_server_name", |text| match text {
            "" => Ok(None),
            name => ServerName::try_from(name.to_owned())
                .map(Some)
                .map_err(|_| "expected a DNS name or an IP address".to_owned()),
        }),
    };
    let mut pods = backends.iter().chain(discovery.map(|discovery| &discovery.pod));
    if !pods.any(|pod| pod.transport == Transport::Tls) {
        return None;
    }
    if discovery.is_some() && settings.server_name.is_none() {
        settings.server_name = discovery.and_then(Discovery::server_name);
        if settings.server_name.is_none() {
            let advice = "is needed: no certificate can have the name that is looked up";
            read.complain("balancer.tls_server_name", advice);
        }
    }
    let tls = ClientTls::new(settings);
    tls.map_err(|error| complain_of_file(read, "balancer", &error)).ok().map(Arc::new)
}

/// `tls_cert_file` and `tls_key_file` of a table: both or none.
pub(super) fn key_pair(read: &mut Reader, table: &str) -> Option<KeyPair> {
    let [cert, key] = ["cert", "key"].map(|part| format!("{table}.tls_{part}_file"));
    match (read.text(&cert), read.text(&key)) {
        (Some(cert_file), Some(key_file)) => {
            Some(KeyPair { cert_file: cert_file.into(), key_file: key_file.into() })
        }
        (None, None) => None,
        (Some(_), None) => {
            // Named where its other half stands, in a service's table or not.
            let missing = read.place(&cert).replace("_cert_", "_key_");
            let advice = "names no file, and there is one for the certificate";
            read.complain_of_table(&missing, advice);
            None
        }
        (None, Some(_)) => {
            let missing = read.place(&key).replace("_key_", "_cert_");
            read.complain_of_table(&missing, "names no file, and there is one for the key");
            None
        }
    }
}

pub(super) fn complain_of_file(read: &mut Reader, table: &str, error: &FileError) {
    let part = match error {
        FileError::Cert(_) => "cert",
        FileError::Key(_) => "key",
        FileError::Authorities(_) => "ca",
    };
    read.complain(&format!("{table}.tls_{part}_file"), error.to_string());
}
