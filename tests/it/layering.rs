//! Imports point down: what is pure stays pure.

use std::{fs, path::Path};

/// Folder or file below `src`, and what nothing in it may name.
const RULES: [(&str, &[&str]); 6] = [
    (
        "domain",
        &[
            "crate::actors",
            "crate::app",
            "crate::config",
            "crate::demo",
            "crate::http",
            "crate::net",
            "crate::relay",
            "actix",
            "tokio",
            "awc",
        ],
    ),
    (
        "relay",
        &[
            "crate::actors",
            "crate::app",
            "crate::config",
            "crate::demo",
            "crate::domain",
            "crate::http",
            "crate::net",
            "awc",
            "use actix",
        ],
    ),
    ("net", &["crate::actors", "crate::app", "crate::config", "crate::demo", "crate::http"]),
    ("actors", &["crate::app", "crate::config", "crate::demo", "crate::http"]),
    ("http", &["crate::app", "crate::demo"]),
    ("config", &["crate::actors", "crate::app", "crate::demo", "crate::http", "crate::relay"]),
];

#[test]
fn imports_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (folder, forbidden) in RULES {
        for file in fs::read_dir(source.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for name in forbidden {
                    assert!(!line.contains(name), "{}: {line}", path.display());
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 15, "only {checked} files found");
}

#[test]
fn the_environment_is_read_in_few_places() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed = ["config/load.rs", "demo/pod.rs"];
    for folder in ["", "actors", "config", "demo", "domain", "http", "net", "relay", "telemetry"] {
        for file in fs::read_dir(source.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
            if path.is_file() && !allowed.contains(&name.as_str()) {
                assert!(!fs::read_to_string(&path).unwrap().contains("env::var"), "{name}");
            }
        }
    }
}
