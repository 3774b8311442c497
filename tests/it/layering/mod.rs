//! Imports point down: main, app, traffic and admin, services, actors, net, relay and domain.
//!
//! The test reads every file of `src` with `syn`, resolves every path in its code to the file that
//! defines what the path names, and compares the result with [`RULES`]. `#[cfg(test)]` code is free.

mod check;
mod imports;
mod planted;
mod tree;

use std::{fs, path::Path};

use self::{
    check::{Exception, Limits, Rule, check},
    tree::Files,
};

/// Every top-level module, from the top down.
const RULES: &[Rule] = &[
    Rule {
        module: "main",
        modules: &["admin", "app", "cli", "config", "demo", "telemetry::logging"],
        crates: &["actix_rt", "awc", "clap", "log", "tokio"],
    },
    Rule { module: "lib", modules: &[], crates: &[] },
    Rule { module: "cli", modules: &[], crates: &["clap", "humantime"] },
    Rule {
        module: "demo",
        modules: &["app", "config", "telemetry::logging"],
        crates: &[
            "actix",
            "actix_rt",
            "actix_web",
            "actix_web_actors",
            "actix_ws",
            "awc",
            "fastrand",
            "futures_util",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
        ],
    },
    Rule {
        module: "app",
        modules: &[
            "actors",
            "admin",
            "config",
            "domain",
            "net",
            "services",
            "telemetry",
            "traffic",
        ],
        crates: &[
            "actix",
            "actix_rt",
            "actix_server",
            "arc_swap",
            "fastrand",
            "humantime",
            "log",
            "socket2",
            "tokio",
        ],
    },
    Rule {
        module: "admin",
        modules: &[
            "actors",
            "config",
            "domain",
            "net",
            "services",
            "telemetry",
            "traffic::lifecycle",
            "traffic::state",
        ],
        crates: &[
            "actix",
            "actix_web",
            "base64",
            "futures_util",
            "humantime",
            "log",
            "ring",
            "serde",
            "serde_json",
            "subtle",
            "tokio",
        ],
    },
    Rule {
        module: "traffic",
        modules: &["actors", "config", "domain", "net", "relay", "services", "telemetry"],
        crates: &[
            "actix",
            "actix_codec",
            "actix_http",
            "actix_rt",
            "actix_service",
            "arc_swap",
            "awc",
            "bytes",
            "fastrand",
            "futures_util",
            "hyper",
            "hyper_util",
            "ipnet",
            "log",
            "thiserror",
            "tokio",
            "tokio_rustls",
        ],
    },
    Rule {
        module: "services",
        modules: &["actors", "config", "domain", "net"],
        crates: &["serde", "thiserror"],
    },
    Rule {
        module: "actors",
        modules: &["domain", "net", "relay", "telemetry::counters"],
        crates: &[
            "actix",
            "actix_rt",
            "fastrand",
            "futures_util",
            "humantime",
            "hyper",
            "hyper_util",
            "log",
            "serde",
            "thiserror",
            "tokio",
        ],
    },
    // Read by app, admin, traffic and services.
    Rule {
        module: "config",
        modules: &["domain", "net", "relay", "telemetry::logging"],
        crates: &[
            "actix_http",
            "arc_swap",
            "config",
            "humantime",
            "ipnet",
            "log",
            "notify",
            "ring",
            "serde",
            "serde_json",
            "strsim",
            "subtle",
            "thiserror",
            "tokio",
            "tokio_rustls",
        ],
    },
    Rule {
        module: "net",
        modules: &["domain", "relay"],
        crates: &[
            "actix_http",
            "actix_service",
            "actix_tls",
            "awc",
            "bytes",
            "futures_util",
            "hickory_resolver",
            "listenfd",
            "log",
            "ppp",
            "rustls_native_certs",
            "socket2",
            "thiserror",
            "tokio",
            "tokio_rustls",
        ],
    },
    // Neither HTTP nor actors.
    Rule {
        module: "relay",
        modules: &["domain::session", "token_bucket"],
        crates: &["bytes", "fastrand", "tokio"],
    },
    // No I/O and no clock.
    Rule {
        module: "domain",
        modules: &["token_bucket"],
        crates: &[
            "base64",
            "fastrand",
            "log",
            "ring",
            "serde",
            "serde_json",
            "subtle",
            "thiserror",
        ],
    },
    Rule { module: "token_bucket", modules: &[], crates: &[] },
    Rule {
        module: "telemetry",
        modules: &[],
        crates: &["env_logger", "humantime", "log", "serde", "serde_json"],
    },
];

/// Imports and long files that are still to be removed.
const EXCEPTIONS: &[Exception] = &[];

const LIMITS: Limits = Limits { files_in_a_folder: 15, lines_in_a_file: 500 };

/// The only files that read the environment.
const ENVIRONMENT: [&str; 2] = ["config/layers.rs", "demo/pod.rs"];

#[test]
fn imports_point_down_and_form_no_loop() {
    let crates = dependencies();
    let crates: Vec<_> = crates.iter().map(String::as_str).collect();
    let failures = check(&sources(), RULES, EXCEPTIONS, &crates, &LIMITS);
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

#[test]
fn the_environment_is_read_in_few_places() {
    for (file, text) in sources() {
        if !ENVIRONMENT.contains(&file.as_str()) {
            assert!(!text.contains("env::var"), "src/{file}");
        }
    }
}

fn sources() -> Files {
    fn add(files: &mut Files, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() {
                add(files, &path, &format!("{prefix}{name}/"));
            } else if name.ends_with(".rs") {
                files.insert(format!("{prefix}{name}"), fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut files = Files::new();
    add(&mut files, &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "");
    files
}

/// Returns the names by which code calls the dependencies of Cargo.toml.
fn dependencies() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(path).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("a section [dependencies]");
    let lines = section.split("\n[").next().unwrap().lines();
    let names = lines.filter_map(|line| line.split_once(" = "));
    names.map(|(name, _)| name.trim().replace('-', "_")).collect()
}
