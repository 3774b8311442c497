//! Reads settings one by one, each with its type and range, and gathers what is wrong with them.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    ops::RangeInclusive,
    time::Duration,
};

use actix_http::{
    Uri,
    header::{HeaderName, HeaderValue},
};
use ipnet::IpNet;

use super::layers::{
    Layers, Problem, Problems, Setting, holds_fields, is_secret, shown_item, without_password,
};
use crate::{
    domain::{
        balance::{
            lease::{Backend, Transport},
            settings::Share,
        },
        routing::route::has_dot_segments,
    },
    net::listen::ListenAddress,
};

/// The pods of a list.
#[derive(Default)]
pub(super) struct Pods {
    pub backends: Vec<Backend>,
    /// By address, where they are not the usual ones.
    pub shares: BTreeMap<String, Share>,
}

/// What a route may say.
pub(super) const ROUTE_KEYS: [&str; 6] =
    ["host", "path_prefix", "methods", "strip_prefix", "replace_path", "service"];

/// Weights that a pod may have.
const WEIGHTS: RangeInclusive<f64> = 0.01..=1000.0;

/// What switches may be.
pub(super) const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

/// Takes settings out of the layers one by one and gathers what is wrong with them.
pub(super) struct Reader {
    settings: BTreeMap<String, Setting>,
    defaults: BTreeMap<String, Setting>,
    /// The service whose table overrides `[balancer]` just now.
    service: Option<String>,
    taken: HashSet<String>,
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
            taken: HashSet::new(),
            lists: HashSet::new(),
            problems: Vec::new(),
        }
    }

    /// Whatever is read of `[balancer]` from now on is read for `service`.
    pub(super) fn of_service(&mut self, service: Option<&str>) {
        self.service = service.map(ToOwned::to_owned);
    }

    /// Where the value of `key` stands: in the service's own table or at the key itself.
    pub(super) fn place(&self, key: &str) -> String {
        let own = self.service.as_ref().zip(key.strip_prefix("balancer."));
        let own = own.map(|(service, name)| format!("services.{service}.{name}"));
        own.filter(|own| self.settings.contains_key(own)).unwrap_or_else(|| key.to_owned())
    }

    /// The parts behind `table.` of all keys below it, such as `chat` of `services.chat.backends`.
    pub(super) fn names_below(&self, table: &str) -> Vec<String> {
        let rest = |key: &String| Some(key.strip_prefix(table)?.strip_prefix('.')?.to_owned());
        let name = |rest: String| rest.split('.').next().unwrap_or_default().to_owned();
        let mut names: Vec<String> = self.settings.keys().filter_map(rest).map(name).collect();
        names.dedup();
        names
    }

    /// Whether `key` stands somewhere.
    pub(super) fn has(&self, key: &str) -> bool {
        self.settings.contains_key(key)
    }

    /// A single value of a key that has no default. An empty one is as good as none.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.has(key) && self.setting(key).texts.iter().all(String::is_empty) {
            return None;
        }
        self.given(key, parse)
    }

    /// A single value of a key that has no default and means something wherever it stands.
    pub(super) fn given<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            return None;
        }
        let parsed = match &self.setting(key).texts[..] {
            [text] => parse(text),
            _ => Err("expected one value, not a list".to_owned()),
        };
        parsed.map_err(|advice| self.complain(key, advice)).ok()
    }

    fn setting(&mut self, key: &str) -> Setting {
        let place = self.place(key);
        self.taken.extend([key.to_owned(), place.clone()]);
        self.settings.get(&place).cloned().unwrap_or_else(|| panic!("{key} is not in default.toml"))
    }

    pub(super) fn complain(&mut self, key: &str, advice: impl Into<String>) {
        let setting = self.setting(key);
        let key = self.place(key);
        let fields = || setting.items().map(|item| shown_item(&key, item)).collect::<Vec<_>>();
        let shown = || match holds_fields(&key) {
            true => fields().join(","),
            false => without_password(&setting.texts.join(",")).into_owned(),
        };
        let value = (!is_secret(&key)).then(shown);
        self.problem(Problem { value, key, origin: setting.origin, advice: advice.into() });
    }

    /// About a table, or about something that should stand in one: where the table's first key
    /// stands is said instead of where the missing one does.
    pub(super) fn complain_of_table(&mut self, key: &str, advice: impl Into<String>) {
        let table = key.rsplit_once('.').map_or(key, |(table, _)| table);
        let first = |of: &str| {
            let below =
                |known: &str| known.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'));
            self.settings.iter().find(|(known, _)| *known == of || below(known))
        };
        let near = first(key).or_else(|| first(table));
        let origin = near.map_or_else(|| "nowhere".to_owned(), |(_, near)| near.origin.clone());
        let key = key.to_owned();
        self.problem(Problem { key, value: None, origin, advice: advice.into() });
    }

    /// What several services share is wrong once.
    fn problem(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// A single value. After a mistake the default stands in, so that reading can go on.
    pub(super) fn value<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let parsed = match &self.setting(key).texts[..] {
            [text] => parse(text),
            _ => Err("expected one value, not a list".to_owned()),
        };
        parsed.unwrap_or_else(|advice| {
            self.complain(key, advice);
            let default = self.defaults.get(key).and_then(|setting| setting.texts.first());
            default
                .and_then(|text| parse(text).ok())
                .unwrap_or_else(|| panic!("the default of {key} is not valid"))
        })
    }

    /// A text, or nothing.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.value(key, |text| Ok((!text.is_empty()).then(|| text.to_owned())))
    }

    pub(super) fn listen(&mut self, key: &str) -> ListenAddress {
        self.value(key, |text| match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(ListenAddress::Unix(path.into())),
            Some(_) => Err("expected an absolute path behind unix:".to_owned()),
            None => address(text).map(ListenAddress::Tcp),
        })
    }

    pub(super) fn address(&mut self, key: &str) -> SocketAddr {
        self.value(key, address)
    }

    pub(super) fn networks(&mut self, key: &str) -> Vec<IpNet> {
        self.list(key, |text| {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| "expected an IP address or a range such as 10.0.0.0/8".into())
        })
    }

    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        self.value(key, |text| {
            let (from, to) = (*range.start(), *range.end());
            let bounds = format!("{} to {}", in_days(from), in_days(to));
            match humantime::parse_duration(text) {
                Ok(duration) if range.contains(&duration) => Ok(duration),
                Ok(_) => Err(format!("out of range, expected {bounds}")),
                Err(_) => Err(format!("expected a duration with its unit, {bounds}")),
            }
        })
    }

    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> u64 {
        self.value(key, |text| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            let (from, to) = range.clone().into_inner();
            number.ok_or_else(|| format!("expected a whole number from {from} to {to}"))
        })
    }

    pub(super) fn path(&mut self, key: &str) -> String {
        self.value(key, path)
    }

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

    /// A limit; 0 means none.
    pub(super) fn limit(&mut self, key: &str) -> Option<NonZeroU32> {
        NonZeroU32::new(self.number(key, 0..=u64::from(u32::MAX)) as u32)
    }

    /// The items that are right; each wrong one is a problem of its own.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.lists.insert(self.place(key));
        let setting = self.setting(key);
        let mut parsed = Vec::new();
        for item in setting.items() {
            match parse(item) {
                Ok(value) => parsed.push(value),
                Err(advice) => {
                    let item = shown_item(key, item);
                    self.complain(key, format!("{item:?}: {advice}"));
                }
            }
        }
        parsed
    }

    /// Pods, and how large those are that say so.
    pub(super) fn backends(&mut self, key: &str, service: &str) -> Pods {
        let mut pods = Pods::default();
        for (backend, share) in self.list(key, |text| pod(text, service)) {
            if pods.backends.iter().any(|known| known.address == backend.address) {
                self.complain(key, format!("{:?} stands there twice", backend.url));
                continue;
            }
            if share != Share::default() {
                pods.shares.insert(backend.address.clone(), share);
            }
            pods.backends.push(backend);
        }
        pods
    }

    /// Without a word about keys that were not asked for.
    pub(super) fn finish_partly(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }

    pub(super) fn finish(mut self) -> Result<(), Problems> {
        let mut known: Vec<String> = self.defaults.keys().cloned().collect();
        for service in self.names_below("services") {
            let rules = self.defaults.keys().filter_map(|key| key.strip_prefix("balancer."));
            let keys = rules.chain(["backends", "discovery.dns", "discovery.srv"]);
            known.extend(keys.map(|name| format!("services.{service}.{name}")));
        }
        for route in self.names_below("routes") {
            known.extend(ROUTE_KEYS.map(|name| format!("routes.{route}.{name}")));
        }
        for (key, setting) in &self.settings {
            if !self.taken.contains(key) {
                let near = did_you_mean(key, known.iter().map(String::as_str));
                self.problems.push(Problem {
                    key: key.clone(),
                    value: None,
                    origin: setting.origin.clone(),
                    advice: format!("unknown key{near}"),
                });
            }
        }
        self.finish_partly()
    }
}

/// A duration as it would be written; humantime makes months of many days.
fn in_days(duration: Duration) -> String {
    const DAY: u64 = 86_400;
    match duration.as_secs() {
        seconds if seconds > DAY && seconds % DAY == 0 => format!("{}d", seconds / DAY),
        _ => humantime::format_duration(duration).to_string(),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let advice = "expected IP address and port, such as 0.0.0.0:8080 or [::]:8080";
    text.parse().map_err(|_| advice.to_owned())
}

/// A path without query.
pub(super) fn path(text: &str) -> Result<String, String> {
    if has_dot_segments(text) {
        return Err("expected a path without segments of dots".to_owned());
    }
    let origin_form = text.starts_with('/') && !text.contains(['?', '#', '{', '}']);
    if origin_form && text.parse::<Uri>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("expected a path such as /metric, without query".to_owned())
    }
}

/// A pod's URL, and behind it what is said of its size: `http://pod:3001 weight=3
/// max_connections=500`.
fn pod(text: &str, service: &str) -> Result<(Backend, Share), String> {
    let mut words = text.split_whitespace();
    let backend = backend(words.next().unwrap_or_default(), service)?;
    let mut share = Share::default();
    for word in words {
        match word.split_once('=') {
            Some(("weight", weight)) => {
                let weight = weight.parse().ok().filter(|weight| WEIGHTS.contains(weight));
                let (least, most) = WEIGHTS.into_inner();
                share.weight =
                    weight.ok_or_else(|| format!("expected weight={least} to {most}"))?;
            }
            Some(("max_connections", max)) => {
                let max = max.parse().ok().filter(|max| *max > 0);
                let max = max.ok_or("expected a whole number from 1 behind max_connections=")?;
                share.max_connections = Some(max);
            }
            _ => return Err(format!("{word:?}: expected weight=3 or max_connections=500")),
        }
    }
    Ok((backend, share))
}

/// A pod's URL: `http://host:port`, `https://host:port` or `unix:/path`, and nothing more.
pub(super) fn backend(url: &str, service: &str) -> Result<Backend, String> {
    let expected = "expected a pod's URL such as http://pod:3001";
    let (service, written) = (service.to_owned(), url.to_owned());
    if let Some(path) = url.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err("expected an absolute path behind unix:".to_owned());
        }
        let (address, transport) = (path.to_owned(), Transport::Unix);
        return Ok(Backend { service, url: written, address, transport });
    }
    let uri: Uri = url.parse().map_err(|error| format!("{expected} ({error})"))?;
    let (transport, own_port) = match uri.scheme_str() {
        Some("http" | "ws") => (Transport::Tcp, 80),
        Some("https" | "wss") => (Transport::Tls, 443),
        _ => return Err(expected.to_owned()),
    };
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let Some(authority) = authority else { return Err(expected.to_owned()) };
    if authority.as_str().contains('@') {
        return Err(format!("{expected}, without user name"));
    }
    // Uri drops a fragment without a word.
    if uri.path() != "/" || uri.query().is_some() || url.contains('#') {
        return Err(format!("{expected}, without path: each request keeps its own"));
    }
    // Uri takes what is no port for none at all.
    let port = match authority.as_str()[authority.host().len()..].trim_start_matches(':') {
        "" => own_port,
        port => {
            let advice = "expected a port from 1 to 65535 in the pod's URL";
            port.parse().map(NonZeroU16::get).map_err(|_| format!("{advice}, not {port:?}"))?
        }
    };
    let address = format!("{}:{port}", authority.host());
    Ok(Backend { service, url: written, address, transport })
}

/// `Name: value`.
pub(super) fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected \"Name: value\"")?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| "its value holds characters that no header field may".to_owned())?;
    Ok((field_name(name.trim())?, value))
}

pub(super) fn field_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "expected the name of a header field".to_owned())
}

/// `; did you mean "…"?` for the nearest of `names`, if one is near.
pub(super) fn did_you_mean<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    let nearest = names
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"))
}
