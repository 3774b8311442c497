//! The settings of a process, typed and checked.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    layers::{Layers, Problems, Setting, holds_header_fields, is_secret, redact_item},
    reader::Reader,
    routes::read_routes,
    services::{ServiceSettings, affinity::AffinitySettings, read_services},
    session::read_tcp,
    tls::{add_tls_file_problem, read_key_pair},
    token::Token,
};
use crate::{
    domain::routing::route::Router,
    net::{listen::ListenAddress, tcp::TcpSettings, tls::ServerTls},
    telemetry::logging::{LEVELS, LogFormat, LogSettings},
};

/// The settings of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The services, sorted by name.
    pub services: Vec<ServiceSettings>,
    /// Finds the service for a request; `service` of a route is an index into `services`.
    pub router: Router<String>,
    pub server: ServerSettings,
    pub admin: AdminSettings,
    pub log: LogSettings,
    /// Every key as written, for `wsbalancer check` and to find what a reload changes.
    pub(super) settings: BTreeMap<String, Setting>,
    /// The keys that hold lists.
    pub(super) lists: HashSet<String>,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Address of the traffic listener.
    pub listen: ListenAddress,
    /// `None` if clients do not use TLS.
    pub tls: Option<ServerTls>,
    /// Peers whose connections start with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    pub tcp: TcpSettings,
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// Proxies whose forwarding header fields are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Time limit for a request head.
    pub request_timeout: Duration,
    /// Limit for the number of header fields.
    pub max_headers: usize,
    /// Limit for the size of a request head, in bytes.
    pub max_header_bytes: usize,
    /// Limit for the sessions of the process.
    pub max_sessions: Option<NonZeroU32>,
    /// Limit for the sessions of one client address.
    pub max_sessions_per_address: Option<NonZeroU32>,
    /// Time from SIGTERM until new connections are refused.
    pub drain_delay: Duration,
    /// Time after `drain_delay` over which sessions are closed.
    pub drain_time: Duration,
    /// Time after `drain_delay` at which the remaining sessions are cut off.
    pub shutdown_timeout: Duration,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Address of the admin listener.
    pub listen: SocketAddr,
    /// Path of the connection distribution.
    pub balancer_metric_path: String,
    /// Whether changed files are reloaded.
    pub watch_config: bool,
    /// Token that calls which change something must send.
    pub token: Option<Token>,
}

impl Config {
    /// Parses and checks the merged layers.
    ///
    /// # Errors
    /// All problems, each with key, value, origin and the expected value.
    pub fn resolve(layers: Layers) -> Result<Self, Problems> {
        let settings = layers.0.clone();
        let mut reader = Reader::new(layers);
        let server = read_server(&mut reader);
        let admin = read_admin(&mut reader);
        let services = read_services(&mut reader);
        let router = read_routes(&mut reader, &services);
        let log = read_log(&mut reader);
        if server.listen == ListenAddress::Tcp(admin.listen) && admin.listen.port() != 0 {
            let advice = "is also the address of the traffic listener: use another port";
            reader.add_problem("admin.listen", advice);
        }
        let lists = std::mem::take(&mut reader.lists);
        reader.finish()?;
        Ok(Self { services, router, server, admin, log, settings, lists })
    }
}

fn read_server(reader: &mut Reader) -> ServerSettings {
    let millis = Duration::from_millis;
    let (minute, hour) = (millis(60_000), millis(3_600_000));
    let tls_reload_interval = reader.duration("server.tls_reload_interval", millis(100)..=hour);
    let server = ServerSettings {
        listen: reader.listen_address("server.listen"),
        tls: read_key_pair(reader, "server").and_then(|files| {
            let loaded = ServerTls::load(files, tls_reload_interval);
            loaded.map_err(|error| add_tls_file_problem(reader, "server", &error)).ok()
        }),
        proxy_protocol: reader.networks("server.proxy_protocol"),
        tcp: read_tcp(reader, "server"),
        workers: match reader.number("server.workers", 0..=1024) {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers as usize,
        },
        trusted_proxies: reader.networks("server.trusted_proxies"),
        request_timeout: reader.duration("server.request_timeout", millis(100)..=10 * minute),
        max_headers: reader.number("server.max_headers", 1..=96) as usize,
        max_header_bytes: reader.number("server.max_header_bytes", 256..=131_072) as usize,
        max_sessions: reader.limit("server.max_sessions"),
        max_sessions_per_address: reader.limit("server.max_sessions_per_address"),
        drain_delay: reader.duration("server.drain_delay", millis(0)..=hour),
        drain_time: reader.duration("server.drain_time", millis(0)..=hour),
        shutdown_timeout: reader.duration("server.shutdown_timeout", millis(0)..=hour),
    };
    if server.drain_time > server.shutdown_timeout {
        let advice = "must not be longer than shutdown_timeout, at which sessions are cut off";
        reader.add_problem("server.drain_time", advice);
    }
    server
}

fn read_admin(reader: &mut Reader) -> AdminSettings {
    AdminSettings {
        listen: reader.socket_address("admin.listen"),
        balancer_metric_path: reader.path("admin.balancer_metric_path"),
        watch_config: reader.boolean("admin.watch_config"),
        token: reader.value("admin.token", |text| {
            (!text.is_empty()).then(|| Token::parse(text)).transpose()
        }),
    }
}

fn read_log(reader: &mut Reader) -> LogSettings {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    LogSettings {
        level: reader.choice("log.level", &LEVELS),
        format: reader.choice("log.format", &formats),
    }
}

impl Config {
    /// Returns the files that TLS connections to pods use.
    pub fn pod_tls_files(&self) -> Vec<PathBuf> {
        let is_file = |key: &str| {
            let of_pods = key.starts_with("balancer.") || key.starts_with("services.");
            let names = ["tls_ca_file", "tls_cert_file", "tls_key_file"];
            of_pods && names.iter().any(|name| key.ends_with(name))
        };
        let named = self.settings.iter().filter(|(key, _)| is_file(key));
        let texts = named.flat_map(|(_, setting)| &setting.texts);
        texts.filter(|text| !text.is_empty()).map(PathBuf::from).collect()
    }

    /// Logs warnings about settings that are valid but seldom intended.
    pub fn log_warnings(&self) {
        for ServiceSettings { name, balancer, .. } in &self.services {
            if let AffinitySettings::Cookie(cookie) = &balancer.affinity
                && !cookie.key_is_shared
            {
                log::warn!(
                    "service {name}: cookie_key is not set: affinity cookies of this process are not \
                     valid at other replicas or after a restart"
                );
            }
            if balancer.connect.tls.as_ref().is_some_and(|tls| !tls.verifies) {
                log::warn!(
                    "service {name}: tls_verify = false: the certificates of its pods are not verified"
                );
            }
        }
    }
}

/// Reads only the address of the admin listener; other settings can be wrong or missing.
///
/// # Errors
/// The problem with `admin.listen`.
pub fn admin_listen(layers: Layers) -> Result<SocketAddr, Problems> {
    let mut reader = Reader::new(layers);
    let listen = reader.socket_address("admin.listen");
    reader.finish_ignoring_unknown_keys()?;
    Ok(listen)
}

impl fmt::Display for Config {
    /// Prints every key with its value and origin, as TOML with dotted keys. Keys with redacted
    /// values are comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A JSON string is a TOML string, except that TOML also requires DEL to be escaped.
        let quoted =
            |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
        for (key, setting) in &self.settings {
            // TOML does not allow the empty list of services beside [services.NAME] tables.
            let below = format!("{key}.");
            if self
                .settings
                .range(below.clone()..)
                .next()
                .is_some_and(|(next, _)| next.starts_with(&below))
            {
                continue;
            }
            let origin = &setting.origin;
            match &setting.texts[..] {
                [text] if is_secret(key) && !text.is_empty() => {
                    writeln!(f, "# {key} = ***  # {origin}")?;
                }
                [text] if !self.lists.contains(key) => {
                    writeln!(f, "{key} = {}  # {origin}", quoted(text))?;
                }
                _ => {
                    let items = setting.items().map(|item| quoted(&redact_item(key, item)));
                    let items: Vec<_> = items.collect();
                    let hides = holds_header_fields(key) && !items.is_empty();
                    let mark = if hides { "# " } else { "" };
                    writeln!(f, "{mark}{key} = [{}]  # {origin}", items.join(", "))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
