//! Reads typed settings from the layers and collects every problem in them.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    num::NonZeroU32,
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    layers::{
        Layers, Problem, Problems, Setting, holds_header_fields, is_secret, redact_item,
        redact_urls,
    },
    parse::{
        did_you_mean, parse_duration, parse_listen_address, parse_network, parse_path, parse_pod,
        parse_socket_address,
    },
};
use crate::{
    domain::balance::{backend::Backend, settings::Capacity},
    domain::session::close_code::CloseCode,
    net::listen::ListenAddress,
};

/// The pods of a list.
#[derive(Default)]
pub(super) struct PodList {
    pub backends: Vec<Backend>,
    /// Options of the pods that have any, by address.
    pub capacities: BTreeMap<String, Capacity>,
}

/// Keys of a `[[routes]]` table.
pub(super) const ROUTE_KEYS: [&str; 6] =
    ["host", "path_prefix", "methods", "strip_prefix", "replace_path", "service"];

/// Reads settings from the layers by key and collects the problems.
///
/// After a problem it returns the default, so that all problems are found in one pass.
pub(super) struct Reader {
    settings: BTreeMap<String, Setting>,
    defaults: BTreeMap<String, Setting>,
    /// The service whose table overrides `[balancer]` at the moment.
    service: Option<String>,
    used_keys: HashSet<String>,
    /// Keys that hold lists.
    pub(super) lists: HashSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn new(layers: Layers) -> Self {
        Self {
            settings: layers.0,
            defaults: Layers::defaults().0,
            service: None,
            used_keys: HashSet::new(),
            lists: HashSet::new(),
            problems: Vec::new(),
        }
    }

    /// Reads keys of `[balancer]` for `service` from now on: its own table overrides them.
    pub(super) fn set_service(&mut self, service: Option<&str>) {
        self.service = service.map(ToOwned::to_owned);
    }

    /// Returns the key that sets the value of `key`: the one in the service's own table, or `key`.
    pub(super) fn effective_key(&self, key: &str) -> String {
        let own = self.service.as_ref().zip(key.strip_prefix("balancer."));
        let own = own.map(|(service, name)| format!("services.{service}.{name}"));
        own.filter(|own| self.settings.contains_key(own)).unwrap_or_else(|| key.to_owned())
    }

    /// Returns the names of the tables in `table`, such as `chat` for `services.chat.backends`.
    pub(super) fn table_names(&self, table: &str) -> Vec<String> {
        let rest = |key: &String| Some(key.strip_prefix(table)?.strip_prefix('.')?.to_owned());
        let name = |rest: String| rest.split('.').next().unwrap_or_default().to_owned();
        let mut names: Vec<String> = self.settings.keys().filter_map(rest).map(name).collect();
        names.dedup();
        names
    }

    /// Whether `key` is set, even if to an empty value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.settings.contains_key(key)
    }

    /// Reads a single value of a key without a default. An empty value counts as unset.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.has(key) && self.setting(key).texts.iter().all(String::is_empty) {
            return None;
        }
        self.optional_or_empty(key, parse)
    }

    /// Reads a single value of a key without a default. An empty value is parsed like any other.
    pub(super) fn optional_or_empty<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            return None;
        }
        self.parse_single(key, parse).map_err(|advice| self.add_problem(key, advice)).ok()
    }

    fn parse_single<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        match &self.setting(key).texts[..] {
            [text] => parse(text),
            _ => Err("expected one value, not a list".to_owned()),
        }
    }

    fn setting(&mut self, key: &str) -> Setting {
        let effective = self.effective_key(key);
        self.used_keys.extend([key.to_owned(), effective.clone()]);
        self.settings
            .get(&effective)
            .cloned()
            .unwrap_or_else(|| panic!("{key} is not in default.toml"))
    }

    /// Adds a problem with the value of `key`.
    pub(super) fn add_problem(&mut self, key: &str, advice: impl Into<String>) {
        let setting = self.setting(key);
        let key = self.effective_key(key);
        let fields = || setting.items().map(|item| redact_item(&key, item)).collect::<Vec<_>>();
        let shown = || match holds_header_fields(&key) {
            true => fields().join(","),
            false => redact_urls(&setting.texts.join(",")).into_owned(),
        };
        let value = (!is_secret(&key)).then(shown);
        self.push_problem(Problem { value, key, origin: setting.origin, advice: advice.into() });
    }

    /// Adds a problem with a table, or with a key that is missing in one. Its origin is that of the
    /// first key in the table.
    pub(super) fn add_problem_in_table(&mut self, key: &str, advice: impl Into<String>) {
        let table = key.rsplit_once('.').map_or(key, |(table, _)| table);
        let first = |of: &str| {
            let below =
                |known: &str| known.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'));
            self.settings.iter().find(|(known, _)| *known == of || below(known))
        };
        let near = first(key).or_else(|| first(table));
        let origin = near.map_or_else(|| "nowhere".to_owned(), |(_, near)| near.origin.clone());
        let key = key.to_owned();
        self.push_problem(Problem { key, value: None, origin, advice: advice.into() });
    }

    /// Adds a problem once: services that share a key would repeat it.
    fn push_problem(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Reads a single value of a key with a default.
    pub(super) fn value<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.parse_single(key, &parse).unwrap_or_else(|advice| {
            self.add_problem(key, advice);
            let default = self.defaults.get(key).and_then(|setting| setting.texts.first());
            default
                .and_then(|text| parse(text).ok())
                .unwrap_or_else(|| panic!("the default of {key} is not valid"))
        })
    }

    /// Reads a text; `None` if it is empty.
    pub(super) fn optional_text(&mut self, key: &str) -> Option<String> {
        self.value(key, |text| Ok((!text.is_empty()).then(|| text.to_owned())))
    }

    pub(super) fn listen_address(&mut self, key: &str) -> ListenAddress {
        self.value(key, parse_listen_address)
    }

    pub(super) fn socket_address(&mut self, key: &str) -> SocketAddr {
        self.value(key, parse_socket_address)
    }

    pub(super) fn networks(&mut self, key: &str) -> Vec<IpNet> {
        self.list(key, parse_network)
    }

    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        self.value(key, |text| parse_duration(text, &range))
    }

    /// Reads a duration up to `max`; `None` for zero.
    pub(super) fn optional_duration(&mut self, key: &str, max: Duration) -> Option<Duration> {
        Some(self.duration(key, Duration::ZERO..=max)).filter(|duration| !duration.is_zero())
    }

    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> u64 {
        self.value(key, |text| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            let (from, to) = range.clone().into_inner();
            number.ok_or_else(|| format!("expected a whole number from {from} to {to}"))
        })
    }

    /// Reads a limit; `None` for 0, which means no limit.
    pub(super) fn limit(&mut self, key: &str) -> Option<NonZeroU32> {
        NonZeroU32::new(self.number(key, 0..=u64::from(u32::MAX)) as u32)
    }

    pub(super) fn boolean(&mut self, key: &str) -> bool {
        self.choice(key, &[("true", true), ("false", false)])
    }

    pub(super) fn path(&mut self, key: &str) -> String {
        self.value(key, parse_path)
    }

    /// Reads one of `choices`, by name.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let names = || choices.iter().map(|(name, _)| *name);
        self.value(key, |text| match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let all = names().collect::<Vec<_>>().join(", ");
                Err(format!("expected one of {all}{}", did_you_mean(text, names())))
            }
        })
    }

    /// Reads a close code that can be sent in a Close frame (RFC 6455 §7.4).
    pub(super) fn close_code(&mut self, key: &str) -> CloseCode {
        self.value(key, |text| {
            let code = text.parse().ok().and_then(CloseCode::new);
            let advice = "expected 1000 to 4999, but not 1004, 1005, 1006 or 1015";
            code.ok_or_else(|| advice.to_owned())
        })
    }

    /// Reads a list. Returns the valid items; each invalid one is a problem of its own.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.lists.insert(self.effective_key(key));
        let setting = self.setting(key);
        let mut parsed = Vec::new();
        for item in setting.items() {
            match parse(item) {
                Ok(value) => parsed.push(value),
                Err(advice) => {
                    let item = redact_item(key, item);
                    self.add_problem(key, format!("{item:?}: {advice}"));
                }
            }
        }
        parsed
    }

    /// Reads a list of pods with their options.
    pub(super) fn pods(&mut self, key: &str, service: &str) -> PodList {
        let mut pods = PodList::default();
        for (backend, capacity) in self.list(key, |text| parse_pod(text, service)) {
            if pods.backends.iter().any(|known| known.address == backend.address) {
                self.add_problem(key, format!("{:?} is listed twice", backend.url));
                continue;
            }
            if capacity != Capacity::default() {
                pods.capacities.insert(backend.address.clone(), capacity);
            }
            pods.backends.push(backend);
        }
        pods
    }

    /// Ends reading without checking for unknown keys.
    ///
    /// # Errors
    /// The problems found so far.
    pub(super) fn finish_ignoring_unknown_keys(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }

    /// Ends reading: every key that was not read is unknown.
    ///
    /// # Errors
    /// All problems.
    pub(super) fn finish(mut self) -> Result<(), Problems> {
        let mut known: Vec<String> = self.defaults.keys().cloned().collect();
        for service in self.table_names("services") {
            let rules = self.defaults.keys().filter_map(|key| key.strip_prefix("balancer."));
            let keys = rules.chain(["backends", "discovery.dns", "discovery.srv"]);
            known.extend(keys.map(|name| format!("services.{service}.{name}")));
        }
        for route in self.table_names("routes") {
            known.extend(ROUTE_KEYS.map(|name| format!("routes.{route}.{name}")));
        }
        for (key, setting) in &self.settings {
            if !self.used_keys.contains(key) {
                let near = did_you_mean(key, known.iter().map(String::as_str));
                self.problems.push(Problem {
                    key: key.clone(),
                    value: None,
                    origin: setting.origin.clone(),
                    advice: format!("unknown key{near}"),
                });
            }
        }
        self.finish_ignoring_unknown_keys()
    }
}
