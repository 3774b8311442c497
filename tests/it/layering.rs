//! Imports point down: what is pure stays pure.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folder or file below `src`, and what nothing in it may name.
const RULES: [(&str, &[&str]); 7] = [
    (
        "domain",
        &[
            "crate::actors",
            "crate::app",
            "crate::config",
            "crate::demo",
            "crate::traffic",
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
            "crate::traffic",
            "crate::net",
            "awc",
            "use actix",
        ],
    ),
    ("net", &["crate::actors", "crate::app", "crate::config", "crate::demo", "crate::traffic"]),
    ("actors", &["crate::app", "crate::config", "crate::demo", "crate::traffic"]),
    ("traffic", &["crate::app", "crate::demo", "crate::admin"]),
    ("admin", &["crate::app", "crate::demo"]),
    ("config", &["crate::actors", "crate::app", "crate::demo", "crate::traffic"]),
];

#[test]
fn imports_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (folder, forbidden) in RULES {
        for path in files(&source.join(folder)) {
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
    let allowed = ["config/layers.rs", "demo/pod.rs"];
    for path in files(&source) {
        let name = path.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
        if !allowed.contains(&name.as_str()) {
            assert!(!fs::read_to_string(&path).unwrap().contains("env::var"), "{name}");
        }
    }
}

/// The files in `folder` and in the folders below it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
