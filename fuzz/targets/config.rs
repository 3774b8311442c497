//! Fuzzes the configuration: any file and environment is either accepted, with the invariants of
//! accepted settings, or refused with every mistake reported.
//!
//! Input: a TOML file, then a line `---`, then the environment with one `NAME=value` per line.

#![no_main]

use std::{
    collections::{BTreeSet, HashSet},
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};
use wsbalancer::{
    config::{Config, DiscoverySettings, Layers, Problems, ServiceSettings, layers::Problem},
    domain::balance::backend::Transport,
    net::dns::DnsSource,
};

const PREFIX: &str = "WSBALANCER__";

const ROUTE_KEYS: [&str; 6] =
    ["host", "path_prefix", "methods", "strip_prefix", "replace_path", "service"];

static KNOWN_KEYS: LazyLock<BTreeSet<String>> =
    LazyLock::new(|| Layers::defaults().0.into_keys().collect());

/// Collects the dotted keys that `table` sets, without the code under test.
fn collect_keys(prefix: &str, table: &Table, found: &mut BTreeSet<String>) {
    for (name, value) in table {
        collect_key(format!("{prefix}{name}"), value, found);
    }
}

fn collect_key(key: String, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) if table.is_empty() => {
            if !KNOWN_KEYS.iter().any(|known| known.starts_with(&format!("{key}."))) {
                found.insert(key);
            }
        }
        Value::Table(table) => collect_keys(&format!("{key}."), table, found),
        Value::Array(items) if matches!(items[..], [Value::Table(_), ..]) => {
            for (index, item) in items.iter().enumerate() {
                collect_key(format!("{key}.{index}"), item, found);
            }
        }
        _ => _ = found.insert(key),
    }
}

/// Returns whether `key` is allowed in a service's table or in a route.
fn is_in_table(key: &str) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    match parts[..] {
        ["services", _, "backends"] | ["services" | "routes"] => true,
        ["services", _, "discovery", "dns" | "srv"] => true,
        ["services", _, name] => KNOWN_KEYS.contains(&format!("balancer.{name}")),
        ["routes", _, name] => ROUTE_KEYS.contains(&name),
        _ => false,
    }
}

/// Returns whether `key` is in the same table as `missing`, or is that table, or is below `missing`.
fn is_in_table_of(key: &str, missing: &str) -> bool {
    let table = missing.rsplit_once('.').map_or(missing, |(table, _)| table);
    let is_below = |of: &str| key.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'));
    key == table || is_below(table) || is_below(missing)
}

/// Returns the environment variable that sets `key`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fuzz_target!(|input: &str| {
    let (file, lines) = input.split_once("\n---\n").unwrap_or((input, ""));
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let environment = pairs.clone().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let table = file.parse::<Table>();

    let layers = match Layers::from_texts(Some(file), environment) {
        Ok(layers) => layers,
        Err(Problems(problems)) => {
            assert!(matches!(&problems[..], [problem] if problem.origin == "text"), "{problems:?}");
            return;
        }
    };
    let table = table.expect("accepted text is valid TOML");
    let problems = match Config::resolve(layers) {
        Ok(config) => {
            check_invariants(&config);
            Vec::new()
        }
        Err(Problems(problems)) => {
            assert!(!problems.is_empty());
            problems
        }
    };

    let mut from_variables: HashSet<String> = pairs
        .filter_map(|(name, _)| name.strip_prefix(PREFIX))
        .map(|name| name.to_lowercase().replace("__", "."))
        .collect();
    if lines.contains("WSBALANCER_SERVICES=") {
        from_variables.insert("services".to_owned());
    }
    let mut set_keys = BTreeSet::new();
    collect_keys("", &table, &mut set_keys);
    for problem in &problems {
        let message = problem.to_string();
        assert!(message.contains(&problem.key) && message.contains(&problem.origin), "{message}");
        assert!(!problem.advice.is_empty(), "{message}");
        // A missing key is set nowhere, but the reported origin sets another key of the same table.
        let is_missing = problem.value.is_none() && !problem.advice.starts_with("unknown key");
        let matches_problem =
            |key: &str| key == problem.key || is_missing && is_in_table_of(key, &problem.key);
        let origin_sets_it = match &problem.origin[..] {
            "text" => set_keys.iter().any(|key| matches_problem(key)),
            "default" => KNOWN_KEYS.iter().any(|key| matches_problem(key)),
            "nowhere" => true,
            name => from_variables.iter().any(|key| variable(key) == name && matches_problem(key)),
        };
        assert!(origin_sets_it, "{message}");
    }
    for key in set_keys.difference(&KNOWN_KEYS).filter(|key| !is_in_table(key)) {
        let prefix = format!("{key}.");
        let is_reported =
            |problem: &Problem| problem.key == *key || problem.key.starts_with(&prefix);
        assert!(problems.iter().any(is_reported), "unknown key {key:?} was accepted");
    }
});

/// Checks the invariants of accepted settings.
fn check_invariants(config: &Config) {
    assert!(!config.services.is_empty());
    for ServiceSettings { backends, discovery, balancer, .. } in &config.services {
        let addresses: HashSet<&str> =
            backends.iter().map(|backend| backend.address.as_str()).collect();
        assert!(addresses.is_empty() == discovery.is_some() && addresses.len() == backends.len());
        if let Some(DiscoverySettings { source, pod }) = discovery {
            assert!(pod.transport != Transport::Unix);
            let (DnsSource::Host { name, .. } | DnsSource::Srv(name)) = source;
            assert!(!name.as_str().is_empty());
            assert!(matches!(source, DnsSource::Host { .. }) || name.ip().is_none());
            assert!(pod.transport == Transport::Tcp || balancer.connect.tls.is_some());
        }
        for backend in backends.iter().filter(|backend| backend.transport != Transport::Unix) {
            let address = &backend.address;
            let (host, port) = address.rsplit_once(':').expect("host:port");
            assert!(!host.is_empty() && port.parse::<u16>().is_ok(), "{address}");
        }
        assert!((1..=1000).contains(&balancer.pool.replicas));
        assert!(balancer.pool.replicas == 1 || balancer.replicas_name.is_none());
        assert!(balancer.resolver.bounds.min <= balancer.resolver.bounds.max);
        assert!(balancer.pool.stale_after >= 3 * balancer.poll_interval);
    }
    assert!(config.services.len() == 1 || !config.router.is_empty());
    assert!(config.server.workers >= 1);
    assert!(config.server.drain_time <= config.server.shutdown_timeout);

    // `wsbalancer check` prints a file with the same settings. Lines that hide a value are comments.
    let printed = config.to_string();
    if printed.lines().any(|line| line.starts_with('#')) {
        return;
    }
    let values: Table = printed.parse().unwrap_or_else(|error| panic!("{error} in:\n{printed}"));
    let layers = Layers::from_texts(Some(&printed), []).expect("the printed configuration is TOML");
    let again = Config::resolve(layers).unwrap_or_else(|error| panic!("{error} in:\n{printed}"));
    assert_eq!(again.to_string().parse(), Ok(values));
}
