//! The layers of settings: defaults, file, environment. Each value keeps its origin.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    path::Path,
};

use config::{ConfigError, Environment, File, FileFormat, Source, Value, ValueKind};

/// The compiled-in defaults: every key with a comment.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Tables that can be empty.
const SECTIONS: [&str; 6] = ["services", "server", "admin", "balancer", "routes", "log"];

/// Origin of a default.
const DEFAULT_ORIGIN: &str = "default";

/// Prefix of the environment variables that set keys: `WSBALANCER__SECTION__KEY`.
const ENV_PREFIX: &str = "WSBALANCER__";

/// Shorthand for `WSBALANCER__SERVICES`.
const ENV_SERVICES: &str = "WSBALANCER_SERVICES";

/// Whether the value of `key` is a secret, which is never printed.
pub fn is_secret(key: &str) -> bool {
    key.ends_with("cookie_key") || key == "admin.token"
}

/// Whether `key` holds header fields (`Name: value`), whose values can be credentials.
pub fn holds_header_fields(key: &str) -> bool {
    key.ends_with(".add_headers") || key.ends_with(".set_headers")
}

/// Returns `item` of the list `key` as it can be printed, without credentials.
pub fn redact_item<'a>(key: &str, item: &'a str) -> Cow<'a, str> {
    match item.split_once(':') {
        _ if !holds_header_fields(key) => redact_urls(item),
        Some((name, _)) => format!("{name}: ***").into(),
        // This can be the rest of a value that contains a comma.
        None => "***".into(),
    }
}

/// Returns `text` with the user names and passwords of its URLs (RFC 3986 §3.2.1) replaced by
/// asterisks. No setting accepts them, but error messages quote the text as written.
pub fn redact_urls(text: &str) -> Cow<'_, str> {
    let Some((before, rest)) = text.split_once("//") else { return text.into() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match (authority.rsplit_once('@'), redact_urls(path)) {
        (None, Cow::Borrowed(_)) => text.into(),
        (None, path) => format!("{before}//{authority}{path}").into(),
        (Some((_, host)), path) => format!("{before}//***@{host}{path}").into(),
    }
}

/// Reads a regular file. Reading a pipe or a device could block or never end.
fn read_regular_file(path: &Path) -> io::Result<String> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    fs::read_to_string(path)
}

/// Returns the names of the sockets that this process inherits (LISTEN_FDNAMES of
/// sd_listen_fds(3)).
pub fn socket_names() -> Vec<String> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(ToOwned::to_owned).collect()
}

/// One problem in the settings: the key, its value and origin, and the advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key, or the file that could not be read.
    pub key: String,
    /// The value as written; `None` for a missing or unknown key and for a secret.
    pub value: Option<String>,
    /// File or environment variable that set the value.
    pub origin: String,
    /// The fault and the expected value.
    pub advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value:?}")?;
        }
        write!(f, " (from {}): {}", self.origin, self.advice)
    }
}

/// All problems in the settings; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        writeln!(f, "{count} problem{} in the configuration:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| writeln!(f, "  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// A value as written, and where it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// One text, or the items of a list.
    pub texts: Vec<String>,
    /// `default`, a file, or an environment variable.
    pub origin: String,
    /// Whether it was written as a list. Otherwise commas in the text separate the items.
    pub is_list: bool,
}

impl Setting {
    /// Returns the items of a list, however it was written.
    pub fn items(&self) -> impl Iterator<Item = &str> {
        let separators: &[char] = if self.is_list { &[] } else { &[','] };
        let items = self.texts.iter().flat_map(move |text| text.split(separators));
        items.map(str::trim).filter(|item| !item.is_empty())
    }
}

/// The merged layers: one setting per dotted key.
#[derive(Clone, Debug)]
pub struct Layers(pub BTreeMap<String, Setting>);

impl Layers {
    /// Reads the layers of this process.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn from_process(file: Option<&Path>) -> Result<Self, Problems> {
        // All our variables are UTF-8.
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self::new(file, std::env::vars_os().filter_map(text))
    }

    /// Merges the defaults, `file` and `environment`; later ones win.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn new(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let mut layers = Self::defaults();
        if let Some(path) = file {
            let origin = path.display().to_string();
            let text = read_regular_file(path).map_err(|error| {
                let (key, origin) = (origin.clone(), origin.clone());
                let advice = format!("cannot be read: {error}");
                Problems(vec![Problem { key, value: None, origin, advice }])
            })?;
            let source = File::from_str(&text, FileFormat::Toml);
            layers.add(&source, &origin, |_| origin.clone())?;
        }
        layers.add_environment(environment)?;
        Ok(layers)
    }

    /// Like [`new`](Self::new), with the text of the file instead of its path.
    ///
    /// # Errors
    /// The text is not TOML.
    pub fn from_texts(
        toml: Option<&str>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let mut layers = Self::defaults();
        if let Some(text) = toml {
            layers.add(&File::from_str(text, FileFormat::Toml), "text", |_| "text".to_owned())?;
        }
        layers.add_environment(environment)?;
        Ok(layers)
    }

    fn add_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), Problems> {
        let mut variables = HashMap::new();
        for (name, value) in environment {
            // Kubernetes sets WSBALANCER_PORT and others for a Service named wsbalancer, so that
            // only this variable with a single underscore is accepted.
            if name == ENV_SERVICES {
                variables.entry(format!("{ENV_PREFIX}SERVICES")).or_insert(value);
            } else if name.starts_with(ENV_PREFIX) {
                variables.insert(name, value);
            }
        }
        let source = Environment::with_prefix("WSBALANCER")
            .prefix_separator("__")
            .separator("__")
            .ignore_empty(true)
            .source(Some(variables));
        self.add(&source, "the environment", |key| {
            format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"))
        })
    }

    /// Returns the compiled-in defaults.
    pub fn defaults() -> Self {
        let mut layers = Self(BTreeMap::new());
        let source = File::from_str(DEFAULTS, FileFormat::Toml);
        layers
            .add(&source, "default.toml", |_| DEFAULT_ORIGIN.to_owned())
            .expect("the compiled-in defaults are TOML, which a test checks");
        layers
    }

    /// Overrides one key, as a command line would.
    pub fn set(&mut self, key: &str, texts: Vec<String>, origin: &str) {
        let is_list = texts.len() != 1;
        self.0.insert(key.to_owned(), Setting { texts, origin: origin.to_owned(), is_list });
    }

    /// Removes the keys below `table`.
    pub fn remove_table(&mut self, table: &str) {
        self.0.retain(|key, _| !key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')));
    }

    /// Whether nothing overrides the default of `key`.
    pub fn is_default(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|setting| setting.origin == DEFAULT_ORIGIN)
    }

    fn add(
        &mut self,
        source: &dyn Source,
        name: &str,
        origin: impl Fn(&str) -> String,
    ) -> Result<(), Problems> {
        let table = source.collect().map_err(|error| {
            Problems(vec![Problem {
                key: name.to_owned(),
                value: None,
                origin: name.to_owned(),
                advice: format!("cannot be read: {}", describe_parse_error(&error)),
            }])
        })?;
        for (key, value) in table {
            self.flatten(key, value, &origin);
        }
        Ok(())
    }

    fn flatten(&mut self, key: String, value: Value, origin: &impl Fn(&str) -> String) {
        let is_list = matches!(value.kind, ValueKind::Array(_));
        let texts = match value.kind {
            ValueKind::Array(values)
                if matches!(values[..], [Value { kind: ValueKind::Table(_), .. }, ..]) =>
            {
                for (index, value) in values.into_iter().enumerate() {
                    self.flatten(format!("{key}.{index}"), value, origin);
                }
                return;
            }
            // Kept as a key, so that a misspelt section is reported even if it is empty.
            ValueKind::Table(table) if table.is_empty() && !SECTIONS.contains(&key.as_str()) => {
                Vec::new()
            }
            ValueKind::Table(table) => {
                for (name, value) in table {
                    self.flatten(format!("{key}.{name}"), value, origin);
                }
                return;
            }
            ValueKind::Array(values) => values.into_iter().map(scalar_text).collect(),
            scalar => vec![scalar_text(Value::new(None, scalar))],
        };
        let origin = origin(&key);
        self.0.insert(key, Setting { texts, origin, is_list });
    }
}

/// Returns a scalar as written. Lists and tables are not quoted: nested ones would double in size
/// at each level.
fn scalar_text(value: Value) -> String {
    match value.kind {
        ValueKind::Array(_) => "[…]".to_owned(),
        ValueKind::Table(_) => "{…}".to_owned(),
        _ => value.to_string(),
    }
}

/// Describes an error and its position on one line, without the quoted lines of the file: they can
/// contain secrets.
fn describe_parse_error(error: &ConfigError) -> String {
    let text = match error {
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let is_quoted = |line: &str| {
        line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|')
    };
    let lines: Vec<&str> = text.lines().filter(|line| !is_quoted(line)).collect();
    lines.join(": ")
}
