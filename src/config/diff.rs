//! What differs between two configurations, and which differences require a restart.

use std::{collections::BTreeSet, fmt};

use super::{
    layers::{is_secret, redact_item},
    model::Config,
    services::ServiceSettings,
};

/// Keys that cannot change while the process runs: listeners, worker threads and the log format are
/// set up once.
const NEEDS_RESTART: [&str; 7] = [
    "server.listen",
    "server.workers",
    "server.tcp_keepalive",
    "server.tcp_user_timeout",
    "admin.listen",
    "admin.balancer_metric_path",
    "log.format",
];

/// Prefixes of the keys that define how pods are polled.
const POLL_KEY_PREFIXES: [&str; 2] = ["metric_", "health_"];

/// Prefix of the keys of the traffic listener's certificate.
const SERVER_TLS_PREFIX: &str = "server.tls_";

/// A key whose value has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Dotted path of the key.
    pub key: String,
    /// Old value, `None` if it was unset. Of header fields it has only the names.
    pub from: Option<String>,
    /// New value, likewise.
    pub to: Option<String>,
}

impl Change {
    /// Whether the change requires a restart.
    pub fn needs_restart(&self) -> bool {
        NEEDS_RESTART.contains(&self.key.as_str())
    }

    /// Whether the key starts with one of `prefixes` in the table of `service` or in `[balancer]`.
    fn affects(&self, service: &str, prefixes: &[&str]) -> bool {
        let shared = self.key.strip_prefix("balancer.");
        let own = || self.key.strip_prefix("services.")?.strip_prefix(service)?.strip_prefix('.');
        let name = shared.or_else(own);
        name.is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| match value {
            None => "unset".to_owned(),
            Some(text) if is_secret(&self.key) && !text.is_empty() => "***".to_owned(),
            Some(text) => format!("{text:?}"),
        };
        write!(f, "{}: {} -> {}", self.key, shown(&self.from), shown(&self.to))
    }
}

/// All differences between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Changed values, sorted by key.
    pub changes: Vec<Change>,
    /// Services whose TLS files have new contents under the same names.
    pub renewed_tls: Vec<String>,
}

impl Difference {
    pub fn between(old: &Config, new: &Config) -> Self {
        let keys: BTreeSet<&String> = old.settings.keys().chain(new.settings.keys()).collect();
        let change = |key: &String| {
            let [from, to] = [old, new].map(|config| value(config, key));
            let shown = |items: Vec<&str>| {
                items.iter().map(|item| redact_item(key, item)).collect::<Vec<_>>().join(", ")
            };
            (from != to).then(|| Change {
                key: key.clone(),
                from: from.map(shown),
                to: to.map(shown),
            })
        };
        let changes: Vec<Change> = keys.into_iter().filter_map(change).collect();
        let renewed_tls = new.services.iter().filter(|service| {
            let by_key = changes.iter().any(|change| change.affects(&service.name, &["tls_"]));
            !by_key && same_service(old, service).is_some_and(|known| !has_same_tls(known, service))
        });
        let renewed_tls = renewed_tls.map(|service| service.name.clone()).collect();
        Self { changes, renewed_tls }
    }

    /// Whether there are no differences.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.renewed_tls.is_empty()
    }

    /// Returns the changes that require a restart.
    pub fn needing_restart(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.needs_restart())
    }

    /// Whether the certificate files of the traffic listener, or the interval at which they are
    /// checked, have changed.
    pub fn affects_server_tls(&self) -> bool {
        self.changes.iter().any(|change| change.key.starts_with(SERVER_TLS_PREFIX))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes = self.changes.iter().map(ToString::to_string);
        let renewed =
            self.renewed_tls.iter().map(|name| format!("service {name}: renewed TLS files"));
        f.write_str(&changes.chain(renewed).collect::<Vec<_>>().join(", "))
    }
}

/// Returns the value of a key as a list of items. Lists are equal however they are written.
fn value<'a>(config: &'a Config, key: &str) -> Option<Vec<&'a str>> {
    let setting = config.settings.get(key)?;
    Some(match config.lists.contains(key) {
        true => setting.items().collect(),
        false => setting.texts.iter().map(String::as_str).collect(),
    })
}

fn same_service<'a>(config: &'a Config, service: &ServiceSettings) -> Option<&'a ServiceSettings> {
    config.services.iter().find(|known| known.name == service.name)
}

fn has_same_tls(one: &ServiceSettings, other: &ServiceSettings) -> bool {
    match (&one.balancer.connect.tls, &other.balancer.connect.tls) {
        (Some(one), Some(other)) => one.is_equivalent(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl Config {
    /// Reuses what `old` holds for unchanged keys: random cookie keys must stay the same, and
    /// loaded TLS files need not be replaced. `difference` is between `old` and these settings.
    pub fn reuse_unchanged(&mut self, old: &Self, difference: &Difference) {
        if !difference.affects_server_tls() {
            self.server.tls = old.server.tls.clone();
        }
        for service in &mut self.services {
            let Some(known) = same_service(old, service) else { continue };
            if has_same_tls(known, service) {
                service.balancer.connect.tls = known.balancer.connect.tls.clone();
            }
            let polls_differ = difference
                .changes
                .iter()
                .any(|change| change.affects(&service.name, &POLL_KEY_PREFIXES));
            if !polls_differ {
                service.balancer.question = known.balancer.question.clone();
            }
            service.balancer.reuse_random_key(&known.balancer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    const BASE: &str = "[services.chat]\nbackends = [\"http://a:1\"]\naffinity = \"cookie\"\n\
                        [services.web]\nbackends = [\"http://b:1\"]\n\
                        [[routes]]\nservice = \"chat\"\n";

    fn config(toml: &str, variables: &[(&str, &str)]) -> Config {
        let variables =
            variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Config::resolve(Layers::from_texts(Some(toml), variables).unwrap()).unwrap()
    }

    fn changes(old: &Config, new: &Config) -> Vec<String> {
        Difference::between(old, new).changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_values_of_different_origin_are_no_difference() {
        let old = config(BASE, &[]);
        let other = BASE.replace("[\"http://a:1\"]", "\"http://a:1\"");
        let variables = [
            ("WSBALANCER__LOG__LEVEL", "info"),
            ("WSBALANCER__BALANCER__RETRY_ON", "502, 503,504"),
        ];
        let difference = Difference::between(&old, &config(&other, &variables));
        assert!(difference.is_empty(), "{difference}");
    }

    #[test]
    fn changes_are_printed_with_both_values_and_without_secrets() {
        let old = config(BASE, &[]);
        let changed = BASE.replace("http://a:1", "http://c:1")
            + "[balancer]\nretries = 7\n"
            + "cookie_key = \"0123456789abcdef\"\n";
        assert_eq!(
            changes(&old, &config(&changed, &[])),
            [
                "balancer.cookie_key: \"\" -> ***",
                "balancer.retries: \"2\" -> \"7\"",
                "services.chat.backends: \"http://a:1\" -> \"http://c:1\"",
            ]
        );
        let fields =
            |values: &str| config(&format!("{BASE}[balancer]\nset_headers = [{values}]\n"), &[]);
        let changed = changes(&fields("\"X-Key: s3cret, s3cret\""), &fields("\"X-Key: s3crets\""));
        assert_eq!(changed, ["balancer.set_headers: \"X-Key: ***\" -> \"X-Key: ***\""]);
        let fewer = BASE.replace("[services.web]\nbackends = [\"http://b:1\"]\n", "");
        assert_eq!(
            changes(&old, &config(&fewer, &[])),
            ["services.web.backends: \"http://b:1\" -> unset"]
        );
    }

    #[test]
    fn changes_of_listeners_workers_and_log_format_require_a_restart() {
        let old = config(BASE, &[]);
        let mut seen = 0;
        for (key, value) in [
            ("SERVER__LISTEN", "127.0.0.1:1"),
            ("SERVER__WORKERS", "7"),
            ("SERVER__TCP_KEEPALIVE", "2m"),
            ("SERVER__TCP_USER_TIMEOUT", "7s"),
            ("ADMIN__LISTEN", "127.0.0.1:2"),
            ("ADMIN__BALANCER_METRIC_PATH", "/where"),
            ("LOG__FORMAT", "json"),
        ] {
            let new = config(BASE, &[(&format!("WSBALANCER__{key}"), value)]);
            let difference = Difference::between(&old, &new);
            let fixed: Vec<_> =
                difference.needing_restart().map(|change| change.key.clone()).collect();
            assert_eq!(fixed, [key.to_lowercase().replace("__", ".")]);
            seen += 1;
        }
        assert_eq!(seen, NEEDS_RESTART.len());
        let new = config(BASE, &[("WSBALANCER__LOG__LEVEL", "debug")]);
        assert_eq!(Difference::between(&old, &new).needing_restart().count(), 0);
    }

    #[test]
    fn random_keys_and_queries_are_reused_unless_their_settings_change() {
        let old = config(BASE, &[]);
        let key = |config: &Config| {
            config.services[0].balancer.affinity.cookie_key().unwrap().tag("", "")
        };
        let question = |config: &Config, at: usize| config.services[at].balancer.question.clone();
        let mut new = config(&(BASE.to_owned() + "[balancer]\nretries = 7\n"), &[]);
        assert_ne!(key(&old), key(&new), "a new random key");
        assert!(question(&old, 0) != question(&new, 0), "a new query");
        new.reuse_unchanged(&old, &Difference::between(&old, &new));
        assert_eq!(key(&old), key(&new));
        assert!(question(&old, 0) == question(&new, 0));

        let asks = BASE.replace("[services.web]\n", "[services.web]\nmetric_count = \"/n\"\n");
        let mut new = config(&asks, &[]);
        new.reuse_unchanged(&old, &Difference::between(&old, &new));
        assert!(question(&old, 0) == question(&new, 0));
        assert!(question(&old, 1) != question(&new, 1));

        let shared = [("WSBALANCER__BALANCER__COOKIE_KEY", "0123456789abcdef")];
        let mut new = config(BASE, &shared);
        new.reuse_unchanged(&old, &Difference::between(&old, &new));
        assert_ne!(key(&old), key(&new));
    }
}
