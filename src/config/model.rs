//! Typed settings, checked.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use log::LevelFilter;

use super::{
    layers::{Layers, Problems, Setting, holds_fields, is_secret, shown_item},
    reader::{Reader, SWITCH},
    routes::routes,
    services::{Affinity, Service, complain_of_file, key_pair, services},
    session::tcp,
    token::Token,
};
use crate::{
    domain::routing::route::Router,
    net::{listen::ListenAddress, tcp::TcpSettings, tls::ServerTls},
};

/// The settings of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The services, by name.
    pub services: Vec<Service>,
    /// Which requests are whose; `service` of a route is an index of `services`.
    pub router: Router,
    /// The traffic listener.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// Logging.
    pub log: Log,
    /// Every key as it was written, for `wsbalancer check`.
    pub(super) settings: BTreeMap<String, Setting>,
    /// The keys among them that hold lists.
    pub(super) lists: HashSet<String>,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct Server {
    /// Traffic listener.
    pub listen: ListenAddress,
    /// Where clients speak TLS.
    pub tls: Option<ServerTls>,
    /// Who begins connections with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// When TCP gives a client up.
    pub tcp: TcpSettings,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Who is believed about clients' addresses.
    pub trusted_proxies: Vec<IpNet>,
    /// For a request's whole head.
    pub request_timeout: Duration,
    /// Header fields of a request.
    pub max_headers: usize,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    /// Sessions in all.
    pub max_sessions: Option<NonZeroU32>,
    /// Sessions of one client address.
    pub max_sessions_per_address: Option<NonZeroU32>,
    /// From SIGTERM to the first refusal.
    pub drain_delay: Duration,
    /// From then on, over how long sessions are closed.
    pub drain_time: Duration,
    /// From the first refusal to the cut of what still lives.
    pub shutdown_timeout: Duration,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Admin listener.
    pub listen: SocketAddr,
    /// Path of the distribution.
    pub balancer_metric_path: String,
    /// Whether changed files are taken over.
    pub watch_config: bool,
    /// What calls that change something must carry.
    pub token: Option<Token>,
}

/// `[log]`
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// What is logged.
    pub level: LevelFilter,
    /// How.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What may be logged, by name.
pub const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

impl Config {
    /// Checks and types the merged layers.
    ///
    /// # Errors
    /// Every problem found, each with key, value, origin and fix.
    pub fn resolve(layers: Layers) -> Result<Self, Problems> {
        let settings = layers.0.clone();
        let mut read = Reader::new(layers);
        let millis = Duration::from_millis;
        let (minute, hour) = (millis(60_000), millis(3_600_000));

        let tls_reload_interval = read.duration("server.tls_reload_interval", millis(100)..=hour);
        let server = Server {
            listen: read.listen("server.listen"),
            tls: key_pair(&mut read, "server").and_then(|files| {
                let loaded = ServerTls::load(files, tls_reload_interval);
                loaded.map_err(|error| complain_of_file(&mut read, "server", &error)).ok()
            }),
            proxy_protocol: read.networks("server.proxy_protocol"),
            tcp: tcp(&mut read, "server"),
            workers: match read.number("server.workers", 0..=1024) {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                workers => workers as usize,
            },
            trusted_proxies: read.networks("server.trusted_proxies"),
            request_timeout: read.duration("server.request_timeout", millis(100)..=10 * minute),
            max_headers: read.number("server.max_headers", 1..=96) as usize,
            max_header_bytes: read.number("server.max_header_bytes", 256..=131_072) as usize,
            max_sessions: read.limit("server.max_sessions"),
            max_sessions_per_address: read.limit("server.max_sessions_per_address"),
            drain_delay: read.duration("server.drain_delay", millis(0)..=hour),
            drain_time: read.duration("server.drain_time", millis(0)..=hour),
            shutdown_timeout: read.duration("server.shutdown_timeout", millis(0)..=hour),
        };
        if server.drain_time > server.shutdown_timeout {
            read.complain(
                "server.drain_time",
                "is longer than shutdown_timeout, which cuts it off",
            );
        }
        let admin = Admin {
            listen: read.address("admin.listen"),
            balancer_metric_path: read.path("admin.balancer_metric_path"),
            watch_config: read.choice("admin.watch_config", &SWITCH),
            token: read.value("admin.token", |text| {
                (!text.is_empty()).then(|| Token::parse(text)).transpose()
            }),
        };
        let services = services(&mut read);
        let router = routes(&mut read, &services);
        let log = Log {
            level: read.choice("log.level", &LEVELS),
            format: read
                .choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        };
        if server.listen == ListenAddress::Tcp(admin.listen) && admin.listen.port() != 0 {
            read.complain(
                "admin.listen",
                "is the traffic listener's too: give it a port of its own",
            );
        }
        let lists = std::mem::take(&mut read.lists);
        read.finish()?;
        Ok(Self { services, router, server, admin, log, settings, lists })
    }
}

impl Config {
    /// The files that TLS with pods goes by.
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

    /// Logs what works and is yet seldom meant.
    pub fn warn(&self) {
        for Service { name, balancer, .. } in &self.services {
            if let Affinity::Cookie(cookie) = &balancer.affinity
                && !cookie.key_is_shared
            {
                log::warn!(
                    "service {name}: cookie_key is not set, so no other replica understands the \
                     cookies of this one, nor this one after a restart"
                );
            }
            if balancer.tls.as_ref().is_some_and(|tls| !tls.verifies) {
                log::warn!("service {name}: tls_verify is off, so anybody can pass for its pods");
            }
        }
    }
}

/// The admin listener alone, for those who only ask it; other settings may be wrong or missing.
///
/// # Errors
/// What is wrong with `admin.listen`.
pub fn admin_listen(layers: Layers) -> Result<SocketAddr, Problems> {
    let mut read = Reader::new(layers);
    let listen = read.address("admin.listen");
    read.finish_partly()?;
    Ok(listen)
}

impl fmt::Display for Config {
    /// Every key with its value and origin, as TOML with dotted keys; those with something to hide
    /// are comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What JSON escapes and how is right in TOML too, which cannot be said of Rust's way; only
        // DEL is a control character to TOML alone.
        let quoted =
            |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
        for (key, setting) in &self.settings {
            // The empty list of services is no list where there are tables, which TOML would not
            // take both.
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
                    let items = setting.items().map(|item| quoted(&shown_item(key, item)));
                    let items: Vec<_> = items.collect();
                    let hides = holds_fields(key) && !items.is_empty();
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
