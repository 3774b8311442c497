//! What is different between two configurations, and whether it can be so without a restart.

use std::{collections::BTreeSet, fmt};

use super::{
    Affinity, Config, Service,
    layers::{is_secret, shown_item},
};

/// Keys that hold from a process's start to its end: what they are about is made once.
const FIXED: [&str; 7] = [
    "server.listen",
    "server.workers",
    "server.tcp_keepalive",
    "server.tcp_user_timeout",
    "admin.listen",
    "admin.balancer_metric_path",
    "log.format",
];

/// Keys of a service, or of all, that say what pods are asked.
const QUESTIONS: [&str; 2] = ["metric_", "health_"];

/// Keys that say with which files clients are spoken TLS to.
const SERVER_TLS: &str = "server.tls_";

/// A key with another value than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its dotted path.
    pub key: String,
    /// As it was, if it was there; of header fields it has the names.
    pub from: Option<String>,
    /// As it is now, likewise.
    pub to: Option<String>,
}

impl Change {
    /// Whether it takes a restart.
    pub fn is_fixed(&self) -> bool {
        FIXED.contains(&self.key.as_str())
    }

    /// Whether it is about `service`, with a key that begins with one of `names`.
    fn is_about(&self, service: &str, names: &[&str]) -> bool {
        let of_all = self.key.strip_prefix("balancer.");
        let own = || self.key.strip_prefix("services.")?.strip_prefix(service)?.strip_prefix('.');
        let name = of_all.or_else(own);
        name.is_some_and(|name| names.iter().any(|start| name.starts_with(start)))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| match value {
            None => "nothing".to_owned(),
            Some(text) if is_secret(&self.key) && !text.is_empty() => "***".to_owned(),
            Some(text) => format!("{text:?}"),
        };
        write!(f, "{}: {} -> {}", self.key, shown(&self.from), shown(&self.to))
    }
}

/// What is different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// By key.
    pub changes: Vec<Change>,
    /// Services whose files for TLS with pods hold something else, under names that are the same.
    pub renewed: Vec<String>,
}

impl Difference {
    /// From `old` to `new`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let keys: BTreeSet<&String> = old.settings.keys().chain(new.settings.keys()).collect();
        let change = |key: &String| {
            let [from, to] = [old, new].map(|config| value(config, key));
            let shown = |items: Vec<&str>| {
                items.iter().map(|item| shown_item(key, item)).collect::<Vec<_>>().join(", ")
            };
            (from != to).then(|| Change {
                key: key.clone(),
                from: from.map(shown),
                to: to.map(shown),
            })
        };
        let changes: Vec<Change> = keys.into_iter().filter_map(change).collect();
        let renewed = new.services.iter().filter(|service| {
            let by_key = changes.iter().any(|change| change.is_about(&service.name, &["tls_"]));
            !by_key && same_service(old, service).is_some_and(|known| !has_same_tls(known, service))
        });
        let renewed = renewed.map(|service| service.name.clone()).collect();
        Self { changes, renewed }
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.renewed.is_empty()
    }

    /// The changes that take a restart.
    pub fn fixed(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.is_fixed())
    }

    /// Whether clients are spoken TLS to with other files, or these are looked at in other intervals.
    pub fn is_about_server_tls(&self) -> bool {
        self.changes.iter().any(|change| change.key.starts_with(SERVER_TLS))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes = self.changes.iter().map(ToString::to_string);
        let renewed = self.renewed.iter().map(|name| format!("service {name}: renewed TLS files"));
        f.write_str(&changes.chain(renewed).collect::<Vec<_>>().join(", "))
    }
}

/// A key's value; lists are the same however they are written.
fn value<'a>(config: &'a Config, key: &str) -> Option<Vec<&'a str>> {
    let setting = config.settings.get(key)?;
    Some(match config.lists.contains(key) {
        true => setting.items().collect(),
        false => setting.texts.iter().map(String::as_str).collect(),
    })
}

fn same_service<'a>(config: &'a Config, service: &Service) -> Option<&'a Service> {
    config.services.iter().find(|known| known.name == service.name)
}

fn has_same_tls(one: &Service, other: &Service) -> bool {
    match (&one.balancer.tls, &other.balancer.tls) {
        (Some(one), Some(other)) => one.is_like(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl Config {
    /// Takes over from `old`, to which `difference` is known, what is the same and must stay the very
    /// same: keys that were drawn at random, and what is made with some effort.
    pub fn inherit(&mut self, old: &Self, difference: &Difference) {
        if !difference.is_about_server_tls() {
            self.server.tls = old.server.tls.clone();
        }
        for service in &mut self.services {
            let Some(known) = same_service(old, service) else { continue };
            if has_same_tls(known, service) {
                service.balancer.tls = known.balancer.tls.clone();
            }
            let asks_otherwise =
                difference.changes.iter().any(|change| change.is_about(&service.name, &QUESTIONS));
            if !asks_otherwise {
                service.balancer.question = known.balancer.question.clone();
            }
            if let (Affinity::Cookie(cookie), Affinity::Cookie(known)) =
                (&mut service.balancer.affinity, &known.balancer.affinity)
                && !cookie.key_is_shared
                && !known.key_is_shared
            {
                cookie.key = known.key.clone();
            }
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

    fn told(old: &Config, new: &Config) -> Vec<String> {
        Difference::between(old, new).changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_values_are_no_difference_wherever_they_come_from() {
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
    fn each_key_is_named_with_both_values_and_secrets_are_not() {
        let old = config(BASE, &[]);
        let changed = BASE.replace("http://a:1", "http://c:1")
            + "[balancer]\nretries = 7\n"
            + "cookie_key = \"0123456789abcdef\"\n";
        assert_eq!(
            told(&old, &config(&changed, &[])),
            [
                "balancer.cookie_key: \"\" -> ***",
                "balancer.retries: \"2\" -> \"7\"",
                "services.chat.backends: \"http://a:1\" -> \"http://c:1\"",
            ]
        );
        let fields =
            |values: &str| config(&format!("{BASE}[balancer]\nset_headers = [{values}]\n"), &[]);
        let changed = told(&fields("\"X-Key: s3cret, s3cret\""), &fields("\"X-Key: s3crets\""));
        assert_eq!(changed, ["balancer.set_headers: \"X-Key: ***\" -> \"X-Key: ***\""]);
        let fewer = BASE.replace("[services.web]\nbackends = [\"http://b:1\"]\n", "");
        assert_eq!(
            told(&old, &config(&fewer, &[])),
            ["services.web.backends: \"http://b:1\" -> nothing"]
        );
    }

    #[test]
    fn what_is_made_once_takes_a_restart() {
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
            let fixed: Vec<_> = difference.fixed().map(|change| change.key.clone()).collect();
            assert_eq!(fixed, [key.to_lowercase().replace("__", ".")]);
            seen += 1;
        }
        assert_eq!(seen, FIXED.len());
        let new = config(BASE, &[("WSBALANCER__LOG__LEVEL", "debug")]);
        assert_eq!(Difference::between(&old, &new).fixed().count(), 0);
    }

    #[test]
    fn what_was_drawn_or_made_stays_the_very_same_unless_its_keys_change() {
        let old = config(BASE, &[]);
        let key = |config: &Config| config.services[0].balancer.affinity_key().unwrap().tag("", "");
        let question = |config: &Config, at: usize| config.services[at].balancer.question.clone();
        let mut new = config(&(BASE.to_owned() + "[balancer]\nretries = 7\n"), &[]);
        assert_ne!(key(&old), key(&new), "drawn anew");
        assert!(question(&old, 0) != question(&new, 0), "made anew");
        new.inherit(&old, &Difference::between(&old, &new));
        assert_eq!(key(&old), key(&new));
        assert!(question(&old, 0) == question(&new, 0));

        let asks = BASE.replace("[services.web]\n", "[services.web]\nmetric_count = \"/n\"\n");
        let mut new = config(&asks, &[]);
        new.inherit(&old, &Difference::between(&old, &new));
        assert!(question(&old, 0) == question(&new, 0));
        assert!(question(&old, 1) != question(&new, 1));

        let shared = [("WSBALANCER__BALANCER__COOKIE_KEY", "0123456789abcdef")];
        let mut new = config(BASE, &shared);
        new.inherit(&old, &Difference::between(&old, &new));
        assert_ne!(key(&old), key(&new));
    }
}
