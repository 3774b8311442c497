//! Typed settings, checked.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use actix_http::header::{HeaderName, HeaderValue};
use ipnet::IpNet;
use log::LevelFilter;

use super::{
    load::{Layers, Problems, Setting},
    read::{Reader, SWITCH, field, field_name},
};
use crate::domain::lease::Backend;

/// The settings of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pods, in the order they were given.
    pub backends: Vec<Backend>,
    /// The traffic listener.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// Watching and choosing.
    pub balancer: Balancer,
    /// Logging.
    pub log: Log,
    /// Every key as it was written, for `wsbalancer check`.
    settings: BTreeMap<String, Setting>,
    /// The keys among them that hold lists.
    lists: HashSet<String>,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct Server {
    /// Traffic listener.
    pub listen: SocketAddr,
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
    /// From SIGTERM to the cut of what still lives.
    pub shutdown_timeout: Duration,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Admin listener.
    pub listen: SocketAddr,
    /// Path of the distribution.
    pub balancer_metric_path: String,
}

/// `[balancer]`
#[derive(Clone, Debug)]
pub struct Balancer {
    /// The pods' metric route, unless they have none.
    pub metric_path: Option<String>,
    /// Port of that route, unless it is the pod's own.
    pub metric_port: Option<u16>,
    /// From a pod's answer to the next poll.
    pub poll_interval: Duration,
    /// For a whole poll.
    pub poll_timeout: Duration,
    /// Age at which a report is stale, at least three polls.
    pub stale_after: Duration,
    /// Replicas that share the pods, at least 1.
    pub replicas: u32,
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
    /// To reach a pod by TCP.
    pub connect_timeout: Duration,
    /// From the request to the head of the pod's answer.
    pub read_timeout: Duration,
    /// For a client's whole handshake.
    pub handshake_timeout: Duration,
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

        let backends = read.backends("services");
        let server = Server {
            listen: read.address("server.listen"),
            workers: match read.number("server.workers", 0..=1024) {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                workers => workers as usize,
            },
            trusted_proxies: read.list("server.trusted_proxies", |text| {
                let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                network.map_err(|_| "expected an IP address or a range such as 10.0.0.0/8".into())
            }),
            request_timeout: read.duration("server.request_timeout", millis(100)..=10 * minute),
            max_headers: read.number("server.max_headers", 1..=96) as usize,
            max_header_bytes: read.number("server.max_header_bytes", 256..=131_072) as usize,
            max_sessions: read.limit("server.max_sessions"),
            max_sessions_per_address: read.limit("server.max_sessions_per_address"),
            shutdown_timeout: read.duration("server.shutdown_timeout", millis(0)..=hour),
        };
        let admin = Admin {
            listen: read.address("admin.listen"),
            balancer_metric_path: read.path("admin.balancer_metric_path"),
        };
        let poll_interval = read.duration("balancer.poll_interval", millis(100)..=hour);
        let cache_ttl = read.duration("balancer.cache_ttl", millis(0)..=24 * hour);
        let handshake = millis(10)..=10 * minute;
        let balancer = Balancer {
            metric_path: match read
                .value("balancer.metric_path", |text| Ok(["", "none"].contains(&text)))
            {
                true => None,
                false => Some(read.path("balancer.metric_path")),
            },
            metric_port: Some(read.number("balancer.metric_port", 0..=65_535) as u16)
                .filter(|port| *port != 0),
            poll_interval,
            poll_timeout: read.duration("balancer.poll_timeout", millis(10)..=minute),
            stale_after: cache_ttl.max(3 * poll_interval),
            replicas: read.number("balancer.replicas", 1..=1000) as u32,
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
            connect_timeout: read.duration("balancer.connect_timeout", handshake.clone()),
            read_timeout: read.duration("balancer.read_timeout", handshake.clone()),
            handshake_timeout: read.duration("balancer.handshake_timeout", handshake),
        };
        let log = Log {
            level: read.choice(
                "log.level",
                &[
                    ("error", LevelFilter::Error),
                    ("warn", LevelFilter::Warn),
                    ("info", LevelFilter::Info),
                    ("debug", LevelFilter::Debug),
                    ("trace", LevelFilter::Trace),
                ],
            ),
            format: read
                .choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        };
        if server.listen == admin.listen && server.listen.port() != 0 {
            read.complain(
                "admin.listen",
                "is the traffic listener's too: give it a port of its own",
            );
        }
        let lists = std::mem::take(&mut read.lists);
        read.finish()?;
        Ok(Self { backends, server, admin, balancer, log, settings, lists })
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
    /// Every key with its value and origin, as TOML with dotted keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What JSON escapes and how is right in TOML too, which cannot be said of Rust's way; only
        // DEL is a control character to TOML alone.
        let quoted =
            |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
        for (key, setting) in &self.settings {
            let origin = &setting.origin;
            match &setting.texts[..] {
                [text] if !self.lists.contains(key) => {
                    writeln!(f, "{key} = {}  # {origin}", quoted(text))?;
                }
                _ => {
                    let items: Vec<_> = setting.items().map(quoted).collect();
                    writeln!(f, "{key} = [{}]  # {origin}", items.join(", "))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn resolve(file: Option<&str>, variables: &[(&str, &str)]) -> Result<Config, Problems> {
        let path = file.map(|text| {
            let name = format!("wsbalancer-{}-{:x}.toml", std::process::id(), fastrand::u64(..));
            let path = std::env::temp_dir().join(name);
            std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            path
        });
        let layers = Layers::new(path.as_deref(), env(variables));
        if let Some(path) = path {
            std::fs::remove_file(path).unwrap();
        }
        Config::resolve(layers?)
    }

    #[test]
    fn the_services_variable_alone_is_a_working_setup() {
        let config = resolve(
            None,
            &[("WSBALANCER_SERVICES", "http://127.0.0.1:3001,http://127.0.0.1:3002")],
        )
        .unwrap();
        let addresses: Vec<_> = config.backends.iter().map(|pod| pod.address.as_str()).collect();
        assert_eq!(addresses, ["127.0.0.1:3001", "127.0.0.1:3002"]);
        assert_eq!(config.server.listen.port(), 8080);
        assert_eq!(config.balancer.stale_after, Duration::from_secs(30));
        assert!(config.server.workers >= 1);
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file =
            "services = [\"http://a:3001\"]\n[server]\nworkers = 3\nlisten = \"127.0.0.1:1\"";
        let variables =
            [("WSBALANCER__SERVER__LISTEN", "127.0.0.1:2"), ("WSBALANCER__LOG__LEVEL", "")];
        let config = resolve(Some(file), &variables).unwrap();
        assert_eq!(config.server.listen.port(), 2);
        assert_eq!(config.server.workers, 3);
        assert_eq!(config.log.level, LevelFilter::Info, "an empty variable counts as unset");
        assert!(
            config
                .to_string()
                .contains("server.listen = \"127.0.0.1:2\"  # WSBALANCER__SERVER__LISTEN")
        );
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let file = "[server]\nlisen = \"x\"\n[balancer]\npoll_interval = 3\nretries = -1\n[log]\nlevel = \"inf\"";
        let variables = [
            (
                "WSBALANCER_SERVICES",
                "http://a:3001,ftp://b,http://a:3001,http://c/path,http://:1,http://d#x",
            ),
            ("WSBALANCER__ADMIN__LISTEN", "9090"),
        ];
        let problems = resolve(Some(file), &variables).unwrap_err().to_string();
        for expected in [
            "10 problems",
            "unknown key; did you mean \"server.listen\"?",
            "balancer.poll_interval = \"3\"",
            "expected a duration with its unit, 100ms to 1h",
            "balancer.retries = \"-1\"",
            "expected one of error, warn, info, debug, trace; did you mean \"info\"?",
            "(from WSBALANCER__ADMIN__LISTEN): expected IP address and port",
            "\"ftp://b\": expected a pod's URL",
            "\"http://:1\": expected a pod's URL",
            "\"http://d#x\": expected a pod's URL such as http://pod:3001, without path",
            "\"http://a:3001\" stands there twice",
            "\"http://c/path\": expected a pod's URL such as http://pod:3001, without path",
        ] {
            assert!(problems.contains(expected), "{expected:?} is missing in:\n{problems}");
        }
    }

    #[test]
    fn no_pods_is_a_mistake_with_a_remedy() {
        let problems = resolve(None, &[]).unwrap_err();
        assert_eq!(problems.0.len(), 1);
        assert!(problems.to_string().contains("WSBALANCER_SERVICES"), "{problems}");
    }

    #[test]
    fn a_file_that_is_not_toml_or_not_there_is_named() {
        let problems = resolve(Some("services = ["), &[]).unwrap_err().to_string();
        assert!(problems.contains(".toml") && problems.contains("TOML"), "{problems}");
        let missing = Layers::new(Some(std::path::Path::new("/no/such.toml")), []).unwrap_err();
        assert!(missing.to_string().contains("/no/such.toml"), "{missing}");
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_not_ours() {
        let variables = [
            ("WSBALANCER_SERVICES", "http://a:3001"),
            ("WSBALANCER_SERVICE_HOST", "10.0.0.1"),
            ("WSBALANCER_PORT", "tcp://10.0.0.1:8080"),
        ];
        resolve(None, &variables).unwrap();
    }

    #[test]
    fn both_listeners_on_one_address_is_a_mistake() {
        let variables = [
            ("WSBALANCER_SERVICES", "http://a:3001"),
            ("WSBALANCER__ADMIN__LISTEN", "0.0.0.0:8080"),
        ];
        let problems = resolve(None, &variables).unwrap_err().to_string();
        assert!(problems.contains("admin.listen = \"0.0.0.0:8080\""), "{problems}");
    }
}
