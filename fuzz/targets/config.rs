//! Settings from any file and any environment: read, or refused with every mistake named.
//!
//! Input: a TOML file, then after a line `---` the environment, one `NAME=value` a line.

#![no_main]

use std::{
    collections::{BTreeSet, HashSet},
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use toml::{Table, Value};
use wsbalancer::config::{Config, Layers, Problems};

const PREFIX: &str = "WSBALANCER__";

static KNOWN: LazyLock<BTreeSet<String>> =
    LazyLock::new(|| Layers::defaults().0.into_keys().collect());

/// The dotted keys that `table` sets, read past the crate under test.
fn keys(prefix: &str, table: &Table, found: &mut BTreeSet<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(table) => keys(&format!("{key}."), table, found),
            _ => _ = found.insert(key),
        }
    }
}

/// The variable that sets `key`.
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
    let table = table.expect("what is no TOML is refused");
    let problems = match Config::resolve(layers) {
        Ok(config) => {
            check(&config);
            Vec::new()
        }
        Err(Problems(problems)) => {
            assert!(!problems.is_empty());
            problems
        }
    };

    let mut variables: HashSet<String> = pairs
        .filter_map(|(name, _)| name.strip_prefix(PREFIX))
        .map(|name| variable(&name.to_lowercase().replace("__", ".")))
        .collect();
    if lines.contains("WSBALANCER_SERVICES=") {
        variables.insert(variable("services"));
    }
    let mut set = BTreeSet::new();
    keys("", &table, &mut set);
    for problem in &problems {
        let shown = problem.to_string();
        assert!(shown.contains(&problem.key) && shown.contains(&problem.origin), "{shown}");
        assert!(!problem.advice.is_empty(), "{shown}");
        let is_there = match &problem.origin[..] {
            "text" => set.contains(&problem.key),
            "default" => KNOWN.contains(&problem.key),
            name => name == variable(&problem.key) && variables.contains(name),
        };
        assert!(is_there, "{shown}");
    }
    for key in set.difference(&KNOWN) {
        assert!(problems.iter().any(|problem| problem.key == *key), "{key:?} passed in silence");
    }
});

/// What holds of all settings that are accepted.
fn check(config: &Config) {
    let addresses: HashSet<&str> =
        config.backends.iter().map(|backend| backend.address.as_str()).collect();
    assert!(!addresses.is_empty() && addresses.len() == config.backends.len());
    for address in addresses {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        assert!(!host.is_empty() && port.parse::<u16>().is_ok(), "{address}");
    }
    assert!(config.server.workers >= 1);
    assert!((1..=1000).contains(&config.balancer.replicas));
    assert!(config.balancer.stale_after >= 3 * config.balancer.poll_interval);

    // What `wsbalancer check` prints is a file that says the same.
    let printed = config.to_string();
    let values: Table = printed.parse().unwrap_or_else(|error| panic!("{error} in\n{printed}"));
    let layers = Layers::from_texts(Some(&printed), []).expect("it is TOML");
    let again = Config::resolve(layers).unwrap_or_else(|error| panic!("{error} of\n{printed}"));
    assert_eq!(again.to_string().parse(), Ok(values));
}
