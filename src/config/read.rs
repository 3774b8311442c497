//! Reads settings one by one, each with its type and range, and gathers what is wrong with them.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    num::NonZeroU32,
    ops::RangeInclusive,
    time::Duration,
};

use actix_http::{
    Uri,
    header::{HeaderName, HeaderValue},
};

use super::load::{Layers, Problem, Problems, Setting};
use crate::domain::lease::Backend;

/// Name of the service that the `services` list makes.
const DEFAULT_SERVICE: &str = "default";

/// What switches may be.
pub(super) const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

/// Takes settings out of the layers one by one and gathers what is wrong with them.
pub(super) struct Reader {
    settings: BTreeMap<String, Setting>,
    defaults: BTreeMap<String, Setting>,
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
            taken: HashSet::new(),
            lists: HashSet::new(),
            problems: Vec::new(),
        }
    }

    fn setting(&mut self, key: &str) -> Setting {
        self.taken.insert(key.to_owned());
        self.settings.get(key).cloned().unwrap_or_else(|| panic!("{key} is not in default.toml"))
    }

    pub(super) fn complain(&mut self, key: &str, advice: impl Into<String>) {
        let Setting { texts, origin, .. } = self.setting(key);
        self.problems.push(Problem {
            key: key.to_owned(),
            value: Some(texts.join(",")),
            origin,
            advice: advice.into(),
        });
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

    pub(super) fn address(&mut self, key: &str) -> SocketAddr {
        self.value(key, |text| {
            let advice = "expected IP address and port, such as 0.0.0.0:8080 or [::]:8080";
            text.parse().map_err(|_| advice.to_owned())
        })
    }

    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        self.value(key, |text| {
            let (from, to) = (*range.start(), *range.end());
            let bounds = format!(
                "{} to {}",
                humantime::format_duration(from),
                humantime::format_duration(to)
            );
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
        self.value(key, |text| {
            let origin_form = text.starts_with('/') && !text.contains(['?', '#', '{', '}']);
            if origin_form && text.parse::<Uri>().is_ok() {
                Ok(text.to_owned())
            } else {
                Err("expected a path such as /metric, without query".to_owned())
            }
        })
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
        self.lists.insert(key.to_owned());
        let setting = self.setting(key);
        let mut parsed = Vec::new();
        for item in setting.items() {
            match parse(item) {
                Ok(value) => parsed.push(value),
                Err(advice) => self.complain(key, format!("{item:?}: {advice}")),
            }
        }
        parsed
    }

    pub(super) fn backends(&mut self, key: &str) -> Vec<Backend> {
        let mut backends: Vec<Backend> = Vec::new();
        for backend in self.list(key, backend) {
            if backends.iter().any(|known| known.address == backend.address) {
                self.complain(key, format!("{:?} stands there twice", backend.url));
            } else {
                backends.push(backend);
            }
        }
        if self.setting(key).items().next().is_none() {
            self.complain(
                key,
                "names no pod: set services = [\"http://pod:3001\"] or WSBALANCER_SERVICES",
            );
        }
        backends
    }

    /// Without a word about keys that were not asked for.
    pub(super) fn finish_partly(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }

    pub(super) fn finish(mut self) -> Result<(), Problems> {
        let known: Vec<&String> = self.defaults.keys().collect();
        for (key, setting) in &self.settings {
            if !self.taken.contains(key) {
                let near = did_you_mean(key, known.iter().map(|key| key.as_str()));
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

/// A pod's URL: `http://host:port` and nothing more.
fn backend(url: &str) -> Result<Backend, String> {
    let expected = "expected a pod's URL such as http://pod:3001";
    let uri: Uri = url.parse().map_err(|error| format!("{expected} ({error})"))?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(expected.to_owned());
    };
    if authority.host().is_empty() {
        return Err(expected.to_owned());
    }
    if authority.as_str().contains('@') {
        return Err(format!("{expected}, without user name"));
    }
    // Uri drops a fragment without a word.
    if uri.path() != "/" || uri.query().is_some() || url.contains('#') {
        return Err(format!("{expected}, without path: each request keeps its own"));
    }
    let port = authority.port_u16().unwrap_or(80);
    Ok(Backend {
        service: DEFAULT_SERVICE.to_owned(),
        url: url.to_owned(),
        address: format!("{}:{port}", authority.host()),
    })
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
fn did_you_mean<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    let nearest = names
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    nearest.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"))
}
